"""Ingestion: the real data in the store equals the Parquet files, to the cent, however often and in whatever spans it is loaded."""

from datetime import date, timedelta

import duckdb
import pytest

from flashlake.completejourney import data_file
from flashlake.deploy import deploy
from flashlake.ingest import TABLES, ingest, missing_batches
from storage_engine import connect
from storage_engine.errors import ProgressConflict, UnknownTable, UserError

FIRST = date(2017, 1, 1)


@pytest.fixture
def store(project, tmp_path):
    with connect(f"file://{tmp_path}/store") as opened:
        deploy(opened, project / "assets", only=TABLES)
        yield opened


def totals(store):
    lines = store.table("ods.transactions").scan().read_all()
    with duckdb.connect() as connection:
        connection.register("lines", lines)
        return connection.execute(
            "SELECT COUNT(*), COUNT(DISTINCT basket_id), SUM(quantity), SUM(sales_value), SUM(retail_disc) FROM lines"
        ).fetchone()


def true_totals(start: date, days: int):
    return duckdb.execute(
        f"""SELECT COUNT(*), COUNT(DISTINCT basket_id), SUM(quantity), SUM(CAST(sales_value AS DECIMAL(12,2))),
                   SUM(CAST(retail_disc AS DECIMAL(12,2)))
            FROM '{data_file("transactions")}' WHERE transaction_timestamp >= ? AND transaction_timestamp < ?""",
        [start, start + timedelta(days=days)],
    ).fetchone()


def test_totals_equal_the_parquet_files_to_the_cent(store):
    reports = ingest(store, days=3)

    assert totals(store) == true_totals(FIRST, 3)
    assert {report.table: report.n_new for report in reports}["ods.products"] == 92_331


def test_ingesting_twice_counts_nothing_twice(store):
    ingest(store, days=2)
    version = store.version()

    again = ingest(store, days=2)

    assert [report.n_new for report in again] == [0, 0, 0, 0]
    assert totals(store) == true_totals(FIRST, 2)
    assert store.version() == version


def test_overlapping_spans_in_any_order_count_each_line_once(store):
    for start, days in ((4, 3), (0, 2), (1, 5), (0, 7)):
        ingest(store, tables=["ods.transactions"], first_day=FIRST + timedelta(days=start), days=days, batch_rows=1_111)

    assert totals(store) == true_totals(FIRST, 7)


def test_lines_arrive_in_the_order_of_event_time(store):
    ingest(store, tables=["ods.transactions"], days=2, batch_rows=500)

    for bucket, stop in store.table("ods.transactions").offsets("latest").items():
        times = (
            store.table("ods.transactions")
            .scan(["transaction_timestamp"], stop={bucket: stop})
            .read_all()["transaction_timestamp"]
            .to_pylist()
        )
        assert times == sorted(times)


def test_an_interrupted_load_goes_on_where_it_stopped(store):
    class Stop(Exception):
        pass

    def stop(table, n):
        raise Stop

    with pytest.raises(Stop):
        ingest(store, tables=["ods.transactions"], days=2, batch_rows=1_000, on_rows=stop)
    assert store.table("ods.transactions").count() == 1_000

    ingest(store, tables=["ods.transactions"], days=2)

    assert totals(store) == true_totals(FIRST, 2)


def test_of_two_loads_at_once_one_is_refused_and_nothing_counts_twice(store):
    def load_another(table, n):
        ingest(store, tables=["ods.transactions"], days=2)

    with pytest.raises(ProgressConflict):
        ingest(store, tables=["ods.transactions"], days=2, batch_rows=1_000, on_rows=load_another)

    assert totals(store) == true_totals(FIRST, 2)


def test_a_changed_product_is_restored_by_the_next_load(store):
    ingest(store, tables=["ods.products"])
    products = store.table("ods.products")
    true_row = products.lookup({"product_id": [25671]}).to_pylist()
    products.upsert([true_row[0] | {"brand": "changed"}])

    ingest(store, tables=["ods.products"])

    assert products.lookup({"product_id": [25671]}).to_pylist() == true_row


def test_a_dropped_partition_is_loaded_again(store):
    ingest(store, tables=["ods.transactions"], days=2)
    store.execute("ALTER TABLE ods.transactions DROP PARTITION (ds = '2017-01-02')")
    assert totals(store) == true_totals(FIRST, 1)

    ingest(store, tables=["ods.transactions"], days=2)

    assert totals(store) == true_totals(FIRST, 2)


def test_a_table_the_source_does_not_fill_is_refused(store):
    with pytest.raises(UserError, match="page_visits"):
        ingest(store, tables=["ods.page_visits"])


def test_a_table_the_store_does_not_have_is_refused(tmp_path):
    with connect(f"file://{tmp_path}/empty") as empty, pytest.raises(UnknownTable, match="no table"):
        ingest(empty)


def test_batches_hold_only_the_rows_that_are_missing():
    rows = duckdb.sql(
        "SELECT i AS n, CASE WHEN i < 5 THEN 'd1' WHEN i < 6 THEN 'd2' ELSE 'd3' END AS ds FROM range(10) t(i)"
    ).to_arrow_table()
    reached = {"d1": 3, "d2": 0, "d3": 4}

    found = [(batch["n"].to_pylist(), positions) for batch, positions in missing_batches(rows, lambda day: reached[day], 2)]

    assert found == [([3, 4], {"d1": 5}), ([5], {"d2": 1})]
