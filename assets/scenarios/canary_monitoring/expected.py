"""Expected: canary rows, both cubes and the alerts after some events, by DuckDB over the events themselves."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from assets.scenarios.canary_monitoring.events import CORE, POOL, Events

CUBE_COLUMNS = ["ds", "mm", "gid", "col1", "col2", "col3", "col4", "pv", "failed", "cost_ms"]
ALERT_COLUMNS = [*CUBE_COLUMNS[:7], "canary_pv", "canary_failed", "base_pv", "base_failed"]
_CUBE = """SELECT ds, col5 AS mm, grouping_id(col1, col2, col3, col4)::BIGINT AS gid, coalesce(col1, 'ALL') AS col1,
  coalesce(col2, 'ALL') AS col2, coalesce(col3, 'ALL') AS col3, coalesce(col4, 'ALL') AS col4,
  count(*) AS pv, sum(col7)::BIGINT AS failed, sum(col6)::BIGINT AS cost_ms
  FROM events WHERE canary = {flag} GROUP BY ds, col5, CUBE (col1, col2, col3, col4)"""
_Z = "(c.failed / c.pv - b.failed / b.pv) / sqrt(p * (1 - p) * (1 / c.pv + 1 / b.pv))"
_ALERTS = f"""SELECT ds, mm, gid, col1, col2, col3, col4,
  c.pv AS canary_pv, c.failed AS canary_failed, b.pv AS base_pv, b.failed AS base_failed
  FROM gray c JOIN base b USING (ds, mm, gid, col1, col2, col3, col4),
  LATERAL (SELECT (c.failed + b.failed) / (c.pv + b.pv) AS p)
  WHERE c.pv >= 30 AND c.failed / c.pv - b.failed / b.pv >= 0.02 AND p > 0 AND p < 1 AND {_Z} >= 6"""


@dataclass(frozen=True)
class Expected:
    canary: pa.Table
    gray: pa.Table
    base: pa.Table
    alerts: pa.Table


def expected(events: Events, n_events: int) -> Expected:
    """The answers after events [0, n_events)."""
    con = duckdb.connect()
    step = 8 * POOL
    for start in range(0, n_events, step):
        stop = min(start + step, n_events)
        rows = events.rows(start, stop).select([*CORE, "ds"])
        rows = rows.append_column("canary", pa.array(events.is_canary[np.arange(start, stop) % POOL]))
        con.register("part", rows)
        con.execute("CREATE TABLE events AS FROM part" if start == 0 else "INSERT INTO events FROM part")
    con.execute(f"CREATE TABLE gray AS {_CUBE.format(flag='true')}")
    con.execute(f"CREATE TABLE base AS {_CUBE.format(flag='false')}")
    canary = con.execute("SELECT * EXCLUDE (canary) FROM events WHERE canary").to_arrow_table()
    tables = [con.execute(text).to_arrow_table() for text in ("FROM gray", "FROM base", _ALERTS)]
    return Expected(canary, *tables)
