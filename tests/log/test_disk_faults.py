"""A disk that is full or fails: the commit is refused by name, the others stay, and writing goes on where it can."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage_engine.errors import WriteFailed
from storage_engine.log.commit_log import CommitLog
from storage_engine.log.disk import Disk
from tests.log.commits import COMMITS, Commit, encoded, open_log, stored_commits
from tests.log.faulty_disk import FATES, Fate, FaultyDisk


def commit_each(log: CommitLog, commits: list[Commit]) -> Iterator[tuple[Commit, bool]]:
    """Try each commit once; yields it and whether it was acknowledged."""
    for value in commits:
        try:
            log.sync(log.append(encoded(value), value.record).end)
        except WriteFailed:
            yield value, False
        else:
            yield value, True


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("operation", ["write", "open_file", "fdatasync", "sync_directory"])
@pytest.mark.parametrize("unsynced", FATES)
def test_one_fault_refuses_one_commit_and_keeps_the_acknowledged(tmp_path: Path, operation: str, code: int, unsynced: Fate) -> None:
    for nth in itertools.count(1):
        root = tmp_path / f"{nth}"
        root.mkdir()
        disk = FaultyDisk(root, seed=nth)
        log, _ = open_log(disk, root)
        disk.calls.clear()
        disk.fail = {(operation, nth): code}

        outcomes = list(commit_each(log, COMMITS))
        acked = [value for value, is_acked in outcomes if is_acked]
        had_fault = disk.n_faults > 0
        if had_fault and operation != "fdatasync":
            assert len(acked) == len(COMMITS) - 1  # the next commits work again
        elif had_fault:
            refused = len(COMMITS) - len(acked)  # a sync that fails after a new file was begun, or before: all that follow
            assert refused >= 1
        log.close()

        found = stored_commits(disk.after_power_loss(unsynced, tmp_path / f"{nth}-after"))
        # a commit whose sync failed is in doubt until the log is mended; nothing was taken after it
        assert found == acked or (operation == "fdatasync" and found == COMMITS[: len(acked) + 1])
        if not had_fault:
            break
    assert nth > 1


@pytest.mark.parametrize("pair", [("write", "truncate"), ("fdatasync", "truncate"), ("write", "fdatasync"), ("sync_directory", "unlink")])
@pytest.mark.parametrize("unsynced", FATES)
def test_a_second_fault_while_taking_back_stops_writing_and_keeps_the_acknowledged(
    tmp_path: Path, pair: tuple[str, str], unsynced: Fate
) -> None:
    n_refused = 0
    for nth in itertools.count(1):
        root = tmp_path / f"{nth}"
        root.mkdir()
        disk = FaultyDisk(root, seed=nth)
        log, _ = open_log(disk, root)
        disk.calls.clear()
        disk.fail = {(pair[0], nth): errno.EIO} | {(pair[1], n): errno.EIO for n in range(1, 200) if pair[1] != "fdatasync" or n >= nth}

        outcomes = list(commit_each(log, COMMITS))
        acked = [value for value, is_acked in outcomes if is_acked]
        had_fault = disk.n_faults > 0
        n_refused += len(COMMITS) - len(acked)
        assert acked == COMMITS[: len(acked)]  # nothing is taken after the refused one
        log.close()

        found = stored_commits(disk.after_power_loss(unsynced, tmp_path / f"{nth}-after"))
        assert found in (acked, COMMITS[: len(acked) + 1])  # the refused one may have landed, since it could not be taken back
        if not had_fault or nth > 60:
            break
    assert n_refused > 5


def test_a_full_disk_refuses_commits_until_there_is_space(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log, _ = open_log(disk, tmp_path)
    disk.space = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) + 1000

    outcomes = list(commit_each(log, COMMITS))
    refused = [value for value, is_acked in outcomes if not is_acked]
    assert refused
    assert refused[0] != COMMITS[0]
    disk.space = None
    again = list(commit_each(log, refused))
    log.close()

    assert all(is_acked for _, is_acked in again)
    assert stored_commits(tmp_path) == [value for value, is_acked in outcomes if is_acked] + refused


def test_a_refused_write_says_what_where_and_what_next(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log, _ = open_log(disk, tmp_path)
    disk.fail = {("write", disk.calls["write"] + 1): errno.ENOSPC}

    with pytest.raises(WriteFailed, match="No space left") as refusal:
        log.append(encoded(COMMITS[0]), COMMITS[0].record)

    assert refusal.value.where.endswith("00000000000000000000.log")
    assert "nothing of this commit is visible" in refusal.value.next_step


def test_after_a_failed_sync_reads_go_on_and_writes_are_refused(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log, _ = open_log(disk, tmp_path)
    first = log.append(encoded(COMMITS[0]), b"{}")
    log.sync(first.end)
    disk.fail = {("fdatasync", disk.calls["fdatasync"] + 1): errno.EIO}
    second = log.append(encoded(COMMITS[1]), b"{}")

    with pytest.raises(WriteFailed, match="fdatasync failed"):
        log.sync(second.end)
    with pytest.raises(WriteFailed, match="takes no writes"):
        log.append(encoded(COMMITS[2]), b"{}")

    assert log.read(first.locations[0]).header.n_rows == len(COMMITS[0].frames[0][2])
    log.sync(first.end)  # what was durable stays so


@pytest.mark.parametrize("unsynced", FATES)
def test_a_mended_log_holds_what_was_in_doubt_and_takes_writes(tmp_path: Path, unsynced: Fate) -> None:
    disk = FaultyDisk(tmp_path)
    log, _ = open_log(disk, tmp_path)
    log.sync(log.append(encoded(COMMITS[0]), COMMITS[0].record).end)
    disk.fail = {("fdatasync", disk.calls["fdatasync"] + 1): errno.EIO}
    second = log.append(encoded(COMMITS[1]), COMMITS[1].record).end
    with pytest.raises(WriteFailed):
        log.sync(second)
    assert log.has_failed

    log.mend()

    assert (log.has_failed, log.durable) == (False, second)
    log.sync(log.append(encoded(COMMITS[2]), COMMITS[2].record).end)
    assert stored_commits(disk.after_power_loss(unsynced, tmp_path / "after")) == COMMITS[:3]


def test_a_log_recovered_up_to_a_position_gives_up_what_lies_behind_it(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log, _ = open_log(disk, tmp_path)
    first = log.append(encoded(COMMITS[0]), COMMITS[0].record).end
    log.sync(first)
    log.append(encoded(COMMITS[1]), COMMITS[1].record)

    again = CommitLog.open(disk, tmp_path)
    found = [commit.record for commit in again.recover(first)]
    again.sync(again.append(encoded(COMMITS[2]), COMMITS[2].record).end)

    assert found == [COMMITS[0].record]
    assert stored_commits(disk.after_power_loss("lost", tmp_path / "after")) == [COMMITS[0], COMMITS[2]]


def test_what_recovery_shows_after_a_failed_sync_and_a_kill_survives_power_loss(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log, _ = open_log(disk, tmp_path)
    log.sync(log.append(encoded(COMMITS[0]), COMMITS[0].record).end)
    disk.fail = {("fdatasync", disk.calls["fdatasync"] + 1): errno.EIO}
    with pytest.raises(WriteFailed):
        log.sync(log.append(encoded(COMMITS[1]), COMMITS[1].record).end)

    log, found = open_log(disk, tmp_path)  # as after a kill: the kernel's pages are all there, but some are not on the medium
    assert found == COMMITS[:2]
    log.sync(log.append(encoded(COMMITS[2]), COMMITS[2].record).end)

    assert stored_commits(disk.after_power_loss("lost", tmp_path / "after")) == COMMITS[:3]


class _SlowDisk(Disk):
    """A disk whose fdatasync waits until it is let go, and counts."""

    def __init__(self) -> None:
        self.n_syncs = 0
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.error: BaseException | None = None

    def fdatasync(self, fd: int) -> None:
        self.n_syncs += 1
        self.entered.set()
        assert self.gate.wait(30)
        if self.error:
            raise self.error


def _wait_in_threads(log: CommitLog, ends: list[int]) -> tuple[list[threading.Thread], list[BaseException | None]]:
    results: list[BaseException | None] = [None] * len(ends)

    def wait(number: int) -> None:
        try:
            log.sync(ends[number])  # type: ignore[arg-type]
        except WriteFailed as error:
            results[number] = error

    threads = [threading.Thread(target=wait, args=(number,), daemon=True) for number in range(len(ends))]
    for thread in threads:
        thread.start()
    return threads, results


@pytest.mark.parametrize("error", [None, OSError(errno.EIO, "Input/output error")])
def test_threads_that_wait_together_share_one_sync(tmp_path: Path, error: OSError | None) -> None:
    disk = _SlowDisk()
    disk.gate.set()
    log = CommitLog.open(disk, tmp_path)
    list(log.recover())
    disk.gate.clear()
    disk.entered.clear()
    disk.n_syncs = 0
    ends = [log.append(encoded(value), value.record).end for value in COMMITS]

    threads, results = _wait_in_threads(log, ends)
    assert disk.entered.wait(30)
    disk.error = error
    disk.gate.set()
    for thread in threads:
        thread.join(30)

    assert disk.n_syncs == 1
    assert [result is None for result in results] == [error is None] * len(ends)
    assert (log.durable == log.end) == (error is None)


@pytest.mark.parametrize("step", [lambda log, end: log.sync(end), lambda log, end: log.begin_next_file()], ids=["sync", "next file"])
def test_a_sync_that_is_interrupted_leaves_nobody_waiting(tmp_path: Path, step: Callable[[CommitLog, int], None]) -> None:
    disk = _SlowDisk()
    disk.gate.set()
    log = CommitLog.open(disk, tmp_path)
    list(log.recover())
    end = log.append(encoded(COMMITS[0]), COMMITS[0].record).end
    disk.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        step(log, end)
    disk.error = None

    (thread,), results = _wait_in_threads(log, [end])
    thread.join(10)

    assert not thread.is_alive()
    assert results == [None]
    assert log.durable == end


def test_a_commit_appended_while_a_sync_runs_waits_for_the_next_one(tmp_path: Path) -> None:
    disk = _SlowDisk()
    disk.gate.set()
    log = CommitLog.open(disk, tmp_path)
    list(log.recover())
    disk.gate.clear()
    disk.entered.clear()
    disk.n_syncs = 0
    first = log.append(encoded(COMMITS[0]), b"{}").end
    threads, _ = _wait_in_threads(log, [first])
    assert disk.entered.wait(30)

    second = log.append(encoded(COMMITS[1]), b"{}").end
    disk.gate.set()
    threads[0].join(30)
    assert (log.durable, disk.n_syncs) == (first, 1)

    log.sync(second)
    assert (log.durable, disk.n_syncs) == (second, 2)


def test_many_threads_append_and_sync_and_every_commit_is_found_once(tmp_path: Path) -> None:
    log, _ = open_log(Disk(), tmp_path)
    failures: list[BaseException] = []

    def write(worker: int) -> None:
        try:
            for number in range(40):
                appended = log.append(encoded(COMMITS[number % 8]), b"%d/%d" % (worker, number))
                log.sync(appended.end)
                assert log.durable >= appended.end
                for location in appended.locations:
                    assert log.read(location).header.position == location.position
        except (WriteFailed, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    log.close()

    records = [found.record for found in stored_commits(tmp_path)]
    assert sorted(records) == sorted(b"%d/%d" % (worker, number) for worker in range(4) for number in range(40))
    for worker in range(4):
        mine = [record for record in records if record.startswith(b"%d/" % worker)]
        assert mine == [b"%d/%d" % (worker, number) for number in range(40)]
