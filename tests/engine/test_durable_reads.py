"""Readers see what is durable, and nobody ever sees a row that is taken back."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor, wait

from storage_engine import TableBucket
from storage_engine.errors import FlashlakeError, WriteFailed
from tests.engine.failing_disk import DDL, STORE, fail, ids_of, opened, put
from tests.torture.simulated_disk import Fault, SimulatedDisk


class _Gated(SimulatedDisk):
    """A disk whose fdatasync waits until it is let go."""

    def __init__(self) -> None:
        super().__init__(1)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def fdatasync(self, fd: int) -> None:
        self.entered.set()
        assert self.gate.wait(30)
        super().fdatasync(fd)


def test_readers_see_a_commit_only_when_it_is_durable_and_others_do_not_wait() -> None:
    disk = _Gated()
    store = opened(disk)
    store.execute(DDL)
    put(store, 1)
    store.table("s.log").append({"id": [1]})
    version = store.version()
    disk.gate.clear()
    disk.entered.clear()
    with ThreadPoolExecutor(4) as pool:
        writer = pool.submit(put, store, 2)
        assert disk.entered.wait(30)

        lookup = pool.submit(lambda: store.table("s.items").lookup({"id": [2]}, missing="null")["note"].to_pylist())
        read = pool.submit(ids_of, store)
        other_table = store.table("s.log").scan().read_all().num_rows
        seen = (store.version(), store.table("s.items").offsets(), [commit.version for commit in store.commits(version, 10)])
        assert not any(future.done() for future in (writer, lookup, read))
        disk.gate.set()

        assert writer.result(30) is None
        assert (lookup.result(30), read.result(30)) == (["note 2"], [1, 2])
    assert other_table == 1
    assert seen == (version, {TableBucket("", 0): 1}, [])
    assert store.version() == version + 1


def test_no_reader_ever_saw_a_row_that_was_taken_back() -> None:
    """Writers, readers and a disk whose syncs fail again and again: what was read is there at the end."""
    disk = SimulatedDisk(3)
    disk.make_directory(STORE)
    store = opened(disk)
    store.execute(DDL)
    acknowledged: list[int] = []
    absent: list[int] = []
    seen: set[int] = set()
    is_over = threading.Event()
    failures: list[BaseException] = []

    def write(worker: int) -> None:
        for number in range(60):
            key = worker * 1000 + number
            try:
                put(store, key)
            except WriteFailed as error:
                (absent if error.is_absent else seen_or_not).append(key)
            else:
                acknowledged.append(key)

    seen_or_not: list[int] = []

    def read() -> None:
        while not is_over.is_set():
            try:
                seen.update(ids_of(store))
                rows = store.table("s.items").scan(["id"]).read_all()
                seen.update(rows["id"].to_pylist())
            except FlashlakeError as error:
                failures.append(error)

    def break_disk() -> None:
        number = 0
        while not is_over.wait(0.002):
            number += 1
            disk.plan(Fault("error", 0, frozenset({"fdatasync"}), errno.EIO, 1 + number % 4))

    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(read), pool.submit(read), pool.submit(break_disk)]
        for writer in [pool.submit(write, worker) for worker in range(3)]:
            writer.result(120)
        is_over.set()
        for other in others:
            other.result(60)
    disk.clear_plans()
    put(store, 999_999)
    left = set(ids_of(store))

    assert not failures
    assert disk.counts.faults["EIO from fdatasync"] > 10
    assert absent
    assert set(acknowledged) <= left
    assert not left & set(absent)
    assert seen <= left
    disk.restart("lost")
    assert set(ids_of(opened(disk))) == left


class _FirstSyncHeld(SimulatedDisk):
    """The first fdatasync after `hold()` succeeds, and returns when it is let go."""

    def __init__(self) -> None:
        super().__init__(1)
        self.let_go = threading.Event()
        self.entered = threading.Event()
        self._holds = False

    def hold(self) -> None:
        self._holds = True

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        if self._holds:
            self._holds = False
            self.entered.set()
            assert self.let_go.wait(30)


def test_a_sync_under_way_when_another_writer_fails_acknowledges_nothing_that_is_taken_back() -> None:
    """One commit waits for its fdatasync while a second one's write fails and the store goes back."""
    disk = _FirstSyncHeld()
    store = opened(disk)
    store.execute(DDL)
    disk.hold()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(put, store, 1)
        assert disk.entered.wait(30)
        fail(disk, "write", times=2)  # the commit, and what mends the log
        fail(disk, "truncate")  # what takes the write back
        second = pool.submit(put, store, 2)
        wait([second], timeout=0.3)
        disk.let_go.set()
        outcomes = [future.exception(30) for future in (first, second)]

    assert isinstance(outcomes[1], WriteFailed)
    expected = [1] if outcomes[0] is None else []
    assert ids_of(store) == expected
    disk.clear_plans()
    put(store, 3)
    disk.restart("lost")
    assert ids_of(opened(disk)) == [*expected, 3]
