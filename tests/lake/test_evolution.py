"""A tiered table is altered and rescaled: lake and union read answer with its present columns, each row once."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

import storage_engine
from query_engine import QueryEngine
from storage_engine.client.store import Store
from storage_engine.errors import LakeChanged, StatementRefused
from storage_engine.lake import Tierer, table_path, union_read
from storage_engine.lake.record import read_entry

DDL = """
CREATE TABLE shop.stock (day STRING NOT NULL, item BIGINT NOT NULL, n INT, note STRING, PRIMARY KEY (item, day) NOT ENFORCED)
  PARTITIONED BY (day) WITH ('bucket.num' = '2', 'table.datalake.enabled' = 'true');
CREATE TABLE shop.visits (who BIGINT, page STRING, at TIMESTAMP(3)) WITH ('bucket.num' = '2', 'table.datalake.enabled' = 'true');
"""


@pytest.fixture
def store(tmp_path):
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as opened:
        opened.execute(DDL)
        opened.table("shop.stock").upsert(stock(range(6)))
        opened.table("shop.visits").append({"who": [1, 2], "page": ["a", "b"], "at": [1, 2]})
        yield opened


@pytest.fixture
def lake(tmp_path) -> Path:
    return tmp_path / "lake"


def stock(items, factor: int = 10, **names: str) -> dict:
    items = list(items)
    columns = {
        "day": [f"d{i % 2}" for i in items],
        "item": items,
        "n": [i * factor for i in items],
        "note": [f"note {i}" for i in items],
    }
    return {names.get(name, name): values for name, values in columns.items()}


def as_rows(rows: pa.Table) -> list[tuple]:
    return sorted((tuple(row.values()) for row in rows.to_pylist()), key=str)


def agree(store: Store, lake: Path, duck, name: str) -> list[tuple]:
    """The rows of a tiered table, which store and union read must both have."""
    table = store.table(name)
    expected = as_rows(table.read() if table.descriptor.has_primary_key else table.scan().read_all())
    assert as_rows(union_read(duck, store, lake, name)) == expected
    return expected


def columns_in_lake(lake: Path, name: str) -> list[str]:
    return [item.name for item in DeltaTable(str(table_path(lake, name))).schema().fields if not item.name.startswith("__")]


@pytest.mark.parametrize("tiered_between", [True, False], ids=["tiered after each change", "tiered at the end"])
def test_store_lake_and_union_agree_across_every_change_of_columns(store, lake, duck, tiered_between):
    tierer = Tierer(store, lake)
    tierer.run_once(force=True)

    def step(statement: str, rows: dict) -> None:
        store.execute(f"ALTER TABLE shop.stock {statement}")
        agree(store, lake, duck, "shop.stock")
        store.table("shop.stock").upsert(rows)
        agree(store, lake, duck, "shop.stock")
        if tiered_between:
            tierer.run_once(force=True)
            agree(store, lake, duck, "shop.stock")

    step("RENAME n TO pieces", stock([0, 6], n="pieces"))
    step("DROP note", {"day": ["d1"], "item": [1], "pieces": [-1]})
    step("ADD note INT", {"day": ["d1"], "item": [3], "pieces": [-3], "note": [3]})
    step("RENAME day TO ds", {"ds": ["d0"], "item": [2], "pieces": [-2], "note": [2]})
    step("RENAME item TO id", {"ds": ["d0", "d7"], "id": [4, 7], "pieces": [-4, -7], "note": [4, 7]})
    store.table("shop.stock").delete({"ds": ["d0"], "id": [0]})
    agree(store, lake, duck, "shop.stock")
    tierer.run_once(force=True)

    rows = agree(store, lake, duck, "shop.stock")
    assert rows == [
        ("d0", 2, -2, 2), ("d0", 4, -4, 4), ("d0", 6, 60, None), ("d1", 1, -1, None), ("d1", 3, -3, 3), ("d1", 5, 50, None),
        ("d7", 7, -7, 7),
    ]  # fmt: skip
    assert columns_in_lake(lake, "shop.stock") == ["day", "item", "n", "note", "note_4"]


def test_a_column_keeps_its_first_name_in_the_lake_and_a_later_one_of_that_name_gets_another(store, lake, duck):
    tierer = Tierer(store, lake)
    tierer.run_once(force=True)
    store.execute("ALTER TABLE shop.visits RENAME page TO path; ALTER TABLE shop.visits ADD page BIGINT")
    store.table("shop.visits").append({"who": [3], "path": ["c"], "at": [3], "page": [33]})
    tierer.run_once(force=True)
    with closing(QueryEngine(store, lake)) as engine:
        by_query = engine.query("SELECT who, path, page FROM shop.visits$lake ORDER BY who").to_pylist()

    assert columns_in_lake(lake, "shop.visits") == ["who", "page", "at", "page_3"]
    assert by_query == [
        {"who": 1, "path": "a", "page": None},
        {"who": 2, "path": "b", "page": None},
        {"who": 3, "path": "c", "page": 33},
    ]
    assert [row[:2] for row in agree(store, lake, duck, "shop.visits")] == [(1, "a"), (2, "b"), (3, "c")]


def test_an_older_version_of_the_lake_is_read_by_the_present_names(store, lake, duck):
    tierer = Tierer(store, lake)
    tierer.run_once(force=True)
    version = store.version()
    store.execute("ALTER TABLE shop.stock RENAME n TO pieces; ALTER TABLE shop.stock ADD x INT")
    store.table("shop.stock").upsert({"day": ["d0"], "item": [0], "pieces": [1], "note": [None], "x": [1]})
    tierer.run_once(force=True)

    old = union_read(duck, store, lake, "shop.stock", ["item", "pieces", "x"], at=version)

    assert as_rows(old) == [(i, i * 10, None) for i in range(6)]


def test_a_record_from_before_the_mapping_is_read_as_the_first_columns_of_the_lake(store, lake, duck):
    Tierer(store, lake).run_once(force=True)
    path = table_path(lake, "shop.stock")
    for entry in sorted((path / "_delta_log").glob("*.json")):
        lines = [json.loads(line) for line in entry.read_text().splitlines()]
        for line in lines:
            if "commitInfo" in line:
                line["commitInfo"]["flashlake.columns"] = "4"
        entry.write_text("\n".join(json.dumps(line) for line in lines))
    store.execute("ALTER TABLE shop.stock RENAME n TO pieces; ALTER TABLE shop.stock DROP note")
    store.table("shop.stock").upsert({"day": ["d0"], "item": [0], "pieces": [7]})
    record = read_entry(path, 0).record

    assert record.columns == {0: "day", 1: "item", 2: "n", 3: "note"}
    assert agree(store, lake, duck, "shop.stock")[0] == ("d0", 0, 7)
    Tierer(store, lake).run_once(force=True)
    agree(store, lake, duck, "shop.stock")


def test_widening_a_tiered_column_is_refused_with_the_remedy_unless_the_lake_holds_it_already(store, lake, duck):
    with pytest.raises(StatementRefused, match=r"column n is INT in the lake.*Add a column of type BIGINT"):
        store.execute("ALTER TABLE shop.stock MODIFY n BIGINT")

    tierer = Tierer(store, lake)
    tierer.run_once(force=True)
    store.execute("ALTER TABLE shop.visits MODIFY at TIMESTAMP(6)")
    store.table("shop.visits").append({"who": [3], "page": ["c"], "at": [1_000_001]})
    tierer.run_once(force=True)
    agree(store, lake, duck, "shop.visits")


def test_a_column_that_was_widened_while_its_table_was_not_tiered_is_named(store, lake):
    Tierer(store, lake).run_once(force=True)
    store.execute("ALTER TABLE shop.stock SET ('table.datalake.enabled' = 'false'); ALTER TABLE shop.stock MODIFY n BIGINT")
    store.execute("ALTER TABLE shop.stock SET ('table.datalake.enabled' = 'true')")
    store.table("shop.stock").upsert(stock([1], factor=2**35))

    with pytest.raises(LakeChanged, match=r"column n is .* in the lake.*--forget TABLE"):
        Tierer(store, lake).run_once("shop.stock", force=True)


def test_a_rescaled_table_is_tiered_and_read_once_per_row(store, lake, duck):
    tierer = Tierer(store, lake)
    store.table("shop.stock").upsert(stock(range(100)))
    tierer.run_once(force=True)
    before = agree(store, lake, duck, "shop.stock")
    n_versions = DeltaTable(str(table_path(lake, "shop.stock"))).version()

    store.execute("ALTER TABLE shop.stock SET ('bucket.num' = '5')")
    assert agree(store, lake, duck, "shop.stock") == before
    assert tierer.run_once() == []
    assert DeltaTable(str(table_path(lake, "shop.stock"))).version() == n_versions

    store.table("shop.stock").upsert(stock(range(0, 100, 7), factor=-1))
    store.table("shop.stock").delete({"day": ["d1"], "item": [1]})
    assert len(agree(store, lake, duck, "shop.stock")) == 99
    tierer.run_once(force=True)
    assert len(agree(store, lake, duck, "shop.stock")) == 99
    places = duck.execute(
        f"SELECT count(DISTINCT (day, __bucket, __offset)), max(__bucket) FROM delta_scan('{table_path(lake, 'shop.stock')}')"
    )
    assert places.fetchone() == (99, 4)
