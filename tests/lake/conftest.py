"""Lake tests: real Delta tables in tmp_path, read back by DuckDB (an engine that did not write them)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from storage_engine.client.store import Store
from storage_engine.connection import wrap
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.lake.duck import connect_delta
from tests.lake.aging import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """A store whose time the test moves, and that cleans only when it is told to. Other modules define their own."""
    with wrap(EmbeddedBackend.open(tmp_path / "store", maintenance=False, now_ms=clock, sync="none")) as opened:
        yield opened


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture(scope="session")
def duck() -> duckdb.DuckDBPyConnection:
    return connect_delta()


@pytest.fixture
def lake_rows(duck: duckdb.DuckDBPyConnection) -> Callable[..., list[tuple]]:
    """Rows of a Delta table as DuckDB sees them, sorted."""

    def read(path: Path, columns: str = "*", version: int | None = None) -> list[tuple]:
        at = "" if version is None else f", version={version}"
        return duck.execute(f"SELECT {columns} FROM delta_scan('{path}'{at}) ORDER BY ALL").fetchall()

    return read


@pytest.fixture
def changelog() -> Callable[..., pa.Table]:
    """Changelog rows as scan(metadata=True) returns them, from (change type, {column: value}) in log order."""

    def build(schema: pa.Schema, changes: list[tuple[str, dict]], first_offset: int = 0, partition: str = "") -> pa.Table:
        n = len(changes)
        lead = {
            "_change_type": pa.array([kind for kind, _ in changes], pa.string()),
            "_partition": pa.array([partition] * n, pa.string()),
            "_bucket": pa.array([0] * n, pa.int32()),
            "_log_offset": pa.array(range(first_offset, first_offset + n), pa.int64()),
            "_commit_timestamp": pa.array([1_700_000_000_000 + i for i in range(n)], pa.timestamp("ms", "UTC")),
        }
        rows = pa.Table.from_pylist([row for _, row in changes], schema=schema)
        return pa.table({**lead, **{name: rows[name] for name in schema.names}})

    return build
