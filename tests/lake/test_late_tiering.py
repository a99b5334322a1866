"""Tables whose log has expired when they come to the lake, or come back to it: the first round takes what the store still holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable

from storage_engine.api import Progress
from storage_engine.client.store import Store
from storage_engine.connection import wrap
from storage_engine.engine.snapshot import BATCH_ROWS
from storage_engine.errors import LakeChanged, OffsetOutOfRange
from storage_engine.lake import Limits, Tierer, find_snapshot, lake_read, table_path, tier_lag, union_read
from storage_engine.lake.history import LakeHistory
from storage_engine.lake.planning import plan_stop
from storage_engine.schema.descriptor import TableBucket
from tests.lake.aging import Clock
from tests.lake.test_crash import DeathError, DyingBackend

HOUR_MS = 3_600_000
KEYED = "CREATE TABLE d.t (k INT, v INT, PRIMARY KEY (k) NOT ENFORCED) WITH ('bucket.num' = '2', 'table.log.ttl' = '1h'{})"
IN_DAYS = (
    "CREATE TABLE d.t (k INT, day STRING, v INT, PRIMARY KEY (k, day) NOT ENFORCED) PARTITIONED BY (day) "
    "WITH ('table.log.ttl' = '1h', 'table.datalake.enabled' = 'true')"
)
LOG = "CREATE TABLE d.l (k INT) WITH ('table.log.ttl' = '1h'{})"
TIERED = ", 'table.datalake.enabled' = 'true'"
ON = "ALTER TABLE d.{} SET ('table.datalake.enabled' = 'true')"
OFF = "ALTER TABLE d.{} SET ('table.datalake.enabled' = 'false')"


def expire(store: Store, clock: Clock, name: str = "d.t") -> None:
    """The log of everything written so far goes; current rows stay."""
    clock.now_ms += 3 * HOUR_MS
    store.table(name).compact()
    assert store.table(name).offsets("earliest") == store.table(name).offsets()


def tier(store: Store, lake: Path, limits: Limits | None = None) -> None:
    with Tierer(store, lake, limits) as tierer:
        tierer.run_once(force=True)


def rows(table) -> list[tuple]:
    return sorted(tuple(row.values()) for row in table.to_pylist())


@pytest.fixture
def union(duck, store, lake) -> Callable[[str], list[tuple]]:
    return lambda name="d.t": rows(union_read(duck, store, lake, name))


# primary-key tables


@pytest.mark.parametrize("has_new_rows", [True, False])
def test_the_first_round_of_a_table_whose_changelog_has_expired_takes_its_current_rows(store, clock, lake, lake_rows, union, has_new_rows):
    store.execute(KEYED.format(""))
    table = store.table("d.t")
    table.upsert({"k": list(range(10)), "v": [0] * 10})
    table.upsert({"k": [3], "v": [1]})
    table.delete({"k": [4]})
    expire(store, clock)
    if has_new_rows:
        table.upsert({"k": [5, 100], "v": [2, 2]})
    store.execute(ON.format("t"))
    assert union() == rows(table.read())

    tier(store, lake, Limits(round_changes_max=3))
    expected = rows(table.read())
    assert lake_rows(table_path(lake, "d.t"), "k, v") == expected == union()
    assert tier_lag(store, "d.t")[0].n_rows == 0

    table.upsert({"k": [3, 200], "v": [3, 3]})
    table.delete({"k": [100]})
    assert union() == rows(table.read())
    tier(store, lake)
    assert lake_rows(table_path(lake, "d.t"), "k, v") == rows(table.read()) == union()


def test_rows_of_a_snapshot_lie_in_the_lake_with_their_places(store, clock, lake, lake_rows):
    store.execute(KEYED.format(""))
    table = store.table("d.t")
    table.upsert({"k": list(range(10)), "v": [0] * 10})
    before = rows(table.scan(["k"], metadata=True).read_all().select(["k", "_bucket", "_log_offset", "_commit_timestamp"]))
    expire(store, clock)
    store.execute(ON.format("t"))

    tier(store, lake)

    assert lake_rows(table_path(lake, "d.t"), 'k, "__bucket", "__offset", "__timestamp"') == before


def test_a_table_switched_off_while_its_log_expires_goes_on_from_its_current_rows(store, clock, lake, lake_rows, union):
    store.execute(KEYED.format(TIERED))
    table = store.table("d.t")
    table.upsert({"k": [1, 2, 5], "v": [10, 20, 50]})
    tier(store, lake)
    at = store.version()
    store.execute(OFF.format("t"))
    table.upsert({"k": [1, 3], "v": [11, 30]})
    table.delete({"k": [5]})
    expire(store, clock)
    store.execute(ON.format("t"))
    assert union() == rows(table.read()) == [(1, 11), (2, 20), (3, 30)]

    tier(store, lake)

    assert lake_rows(table_path(lake, "d.t"), "k, v") == union() == [(1, 11), (2, 20), (3, 30)]
    assert lake_rows(table_path(lake, "d.t"), "k, v", 1) == [(1, 10), (2, 20), (5, 50)], f"version {at} stays readable in the lake"


def test_a_running_tierer_brings_a_table_that_is_switched_on_again_without_a_new_row(store, clock, lake, lake_rows):
    store.execute(KEYED.format(TIERED))
    store.table("d.t").upsert({"k": [1], "v": [10]})
    with Tierer(store, lake) as tierer:
        tierer.run_once()
        store.execute(OFF.format("t"))
        store.table("d.t").upsert({"k": [1], "v": [11]})
        expire(store, clock)
        assert tierer.run_once() == []
        store.execute(ON.format("t"))

        tierer.run_once()

    assert lake_rows(table_path(lake, "d.t"), "k, v") == [(1, 11)]


def test_a_round_from_current_rows_keeps_the_partitions_that_only_the_lake_has(store, clock, lake, lake_rows, union):
    store.execute(IN_DAYS)
    table = store.table("d.t")
    table.upsert({"k": [1, 2, 1], "day": ["a", "a", "b"], "v": [1, 2, 3]})
    tier(store, lake)
    store.backend.drop_partition("d.t", "a", if_exists=False)
    store.execute(OFF.format("t"))
    table.upsert({"k": [1, 4], "day": ["b", "c"], "v": [4, 4]})
    expire(store, clock)
    store.execute(ON.format("t"))
    expected = [(1, "a", 1), (1, "b", 4), (2, "a", 2), (4, "c", 4)]
    assert union() == expected

    tier(store, lake)

    assert lake_rows(table_path(lake, "d.t"), "k, day, v") == expected == union()


def test_a_lake_forgotten_after_the_log_expired_is_tiered_afresh_and_undo_has_nothing_to_do(store, clock, lake, lake_rows, union):
    store.execute(KEYED.format(TIERED))
    table = store.table("d.t")
    table.upsert({"k": [1, 2], "v": [10, 20]})
    tier(store, lake)
    expire(store, clock)
    lake.rename(lake.with_name("old"))
    with Tierer(store, lake) as tierer:
        with pytest.raises(LakeChanged, match="--forget"):
            tierer.run_once(force=True)
        tierer.forget("d.t")

        tierer.run_once(force=True)

        assert lake_rows(table_path(lake, "d.t"), "k, v") == [(1, 10), (2, 20)] == union()
        tierer.undo("d.t")
        assert tierer.run_once(force=True) == []
    assert union() == [(1, 10), (2, 20)]


def test_rows_that_somebody_deleted_after_a_snapshot_round_come_back_by_undo(store, clock, lake, lake_rows, union):
    store.execute(KEYED.format(""))
    table = store.table("d.t")
    table.upsert({"k": [1, 2], "v": [10, 20]})
    expire(store, clock)
    store.execute(ON.format("t"))
    tier(store, lake)
    DeltaTable(str(table_path(lake, "d.t"))).delete("k = 1")
    table.upsert({"k": [3], "v": [30]})
    with Tierer(store, lake) as tierer:
        with pytest.raises(LakeChanged, match="--undo"):
            tierer.run_once(force=True)

        tierer.undo("d.t")

        tierer.run_once(force=True)
    assert lake_rows(table_path(lake, "d.t"), "k, v") == [(1, 10), (2, 20), (3, 30)] == union()


def test_a_progress_that_earlier_releases_left_unusable_is_repaired(store, clock, lake, lake_rows):
    """They recorded the log's start before the first round, and took the empty lake table for one that was set back."""
    store.execute(KEYED.format(""))
    store.table("d.t").upsert({"k": [1, 2], "v": [10, 20]})
    expire(store, clock)
    store.execute(ON.format("t"))
    detail = {"lake_id": "x", "table_id": store.describe("d.t").table_id, "version": 0, "lake_version": -1, "epoch": 1}
    store.commit(progress=[Progress("tier:d.t", {"d.t": store.table("d.t").offsets("earliest")}, None, detail)])

    tier(store, lake)

    assert lake_rows(table_path(lake, "d.t"), "k, v") == [(1, 10), (2, 20)]


@pytest.mark.parametrize("is_written", [True, False], ids=["commit written", "commit lost"])
def test_a_tierer_that_dies_at_any_commit_of_a_snapshot_round_leaves_a_lake_that_is_right(store, clock, lake, duck, union, is_written):
    store.execute(KEYED.format(TIERED))
    table = store.table("d.t")
    for nth in itertools.count(1):
        store.execute(OFF.format("t"))
        table.upsert({"k": [nth, nth + 1, 0], "v": [nth] * 3})
        table.delete({"k": [nth - 2]})
        expire(store, clock)
        store.execute(ON.format("t"))
        dying = DyingBackend(store.backend, nth, is_written=is_written)
        try:
            Tierer(wrap(dying), lake).run_once(force=True)
        except DeathError:
            assert dying.has_died
        assert union() == rows(table.read())
        if (snapshot := find_snapshot(store, lake, store.describe("d.t"))) is not None and snapshot.offsets == table.offsets():
            assert rows(lake_read(duck, store, lake, "d.t")) == rows(table.read())
        tier(store, lake)
        assert rows(lake_read(duck, store, lake, "d.t")) == rows(table.read()) == union()
        if not dying.has_died:
            break
    assert nth > 3, "a claim, an intent and a done"


# logs


def test_a_log_that_has_expired_in_part_is_tiered_from_its_earliest_offset(store, clock, lake, lake_rows, union):
    store.execute(LOG.format(""))
    log = store.table("d.l")
    log.append({"k": list(range(10))})
    expire(store, clock, "d.l")
    for k in range(100, 106):
        log.append({"k": [k]})
    store.execute(ON.format("l"))
    expected = [(k,) for k in range(100, 106)]
    assert union("d.l") == expected
    history = LakeHistory(store, lake)
    assert rows(history.all_rows("d.l", ["k"], store.version()).select(["k"])) == expected

    tier(store, lake, Limits(round_rows_max=2))

    assert lake_rows(table_path(lake, "d.l"), "k") == expected == union("d.l")
    assert tier_lag(store, "d.l")[0].n_rows == 0


def test_a_log_switched_off_while_it_expires_goes_on_behind_the_gap_and_says_so(store, clock, lake, lake_rows, union, caplog):
    store.execute(LOG.format(TIERED))
    log = store.table("d.l")
    log.append({"k": [1, 2]})
    tier(store, lake)
    store.execute(OFF.format("l"))
    log.append({"k": [3, 4, 5]})
    at = store.version()
    expire(store, clock, "d.l")
    store.execute(ON.format("l"))
    log.append({"k": [6]})
    assert union("d.l") == [(1,), (2,), (6,)]

    tier(store, lake)

    assert lake_rows(table_path(lake, "d.l"), "k") == [(1,), (2,), (6,)] == union("d.l")
    assert "3 rows expired while it was not tiered" in caplog.text
    with pytest.raises(OffsetOutOfRange):
        union_read(None, store, lake, "d.l", at=at)  # rows 3 to 5 were there, and nobody has them


# snapshots


def test_a_snapshot_is_what_read_answers_at_those_offsets_in_bounded_batches(store, clock):
    store.execute(KEYED.format(""))
    table = store.table("d.t")
    n_rows = 3 * BATCH_ROWS
    table.upsert({"k": list(range(n_rows)), "v": [0] * n_rows})
    expire(store, clock)
    table.upsert({"k": [1, 2], "v": [1, 1]})
    ends, version = table.offsets(), store.version()
    table.upsert({"k": [2, 3], "v": [2, 2]})
    table.delete({"k": [4]})

    batches = list(table.snapshot(["v", "k"], ends=ends))

    assert max(batch.num_rows for batch in batches) <= BATCH_ROWS
    found = sorted(row for batch in batches for row in zip(batch["k"].to_pylist(), batch["v"].to_pylist(), strict=True))
    assert found == rows(table.read(at=version))
    with pytest.raises(OffsetOutOfRange, match="the log holds"):
        table.snapshot(ends=dict.fromkeys(ends, 1))


def test_a_plan_goes_on_at_the_first_version_that_the_log_reaches_back_to():
    bucket = TableBucket("", 0)
    ends = [None, None, None, 5, 9, 20]

    def at(version: int):
        return None if ends[version] is None else {bucket: ends[version]}

    assert plan_stop(0, {bucket: 2}, 5, at, 4) == (3, {bucket: 5})
    assert plan_stop(0, {bucket: 2}, 5, at, 7) == (4, {bucket: 9})
    assert plan_stop(0, {bucket: 2}, 5, at, 1) == (3, {bucket: 5})
