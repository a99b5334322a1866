"""A store whose disk fails goes on by itself: reads at once, writes when the disk does; what it says is absent, is absent."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from storage_engine import Store, WriteId, WriteOp
from storage_engine.api import CommitRequest
from storage_engine.connection import wrap
from storage_engine.engine.backup import restore
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.engine.fsck import check_store
from storage_engine.errors import StoreUnavailable, WriteFailed
from storage_engine.log.disk import Disk
from tests.engine.failing_disk import DDL, FOR_EVER, STORE, fail, ids_of, opened, put
from tests.torture.simulated_disk import CHANGES, Fault, PowerLost, SimulatedDisk


@pytest.fixture
def disk() -> SimulatedDisk:
    disk = SimulatedDisk(1)
    disk.make_directory(STORE)
    return disk


@pytest.fixture
def store(disk: SimulatedDisk) -> Store:
    store = opened(disk)
    store.execute(DDL)
    put(store, 1, 2)
    return store


def test_a_sync_that_fails_once_is_made_up_for_and_the_caller_notices_nothing(disk: SimulatedDisk, store: Store) -> None:
    fail(disk, "fdatasync")

    put(store, 3)

    assert disk.counts.faults == {"EIO from fdatasync": 1}
    disk.restart("lost")
    assert ids_of(opened(disk)) == [1, 2, 3]


def test_a_commit_whose_sync_fails_again_is_taken_back_and_said_to_be_absent(disk: SimulatedDisk, store: Store) -> None:
    fail(disk, "fdatasync", times=2)

    with pytest.raises(WriteFailed, match="taken back") as refusal:
        put(store, 3)

    assert refusal.value.is_absent
    assert (ids_of(store), store.version()) == ([1, 2], 5)
    put(store, 4)
    assert ids_of(store) == [1, 2, 4]
    disk.restart("whole")
    assert ids_of(opened(disk)) == [1, 2, 4]


def test_while_the_disk_fails_reads_go_on_and_writes_resume_by_themselves(disk: SimulatedDisk, store: Store) -> None:
    fail(disk, "fdatasync", times=FOR_EVER)
    with pytest.raises(WriteFailed) as first:
        put(store, 3)
    assert not first.value.is_absent  # what is on the disk could not be cut off durably
    for number in range(4, 8):
        with pytest.raises(WriteFailed) as later:
            put(store, number)
        assert later.value.is_absent
    assert (ids_of(store), store.table("s.items").count(), store.version()) == ([1, 2], 2, 5)

    disk.clear_plans()
    put(store, 8)

    assert ids_of(store) == [1, 2, 8]
    disk.restart("whole")
    assert ids_of(opened(disk)) == [1, 2, 8]


def test_pipelined_commits_that_a_restart_may_find_are_not_said_to_be_absent(disk: SimulatedDisk, store: Store) -> None:
    stream = store.backend.commit_stream(8)
    stream.send(CommitRequest((WriteOp("s.items", "upsert", pa.table({"id": [3], "note": ["first"]})),)))
    disk.plan(Fault("error", 0, frozenset({"fdatasync", "truncate"}), errno.EIO, FOR_EVER))
    with pytest.raises(WriteFailed):
        put(store, 4)

    with pytest.raises(WriteFailed) as refusal:
        stream.finish()

    assert not refusal.value.is_absent  # it was written before, and could not be cut off
    assert ids_of(store) == [1, 2]
    disk.restart("killed")
    assert ids_of(opened(disk)) == [1, 2, 3, 4]


def test_a_commit_of_unknown_outcome_is_applied_once_when_it_is_tried_again_after_a_restart(disk: SimulatedDisk, store: Store) -> None:
    rows = pa.table({"id": [7]})
    request = CommitRequest((WriteOp("s.log", "append", rows),), (), WriteId("w", 1))
    fail(disk, "fdatasync", times=FOR_EVER)
    fail(disk, "truncate", times=FOR_EVER)
    with pytest.raises(WriteFailed) as refusal:
        store.backend.commit(request)
    assert not refusal.value.is_absent
    assert store.table("s.log").count() == 0
    disk.restart("killed")  # now the commit is found

    again = opened(disk)
    result = again.backend.commit(request)

    assert result.is_duplicate
    assert again.table("s.log").count() == 1


def test_all_that_was_not_durable_is_taken_back_ids_and_partitions_and_tables_too(disk: SimulatedDisk, store: Store) -> None:
    fail(disk, "fdatasync", times=2)
    with pytest.raises(WriteFailed):
        store.table("s.ids").lookup({"name": ["ann"]}, insert_if_not_exists=True)
    fail(disk, "fdatasync", times=2)
    with pytest.raises(WriteFailed):
        store.table("s.days").upsert({"id": [1], "ds": ["d1"]})
    fail(disk, "fdatasync", times=2)
    with pytest.raises(WriteFailed):
        store.execute("CREATE TABLE s.more (a BIGINT)")

    assert store.table("s.days").partitions() == []
    assert "s.more" not in store.tables()
    assert store.table("s.ids").lookup({"name": ["bob"]}, insert_if_not_exists=True).to_pylist() == [{"name": "bob", "no": 1}]


def test_without_sync_nothing_acknowledged_is_taken_back(disk: SimulatedDisk) -> None:
    store = opened(disk, sync="none")
    store.execute(DDL)
    put(store, 1)
    fail(disk, "fdatasync", times=2)
    backend = store.backend
    assert isinstance(backend, EmbeddedBackend)
    with pytest.raises(WriteFailed):
        store.backup("/backup")

    assert ids_of(store) == [1]
    put(store, 2)
    assert ids_of(store) == [1, 2]
    store.close()
    disk.restart("lost")
    assert ids_of(opened(disk)) == [1, 2]


@pytest.mark.parametrize("operation", ["write", "truncate", "sync_directory", "rename", "open_file", "fdatasync"])
def test_copies_that_cannot_be_written_cost_no_commit(disk: SimulatedDisk, operation: str) -> None:
    policy = CheckpointPolicy(commits=1, rows=1, rows_at_close=1, is_inline=True)
    store = wrap(EmbeddedBackend.open(STORE, disk=disk, maintenance=False, checkpoints=policy))
    store.execute(DDL)
    disk.plan(Fault("error", 2, frozenset({operation}), errno.ENOSPC, 3))
    outcomes, refusals = [], []
    for number in range(6):
        try:
            put(store, number)
        except WriteFailed as error:
            refusals.append(error)
        else:
            outcomes.append(number)

    assert ids_of(store) == outcomes
    assert len(outcomes) >= 4
    assert all(refusal.is_absent for refusal in refusals)
    disk.restart("lost")
    assert ids_of(opened(disk)) == outcomes


def test_a_full_disk_refuses_writes_serves_reads_and_can_be_opened(disk: SimulatedDisk, store: Store) -> None:
    disk.space = disk.n_bytes
    with pytest.raises(WriteFailed, match="No space left") as refusal:
        put(store, 3)
    assert refusal.value.is_absent
    assert ids_of(store) == [1, 2]
    disk.restart("killed")
    disk.space = disk.n_bytes

    again = opened(disk)

    assert ids_of(again) == [1, 2]
    with pytest.raises(WriteFailed):
        put(again, 3)
    disk.clear_plans()
    put(again, 3)
    assert ids_of(again) == [1, 2, 3]


@pytest.mark.parametrize("operation", ["make_directory", "open_file", "write", "fdatasync", "truncate", "sync_directory", "list"])
def test_a_store_that_cannot_be_opened_says_so_and_opens_when_the_disk_works(operation: str) -> None:
    disk = SimulatedDisk(1)
    fail(disk, operation)

    with pytest.raises(StoreUnavailable, match="refused to open"):
        opened(disk)

    with opened(disk) as store:
        store.execute(DDL)
        put(store, 1)


def test_an_interrupted_sync_lets_the_next_one_through(disk: SimulatedDisk, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(fd: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(disk, "fdatasync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            put(store, 3)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(put, store, 4).result(30)
    assert ids_of(store) == [1, 2, 3, 4]


@pytest.mark.parametrize("nth", range(12))
def test_what_a_killed_start_made_survives_the_power_loss_after_the_next_start(nth: int) -> None:
    """The first process dies between making a file and syncing its directory; the second must not take the name for durable."""
    disk = SimulatedDisk(nth)
    disk.make_directory(Path("/data"))
    disk.sync_directory(Path("/"))
    disk.plan(Fault("cut", nth, frozenset(CHANGES)))
    with pytest.raises(PowerLost):
        opened(disk, directory=Path("/data/store"))
    disk.restart("killed")
    store = opened(disk, directory=Path("/data/store"))
    store.execute(DDL)
    put(store, 1)
    disk.restart("lost")

    assert ids_of(opened(disk, directory=Path("/data/store"))) == [1]


def test_a_backup_of_a_store_without_commits_can_be_restored(disk: SimulatedDisk) -> None:
    store = opened(disk)
    store.backup("/backup")

    restore(Path("/backup"), Path("/restored"), disk=disk)

    with opened(disk, directory=Path("/restored")) as again:
        assert (again.version(), again.tables()) == (0, [])


def test_a_backup_after_a_file_was_begun_for_a_commit_that_failed_can_be_restored(disk: SimulatedDisk) -> None:
    store = wrap(EmbeddedBackend.open(STORE, disk=disk, maintenance=False, log_file_bytes_max=4096))
    store.execute(DDL)
    n_files = 1
    for number in range(100):
        disk.plan(Fault("error", 1, frozenset({"write"}), errno.ENOSPC))  # the second write: the first, of a new file, is its header
        try:
            put(store, number)
        except WriteFailed:
            break
        disk.clear_plans()
    n_files = len(disk.list(STORE / "log"))
    assert n_files > 1
    expected = ids_of(store)

    store.backup("/backup")
    restore(Path("/backup"), Path("/restored"), disk=disk)

    assert ids_of(opened(disk, directory=Path("/restored"))) == expected


@pytest.mark.parametrize("seed", range(6))
def test_a_file_that_could_not_be_synced_when_it_was_begun_is_written_again_header_and_all(seed: int) -> None:
    """It could not be removed either; the process is restarted and uses it; then the power goes."""
    disk = SimulatedDisk(seed)
    disk.make_directory(STORE)
    disk.sync_directory(Path("/"))

    def small() -> Store:
        return wrap(EmbeddedBackend.open(STORE, disk=disk, maintenance=False, log_file_bytes_max=2048))

    store = small()
    store.execute(DDL)
    n_files = len(disk.list(STORE / "log"))
    written = []
    for number in range(100):
        disk.plan(Fault("error", 1, frozenset({"fdatasync"}), errno.EIO, FOR_EVER))  # the first one finishes the file before
        disk.plan(Fault("error", 0, frozenset({"unlink"}), errno.EIO, FOR_EVER))
        try:
            put(store, number)
        except WriteFailed:
            break
        disk.clear_plans()
        written.append(number)
    assert len(disk.list(STORE / "log")) > n_files
    disk.restart("killed")
    store = small()
    put(store, 1000)
    disk.restart("lost")

    assert ids_of(small()) == [*written, 1000]


def test_a_delete_that_finds_nothing_makes_no_partition(store: Store) -> None:
    gone = WriteOp("s.days", "delete", pa.table({"id": [1], "ds": ["d9"]}))
    more = WriteOp("s.log", "append", pa.table({"id": [1]}))

    store.commit((gone, more))

    assert store.table("s.days").partitions() == []


def test_keys_that_repeat_in_a_lookup_get_their_own_rows(store: Store) -> None:
    store.table("s.items").upsert({"id": [10, 11, 12], "note": ["ten", "eleven", "twelve"]})

    found = store.table("s.items").lookup({"id": [12, 10, 12]})

    assert found["note"].to_pylist() == ["twelve", "ten", "twelve"]


def test_new_keys_get_their_ids_in_the_order_in_which_they_were_asked_for(store: Store) -> None:
    names = ["d", "a", "d", "c", "b", "a", "e"]

    found = store.table("s.ids").lookup({"name": names}, insert_if_not_exists=True)

    assert found["no"].to_pylist() == [1, 2, 1, 3, 4, 2, 5]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 8 MiB."""
    import subprocess

    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_small_real_disk_that_fills_up_refuses_writes_serves_reads_and_takes_writes_again(small_disk: Path) -> None:
    store = opened(Disk(), directory=small_disk / "s")
    store.execute(DDL)
    (small_disk / "ballast").write_bytes(bytes(5 << 20))
    written: list[int] = []

    def fill() -> None:
        for number in range(1000):
            store.table("s.items").upsert({"id": [number], "note": ["x" * 100_000]})
            written.append(number)

    with pytest.raises(WriteFailed, match="No space left") as refusal:
        fill()
    assert refusal.value.is_absent
    assert 5 < len(written) < 40
    assert ids_of(store) == written
    for _ in range(3):
        with pytest.raises(WriteFailed):
            store.table("s.items").upsert({"id": [5000], "note": ["x" * 100_000]})

    (small_disk / "ballast").unlink()
    store.table("s.items").upsert({"id": [7000], "note": ["x" * 100_000]})

    assert ids_of(store) == [*written, 7000]
    store.close()
    assert check_store(small_disk / "s", keys=True).findings == []
    with opened(Disk(), directory=small_disk / "s") as again:
        assert ids_of(again) == [*written, 7000]
