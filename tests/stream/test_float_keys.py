"""FLOAT and DOUBLE as keys of groups, joins and DISTINCT: 0 and -0 are one value, and so is every NaN, whatever bytes they have."""

from __future__ import annotations

import math
import struct

import pytest

from storage_engine import Store
from storage_engine.stream import SqlSession, Worker, load_jobs
from tests.stream.comparing import differing_jobs, sink_rows

NAN = float("nan")
OTHER_NAN = struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_0001))[0]
TABLES = """
CREATE TABLE db.f (id BIGINT, x {of} NOT NULL, PRIMARY KEY (id) NOT ENFORCED);
CREATE MATERIALIZED VIEW db.counted REFRESH ASYNC AS SELECT x, COUNT(*) AS n FROM db.f GROUP BY x;
CREATE MATERIALIZED VIEW db.means REFRESH ASYNC AS SELECT x, AVG(id) AS m, COUNT(*) AS n FROM db.f GROUP BY x HAVING COUNT(*) > 0;
CREATE MATERIALIZED VIEW db.once REFRESH ASYNC AS SELECT DISTINCT x FROM db.f;
CREATE MATERIALIZED VIEW db.pairs REFRESH ASYNC AS SELECT a.id, b.id AS other FROM db.f a JOIN db.f b ON a.x = b.x;
CREATE MATERIALIZED VIEW db.first REFRESH ASYNC AS SELECT x, id FROM
  (SELECT x, id, ROW_NUMBER() OVER (PARTITION BY x ORDER BY id) AS rn FROM db.f) WHERE rn = 1;
CREATE TABLE db.whole (k INT, n BIGINT, least BIGINT, PRIMARY KEY (k) NOT ENFORCED);
SET 'pipeline.name' = 'whole'; INSERT INTO db.whole SELECT 1, COUNT(DISTINCT x), MIN(id) FROM db.f;
"""


def rows(store: Store, name: str) -> list[tuple[object, ...]]:
    """The rows of a view, -0 and NaN written out."""
    return [tuple(str(value) if isinstance(value, float) else value for value in row) for row in sink_rows(store, name)]


@pytest.mark.parametrize("of", ["DOUBLE", "FLOAT"])
def test_zeros_and_nans_leave_the_groups_and_joins_they_came_into(store: Store, session: SqlSession, of: str) -> None:
    session.execute(TABLES.format(of=of))
    table, worker = store.table("db.f"), Worker(store)
    for ids, values in (([1, 2, 3], [0.0, -0.0, NAN]), ([4, 5], [-0.0, OTHER_NAN]), ([6], [1.5])):
        table.upsert({"id": ids, "x": values})
        worker.run_until_idle()
    assert rows(store, "db.counted") == [("0.0", 3), ("1.5", 1), ("nan", 2)]
    assert rows(store, "db.once") == [("0.0",), ("1.5",), ("nan",)]
    zeros, nans = (1, 2, 4), (3, 5)
    assert rows(store, "db.pairs") == sorted((a, b) for same in (zeros, nans, (6,)) for a in same for b in same)
    assert rows(store, "db.first") == [("0.0", 1), ("1.5", 6), ("nan", 3)]
    assert rows(store, "db.whole") == [(1, 3, 1)]
    table.delete({"id": [2]})
    table.delete({"id": [3]})
    worker.run_until_idle()
    assert rows(store, "db.counted") == [("0.0", 2), ("1.5", 1), ("nan", 1)]
    assert rows(store, "db.means") == [("0.0", 2, 2), ("1.5", 6, 1), ("nan", 5, 1)]
    assert rows(store, "db.pairs") == sorted([*((a, b) for a in (1, 4) for b in (1, 4)), (5, 5), (6, 6)])
    table.delete({"id": [1, 5]})
    worker.run_until_idle()
    assert rows(store, "db.first") == [("0.0", 4), ("1.5", 6)]
    table.delete({"id": [4]})
    worker.run_until_idle()
    assert rows(store, "db.counted") == [("1.5", 1)]
    assert rows(store, "db.once") == [("1.5",)]
    assert rows(store, "db.pairs") == [(6, 6)]
    assert rows(store, "db.whole") == [(1, 1, 6)]
    assert [job.last_error for job in load_jobs(store).values() if job.last_error] == []


def test_the_recomputation_agrees(store: Store, session: SqlSession) -> None:
    session.execute(TABLES.format(of="DOUBLE"))
    table = store.table("db.f")
    table.upsert({"id": [1, 2, 3, 4], "x": [-0.0, 0.0, 2.5, -2.5]})
    Worker(store).run_until_idle()
    table.upsert({"id": [3, 4], "x": [-0.0, 7.0]})
    Worker(store).run_until_idle()
    assert differing_jobs(store) == []
    assert all(math.copysign(1, row[0]) == 1 for row in sink_rows(store, "db.once"))
