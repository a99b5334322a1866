"""The tierer over a real store and real Delta tables: the lake equals the store, once, through crashes and changes of the table."""

from __future__ import annotations

import datetime as dt
import shutil
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

import storage_engine
from storage_engine.api import Progress
from storage_engine.client.store import Store
from storage_engine.errors import LakeChanged, ProgressConflict, UserError
from storage_engine.lake import Limits, Tierer, table_path, tier_lag
from storage_engine.lake.columns import quoted_list
from storage_engine.lake.planning import due_ms, plan_stop
from storage_engine.schema.descriptor import Column, TableBucket, TableDescriptor
from tests.waiting import await_true

TIERED = {"table.datalake.enabled": "true", "table.datalake.freshness": "1s"}
EVENTS = TableDescriptor(
    name="shop.events",
    columns=(Column("user_id", "BIGINT"), Column("at", "TIMESTAMP(3)"), Column("note", "STRING")),
    n_buckets=2,
    bucket_keys=("user_id",),
    options=TIERED,
)
STOCK = TableDescriptor(
    name="shop.stock",
    columns=(Column("item", "BIGINT", nullable=False), Column("day", "STRING", nullable=False), Column("n", "BIGINT")),
    primary_key=("item", "day"),
    partition_keys=("day",),
    bucket_keys=("item",),
    n_buckets=2,
    options=TIERED,
)
AT = dt.datetime.fromisoformat("2026-01-01T12:00:00.005")


@pytest.fixture
def store(tmp_path):
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as opened:
        yield opened


@pytest.fixture
def lake(tmp_path) -> Path:
    return tmp_path / "lake"


def events(users: range | list[int]) -> pa.Table:
    return pa.Table.from_pylist([{"user_id": user, "at": AT, "note": f"n{user}"} for user in users], schema=EVENTS.arrow_schema)


def stock(items: range | list[int], n: int, day: str = "2026-01-01") -> pa.Table:
    return pa.Table.from_pylist([{"item": item, "day": day, "n": n} for item in items], schema=STOCK.arrow_schema)


def store_rows(store: Store, name: str) -> list[tuple]:
    table = store.table(name)
    rows = table.read() if table.descriptor.has_primary_key else table.scan().read_all()
    return sorted(tuple(row.values()) for row in rows.to_pylist())


def columns_of(store: Store, name: str) -> str:
    return quoted_list(store.describe(name).column_names)


@pytest.fixture
def assert_lake_equals_store(lake, lake_rows):
    def check(store: Store, name: str) -> None:
        assert lake_rows(table_path(lake, name), columns_of(store, name)) == store_rows(store, name)

    return check


def test_a_log_table_in_the_lake_has_every_row_once_with_its_offset(store, lake, lake_rows, assert_lake_equals_store):
    table = store.create_table(EVENTS)
    table.append(events(range(10)))
    with Tierer(store, lake) as tierer:
        tierer.run_once(force=True)
        table.append(events(range(10, 15)))
        rounds = tierer.run_once("shop.events", force=True)

    assert [(done.n_rows, done.has_more) for done in rounds] == [(5, False)]
    assert_lake_equals_store(store, "shop.events")
    places = lake_rows(table_path(lake, "shop.events"), "__bucket, __offset")
    assert places == sorted((b.bucket, o) for b, end in table.offsets().items() for o in range(end))


def test_a_primary_key_table_in_the_lake_has_its_current_rows(store, lake, assert_lake_equals_store):
    table = store.create_table(STOCK)
    with Tierer(store, lake) as tierer:
        for day in ("2026-01-01", "2026-01-02"):
            table.upsert(stock(range(10), 1, day))
        tierer.run_once(force=True)
        table.upsert(stock(range(5, 12), 2))
        table.delete(stock([0, 1], 0).select(["item", "day"]))
        table.upsert(stock([20], 3))
        table.delete(stock([20], 0).select(["item", "day"]))
        tierer.run_once(force=True)
        assert_lake_equals_store(store, "shop.stock")
        table.upsert(stock([0], 9))
        tierer.run_once(force=True)

    assert_lake_equals_store(store, "shop.stock")


def test_a_round_without_new_rows_writes_nothing(store, lake):
    store.create_table(EVENTS).append(events(range(3)))
    with Tierer(store, lake) as tierer:
        tierer.run_once(force=True)
        delta_version, version = DeltaTable(str(table_path(lake, "shop.events"))).version(), store.version()

        assert tierer.run_once(force=True) == []

    assert DeltaTable(str(table_path(lake, "shop.events"))).version() == delta_version
    assert store.version() == version


def test_a_new_tierer_goes_on_where_the_last_one_stopped(store, lake, assert_lake_equals_store):
    table = store.create_table(STOCK)
    for n in range(5):
        table.upsert(stock(range(n, n + 5), n))
        with Tierer(store, lake) as tierer:
            tierer.run_once(force=True)

    assert_lake_equals_store(store, "shop.stock")


def test_a_round_is_bounded_and_ends_between_two_commits(store, lake, lake_rows):
    table = store.create_table(STOCK)
    for n in range(6):
        table.upsert(stock(range(n * 10, n * 10 + 10), n))

    with Tierer(store, lake, Limits(round_changes_max=25)) as tierer:
        rounds = tierer.run_once(force=True)

    assert [done.n_rows for done in rounds] == [20, 20, 20]
    path = table_path(lake, "shop.stock")
    assert [lake_rows(path, "count(*)", done.delta_version) for done in rounds] == [[(20,)], [(40,)], [(60,)]]


def test_progress_lost_between_the_two_commits_is_repaired_from_the_lake(store, lake, assert_lake_equals_store):
    table = store.create_table(EVENTS)
    table.append(events(range(3)))
    with Tierer(store, lake) as tierer:
        tierer.run_once(force=True)
        before = store.progress("tier:shop.events")["tier:shop.events"]
        table.append(events(range(3, 9)))
        tierer.run_once(force=True)
    store.commit(progress=[Progress("tier:shop.events", before.offsets, None, before.detail)])

    with Tierer(store, lake) as tierer:
        assert tierer.run_once(force=True) == []

    assert_lake_equals_store(store, "shop.events")
    repaired = store.progress("tier:shop.events")["tier:shop.events"]
    assert repaired.offsets["shop.events"] == table.offsets()


def test_columns_added_to_the_table_appear_in_the_lake(store, lake, lake_rows):
    table = store.create_table(EVENTS)
    table.append(events([1]))
    with Tierer(store, lake) as tierer:
        tierer.run_once(force=True)
        wider = store.backend.alter_table(table.descriptor.with_options(columns=(*table.descriptor.columns, Column("place", "STRING"))))
        store.table(wider.name).append({"user_id": [2], "at": [AT], "note": ["n2"], "place": ["Utrecht"]})
        tierer.run_once(force=True)

    assert lake_rows(table_path(lake, "shop.events"), "user_id, place") == [(1, None), (2, "Utrecht")]


def test_the_lake_keeps_a_partition_that_the_store_dropped_and_takes_the_next_one_of_that_name(store, lake, lake_rows):
    table = store.create_table(STOCK)
    table.upsert(stock([1, 2], 1))
    table.upsert(stock([1], 1, "2026-01-02"))
    with Tierer(store, lake) as tierer:
        tierer.run_once(force=True)
        store.backend.drop_partition("shop.stock", "2026-01-01", if_exists=False)
        assert tierer.run_once(force=True) == []
        table.upsert(stock([2, 3], 7))
        tierer.run_once(force=True)

    assert lake_rows(table_path(lake, "shop.stock"), "day, item, n") == [
        ("2026-01-01", 1, 1),
        ("2026-01-01", 2, 7),
        ("2026-01-01", 3, 7),
        ("2026-01-02", 1, 1),
    ]


# what must be refused


def test_a_table_that_is_not_tiered_is_refused_by_name(store, lake):
    store.create_table(TableDescriptor(name="shop.plain", columns=(Column("a", "INT"),)))

    with pytest.raises(UserError, match=r"shop\.plain is not tiered"):
        Tierer(store, lake).run_once("shop.plain")


def test_a_second_tierer_takes_over_and_the_first_one_stops(store, lake, assert_lake_equals_store):
    table = store.create_table(EVENTS)
    table.append(events(range(3)))
    first, second = Tierer(store, lake), Tierer(store, lake)
    first.run_once(force=True)
    table.append(events(range(3, 5)))
    second.run_once(force=True)
    table.append(events(range(5, 7)))

    with pytest.raises(ProgressConflict, match="took over"):
        first.run_once(force=True)

    second.run_once(force=True)
    assert_lake_equals_store(store, "shop.events")


def test_a_lake_changed_by_somebody_else_stops_that_table_and_no_other(store, lake, assert_lake_equals_store):
    store.create_table(EVENTS).append(events(range(3)))
    store.create_table(STOCK).upsert(stock(range(3), 1))
    tierer = Tierer(store, lake)
    tierer.run_once(force=True)
    DeltaTable(str(table_path(lake, "shop.events"))).delete("user_id = 1")
    store.table("shop.events").append(events([7]))
    store.table("shop.stock").upsert(stock([7], 1))
    deadline = time.monotonic() + 20
    while "shop.events" not in tierer.errors or tier_lag(store, "shop.stock")[0].n_rows:
        assert time.monotonic() < deadline, tierer.errors
        tierer.run_once()

    assert isinstance(tierer.errors["shop.events"], LakeChanged)
    assert "DELETE" in tier_lag(store, "shop.events")[0].error
    assert_lake_equals_store(store, "shop.stock")


@pytest.mark.parametrize("change", ["gone", "other table", "older version"])
def test_a_lake_that_contradicts_the_store_is_refused_and_left_alone(store, lake, change):
    table = store.create_table(EVENTS)
    path = table_path(lake, "shop.events")
    table.append(events(range(3)))
    Tierer(store, lake).run_once(force=True)
    if change == "gone":
        shutil.rmtree(path)
    elif change == "other table":
        shutil.rmtree(path)
        write_deltalake(str(path), pa.table({"a": [1]}))
    else:
        table.append(events(range(3, 5)))
        Tierer(store, lake).run_once(force=True)
        (path / "_delta_log" / f"{2:020d}.json").unlink()
    before = sorted(str(file) for file in path.rglob("*"))

    with pytest.raises(LakeChanged):
        Tierer(store, lake).run_once(force=True)

    assert sorted(str(file) for file in path.rglob("*")) == before


def test_a_table_created_again_is_refused_until_its_lake_is_moved_away_and_forgotten(store, lake, assert_lake_equals_store):
    store.create_table(EVENTS).append(events(range(3)))
    Tierer(store, lake).run_once(force=True)
    store.backend.drop_table("shop.events", if_exists=False)
    store.create_table(EVENTS).append(events(range(100, 105)))

    with pytest.raises(LakeChanged, match="created again"):
        Tierer(store, lake).run_once(force=True)

    table_path(lake, "shop.events").rename(lake / "old")
    tierer = Tierer(store, lake)
    tierer.forget("shop.events")
    tierer.run_once(force=True)
    assert_lake_equals_store(store, "shop.events")


@pytest.mark.parametrize("change", ["rows deleted", "older version"])
def test_undo_brings_lake_and_store_together_again(store, lake, lake_rows, assert_lake_equals_store, change):
    table = store.create_table(STOCK)
    path = table_path(lake, "shop.stock")
    with Tierer(store, lake) as tierer:
        for n in range(3):
            table.upsert(stock(range(n, n + 5), n))
            tierer.run_once(force=True)
    if change == "rows deleted":
        DeltaTable(str(path)).delete("item = 1")
        DeltaTable(str(path)).optimize.compact()
    else:
        (path / "_delta_log" / f"{3:020d}.json").unlink()
    with Tierer(store, lake) as tierer:
        with pytest.raises(LakeChanged, match="--undo"):
            tierer.run_once(force=True)

        tierer.undo("shop.stock")

        tierer.run_once(force=True)
        assert_lake_equals_store(store, "shop.stock")
        table.upsert(stock([1, 77], 9))
        tierer.run_once(force=True)
    assert_lake_equals_store(store, "shop.stock")


# freshness


def test_a_row_reaches_the_lake_within_the_tables_freshness(store, lake, lake_rows):
    table = store.create_table(EVENTS)
    stop = threading.Event()
    tierer = Tierer(store, lake)
    worker = threading.Thread(target=tierer.run, args=(stop,))
    worker.start()
    try:
        table.append(events([0]))
        await_rows(lake_rows, table_path(lake, "shop.events"), 1, timeout_s=20)  # the first Delta write warms delta-rs up
        began = time.monotonic()
        table.append(events([1]))
        await_rows(lake_rows, table_path(lake, "shop.events"), 2, timeout_s=20)
        seconds = time.monotonic() - began
    finally:
        stop.set()
        worker.join()

    assert 0.2 < seconds < 5.0  # freshness is 1 s: not at once (a file per commit), and not late (with room for a busy machine)
    assert tier_lag(store)[0].lag_ms == 0


def await_rows(lake_rows, path: Path, n_rows: int, timeout_s: float) -> None:
    def are_there() -> bool:
        return (path / "_delta_log" / f"{0:020d}.json").exists() and lake_rows(path, "count(*)") == [(n_rows,)]

    await_true(are_there, f"{n_rows} rows in the lake", timeout_s=timeout_s, every_s=0.02)


def test_lag_counts_the_rows_and_the_age_of_what_the_lake_lacks(store, lake):
    table = store.create_table(EVENTS)
    table.append(events(range(3)))
    before = tier_lag(store)[0]
    Tierer(store, lake).run_once(force=True)
    after = tier_lag(store)[0]

    assert (before.n_rows, before.lake_version, before.freshness_ms) == (3, -1, 1000)
    assert before.lag_ms >= 0
    assert (after.n_rows, after.lag_ms, after.is_met) == (0, 0, True)
    assert after.lake_version >= 1


def test_many_rounds_leave_few_files(store, lake, assert_lake_equals_store):
    table = store.create_table(EVENTS)
    with Tierer(store, lake, Limits(compact_commits=4)) as tierer:
        for n in range(20):
            table.append(events([n]))
            tierer.run_once(force=True)

    assert len(DeltaTable(str(table_path(lake, "shop.events"))).file_uris()) <= 4
    assert_lake_equals_store(store, "shop.events")


@pytest.mark.parametrize(("rows_max", "expected"), [(100, (9, 24)), (10, (4, 9)), (5, (3, 5)), (4, (3, 5)), (1, (3, 5))])
def test_a_round_reaches_the_newest_version_within_its_bound_but_at_least_one_commit(rows_max, expected):
    rows_at = [0, 0, 0, 5, 9, 20, 20, 20, 24, 24]
    bucket = TableBucket("", 0)

    version, stop = plan_stop(0, {}, 9, lambda at: {bucket: rows_at[at]}, rows_max)

    assert (version, stop[bucket]) == expected


def test_a_round_that_takes_longer_than_its_freshness_is_due_at_once():
    assert due_ms(oldest_ms=1000, freshness_ms=1000, round_ms=5000) == 1000
