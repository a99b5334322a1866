"""Partitions in time: created in advance, dropped past keeping, never written to and lost later; whatever kills the process in between."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage_engine.api import CommitRequest, WriteId, WriteOp
from storage_engine.client.store import Store
from storage_engine.connection import wrap
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.errors import InvalidPartition, TooManyPartitions

DAY_MS = 24 * 3600 * 1000
AUTO = "'table.auto-partition.enabled' = 'true', 'table.auto-partition.time-zone' = 'UTC', 'table.auto-partition.num-retention' = '2'"


class ManualClock:
    """Milliseconds since 1970, moved by hand."""

    def __init__(self, at: datetime = datetime(2024, 2, 27, 12, tzinfo=UTC)) -> None:
        self.now_ms = int(at.timestamp() * 1000)

    def __call__(self) -> int:
        return self.now_ms

    def pass_days(self, days: float) -> None:
        self.now_ms += int(days * DAY_MS)


def opened(directory: Path, clock: ManualClock, **options) -> Store:
    return wrap(EmbeddedBackend.open(directory, sync="none", now_ms=clock, maintenance=False, **options))


def maintain(store: Store, clock: ManualClock) -> None:
    assert isinstance(store.backend, EmbeddedBackend)
    store.backend.maintenance.run_once(clock())


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock):
    with opened(tmp_path / "s", clock) as store:
        yield store


def log_table(store: Store, options: str = AUTO, name: str = "a.t") -> None:
    store.execute(f"CREATE TABLE {name} (x BIGINT, ds STRING) PARTITIONED BY (ds) WITH ({options})")


def test_partitions_are_there_from_the_start_and_follow_the_clock(store, clock):
    log_table(store)
    assert store.table("a.t").partitions() == ["20240227", "20240228"]

    seen = []
    for _ in range(4):
        clock.pass_days(1)
        maintain(store, clock)
        seen.append(store.table("a.t").partitions())

    assert seen == [
        ["20240227", "20240228", "20240229"],
        ["20240227", "20240228", "20240229", "20240301"],
        ["20240228", "20240229", "20240301", "20240302"],
        ["20240229", "20240301", "20240302", "20240303"],
    ]


def test_a_store_that_slept_for_months_catches_up_at_once_and_a_second_run_changes_nothing(store, clock):
    log_table(store)
    store.table("a.t").append({"x": [1], "ds": ["20240227"]})
    clock.pass_days(100)

    maintain(store, clock)
    version = store.version()
    maintain(store, clock)

    assert store.table("a.t").partitions() == ["20240606", "20240607"]
    assert store.table("a.t").scan().read_all().num_rows == 0
    assert store.version() == version


def test_one_table_at_its_bound_does_not_keep_the_others_from_their_partitions(tmp_path, clock):
    with opened(tmp_path / "s", clock, partitions_max=2) as store:
        log_table(store, AUTO.replace("'2'", "'-1'"), "a.full")
        log_table(store, AUTO.replace("'2'", "'0'"), "a.turning")
        clock.pass_days(1)

        with pytest.raises(TooManyPartitions, match=r"a\.full has 2 partitions, 2 are allowed"):
            maintain(store, clock)

        assert store.table("a.full").partitions() == ["20240227", "20240228"]
        assert store.table("a.turning").partitions() == ["20240228", "20240229"]


def test_rows_that_come_too_late_are_refused_and_nothing_of_their_write_stays(store, clock):
    log_table(store)
    store.table("a.t").append({"x": [1], "ds": ["20240225"]})

    with pytest.raises(InvalidPartition, match=r"partition 20240224 of a\.t is past keeping: 2 partitions before the present day"):
        store.table("a.t").append({"x": [2, 3], "ds": ["20240227", "20240224"]})

    assert store.table("a.t").scan().read_all()["x"].to_pylist() == [1]


def test_a_partition_past_keeping_takes_no_row_even_before_it_is_dropped(store, clock):
    log_table(store)
    store.table("a.t").append({"x": [1], "ds": ["20240225"]})
    clock.pass_days(1)  # the task has not run yet

    with pytest.raises(InvalidPartition, match=r"20240225 of a\.t is past keeping"):
        store.table("a.t").append({"x": [2], "ds": ["20240225"]})


def test_late_rows_are_dropped_and_counted_once_where_the_table_says_so(tmp_path, clock):
    store = opened(tmp_path / "s", clock)
    log_table(store, AUTO + ", 'table.auto-partition.late-rows' = 'drop'")
    rows = store.table("a.t").as_rows({"x": [1, 2, 3], "ds": ["20240227", "20240101", "20240101"]})
    request = CommitRequest((WriteOp("a.t", "append", rows),), (), WriteId("w", 1))

    first, again = store.backend.commit(request), store.backend.commit(request)
    only_late = store.table("a.t").append({"x": [9], "ds": ["20231231"]})
    store.close()
    store = opened(tmp_path / "s", clock)
    clock.pass_days(9)
    maintain(store, clock)

    assert (first.n_late_rows, again.is_duplicate, only_late.n_late_rows) == (2, True, 1)
    assert store.backend.late_rows("a.t") == 3
    store.execute("DROP TABLE a.t")
    log_table(store)
    assert store.backend.late_rows("a.t") == 0
    store.close()


def test_late_upserts_and_deletes_leave_the_rows_of_kept_partitions_alone(store, clock):
    store.execute(
        f"CREATE TABLE a.pk (id BIGINT, ds STRING, n BIGINT, PRIMARY KEY (id, ds) NOT ENFORCED) PARTITIONED BY (ds) WITH ({AUTO}, "
        "'table.auto-partition.late-rows' = 'drop')"
    )
    table = store.table("a.pk")
    table.upsert({"id": [1, 1], "ds": ["20240227", "20240101"], "n": [1, 2]})
    table.delete({"id": [1], "ds": ["20240101"]})

    assert table.read().to_pylist() == [{"id": 1, "ds": "20240227", "n": 1}]
    assert store.backend.late_rows("a.pk") == 2


def test_a_partition_name_that_is_no_period_is_refused_when_auto_partition_is_on(store):
    log_table(store)

    for name in ("2024-02-27", "20240230", "x"):
        with pytest.raises(InvalidPartition, match=f"'{name}' does not name a day .*named by yyyyMMdd"):
            store.table("a.t").append({"x": [1], "ds": [name]})
        with pytest.raises(InvalidPartition, match=f"'{name}' does not name a day"):
            store.execute(f"ALTER TABLE a.t ADD PARTITION (ds = '{name}')")


def test_the_number_of_partitions_is_bounded_over_rows_statements_and_creation(tmp_path, clock):
    with opened(tmp_path / "s", clock, partitions_max=3) as store:
        store.execute("CREATE TABLE a.t (x BIGINT, ds STRING) PARTITIONED BY (ds)")
        store.table("a.t").append({"x": [1, 2], "ds": ["a", "b"]})

        with pytest.raises(TooManyPartitions, match=r"a\.t has 2 partitions, 3 are allowed"):
            store.table("a.t").append({"x": [1, 2], "ds": ["c", "d"]})
        store.execute("ALTER TABLE a.t ADD PARTITION (ds = 'c')")
        with pytest.raises(TooManyPartitions):
            store.execute("ALTER TABLE a.t ADD PARTITION (ds = 'd')")
        with pytest.raises(TooManyPartitions):
            log_table(store, AUTO + ", 'table.auto-partition.num-precreate' = '4'", "a.u")

        assert store.table("a.t").partitions() == ["a", "b", "c"]
        assert store.tables() == ["a.t"]


def test_retention_can_be_changed_on_a_live_table(store, clock):
    log_table(store, AUTO.replace("'2'", "'-1'"))
    store.table("a.t").append({"x": [1], "ds": ["20200101"]})
    maintain(store, clock)
    assert "20200101" in store.table("a.t").partitions()

    store.execute("ALTER TABLE a.t SET ('table.auto-partition.num-retention' = '3')")
    maintain(store, clock)

    assert "20200101" not in store.table("a.t").partitions()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.engine.test_partitions import ManualClock, maintain, opened
from storage_engine.log.disk import Disk

class DiesAtSync(Disk):
    left = int(sys.argv[2])
    def fdatasync(self, fd):
        DiesAtSync.left -= 1
        if DiesAtSync.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().fdatasync(fd)

clock = ManualClock()
clock.pass_days(5)
from storage_engine.connection import wrap
from storage_engine.engine.embedded import EmbeddedBackend
store = wrap(EmbeddedBackend.open(Path(sys.argv[1]), disk=DiesAtSync(), now_ms=clock, maintenance=False))
maintain(store, clock)
print("done")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_at_any_sync_of_the_task_leaves_each_table_before_or_after_it_and_the_next_run_finishes(tmp_path, clock):
    n_syncs = 0
    finished = False
    while not finished:
        n_syncs += 1
        directory = tmp_path / f"s{n_syncs}"
        with opened(directory, ManualClock()) as store:
            for name in ("a.t", "a.u", "a.v"):
                log_table(store, AUTO, name)
                store.table(name).append({"x": [1], "ds": ["20240227"]})
        before, after = ["20240227", "20240228"], ["20240303", "20240304"]

        root = str(Path(__file__).resolve().parents[2])
        run = subprocess.run(
            [sys.executable, "-c", KILLED, str(directory), str(n_syncs), root], capture_output=True, text=True, check=False
        )
        finished = "done" in run.stdout
        assert run.returncode == -9, run.stderr
        later = ManualClock()
        later.pass_days(5)
        with opened(directory, later) as store:
            left = [store.table(name).partitions() for name in ("a.t", "a.u", "a.v")]
            maintain(store, later)
            finally_there = [store.table(name).partitions() for name in ("a.t", "a.u", "a.v")]

        assert all(found in (before, after) for found in left)
        assert finally_there == [after] * 3
    assert n_syncs > 3


def test_a_hundred_tables_with_nothing_due_cost_a_moment_and_no_commit(store, clock):
    for n in range(100):
        log_table(store, AUTO, f"a.t{n}")
    version = store.version()
    begun = datetime.now(UTC)
    for _ in range(10):
        maintain(store, clock)

    assert store.version() == version
    assert datetime.now(UTC) - begun < timedelta(seconds=1)
