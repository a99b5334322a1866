"""What the cleaning tests share: a store with small files and a clock in the test's hands, and what a reader sees of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage_engine import TableBucket
from storage_engine.client.store import Store
from storage_engine.connection import wrap
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.cleaner import CleaningPolicy
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.log import commit_log
from storage_engine.log.disk import Disk

EAGER = CleaningPolicy(settled_ms=60_000, chunk_bytes=4096, bytes_min=1, compact_bytes_min=1)
NO_COPIES = CheckpointPolicy(rows=1 << 60, rows_at_close=1 << 60)
HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000
ONE = TableBucket("", 0)
DDL = """
CREATE TABLE c.pk (id BIGINT, v STRING, n BIGINT, PRIMARY KEY (id) NOT ENFORCED) WITH ('table.log.ttl' = '1h');
CREATE TABLE c.log (id BIGINT, v STRING) WITH ('table.log.ttl' = '1h');
"""


class Clock:
    """Milliseconds that only move when told."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms

    def pass_ms(self, ms: int) -> None:
        self.now_ms += ms


@contextmanager
def small_files(n_bytes: int) -> Iterator[None]:
    """Log files of about n_bytes, so that there are many."""
    opened = commit_log.CommitLog.open.__func__  # type: ignore[attr-defined]  # a class method
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            commit_log.CommitLog,
            "open",
            classmethod(lambda cls, disk, directory, **options: opened(cls, disk, directory, **{**options, "file_bytes_max": n_bytes})),
        )
        yield


def opened(
    directory: Path,
    clock: Clock,
    *,
    disk: Disk | None = None,
    policy: CleaningPolicy = EAGER,
    checkpoints: CheckpointPolicy = NO_COPIES,
    sync: str = "none",
) -> Store:
    """A store that cleans when told to."""
    return wrap(
        EmbeddedBackend.open(
            directory,
            disk=disk,
            now_ms=clock,
            cleaning=policy,
            checkpoints=checkpoints,
            maintenance=False,
            sync=sync,  # type: ignore[arg-type]
        )
    )


def backend_of(store: Store) -> EmbeddedBackend:
    assert isinstance(store.backend, EmbeddedBackend), "an embedded store"
    return store.backend


def log_files(directory: Path) -> list[Path]:
    return sorted((directory / "log").glob("*.log"))


def log_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in log_files(directory))


def overwrite(store: Store, clock: Clock, times: int, n_keys: int = 200) -> None:
    for n in range(times):
        clock.pass_ms(60_000)
        store.table("c.pk").upsert({"id": list(range(n_keys)), "v": [f"text {n} {i}" for i in range(n_keys)], "n": [n] * n_keys})


def append(store: Store, clock: Clock, times: int) -> None:
    for n in range(times):
        clock.pass_ms(60_000)
        store.table("c.log").append({"id": [n, n, n], "v": [f"a{n}", f"b{n}", None]})


def directory_of(store: Store) -> Path:
    return backend_of(store).directory


def rows(store: Store, name: str = "c.pk") -> list[dict[str, object]]:
    return sorted(store.table(name).read().to_pylist(), key=lambda row: row["id"])
