"""Functions: where a project's processes take the Python functions of SQL from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from flashlake.config import Config

if TYPE_CHECKING:
    from storage_engine.stream.functions.python_functions import FunctionSources


def function_sources(config: Config) -> FunctionSources:
    """Where processes of the project take Python functions from: any module while nobody has to say who they are, else named ones."""
    from storage_engine.stream.functions.python_functions import FunctionSources

    named = tuple(name for item in config.udf.modules.split(",") if (name := item.strip()))
    is_open = not named and config.server.authentication == "off"
    return FunctionSources(None if is_open else named, config.functions)


def use_functions(config: Config) -> None:
    """Let this process import Python functions: from the project's folder and what is installed, as far as the configuration allows."""
    from storage_engine.stream.functions.python_functions import configure

    if (folder := str(config.project)) not in sys.path:
        sys.path.insert(0, folder)
    configure(function_sources(config))
