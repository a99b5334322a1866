"""AVG adds up in a wider type than that of its values, as Flink does: integers in BIGINT, FLOAT in DOUBLE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from query_engine.engine import QueryEngine
from storage_engine import Store
from storage_engine.stream import SqlSession, Worker, load_job
from storage_engine.stream.jobs.job import plan_job, save_job
from tests.stream.comparing import differing_jobs

TABLES = """
CREATE TABLE db.e (id BIGINT, k INT, s SMALLINT, i INT, f FLOAT, d DECIMAL(4, 1), PRIMARY KEY (id) NOT ENFORCED);
CREATE TABLE db.means (k INT, s SMALLINT, i INT, f FLOAT, u SMALLINT, d DECIMAL(38, 6), PRIMARY KEY (k) NOT ENFORCED);
CREATE TABLE db.running (id BIGINT, s SMALLINT, i INT, PRIMARY KEY (id) NOT ENFORCED);
SET 'pipeline.name' = 'means'; INSERT INTO db.means SELECT k, AVG(s), AVG(i), AVG(f), AVG(DISTINCT s), AVG(d) FROM db.e GROUP BY k;
SET 'pipeline.name' = 'running';
INSERT INTO db.running SELECT id, AVG(s) OVER (PARTITION BY k ORDER BY id), AVG(i) OVER (PARTITION BY k ORDER BY id) FROM db.e;
"""
TWO_TO_24 = 16_777_216.0
"""The first whole number behind which a FLOAT leaves numbers out."""


def fill(store: Store, start: int, stop: int, value: int) -> None:
    ids = list(range(start, stop))
    floats = [TWO_TO_24 if item == 0 else 1.0 for item in ids]
    store.table("db.e").upsert(
        {"id": ids, "k": [1] * len(ids), "s": [value] * len(ids), "i": [value * 60_000] * len(ids), "f": floats, "d": [999] * len(ids)}
    )


def test_the_sum_of_an_average_may_leave_the_type_of_its_values(store: Store, tmp_path: Path) -> None:
    SqlSession(store).execute(TABLES)
    fill(store, 0, 40, 30_000)
    Worker(store).run_until_idle()
    fill(store, 40, 60, -32_768)
    Worker(store).run_until_idle()
    mean = (40 * 30_000 - 20 * 32_768) // 60
    row = store.table("db.means").lookup({"k": [1]}).to_pylist()[0]
    assert (row["s"], row["i"], row["u"]) == (mean, (40 * 30_000 - 20 * 32_768) * 60_000 // 60, -1384)
    assert row["f"] == pytest.approx((TWO_TO_24 + 59) / 60, rel=1e-9)
    assert str(row["d"]) == "999.000000"
    running = store.table("db.running").lookup({"id": [59]}).to_pylist()[0]
    assert (running["s"], running["i"]) == (row["s"], row["i"])
    assert differing_jobs(store) == []
    store.table("db.e").delete({"id": list(range(40))})
    Worker(store).run_until_idle()
    left = store.table("db.means").lookup({"k": [1]}).to_pylist()[0]
    assert (left["s"], left["u"], left["f"]) == (-32_768, -32_768, 1.0)
    assert differing_jobs(store) == []
    engine = QueryEngine(store, tmp_path / "lake", tmp_path / "spill")
    assert engine.query("SELECT AVG(s) AS s, AVG(i) AS i FROM db.e").to_pylist() == [{"s": -32_768, "i": -32_768 * 60_000}]


def test_a_job_of_an_older_release_keeps_its_narrow_sums(store: Store) -> None:
    """Its state table has a column of the values' type: read as a wider one its rows would not fit into the plan."""
    SqlSession(store).execute(TABLES)
    older = replace(load_job(store, "means"), layout=1)
    for table in plan_job(store, load_job(store, "means")).state_tables:
        store.backend.drop_table(table.name, if_exists=False)
    for table in plan_job(store, older).state_tables:
        store.create_table(table)
    save_job(store, older)
    fill(store, 0, 3, 7)
    Worker(store).run_until_idle()
    assert load_job(store, "means").last_error == ""
    assert store.table("db.means").lookup({"k": [1]}).column("s").to_pylist() == [7]
    state = next(name for name in store.tables() if name.startswith("db.means__state_means") and not name.endswith("_d0"))
    assert {column.type for column in store.describe(state).columns} >= {"SMALLINT"}
