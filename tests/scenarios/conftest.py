"""Fixtures of the scenario tests: an embedded store with its session, worker and tierer. What runs in processes is `make scenarios`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import storage_engine
from query_engine import QueryEngine
from storage_engine import Store

Query = Callable[[str], pa.Table]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with storage_engine.connect((tmp_path / "store").as_uri(), sync="none") as opened:
        yield opened


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture
def query(store: Store, lake: Path, tmp_path: Path) -> Query:
    return QueryEngine(store, lake, spill_dir=tmp_path / "spill").query
