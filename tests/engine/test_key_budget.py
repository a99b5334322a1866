"""Key budget: a store whose key indexes are more than memory may hold answers as one that holds them all, and says what has moved."""

from __future__ import annotations

import errno
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from storage_engine.client.store import Store
from storage_engine.connection import wrap
from storage_engine.engine import key_budget
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.engine.key_budget import FOLDER
from storage_engine.errors import RetriableError, WriteFailed
from storage_engine.log.disk import Disk
from tests.engine.test_key_snapshots import DDL, answers, change, crash
from tests.waiting import await_true

POLICY = CheckpointPolicy(commits=20, rows=200, rows_at_close=1)


def opened(directory: Path, bytes_max: int = 1, policy: CheckpointPolicy = POLICY) -> Store:
    return wrap(EmbeddedBackend.open(directory, checkpoints=policy, key_memory_bytes_max=bytes_max))


def backend_of(store: Store) -> EmbeddedBackend:
    assert isinstance(store.backend, EmbeddedBackend), "an embedded store"
    return store.backend


def n_spilled(store: Store) -> int:
    return len(backend_of(store).key_memory().spilled)


@pytest.fixture
def twin(tmp_path: Path):
    """The same table in a store with memory enough."""
    store = opened(tmp_path / "twin", 1 << 40)
    store.execute(DDL)
    yield store
    store.close()


@pytest.mark.parametrize("bytes_max", [1, 12_000])
def test_a_store_beyond_its_budget_answers_as_one_within_it(tmp_path: Path, twin: Store, bytes_max: int) -> None:
    store = opened(tmp_path / "s", bytes_max)
    store.execute(DDL)
    for seed in range(6):
        for each in (store, twin):
            change(each, seed)
        assert answers(store) == answers(twin)
    await_true(lambda: n_spilled(store) > 0)
    memory = backend_of(store).key_memory()
    assert memory.n_bytes_max == bytes_max
    assert all(bucket.table_id in (1, 2) for bucket in memory.spilled)

    for seed in range(6, 12):
        for each in (store, twin):
            change(each, seed)
        assert answers(store) == answers(twin)

    store.close()
    assert not (tmp_path / "s" / FOLDER).exists(), "a closed store leaves no index on disk"
    with opened(tmp_path / "s", bytes_max) as store:
        assert answers(store) == answers(twin)


def test_after_a_crash_what_had_moved_to_disk_is_cleared_and_rebuilt(tmp_path: Path, twin: Store) -> None:
    store = opened(tmp_path / "s")
    store.execute(DDL)
    for seed in range(4):
        change(store, seed)
        change(twin, seed)
        await_true(lambda: n_spilled(store) > 0)
    left = {path.name for path in (tmp_path / "s" / FOLDER).iterdir()}
    assert left
    crash(store)
    backend_of(store).core.budget.stop()

    again = opened(tmp_path / "s", 1 << 40)
    assert not (tmp_path / "s" / FOLDER).exists()
    assert answers(again) == answers(twin)
    again.close()


def test_indexes_of_dropped_tables_and_partitions_leave_the_disk(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        store.execute(DDL)
        change(store, 1)
        n_buckets = len(backend_of(store).core.buckets.built())
        await_true(lambda: n_spilled(store) == n_buckets)
        partition = store.table("k.days").partitions()[0]
        store.execute(f"ALTER TABLE k.days DROP PARTITION (ds = '{partition}')")
        assert n_spilled(store) == n_buckets - 1
        store.execute("DROP TABLE k.days")
        store.execute("DROP TABLE k.items")
        memory = backend_of(store).key_memory()
        assert (memory.n_bytes, memory.spilled) == (0, {})
        assert list((tmp_path / "s" / FOLDER).iterdir()) == []


def test_a_budget_that_is_never_reached_moves_nothing(twin: Store, tmp_path: Path) -> None:
    change(twin, 1)
    memory = backend_of(twin).key_memory()
    assert memory.spilled == {}
    assert 0 < memory.n_bytes == sum(bucket.kv.n_bytes for bucket in backend_of(twin).core.buckets.built() if bucket.kv)
    assert not (tmp_path / "twin" / FOLDER).exists()


def test_an_index_on_disk_that_fails_is_made_anew_from_the_log(tmp_path: Path, twin: Store, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(tmp_path / "s")
    store.execute(DDL)
    change(store, 1)
    change(twin, 1)
    buckets = backend_of(store).core.buckets
    await_true(lambda: n_spilled(store) == len(buckets.built()))
    backend_of(store).core.budget.stop()

    with caplog.at_level(logging.WARNING):
        for bucket in buckets.built():
            assert bucket.kv is not None, "built"
            bucket.kv._index._database.db.close()  # pyright: ignore[reportAttributeAccessIssue] - what a disk that fails looks like
        with pytest.raises(RetriableError, match="rebuilt from the log"):
            change(store, 2)
        for partition in ("d0", "d1", "d2"):
            with suppress(RetriableError):  # those that had no rows have no index
                store.table("k.days").upsert({"id": [1], "ds": [partition], "n": [1]})
        for shop in range(20):
            with suppress(RetriableError):
                store.table("k.items").lookup({"shop": [shop], "item": ["item1"]}, missing="null")
    assert "failed and is made anew" in caplog.text
    for each in (store, twin):
        each.table("k.days").upsert({"id": [1, 1, 1], "ds": ["d0", "d1", "d2"], "n": [1, 1, 1]})
        change(each, 2)
    assert answers(store) == answers(twin)
    store.close()


class _GatedDisk(Disk):
    """A real disk that holds the spill thread up where it begins, and whose next `n_failures` calls of fdatasync fail."""

    def __init__(self) -> None:
        self.let_go, self.is_held = threading.Event(), threading.Event()
        self.n_failures = 0

    def make_directory(self, path: Path) -> None:
        super().make_directory(path)
        if path.parent.name == FOLDER:
            self.hold()

    def hold(self) -> None:
        self.is_held.set()
        assert self.let_go.wait(30)

    def fdatasync(self, fd: int) -> None:
        if self.n_failures:
            self.n_failures -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fdatasync(fd)


@pytest.mark.parametrize("where", ["before the copy", "among the last changes"])
def test_a_store_that_goes_back_while_an_index_moves_keeps_nothing_of_what_it_took_back(
    tmp_path: Path, twin: Store, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    disk = _GatedDisk()
    store = wrap(EmbeddedBackend.open(tmp_path / "s", disk=disk, checkpoints=POLICY, key_memory_bytes_max=1))
    store.execute(DDL)
    for each in (store, twin):
        each.table("k.items").upsert({"shop": [1, 2], "item": ["a", "b"], "n": [1, 2]})
    assert disk.is_held.wait(30)

    def put(each: Store, number: int) -> None:
        each.table("k.items").upsert({"shop": [number % 5, 1], "item": [f"item{number}", "a"], "n": [number, number]})

    if where == "among the last changes":
        followed = key_budget.follow
        second = _GatedDisk()

        def held(changes, index, prefixes) -> None:
            second.hold()
            followed(changes, index, prefixes)

        for number in range(12):  # more than are followed while writers wait
            put(store, number)
            put(twin, number)
        monkeypatch.setattr(key_budget, "follow", held)
        disk.let_go.set()
        assert second.is_held.wait(30)
        gate = second.let_go
    else:
        gate = disk.let_go
    disk.n_failures = 2
    with pytest.raises(WriteFailed, match="taken back"):
        put(store, 100)
    for number in range(20, 23):
        put(store, number)
        put(twin, number)
    assert answers(store) == answers(twin)
    gate.set()

    await_true(lambda: n_spilled(store) == len(backend_of(store).core.buckets.built()))
    for each in (store, twin):
        put(each, 30)
        change(each, 3)
    assert answers(store) == answers(twin)
    store.close()
    with opened(tmp_path / "s", 1 << 40) as again:
        assert answers(again) == answers(twin)


def test_an_index_that_cannot_be_moved_stays_in_memory(
    tmp_path: Path, twin: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s").mkdir()
    store = opened(tmp_path / "s")
    (tmp_path / "s" / FOLDER).write_text("where a directory should be")
    with caplog.at_level(logging.WARNING):
        store.execute(DDL)
        change(store, 1)
        change(twin, 1)
        await_true(lambda: "stays in memory" in caplog.text)
    assert n_spilled(store) == 0
    change(store, 2)
    change(twin, 2)
    assert answers(store) == answers(twin)
    store.close()
