"""Union reads give the table at one version of the store, wherever the lake stands and whatever the tierer does meanwhile."""

from __future__ import annotations

import datetime as dt
import random
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

import storage_engine
from storage_engine.client.store import Store
from storage_engine.errors import SchemaMismatch
from storage_engine.lake import Limits, Tierer, find_snapshot, open_union, table_path, union_read
from storage_engine.schema.descriptor import Column, TableDescriptor

TIERED = {"table.datalake.enabled": "true", "table.datalake.freshness": "1s"}
LOG = TableDescriptor(
    name="shop.visits",
    columns=(
        Column("user_id", "BIGINT"),
        Column("day", "STRING", nullable=False),
        Column("at", "TIMESTAMP(3)"),
        Column("spent", "TIME(3)"),
    ),
    partition_keys=("day",),
    n_buckets=2,
    bucket_keys=("user_id",),
    options=TIERED,
)
KEYED = TableDescriptor(
    name="shop.stock",
    columns=(
        Column("item", "BIGINT", nullable=False),
        Column("day", "STRING", nullable=False),
        Column("n", "BIGINT"),
        Column("note", "STRING"),
    ),
    primary_key=("item", "day"),
    partition_keys=("day",),
    n_buckets=2,
    bucket_keys=("item",),
    options=TIERED,
)
DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")


@pytest.fixture
def store(tmp_path):
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as opened:
        opened.create_table(LOG)
        opened.create_table(KEYED)
        yield opened


@pytest.fixture
def lake(tmp_path) -> Path:
    return tmp_path / "lake"


def visits(users: list[int], day: str = DAYS[0]) -> pa.Table:
    at = dt.datetime.fromisoformat("2026-01-01T23:59:59.123")
    return pa.Table.from_pylist(
        [{"user_id": u, "day": day, "at": at, "spent": dt.time(0, 0, 1, 5000)} for u in users], schema=LOG.arrow_schema
    )


def write_something(store: Store, pick: random.Random) -> None:
    """One commit of a random kind."""
    items = pick.sample(range(40), pick.randint(1, 12))
    day = pick.choice(DAYS)
    keys = {"item": items, "day": [day] * len(items)}
    kind = pick.random()
    if kind < 0.25:
        store.table("shop.visits").append(visits(items, day))
    elif kind < 0.4:
        store.table("shop.stock").delete(keys)
    elif kind < 0.6:
        store.table("shop.stock").upsert({**keys, "note": [str(pick.random())] * len(items)}, columns=["item", "day", "note"])
    else:
        store.table("shop.stock").upsert({**keys, "n": [pick.randint(0, 9)] * len(items), "note": [None] * len(items)})


def rows_at(store: Store, name: str, version: int) -> list[tuple]:
    table = store.table(name)
    rows = table.read(at=version) if table.descriptor.has_primary_key else table.scan(stop=table.offsets(at_version=version)).read_all()
    return as_rows(rows)


def as_rows(rows: pa.Table) -> list[tuple]:
    return sorted((tuple(row.values()) for row in rows.to_pylist()), key=repr)


def test_every_stage_of_tiering_gives_the_answer_the_store_alone_gives(store, lake, duck):
    pick = random.Random(7)
    tierer = Tierer(store, lake, Limits(compact_commits=3))
    for step in range(60):
        write_something(store, pick)
        if pick.random() < 0.3:
            tierer.run_once(force=True)
        for name in ("shop.visits", "shop.stock"):
            assert as_rows(union_read(duck, store, lake, name)) == rows_at(store, name, store.version()), f"{name}, step {step}"

    assert find_snapshot(store, lake, store.describe("shop.stock")) is not None


def test_an_older_version_is_read_from_the_lake_as_it_was_then(store, lake, duck):
    pick = random.Random(8)
    tierer = Tierer(store, lake)
    versions = []
    for _ in range(30):
        write_something(store, pick)
        versions.append(store.version())
        if pick.random() < 0.3:
            tierer.run_once(force=True)

    for at in versions:
        for name in ("shop.visits", "shop.stock"):
            assert as_rows(union_read(duck, store, lake, name, at=at)) == rows_at(store, name, at)


def test_readers_see_whole_versions_while_the_tierer_runs(store, lake, duck):
    stop = threading.Event()
    tierer = Tierer(store, lake, Limits(compact_commits=3))

    def tier() -> None:
        while not stop.is_set():
            tierer.run_once(force=True)

    worker = threading.Thread(target=tier)
    worker.start()
    pick = random.Random(9)
    try:
        for _ in range(60):
            write_something(store, pick)
            for name in ("shop.visits", "shop.stock"):
                union = open_union(store, lake, name)
                union.register(duck, "answer")
                answer = as_rows(duck.execute("SELECT * FROM answer").to_arrow_table())
                assert len(answer) == len(rows_at(store, name, union.version))
                at = store.version()
                assert as_rows(union_read(duck, store, lake, name, at=at)) == rows_at(store, name, at)
    finally:
        stop.set()
        worker.join()


def test_a_condition_and_a_choice_of_columns_give_the_rows_and_columns_asked_for(store, lake, duck):
    table = store.table("shop.stock")
    table.upsert({"item": [1, 2, 3], "day": [DAYS[0]] * 3, "n": [1, 2, 3], "note": ["a", "b", "c"]})
    table.upsert({"item": [1], "day": [DAYS[1]], "n": [5], "note": ["d"]})
    Tierer(store, lake).run_once(force=True)
    table.upsert({"item": [2], "day": [DAYS[0]], "n": [9], "note": ["z"]})

    rows = union_read(duck, store, lake, "shop.stock", ["note"], where="n > 2 AND day = '2026-01-01'")
    by_day = union_read(duck, store, lake, "shop.stock", ["note"], where="lower(day) = '2026-01-02'")

    assert sorted(rows["note"].to_pylist()) == ["c", "z"]
    assert by_day["note"].to_pylist() == ["d"]
    with pytest.raises(SchemaMismatch, match="no column nope"):
        union_read(duck, store, lake, "shop.stock", ["nope"])


def test_types_are_the_stores_whatever_side_a_row_comes_from(store, lake, duck):
    table = store.table("shop.visits")
    table.append(visits([1]))
    Tierer(store, lake).run_once(force=True)
    table.append(visits([2]))

    rows = union_read(duck, store, lake, "shop.visits")

    assert rows.schema.types == LOG.arrow_schema.types
    assert as_rows(rows) == as_rows(visits([1, 2]))


def test_a_column_that_the_lake_does_not_have_yet_is_null_there(store, lake, duck):
    table = store.table("shop.visits")
    table.append(visits([1]))
    Tierer(store, lake).run_once(force=True)
    wider = store.backend.alter_table(table.descriptor.with_options(columns=(*table.descriptor.columns, Column("place", "STRING"))))
    table = store.table(wider.name)
    table.append(visits([2]).append_column("place", pa.array(["Utrecht"])))

    assert as_rows(union_read(duck, store, lake, "shop.visits", ["user_id", "place"])) == [(1, None), (2, "Utrecht")]
    assert union_read(duck, store, lake, "shop.visits", ["place"], at=table.offsets and store.version() - 2)["place"].to_pylist() == [None]


def test_rows_that_somebody_added_to_the_lake_are_not_part_of_the_answer(store, lake, duck):
    store.table("shop.visits").append(visits([1, 2]))
    Tierer(store, lake).run_once(force=True)
    DeltaTable(str(table_path(lake, "shop.visits"))).delete("user_id = 1")

    assert sorted(union_read(duck, store, lake, "shop.visits")["user_id"].to_pylist()) == [1, 2]


def test_a_table_created_again_is_not_mixed_with_the_lake_of_the_first_one(store, lake, duck):
    store.table("shop.visits").append(visits([1, 2]))
    Tierer(store, lake).run_once(force=True)
    store.backend.drop_table("shop.visits", if_exists=False)
    store.create_table(LOG).append(visits([3]))

    assert union_read(duck, store, lake, "shop.visits")["user_id"].to_pylist() == [3]


def test_rows_of_a_partition_dropped_in_the_store_are_answered_from_the_lake(store, lake, duck):
    table = store.table("shop.stock")
    table.upsert({"item": [1, 2], "day": [DAYS[0]] * 2, "n": [1, 2], "note": ["a", "b"]})
    Tierer(store, lake).run_once(force=True)
    store.backend.drop_partition("shop.stock", DAYS[0], if_exists=False)
    table.upsert({"item": [2], "day": [DAYS[0]], "n": [9], "note": ["new"]})

    assert as_rows(union_read(duck, store, lake, "shop.stock", ["item", "note"])) == [(1, "a"), (2, "new")]
    Tierer(store, lake).run_once(force=True)
    assert as_rows(union_read(duck, store, lake, "shop.stock", ["item", "note"])) == [(1, "a"), (2, "new")]


def test_a_filter_on_the_union_reaches_the_lake_scan(store, lake, duck):
    for day in DAYS:
        store.table("shop.visits").append(visits([1], day))
        store.table("shop.stock").upsert({"item": [1], "day": [day], "n": [1], "note": ["a"]})
    Tierer(store, lake).run_once(force=True)
    store.table("shop.visits").append(visits([2]))
    store.table("shop.stock").upsert({"item": [1], "day": [DAYS[0]], "n": [2], "note": ["b"]})

    for name in ("shop.visits", "shop.stock"):
        open_union(store, lake, name).register(duck, "answer")
        plan = duck.execute(f"EXPLAIN ANALYZE SELECT * FROM answer WHERE day = '{DAYS[1]}'").fetchall()[0][1]
        assert "Scanning Files: 1/3" in " ".join(plan.replace("│", " ").split()), plan


def test_keys_of_the_tail_hide_lake_rows_inside_a_query_that_is_itself_an_exists(store, lake, duck):
    table = store.table("shop.stock")
    table.upsert({"item": [1, 2], "day": [DAYS[0]] * 2, "n": [1, 1], "note": ["a", "b"]})
    Tierer(store, lake).run_once(force=True)
    table.delete({"item": [1], "day": [DAYS[0]]})
    open_union(store, lake, "shop.stock").register(duck, "answer")

    query = "SELECT i FROM range(4) AS r(i) WHERE EXISTS (SELECT 1 FROM answer AS a WHERE a.item = i AND a.day = '2026-01-01' AND a.n > 0)"

    assert duck.execute(query).fetchall() == [(2,)]


@pytest.mark.parametrize("where", ["f <> 1", "f < 5", "isnan(f)", "NOT (f = 1)"])
def test_a_condition_on_a_float_finds_rows_of_nan_in_the_lake_although_statistics_leave_them_out(store, lake, duck, where):
    store.execute("CREATE TABLE shop.measured (k INT, f DOUBLE) WITH ('table.datalake.enabled' = 'true')")
    table = store.table("shop.measured")
    table.append({"k": [1, 2, 3], "f": [float("nan"), 1.0, -0.0]})
    Tierer(store, lake).run_once(force=True)

    found = union_read(duck, store, lake, "shop.measured", where=where)

    expected = {"f <> 1": [1, 3], "f < 5": [2, 3], "isnan(f)": [1], "NOT (f = 1)": [1, 3]}
    assert sorted(found["k"].to_pylist()) == expected[where]
    assert str(union_read(duck, store, lake, "shop.measured", ["f"], "k = 3")["f"][0].as_py()) == "-0.0"
