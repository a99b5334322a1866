"""Fixtures of the cleaning tests: a store with small files, two tables and a clock in the test's hands. Other modules define their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_engine.client.store import Store
from storage_engine.engine.fsck import check_store
from tests.engine.cleaning import DDL, Clock, opened, small_files


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with small_files(20_000):
        store = opened(tmp_path / "s", clock)
        store.execute(DDL)
        yield store
        store.close()
        assert check_store(tmp_path / "s", keys=True).findings == []
