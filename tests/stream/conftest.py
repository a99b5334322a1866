"""Fixtures of the stream tests: a real embedded store, a session and a worker on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import storage_engine
from storage_engine import Store
from storage_engine.stream import SqlSession


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with storage_engine.connect((tmp_path / "store").as_uri(), sync="none") as opened:
        yield opened


@pytest.fixture
def session(store: Store) -> SqlSession:
    return SqlSession(store)
