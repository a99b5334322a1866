"""Power is cut at every sync, with the unsynced bytes whole, lost or torn: acknowledged commits stay, whole and once."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path

import pytest

from storage_engine.log.disk import Disk
from tests.log.commits import COMMITS, Commit, acknowledge, encoded, open_log, stored_commits
from tests.log.faulty_disk import FATES, Fate, FaultyDisk, PowerLost


def commit_until_power_loss(disk: FaultyDisk, directory: Path, commits: list[Commit], *, close: bool = True) -> int:
    n_acked = 0
    with suppress(PowerLost):
        log, _ = open_log(disk, directory)
        for _ in acknowledge(log, commits):
            n_acked += 1
        if close:
            log.close()
    return n_acked


@pytest.mark.parametrize(("unsynced", "seed"), [("whole", 0), ("lost", 0), *(("torn", seed) for seed in range(10))])
def test_power_loss_at_any_sync_keeps_each_commit_whole_or_not_at_all(tmp_path: Path, unsynced: Fate, seed: int) -> None:
    for nth in itertools.count(1):
        root = tmp_path / f"{nth}"
        root.mkdir()
        disk = FaultyDisk(root, crash_at_sync=nth, seed=seed * 1000 + nth)

        n_acked = commit_until_power_loss(disk, root, COMMITS)
        crashed = disk.crashed
        rows = stored_commits(disk.after_power_loss(unsynced, tmp_path / f"{nth}-after"))

        assert rows in (COMMITS[:n_acked], COMMITS[: n_acked + 1]), f"sync {nth}"
        if not crashed:
            break
    assert nth > len(COMMITS)


@pytest.mark.parametrize("first_fate", FATES)
@pytest.mark.parametrize("second_fate", FATES)
def test_a_second_power_loss_during_recovery_or_after_loses_nothing_either(tmp_path: Path, first_fate: Fate, second_fate: Fate) -> None:
    n_second_losses = 0
    for first in itertools.count(1):
        root = tmp_path / f"{first}"
        root.mkdir()
        disk = FaultyDisk(root, crash_at_sync=first, seed=first)
        n_first = commit_until_power_loss(disk, root, COMMITS[:5])
        if not disk.crashed:
            break
        for second in itertools.count(1):
            again = disk.after_power_loss(first_fate, tmp_path / f"{first}-{second}")
            disk_again = FaultyDisk(again, crash_at_sync=second, seed=second)
            found: list[Commit] = []
            n_second = 0
            with suppress(PowerLost):
                log, found = open_log(disk_again, again)
                assert found in (COMMITS[:n_first], COMMITS[: n_first + 1])
                for _ in acknowledge(log, COMMITS[len(found) : 7]):
                    n_second += 1
                log.close()
            crashed = disk_again.crashed
            n_second_losses += crashed

            rows = stored_commits(disk_again.after_power_loss(second_fate, tmp_path / f"{first}-{second}-after"))

            least = max(n_first, len(found) + n_second)  # what recovery showed was made durable first
            assert rows in (COMMITS[:least], COMMITS[: least + 1]), f"syncs {first} and {second}"
            if not crashed:
                break
    assert n_second_losses > 50


@pytest.mark.parametrize("unsynced", FATES)
def test_commits_not_synced_come_back_as_a_prefix(tmp_path: Path, unsynced: Fate) -> None:
    for seed in range(20):
        root = tmp_path / f"{seed}"
        root.mkdir()
        disk = FaultyDisk(root, seed=seed)
        log, _ = open_log(disk, root)
        for number, value in enumerate(COMMITS[:4]):
            end = log.append(encoded(value), value.record).end
            if number == 1:
                log.sync(end)

        rows = stored_commits(disk.after_power_loss(unsynced, tmp_path / f"{seed}-after"))

        assert rows in [COMMITS[:n] for n in range(2, 5)]


def test_what_recovery_shows_after_a_kill_survives_power_loss(tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path)
    log, _ = open_log(disk, tmp_path)
    log.append(encoded(COMMITS[0]), COMMITS[0].record)  # not synced; then the process is killed

    _, found = open_log(disk, tmp_path)

    assert found == COMMITS[:1]
    assert stored_commits(disk.after_power_loss("lost", tmp_path / "after")) == COMMITS[:1]


def test_after_power_loss_a_torn_tail_is_gone_for_good(tmp_path: Path) -> None:
    log, _ = open_log(Disk(), tmp_path)
    list(acknowledge(log, COMMITS[:2]))
    path = sorted((tmp_path / "log").iterdir())[-1]
    whole = path.read_bytes()
    path.write_bytes(whole + b"FLF1" + bytes(300))

    assert stored_commits(tmp_path) == COMMITS[:2]
    assert path.read_bytes()[: len(whole)] == whole
    assert len(path.read_bytes()) == len(whole) + 64  # the seal of the clean close
