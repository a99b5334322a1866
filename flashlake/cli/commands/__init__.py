"""commands: one module per group of commands; each adds its parsers and runs them."""

from flashlake.cli.commands import assets, data, demo, services, sql, store

ALL = (services, sql, data, assets, store, demo)
"""In the order in which `flashlake --help` lists them."""

__all__ = ["ALL"]
