"""Expected: what the tables must hold after a history, by DuckDB over the events themselves: last event of each key, then one join."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import pyarrow as pa

from assets.scenarios.conversion_attribution.events import ORDER_EVERY, History

_ORDERS = (
    "SELECT * EXCLUDE (n, gone) FROM orders QUALIFY row_number() OVER (PARTITION BY user_id, ds, order_id ORDER BY n DESC) = 1 AND NOT gone"
)
_VISITS = "SELECT * EXCLUDE (n, gone) FROM visits QUALIFY row_number() OVER (PARTITION BY user_id, ds ORDER BY n DESC) = 1 AND NOT gone"
_DETAIL = """SELECT l.user_id, o.order_id, l.first_page_time, o.order_time, l.pv, o.pay_amt,
  CASE WHEN o.order_time >= l.first_page_time THEN '1' ELSE '0' END AS is_matched, l.ds FROM l JOIN o USING (user_id, ds)"""


@dataclass(frozen=True)
class Expected:
    detail: pa.Table
    unmatched: pa.Table
    conversion: pa.Table


def expected(history: History, n_events: int) -> Expected:
    """The answers after events [0, n_events)."""
    visits, orders = [], []
    step = history.distance * ORDER_EVERY
    for start in range(0, n_events, step):
        batch = history.batch(start, min(start + step, n_events))
        for rows, gone, into in ((batch.visits, batch.gone_visits, visits), (batch.orders, batch.gone_orders, orders)):
            # within a batch no key has two events of different kinds, so that the batch's number is its place in the order
            for part, is_gone in ((rows, False), (gone, True)):
                into.append(
                    part.append_column("n", pa.repeat(start, part.num_rows)).append_column("gone", pa.repeat(is_gone, part.num_rows))
                )
    con = duckdb.connect()
    con.register("visits", pa.concat_tables(visits, promote_options="default"))
    con.register("orders", pa.concat_tables(orders, promote_options="default"))
    con.execute(f"CREATE TABLE l AS {_VISITS}")
    con.execute(f"CREATE TABLE o AS {_ORDERS}")
    con.execute(f"CREATE TABLE d AS {_DETAIL}")
    return Expected(
        con.execute("FROM d").to_arrow_table(),
        con.execute("SELECT user_id, ds, first_page_time, pv FROM l ANTI JOIN o USING (user_id, ds)").to_arrow_table(),
        con.execute(
            "SELECT ds, visitors, buyers FROM (SELECT ds, count(*) AS visitors FROM l GROUP BY ds) LEFT JOIN "
            "(SELECT ds, count(DISTINCT user_id) AS buyers FROM d WHERE is_matched = '1' GROUP BY ds) USING (ds)"
        ).to_arrow_table(),
    )
