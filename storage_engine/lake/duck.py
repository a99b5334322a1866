"""DuckDB with the Delta extension, loaded by path from its package: no network, no home directory."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import duckdb

from storage_engine.errors import InvalidConfiguration


def extension_path() -> Path:
    """The extension file that fits this DuckDB. Errors: InvalidConfiguration when the package is missing or of another version."""
    found = importlib.util.find_spec("duckdb_extension_delta")
    roots = list(found.submodule_search_locations or []) if found else []
    path = Path(roots[0] if roots else ".") / "extensions" / f"v{duckdb.__version__}" / "delta.duckdb_extension"
    if not roots or not path.is_file():
        raise InvalidConfiguration(
            f"there is no Delta extension for DuckDB {duckdb.__version__}",
            where="duckdb_extension_delta",
            next_step=f"Install duckdb-extension-delta=={duckdb.__version__}; the two versions must be equal.",
        )
    return path


def scan_sql(path: Path, delta_version: int) -> str:
    """A DuckDB table function call that reads exactly this version of a Delta table."""
    return "delta_scan('" + str(path).replace("'", "''") + f"', version={delta_version})"


def load_delta(con: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Make delta_scan() available on a connection (once per database; repeating it is harmless)."""
    loaded = con.execute("SELECT loaded FROM duckdb_extensions() WHERE extension_name = 'delta'").fetchone()
    if loaded is None or not loaded[0]:
        con.load_extension(str(extension_path()))
    con.execute("SET GLOBAL TimeZone = 'UTC'")  # a cursor inherits global settings only
    return con


def connect_delta() -> duckdb.DuckDBPyConnection:
    """A new in-memory DuckDB that reads Delta tables and never asks the network for an extension."""
    return load_delta(duckdb.connect(config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}))
