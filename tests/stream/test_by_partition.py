"""By partition: which sources' partitions a result's partitions follow, and that a doubt counts as no."""

from __future__ import annotations

import pytest

from storage_engine import Store
from storage_engine.stream.plan.by_partition import following
from storage_engine.stream.plan.tree import scans
from storage_engine.stream.planning.catalog import StoreCatalog
from storage_engine.stream.planning.planner import plan_select

TABLES = """
CREATE TABLE db.a (id BIGINT, k INT, ds STRING) PARTITIONED BY (ds);
CREATE TABLE db.b (id BIGINT, k INT, ds STRING, PRIMARY KEY (id, ds) NOT ENFORCED) PARTITIONED BY (ds);
CREATE TABLE db.whole (id BIGINT, ds STRING);
CREATE TABLE db.dim (id BIGINT, name STRING, PRIMARY KEY (id) NOT ENFORCED)
"""
TOP = "SELECT ds, id FROM (SELECT ds, id, ROW_NUMBER() OVER (PARTITION BY {} ORDER BY id) AS n FROM db.a) WHERE n <= 2"


@pytest.mark.parametrize(
    ("select", "tables"),
    [
        ("SELECT ds, id FROM db.a WHERE k > 1", {"db.a"}),
        ("SELECT day AS ds, COUNT(*) AS c FROM (SELECT ds AS day FROM db.a) GROUP BY day", {"db.a"}),
        ("SELECT ds, COUNT(*) AS c FROM (SELECT ds, k, COUNT(*) FROM db.a GROUP BY ds, k) GROUP BY ds", {"db.a"}),
        ("SELECT a.ds, a.id, b.k FROM db.a JOIN db.b ON a.id = b.id AND a.ds = b.ds", {"db.a", "db.b"}),
        ("SELECT a.ds, a.id, b.k FROM db.a LEFT JOIN db.b ON a.id = b.id AND a.ds = b.ds", {"db.a", "db.b"}),
        ("SELECT a.ds, a.id, x.name FROM db.a LEFT JOIN db.dim FOR SYSTEM_TIME AS OF PROCTIME() AS x ON a.id = x.id", {"db.a"}),
        ("SELECT ds, id FROM db.a UNION ALL SELECT ds, id FROM db.b", {"db.a", "db.b"}),
        ("SELECT ds, id FROM db.a WHERE EXISTS (SELECT 1 FROM db.b WHERE b.ds = a.ds)", {"db.a", "db.b"}),
        (TOP.format("ds"), {"db.a"}),
        # rows of another partition may matter
        ("SELECT a.ds, a.id, b.k FROM db.a JOIN db.b ON a.id = b.id", {"db.a"}),
        ("SELECT ds, id FROM db.a WHERE id IN (SELECT id FROM db.b)", {"db.a"}),
        ("SELECT UPPER(ds) AS ds, COUNT(*) AS c FROM db.a GROUP BY UPPER(ds)", set()),
        ("SELECT MAX(ds) AS ds, k FROM db.a GROUP BY k", set()),
        ("SELECT 'x' AS ds, id FROM db.a", set()),
        ("SELECT ds, id FROM db.whole", set()),
        (TOP.format("k"), set()),
    ],
)
def test_a_result_follows_a_source_whose_partition_column_it_has_unchanged(store: Store, select: str, tables: set[str]) -> None:
    store.execute(TABLES)
    plan = plan_select(StoreCatalog(store), select, default_database="db", settings={}).recomputed

    found = following(plan.root, "ds")

    names = {scan.id: scan.table.name for scan in scans(plan.root)}
    assert {names[number] for number in found} == tables
