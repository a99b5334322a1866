"""commands: one module per group of commands; each adds its parsers and runs them."""

from flashlake.cli.commands import assets, data, demo, jobs, services, sql, store, users

ALL = (services, sql, jobs, data, assets, store, users, demo)
"""In the order in which `flashlake --help` lists them."""

__all__ = ["ALL"]
