"""Cleaning under attack: power is cut at any sync, the disk runs full or fails, the process is killed. No acknowledged row is lost,
none that was deleted comes back, and the next start and the next round go on.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from storage_engine import TableBucket
from storage_engine.client.store import Store
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.fsck import check_store
from storage_engine.engine.mover import Mover
from storage_engine.errors import WriteFailed
from tests.engine.cleaning import HOUR_MS, Clock, backend_of, log_bytes, opened, small_files
from tests.log.faulty_disk import FATES, Fate, FaultyDisk, PowerLost
from tests.waiting import let_pass

DDL = """
CREATE TABLE f.pk (id BIGINT, v STRING, PRIMARY KEY (id) NOT ENFORCED) WITH ('table.log.ttl' = '1h');
CREATE TABLE f.log (id BIGINT, v STRING) WITH ('table.log.ttl' = '3h');
"""
ONE = TableBucket("", 0)
EVERY = bool(os.environ.get("FLASHLAKE_CAMPAIGN"))
STRIDE = int(os.environ.get("FLASHLAKE_SYNC_STRIDE", "1" if EVERY else "97"))
COPIES = CheckpointPolicy(rows=1 << 60, rows_at_close=10)


def write(store: Store, clock: Clock, n: int) -> None:
    """Commit n: twelve rows of n, one of them under a key of its own, one key deleted, three rows appended."""
    clock.pass_ms(HOUR_MS // 4)
    store.table("f.pk").upsert({"id": [*range(12), 100 + n], "v": [f"{n}"] * 13})
    store.table("f.log").append({"id": [n] * 3, "v": ["x" * 20] * 3})


def require_commits(store: Store, n_acked: int) -> None:
    """Everything acknowledged is there, once; at most what was under way besides."""
    found = {row["id"]: row["v"] for row in store.table("f.pk").read().to_pylist()}
    newest = max((int(v) for v in found.values()), default=0)
    assert newest in (n_acked, n_acked + 1)
    assert found == {**{i: f"{newest}" for i in range(12) if newest}, **{100 + n: f"{n}" for n in range(1, newest + 1)}}
    assert store.table("f.pk").lookup({"id": list(range(12))}).num_rows == (12 if newest else 0)
    log = store.table("f.log")
    start, end = (log.offsets(which).get(ONE, 0) for which in ("earliest", "latest"))
    assert end // 3 in (n_acked, n_acked + 1)
    assert log.scan(metadata=True).read_all()["_log_offset"].to_pylist() == list(range(start, end))
    assert log.scan().read_all()["id"].to_pylist() == [1 + offset // 3 for offset in range(start, end)]


def run(disk: FaultyDisk, directory: Path, clock: Clock) -> int:
    """Write, clean, close and open again; the number of commits acknowledged before the power was cut."""
    n_acked = 0
    with suppress(PowerLost):
        for _ in range(2):
            store = opened(directory, clock, disk=disk, checkpoints=COPIES, sync="commit")
            if n_acked == 0:
                store.execute(DDL)
            for _ in range(6):
                write(store, clock, n_acked + 1)
                n_acked += 1
            backend_of(store).clean()
            write(store, clock, n_acked + 1)
            n_acked += 1
            store.close()
    return n_acked


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the machine is off for the checkpointer too
@pytest.mark.parametrize("unsynced", FATES)
def test_power_loss_at_any_sync_of_cleaning_loses_no_row_and_brings_none_back(tmp_path: Path, unsynced: Fate) -> None:
    first = FATES.index(unsynced) * STRIDE // 3 + 1
    n_cut = 0
    with small_files(4000):
        for nth in range(first, 10_000, STRIDE):
            root, clock = tmp_path / f"{nth}", Clock()
            root.mkdir()
            disk = FaultyDisk(root, crash_at_sync=nth, seed=nth)
            n_acked = run(disk, root / "s", clock)
            crashed = disk.crashed
            n_cut += crashed
            after = disk.after_power_loss(unsynced, tmp_path / f"{nth}-after") / "s"
            if not (after / "FORMAT").exists():
                continue
            assert check_store(after, keys=True).damages == []
            with opened(after, clock) as store:
                if {"f.pk", "f.log"} <= set(store.tables()):
                    require_commits(store, n_acked)
                    clock.pass_ms(HOUR_MS // 2)
                    backend_of(store).clean()
                    require_commits(store, n_acked)
            assert check_store(after, keys=True).findings == []
            if not crashed:
                break
    assert n_cut > 200 // STRIDE


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("operation", ["write", "fdatasync", "unlink", "sync_directory", "rename", "open_file"])
def test_a_fault_ends_the_round_and_loses_nothing(tmp_path: Path, operation: str, code: int) -> None:
    n_faults = 0
    with small_files(4000):
        for nth in range(1, 1000) if EVERY else (1, 4, 17, 60):
            root, clock = tmp_path / f"{nth}", Clock()
            root.mkdir()
            disk = FaultyDisk(root, seed=nth)
            store = opened(root / "s", clock, disk=disk, checkpoints=COPIES, sync="commit")
            store.execute(DDL)
            for n in range(1, 9):
                write(store, clock, n)
            disk.calls.clear()
            disk.fail = {(operation, nth): code}
            with suppress(WriteFailed):
                backend_of(store).clean()
            n_faults += disk.n_faults
            require_commits(store, 8)
            disk.fail = {}
            write(store, clock, 9)  # the store mends itself
            n_acked = 9
            backend_of(store).clean()
            require_commits(store, n_acked)
            with suppress(WriteFailed):
                store.close()
            assert check_store(root / "s", keys=True).damages == []
            with opened(root / "s", clock) as again:
                require_commits(again, n_acked)
                backend_of(again).clean()
                require_commits(again, n_acked)
            assert check_store(root / "s", keys=True).findings == []
            if not disk.n_faults:
                break
    assert n_faults >= 1


def test_a_disk_that_runs_full_during_cleaning_leaves_writers_and_readers_alone(tmp_path: Path) -> None:
    clock = Clock()
    disk = FaultyDisk(tmp_path)
    with small_files(4000):
        store = opened(tmp_path / "s", clock, disk=disk, checkpoints=COPIES, sync="commit")
        store.execute(DDL)
        for n in range(1, 31):
            write(store, clock, n)
        taken = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        disk.space = taken + 3000
        with pytest.raises(WriteFailed, match="No space left"):
            backend_of(store).clean()
        require_commits(store, 30)
        assert backend_of(store).cleaning().n_failures == 1

        disk.space = taken + 20_000
        write(store, clock, 31)
        require_commits(store, 31)
        disk.space = None
        backend_of(store).clean()

        require_commits(store, 31)
        assert log_bytes(tmp_path / "s") < taken / 2
        store.close()
    assert check_store(tmp_path / "s", keys=True).findings == []


CLEANING = """
import sys
from pathlib import Path
from tests.engine.cleaning import Clock, opened, backend_of, small_files, HOUR_MS
from tests.engine.test_cleaning_faults import write
clock = Clock()
with small_files(30_000):
    store = opened(Path(sys.argv[1]), clock, sync="none")
    clock.now_ms = max(clock.now_ms, store.backend.core.state.timestamp_ms)
    n = int(sys.argv[2])
    while True:
        n += 1
        write(store, clock, n)
        print(n, flush=True)
        if n % 3 == 0:
            backend_of(store).clean()
"""


@pytest.mark.crash
def test_a_kill_in_the_middle_of_cleaning_loses_no_row_and_brings_none_back(tmp_path: Path) -> None:
    chance = random.Random(int(os.environ.get("CRASH_SEED", "1")))
    clock, n_acked = Clock(), 0
    with opened(tmp_path / "s", clock) as store:
        store.execute(DDL)
    for _ in range(int(os.environ.get("CRASH_ROUNDS", "3"))):
        command = [sys.executable, "-c", CLEANING, str(tmp_path / "s"), str(n_acked)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        assert child.stdout is not None, "opened as a pipe"
        child.stdout.readline()
        let_pass(chance.uniform(0.01, 0.5))  # the moment of the kill is the input of this test
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().splitlines()
        child.wait()
        child.stdout.close()
        n_acked = max([n_acked + 1, *(int(line) for line in rest)])
        if chance.random() < 0.5:
            (tmp_path / "s" / "CHECKPOINT").unlink(missing_ok=True)
        assert check_store(tmp_path / "s", keys=True).damages == []
        with opened(tmp_path / "s", clock) as store:
            require_commits(store, n_acked)
            newest = store.table("f.log").offsets("latest")[ONE] // 3
            if len(store.table("f.pk").lookup({"id": [100 + newest]})) == 0:
                store.table("f.pk").upsert({"id": [*range(12), 100 + newest], "v": [f"{newest}"] * 13})
            elif len(store.table("f.pk").lookup({"id": [101 + newest]})):
                newest += 1
                store.table("f.log").append({"id": [newest] * 3, "v": ["x" * 20] * 3})
            n_acked = newest


@pytest.mark.parametrize("nth", range(1, 5))
def test_a_store_that_goes_back_in_the_middle_of_cleaning_ends_the_round_and_loses_nothing(tmp_path: Path, nth: int) -> None:
    """Before the nth write of cleaning, the sync of a commit fails, and that of its mending: the store goes on with another log."""
    clock, disk, steps = Clock(), FaultyDisk(tmp_path, seed=nth), itertools.count(1)
    writing = Mover.writing

    def with_a_failed_commit(mover: Mover) -> AbstractContextManager[None]:
        if next(steps) == nth:
            disk.fail = {("fdatasync", disk.calls["fdatasync"] + i): errno.EIO for i in (1, 2)}
            with pytest.raises(WriteFailed) as failure:
                store.table("f.log").append({"id": [9] * 3, "v": ["lost"] * 3})
            assert failure.value.is_absent
            disk.fail = {}
        return writing(mover)

    with small_files(30_000), pytest.MonkeyPatch.context() as patch:
        store = opened(tmp_path / "s", clock, disk=disk, checkpoints=COPIES, sync="commit")
        store.execute(DDL)
        for n in range(1, 9):
            write(store, clock, n)
        log = backend_of(store).core.log
        patch.setattr(Mover, "writing", with_a_failed_commit)
        backend_of(store).clean()
        assert next(steps) == nth + 1, "the round ended there"
        assert backend_of(store).core.log is not log, "the store went back"
        require_commits(store, 8)
        write(store, clock, 9)
        backend_of(store).clean()
        require_commits(store, 9)
        store.close()
        assert check_store(tmp_path / "s", keys=True).damages == []
        with opened(tmp_path / "s", clock) as again:
            require_commits(again, 9)
            backend_of(again).clean()
            require_commits(again, 9)
        assert check_store(tmp_path / "s", keys=True).findings == []
