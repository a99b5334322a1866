"""Queries: Flink's dialect over store tables, logs, views and the lake, with Flink's meaning where DuckDB's differs."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from pyroaring import BitMap

import storage_engine
from query_engine import QueryEngine
from storage_engine.errors import StatementRefused, UnknownTable, UserError

DDL = """
CREATE TABLE shop.sales (id BIGINT, dept STRING, amount DECIMAL(12, 2), n INT, ds STRING) PARTITIONED BY (ds)
  WITH ('bucket.num' = '2', 'bucket.key' = 'id');
CREATE TABLE shop.stock (item BIGINT, name STRING, left_n INT, PRIMARY KEY (item) NOT ENFORCED);
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[QueryEngine]:
    with storage_engine.connect(f"file://{tmp_path}/store") as store:
        store.execute(DDL)
        store.table("shop.sales").append(
            {
                "id": [1, 2, 3, 11],
                "dept": ["a", "a", "b", None],
                "amount": [Decimal("1.10"), Decimal("2.20"), None, Decimal("7.00")],
                "n": [7, 2, -7, 4],
                "ds": ["d1", "d1", "d2", "d2"],
            }
        )
        store.table("shop.stock").upsert({"item": [1, 2, 3], "name": ["tea", "milk", "rice"], "left_n": [5, 0, 9]})
        engine = QueryEngine(store, tmp_path / "lake")
        yield engine
        engine.close()


def rows(engine: QueryEngine, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in engine.query(sql).to_pylist()]


def test_integer_division_truncates_towards_zero_and_modulo_keeps_the_sign(engine: QueryEngine) -> None:
    assert rows(engine, "SELECT n / 2, n % 2 FROM shop.sales ORDER BY id") == [(3, 1), (1, 0), (-3, -1), (2, 0)]


def test_sums_keep_the_type_of_their_column_and_averages_of_integers_are_integers(engine: QueryEngine) -> None:
    answer = engine.query("SELECT SUM(n) AS s, SUM(amount) AS a, AVG(n) AS m, COUNT(*) AS c, COUNT(amount) AS k FROM shop.sales")
    assert answer.schema.field("s").type == pa.int32()
    assert answer.schema.field("a").type == pa.decimal128(38, 2)
    assert answer.to_pylist() == [{"s": 6, "a": Decimal("10.30"), "m": 1, "c": 4, "k": 3}]


def test_groups_having_and_order_work_with_aliases_and_positions(engine: QueryEngine) -> None:
    sql = "SELECT ds, COUNT(*) AS c FROM shop.sales GROUP BY ds HAVING COUNT(*) > 1 ORDER BY c DESC, 1"
    assert rows(engine, sql) == [("d1", 2), ("d2", 2)]


def test_nulls_come_first_in_ascending_order(engine: QueryEngine) -> None:
    assert rows(engine, "SELECT dept FROM shop.sales ORDER BY dept") == [(None,), ("a",), ("a",), ("b",)]


def test_a_log_joins_current_rows_of_a_primary_key_table(engine: QueryEngine) -> None:
    sql = "SELECT s.id, t.name FROM shop.sales AS s LEFT JOIN shop.stock AS t ON s.id = t.item WHERE s.ds = 'd2' ORDER BY s.id"
    assert rows(engine, sql) == [(3, "rice"), (11, None)]


def test_common_tables_unions_and_subqueries(engine: QueryEngine) -> None:
    sql = "WITH q AS (SELECT id, n / 2 AS h FROM shop.sales) SELECT SUM(h) FROM q WHERE id IN (SELECT item FROM shop.stock)"
    assert rows(engine, sql) == [(1,)]
    assert rows(engine, "SELECT ds FROM shop.sales UNION SELECT 'd0' ORDER BY ds") == [("d0",), ("d1",), ("d2",)]
    assert rows(engine, "SELECT item FROM shop.stock WHERE EXISTS (SELECT 1 FROM shop.sales WHERE id = item AND amount > 2)") == [(2,)]


def test_window_functions_rank_rows(engine: QueryEngine) -> None:
    sql = "SELECT id FROM (SELECT id, ROW_NUMBER() OVER (PARTITION BY ds ORDER BY id DESC) AS rn FROM shop.sales) WHERE rn = 1 ORDER BY id"
    assert rows(engine, sql) == [(2,), (11,)]


def test_bitmaps_count_distinct_members(engine: QueryEngine) -> None:
    assert rows(engine, "SELECT RB_CARDINALITY(BITMAP_BUILD_AGG(CAST(id AS INT))) FROM shop.sales") == [(4,)]


def test_a_union_of_bitmaps_counts_the_members_of_each_group_frame_and_filter_once(engine: QueryEngine) -> None:
    """A group of NULL alone and one without a row have no member; as bytes they have no bitmap."""
    engine.store.execute("CREATE TABLE shop.uv (g INT, h INT, users BYTES, PRIMARY KEY (g, h) NOT ENFORCED)")
    maps = [BitMap([1, 2, 70_000]), BitMap([2, 3]), BitMap([5]), None, BitMap([5, 6])]
    users = [None if one is None else one.serialize() for one in maps]
    engine.store.table("shop.uv").upsert({"g": [1, 1, 2, 3, 2], "h": [1, 2, 1, 1, 2], "users": users})
    count = "BITMAP_UNION_COUNT(users)"

    assert rows(engine, f"SELECT {count} FROM shop.uv") == [(6,)]
    assert rows(engine, f"SELECT g, {count} FROM shop.uv GROUP BY g ORDER BY g") == [(1, 4), (2, 2), (3, 0)]
    assert rows(engine, f"SELECT {count} FILTER (WHERE h = 1) FROM shop.uv") == [(4,)]
    assert rows(engine, f"SELECT {count}, RB_OR_AGG(users) FROM shop.uv WHERE g > 9") == [(0, None)]
    running = f"SELECT {count} OVER (ORDER BY g, h ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM shop.uv ORDER BY g, h"
    assert rows(engine, running) == [(3,), (4,), (5,), (6,), (6,)]
    (united,) = rows(engine, "SELECT RB_OR_AGG(users) FROM shop.uv")[0]
    assert BitMap.deserialize(united) == BitMap.union(*[one for one in maps if one is not None])
    engine.store.table("shop.uv").upsert({"g": [9], "h": [9], "users": [b"none"]})
    with pytest.raises(UserError, match="bitmap"):
        engine.query(f"SELECT {count} FROM shop.uv")


def test_the_changelog_is_a_table(engine: QueryEngine) -> None:
    engine.store.table("shop.stock").upsert({"item": [1], "name": ["tea"], "left_n": [4]})
    sql = "SELECT _change_type, left_n FROM shop.stock$changelog WHERE item = 1 ORDER BY _log_offset"
    assert rows(engine, sql) == [("+I", 5), ("-U", 5), ("+U", 4)]


def test_an_older_version_answers_as_it_was(engine: QueryEngine) -> None:
    before = engine.store.version()
    engine.store.table("shop.stock").delete({"item": [1, 2]})
    assert engine.query("SELECT COUNT(*) AS c FROM shop.stock").to_pylist() == [{"c": 1}]
    assert engine.query("SELECT COUNT(*) AS c FROM shop.stock", at=before).to_pylist() == [{"c": 3}]


def test_a_delta_table_that_only_the_lake_has_is_a_table(engine: QueryEngine) -> None:
    write_deltalake(str(engine.lake_root / "ods" / "promotions"), pa.table({"item": [1, 1, 2], "week": [1, 2, 1]}))
    assert rows(engine, "SELECT p.week, t.name FROM ods.promotions AS p JOIN shop.stock AS t ON p.item = t.item ORDER BY 1, 2") == [
        (1, "milk"), (1, "tea"), (2, "tea"),
    ]  # fmt: skip


def test_sums_over_a_lake_only_table_have_a_type(engine: QueryEngine) -> None:
    write_deltalake(str(engine.lake_root / "ods" / "weekly"), pa.table({"week": [1, 2], "n": pa.array([3, 4], pa.int32())}))
    answer = engine.query("SELECT SUM(week) AS w, SUM(n) / 2 AS n, COUNT(*) AS c FROM ods.weekly")
    assert answer.to_pylist() == [{"w": 3, "n": 3, "c": 2}]
    assert answer.schema.field("w").type == pa.int64()


def test_a_partition_condition_reads_only_that_partition(engine: QueryEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    backend = engine.store.backend
    real = backend.fetch

    def spy(table: str, ranges: dict, columns: object, where: object = None, **options: object) -> object:
        fetched.extend(bucket.partition for bucket in ranges)
        return real(table, ranges, columns, where, **options)

    monkeypatch.setattr(backend, "fetch", spy)
    assert rows(engine, "SELECT COUNT(*) FROM shop.sales WHERE ds = 'd1' AND n > 0") == [(2,)]
    assert set(fetched) == {"d1"}


@pytest.mark.parametrize(
    ("sql", "error", "words"),
    [
        ("SELECT 1 FROM shop.nope", UnknownTable, "shop.nope"),
        ("SELECT amout FROM shop.sales", StatementRefused, "Did you mean amount"),
        ("SELEC 1", StatementRefused, "line 1"),
        ("SELECT SUM(dept) FROM shop.sales", StatementRefused, "cannot be added up"),
        ("SELECT * FROM shop.stock$lake", StatementRefused, "nothing in the lake"),
    ],
)
def test_a_bad_query_gets_one_clear_error(engine: QueryEngine, sql: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words.replace("$", r"\$")):
        engine.query(sql)


def test_a_binlog_has_the_rows_before_and_after_and_reads_only_their_fields_that_are_used(engine: QueryEngine, monkeypatch) -> None:
    stock = engine.store.table("shop.stock")
    stock.upsert({"item": [1], "name": ["green tea"], "left_n": [3]})
    stock.delete({"item": [2]})
    assert rows(engine, "SELECT before.name AS old, b.after.name AS new, left_half FROM "
                        "(SELECT before, after, after.left_n / 2 AS left_half, "
                        "_change_type AS c FROM shop.stock$binlog) AS b WHERE c = 'update'") == [("tea", "green tea", 1)]  # fmt: skip
    read: list[list[str]] = []
    backend = engine.store.backend
    real = backend.fetch

    def spy(table: str, ranges: dict, columns: list[str], where: object = None, **options: object) -> object:
        read.append(list(columns))
        return real(table, ranges, columns, where, **options)

    monkeypatch.setattr(backend, "fetch", spy)
    sql = "SELECT _change_type, SUM(after.left_n - before.left_n) AS d FROM shop.stock$binlog WHERE before.left_n > 0 GROUP BY _change_type"
    assert sorted(rows(engine, sql)) == [("update", -2)]
    assert read == [["left_n"]]


def test_a_plain_count_is_answered_without_reading_rows(engine: QueryEngine, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("rows were read")

    monkeypatch.setattr(engine.store.backend, "fetch", refuse)
    monkeypatch.setattr(engine.store.backend, "read", refuse)

    assert engine.query("SELECT COUNT(*) AS n FROM shop.sales AS s").to_pylist() == [{"n": 4}]
    assert engine.query("SELECT COUNT(*) FROM shop.stock").to_pylist() == [{"EXPR$0": 3}]
    for select in ("COUNT(name)", "COUNT(*) + 1", "DISTINCT COUNT(*)"):
        sql = f"SELECT {select} FROM shop.stock"
        with pytest.raises(AssertionError, match="rows were read"):
            engine.query(sql)


def test_where_a_job_begins_is_refused_in_a_query(engine: QueryEngine) -> None:
    with pytest.raises(StatementRefused, match=r"'scan.startup.mode' = 'latest' on sales in a query"):
        engine.query("SELECT COUNT(*) FROM shop.sales /*+ OPTIONS('scan.startup.mode' = 'latest') */")


def test_what_duckdb_refuses_is_one_line_in_its_words(engine: QueryEngine) -> None:
    with pytest.raises(StatementRefused) as refused:
        engine.query("SELECT ST_NOTHING(dept) FROM shop.sales")
    assert "st_nothing" in refused.value.what.lower()
    assert "\n" not in str(refused.value)
