"""The proof: it holds for what streams wrote, finds every kind of wrong row, and repairs without racing the job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import storage_engine
from query_engine.verify import repair, verify
from storage_engine.errors import StatementRefused, UserError
from storage_engine.stream.run.worker import Worker

SQL = """
CREATE TABLE shop.sales (id BIGINT, dept STRING, n BIGINT, ds STRING) PARTITIONED BY (ds);
CREATE TABLE shop.dept_day (dept STRING, ds STRING, cnt BIGINT, total BIGINT, ids BIGINT, target BIGINT,
  PRIMARY KEY (dept, ds) NOT ENFORCED)
  PARTITIONED BY (ds);
CREATE TABLE shop.doubled (id BIGINT, ds STRING);
CREATE TABLE shop.uv (ds STRING, users BYTES, PRIMARY KEY (ds) NOT ENFORCED)
  WITH ('table.merge-engine' = 'aggregation', 'fields.users.agg' = 'rbm32');
SET 'pipeline.name' = 'sums';
INSERT INTO shop.dept_day (dept, ds, cnt, total, ids)
  SELECT dept, ds, COUNT(*), SUM(n), COUNT(DISTINCT id) FROM shop.sales WHERE dept IS NOT NULL GROUP BY dept, ds;
SET 'pipeline.name' = 'doubling';
INSERT INTO shop.doubled SELECT id * 2, ds FROM shop.sales;
SET 'pipeline.name' = 'uv';
INSERT INTO shop.uv SELECT ds, BITMAP_BUILD_AGG(CAST(id AS INT)) FROM shop.sales GROUP BY ds;
"""


def sell(store: storage_engine.Store, start: int) -> None:
    ids = list(range(start, start + 40))
    rows = {"id": [i % 17 for i in ids], "dept": [("a", "b", None)[i % 3] for i in ids], "n": ids, "ds": [f"d{i % 2}" for i in ids]}
    store.table("shop.sales").append(rows)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[storage_engine.Store]:
    with storage_engine.connect(f"file://{tmp_path}/store") as store:
        store.execute(SQL)
        worker = Worker(store)
        for start in (0, 40, 80):
            sell(store, start)
            worker.run_until_idle()
        yield store


@pytest.mark.parametrize(("table", "n_rows"), [("shop.dept_day", 4), ("shop.doubled", 120), ("shop.uv", 2)])
def test_what_the_stream_wrote_is_what_the_batch_computes(store: storage_engine.Store, table: str, n_rows: int) -> None:
    (report,) = verify(store, None, table)
    assert (report.rows_compared, report.rows_differing) == (n_rows, 0)


def test_rows_that_the_job_has_not_read_yet_are_no_difference(store: storage_engine.Store) -> None:
    sell(store, 1000)
    assert all(report.holds for table in ("shop.dept_day", "shop.doubled", "shop.uv") for report in verify(store, None, table))


def test_a_wrong_a_missing_and_an_extra_row_are_each_found_and_repaired(store: storage_engine.Store) -> None:
    table = store.table("shop.dept_day")
    right = sorted(table.read(["dept", "ds", "cnt", "total", "ids"]).to_pylist(), key=str)
    table.upsert({"dept": ["a", "ghost"], "ds": ["d0", "d0"], "cnt": [99, 1]}, ["dept", "ds", "cnt"])
    table.delete({"dept": ["b"], "ds": ["d1"]})
    table.upsert({"dept": ["planned"], "ds": ["d0"], "target": [5]}, ["dept", "ds", "target"])
    (report,) = verify(store, None, "shop.dept_day")
    assert sorted(row["_problem"] for row in report.sample) == ["differs", "extra", "missing"]
    assert repair(store, None, "shop.dept_day") == 3
    assert verify(store, None, "shop.dept_day")[0].holds
    kept = [row for row in table.read().to_pylist() if row["dept"] == "planned"]
    assert kept == [{"dept": "planned", "ds": "d0", "cnt": None, "total": None, "ids": None, "target": 5}]
    repaired = table.read(["dept", "ds", "cnt", "total", "ids"], where="dept <> 'planned'").to_pylist()
    assert sorted(repaired, key=str) == right


def test_only_the_named_partitions_are_compared(store: storage_engine.Store) -> None:
    store.table("shop.dept_day").upsert({"dept": ["a"], "ds": ["d0"], "cnt": [99]}, ["dept", "ds", "cnt"])
    assert verify(store, None, "shop.dept_day", ["d1"])[0].holds
    assert verify(store, None, "shop.dept_day", ["d0"])[0].rows_differing == 1


def test_a_lost_log_row_and_a_doubled_one_are_found(store: storage_engine.Store) -> None:
    store.table("shop.doubled").append({"id": [0, -1], "ds": ["d0", "d0"]})
    (report,) = verify(store, None, "shop.doubled")
    assert report.rows_differing == 2
    with pytest.raises(StatementRefused, match="log table"):
        repair(store, None, "shop.doubled")


def test_a_member_that_no_event_has_is_found_in_a_bitmap(store: storage_engine.Store) -> None:
    from pyroaring import BitMap

    store.table("shop.uv").upsert({"ds": ["d0"], "users": [BitMap([12345]).serialize()]})
    assert verify(store, None, "shop.uv")[0].rows_differing == 1


def test_a_job_goes_on_right_after_a_repair(store: storage_engine.Store) -> None:
    store.table("shop.dept_day").upsert({"dept": ["a"], "ds": ["d0"], "cnt": [99]}, ["dept", "ds", "cnt"])
    repair(store, None, "shop.dept_day")
    sell(store, 200)
    Worker(store).run_until_idle()
    assert verify(store, None, "shop.dept_day")[0].holds


def test_a_table_without_a_job_cannot_be_proved(store: storage_engine.Store) -> None:
    with pytest.raises(UserError, match="no job writes"):
        verify(store, None, "shop.sales")
