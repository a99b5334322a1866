"""Cases: queries over a log and over a changelog, their answer as one plain query, and the events that they are asked about."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pyarrow as pa

from storage_engine import Store
from storage_engine.stream import SqlSession

EVENTS = """CREATE TABLE db.events (id BIGINT, shop BIGINT, kind STRING, qty INT, amount DECIMAL(12,2), uid BIGINT, ts TIMESTAMP(3))
  WITH ('bucket.num' = '3', 'bucket.key' = 'id')"""
KEYED = """CREATE TABLE db.orders (id BIGINT, shop BIGINT, kind STRING, qty INT, amount DECIMAL(12,2), PRIMARY KEY (id) NOT ENFORCED)
  WITH ('bucket.num' = '3')"""

LOG_CASES = {
    "projection and filter": (
        "CREATE TABLE db.s (id BIGINT, hour STRING, twice DECIMAL(14,2))",
        "SELECT id, DATE_FORMAT(ts, 'yyyy-MM-dd HH'), amount * 2 FROM db.events WHERE qty / 2 > 1",
        "SELECT id, strftime(ts, '%Y-%m-%d %H'), CAST(amount * 2 AS DECIMAL(14,2)) FROM events WHERE qty // 2 > 1",
    ),
    "sums in the sink": (
        "CREATE TABLE db.s (shop BIGINT, day STRING, n BIGINT, q INT, total DECIMAL(38,2), low DECIMAL(12,2), high DECIMAL(12,2), "
        "PRIMARY KEY (shop, day) NOT ENFORCED)",
        "SELECT shop, DATE_FORMAT(ts, 'yyyy-MM-dd'), COUNT(*), SUM(qty), SUM(amount), MIN(amount), MAX(amount) FROM db.events WHERE "
        "shop IS NOT NULL "
        "GROUP BY shop, DATE_FORMAT(ts, 'yyyy-MM-dd')",
        "SELECT shop, strftime(ts, '%Y-%m-%d'), count(*), CAST(sum(qty) AS INT), sum(amount), min(amount), max(amount) FROM events "
        "WHERE shop IS NOT NULL GROUP BY ALL",
    ),
    "averages and filters in a state table": (
        "CREATE TABLE db.s (shop BIGINT, mean DECIMAL(38,6), whole INT, few BIGINT, ratio DOUBLE, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT shop, AVG(amount), AVG(qty), COUNT(*) FILTER (WHERE kind = 'a'), CAST(SUM(qty) AS DOUBLE) / COUNT(*) FROM db.events "
        "WHERE shop IS NOT NULL GROUP BY shop",
        "SELECT shop, CAST(round(sum(amount) / count(amount), 6) AS DECIMAL(38,6)), CAST(trunc(sum(qty) / count(qty)) AS INT), count(*) "
        "FILTER (kind = 'a'), "
        "sum(qty)::DOUBLE / count(*) FROM events WHERE shop IS NOT NULL GROUP BY shop",
    ),
    "distinct counts": (
        "CREATE TABLE db.s (shop BIGINT, users BIGINT, kinds BIGINT, sum_distinct INT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT shop, COUNT(DISTINCT uid), COUNT(DISTINCT kind), SUM(DISTINCT qty), COUNT(*) FROM db.events WHERE shop IS NOT NULL "
        "GROUP BY shop",
        "SELECT shop, count(DISTINCT uid), count(DISTINCT kind), CAST(sum(DISTINCT qty) AS INT), count(*) FROM events WHERE shop IS NOT "
        "NULL GROUP BY shop",
    ),
    "having": (
        "CREATE TABLE db.s (shop BIGINT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT shop, COUNT(*) FROM db.events WHERE shop IS NOT NULL GROUP BY shop HAVING COUNT(*) > 20 AND MAX(qty) < 9",
        "SELECT shop, count(*) FROM events WHERE shop IS NOT NULL GROUP BY shop HAVING count(*) > 20 AND max(qty) < 9",
    ),
    "two levels of aggregates": (
        "CREATE TABLE db.s (n BIGINT, shops BIGINT, q BIGINT, PRIMARY KEY (n) NOT ENFORCED)",
        "SELECT n, COUNT(*), SUM(q) FROM (SELECT shop, COUNT(*) AS n, SUM(CAST(qty AS BIGINT)) AS q FROM db.events GROUP BY shop) GROUP "
        "BY n",
        "SELECT n, count(*), CAST(sum(q) AS BIGINT) FROM (SELECT shop, count(*) AS n, sum(qty) AS q FROM events GROUP BY shop) GROUP BY n",
    ),
    "a global aggregate": (
        "CREATE TABLE db.s (one INT, n BIGINT, users BIGINT, PRIMARY KEY (one) NOT ENFORCED)",
        "SELECT 1, COUNT(*), COUNT(DISTINCT uid) FROM db.events",
        "SELECT 1, count(*), count(DISTINCT uid) FROM events",
    ),
    "an aggregation table": (
        "CREATE TABLE db.s (shop BIGINT, n BIGINT, total DECIMAL(38,2), high DECIMAL(12,2), users BIGINT, PRIMARY KEY (shop) NOT "
        "ENFORCED) WITH ("
        "'table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'fields.total.agg' = 'sum', 'fields.high.agg' = 'max', "
        "'fields.users.agg' = 'sum')",
        "SELECT shop, COUNT(*), SUM(amount), MAX(amount), COUNT(DISTINCT uid) FROM db.events WHERE shop IS NOT NULL GROUP BY shop",
        "SELECT shop, count(*), sum(amount), max(amount), count(DISTINCT uid) FROM events WHERE shop IS NOT NULL GROUP BY shop",
    ),
    "bitmaps": (
        "CREATE TABLE db.s (shop BIGINT, shard INT, users BYTES, PRIMARY KEY (shop, shard) NOT ENFORCED) WITH ('table.merge-engine' = "
        "'aggregation', 'fields.users.agg' = 'rbm32')",
        "SELECT shop, CAST(uid % 4 AS INT), BITMAP_TO_BYTES(BITMAP_BUILD_AGG(CAST(uid / 4 AS INT))) FROM db.events WHERE uid IS NOT "
        "NULL AND shop IS NOT NULL GROUP BY shop, CAST(uid % 4 AS INT)",
        "SELECT shop, CAST(uid % 4 AS INT), rb_build(list(CAST(uid // 4 AS UINTEGER))) FROM events WHERE uid IS NOT NULL AND shop IS "
        "NOT NULL GROUP BY ALL",
    ),
    "a union of two readings of one log": (
        "CREATE TABLE db.s (what STRING, n BIGINT, q BIGINT, PRIMARY KEY (what) NOT ENFORCED)",
        "WITH big AS (SELECT 'big' AS what, CAST(qty AS BIGINT) AS q FROM db.events WHERE qty > 4), small (what, q) AS "
        "(SELECT 'small', qty FROM db.events WHERE qty <= 4) "
        "SELECT what, COUNT(*), SUM(q) FROM (SELECT * FROM big UNION ALL SELECT * FROM small UNION ALL SELECT * FROM big) GROUP BY what",
        "SELECT CASE WHEN qty > 4 THEN 'big' ELSE 'small' END AS what, sum(CASE WHEN qty > 4 THEN 2 ELSE 1 END)::BIGINT, "
        "sum(CASE WHEN qty > 4 THEN 2 ELSE 1 END * qty)::BIGINT FROM events WHERE qty IS NOT NULL GROUP BY 1",
    ),
    "a distinct union": (
        "CREATE TABLE db.s (what STRING, PRIMARY KEY (what) NOT ENFORCED)",
        "SELECT kind FROM db.events WHERE kind IS NOT NULL UNION SELECT CAST(shop AS STRING) FROM db.events WHERE shop IS NOT NULL",
        "SELECT kind FROM events WHERE kind IS NOT NULL UNION SELECT shop::VARCHAR FROM events WHERE shop IS NOT NULL",
    ),
    "a union appended to a log": (
        "CREATE TABLE db.s (id BIGINT, q BIGINT)",
        "SELECT id, qty FROM db.events UNION ALL SELECT id, uid FROM db.events",
        "SELECT id, qty::BIGINT FROM events UNION ALL SELECT id, uid FROM events",
    ),
    "grouping sets": (
        "CREATE TABLE db.s (gid BIGINT, shop STRING, kind STRING, n BIGINT, users BIGINT, PRIMARY KEY (gid, shop, kind) NOT ENFORCED)",
        "SELECT GROUPING_ID(shop, kind), COALESCE(shop, 'ALL'), COALESCE(kind, 'ALL'), COUNT(*), COUNT(DISTINCT uid) "
        "FROM (SELECT CAST(shop AS STRING) AS shop, kind, uid FROM db.events) GROUP BY GROUPING SETS ((shop, kind), (kind), ())",
        "SELECT grouping_id(shop, kind), coalesce(shop, 'ALL'), coalesce(kind, 'ALL'), count(*), count(DISTINCT uid) "
        "FROM (SELECT shop::VARCHAR AS shop, kind, uid FROM events) GROUP BY GROUPING SETS ((shop, kind), (kind), ())",
    ),
    "a cube with its marks": (
        "CREATE TABLE db.s (a BIGINT, k BIGINT, shop BIGINT, kind STRING, half INT, n BIGINT, "
        "PRIMARY KEY (a, shop, kind, half) NOT ENFORCED)",
        "SELECT GROUPING(shop, kind, qty / 5), GROUPING(kind), COALESCE(shop, -1), COALESCE(kind, '?'), COALESCE(qty / 5, -1), COUNT(*) "
        "FROM db.events GROUP BY CUBE (shop, kind), qty / 5",
        "SELECT grouping(shop, kind, qty // 5), grouping(kind), coalesce(shop, -1), coalesce(kind, '?'), coalesce(qty // 5, -1), count(*) "
        "FROM events GROUP BY CUBE (shop, kind), qty // 5",
    ),
    "the latest row of each key": (
        "CREATE TABLE db.s (shop BIGINT, kind STRING, id BIGINT, qty INT, PRIMARY KEY (shop, kind) NOT ENFORCED)",
        "SELECT shop, kind, id, qty FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY shop, kind ORDER BY ts DESC, id) AS rn "
        "FROM db.events WHERE shop IS NOT NULL AND kind IS NOT NULL) WHERE rn = 1",
        "SELECT shop, kind, id, qty FROM events WHERE shop IS NOT NULL AND kind IS NOT NULL "
        "QUALIFY row_number() OVER (PARTITION BY shop, kind ORDER BY ts DESC, id) = 1",
    ),
    "the first three of each shop": (
        "CREATE TABLE db.s (shop BIGINT, rn BIGINT, id BIGINT, qty INT, PRIMARY KEY (shop, rn) NOT ENFORCED)",
        "SELECT shop, ROW_NUMBER() OVER (PARTITION BY shop ORDER BY qty / 3 DESC, id) AS rn, id, qty FROM db.events WHERE shop IS NOT NULL "
        "QUALIFY ROW_NUMBER() OVER (PARTITION BY shop ORDER BY qty / 3 DESC, id) <= 3",
        "SELECT shop, row_number() OVER (PARTITION BY shop ORDER BY qty // 3 DESC NULLS LAST, id) AS rn, id, qty FROM events "
        "WHERE shop IS NOT NULL QUALIFY rn <= 3",
    ),
    "a join of a log with itself": (
        "CREATE TABLE db.s (id BIGINT, other BIGINT, qty INT)",
        "SELECT a.id, b.id, b.qty FROM (SELECT * FROM db.events WHERE kind = 'a') a JOIN (SELECT * FROM db.events WHERE kind = 'b') b "
        "ON a.uid = b.uid AND a.qty < b.qty",
        "SELECT a.id, b.id AS other, b.qty FROM events a JOIN events b ON a.uid = b.uid AND a.qty < b.qty "
        "WHERE a.kind = 'a' AND b.kind = 'b'",
    ),
    "a left join of a log, aggregated": (
        "CREATE TABLE db.s (kind STRING, n BIGINT, matched BIGINT, best INT, PRIMARY KEY (kind) NOT ENFORCED)",
        "SELECT COALESCE(a.kind, '-'), COUNT(*), COUNT(b.id), MAX(b.qty) FROM db.events a LEFT JOIN "
        "(SELECT uid, id, qty FROM db.events WHERE kind = 'b') b ON a.uid = b.uid GROUP BY a.kind",
        "SELECT coalesce(a.kind, '-'), count(*), count(b.id), max(b.qty) FROM events a LEFT JOIN "
        "(SELECT * FROM events WHERE kind = 'b') b ON a.uid = b.uid GROUP BY a.kind",
    ),
    "the largest of counts": (
        "CREATE TABLE db.s (kind STRING, most BIGINT, least BIGINT, shops BIGINT, PRIMARY KEY (kind) NOT ENFORCED)",
        "SELECT kind, MAX(n), MIN(n), COUNT(*) FROM (SELECT kind, shop, COUNT(*) AS n FROM db.events WHERE kind IS NOT NULL "
        "GROUP BY kind, shop) GROUP BY kind",
        "SELECT kind, max(n), min(n), count(*) FROM (SELECT kind, shop, count(*) AS n FROM events WHERE kind IS NOT NULL GROUP BY ALL) "
        "GROUP BY kind",
    ),
    "a join of two aggregates": (
        "CREATE TABLE db.s (shop BIGINT, n BIGINT, users BIGINT, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT a.shop, a.n, b.users FROM (SELECT shop, COUNT(*) AS n FROM db.events WHERE shop IS NOT NULL GROUP BY shop) a "
        "JOIN (SELECT shop, COUNT(DISTINCT uid) AS users FROM db.events WHERE qty > 3 AND shop IS NOT NULL GROUP BY shop) b "
        "ON a.shop = b.shop AND b.users < a.n",
        "SELECT a.shop, a.n, b.users FROM (SELECT shop, count(*) AS n FROM events GROUP BY shop) a "
        "JOIN (SELECT shop, count(DISTINCT uid) AS users FROM events WHERE qty > 3 GROUP BY shop) b ON a.shop = b.shop AND b.users < a.n",
    ),
    "tumbling windows": (
        "CREATE TABLE db.s (window_start TIMESTAMP(3), window_end TIMESTAMP(3), window_time TIMESTAMP(3), kind STRING, n BIGINT, "
        "PRIMARY KEY (window_start, window_end, window_time, kind) NOT ENFORCED)",
        "SELECT window_start, window_end, window_time, kind, COUNT(*) FROM TABLE(TUMBLE(TABLE db.events, DESCRIPTOR(ts), "
        "INTERVAL '6' HOUR, INTERVAL '1' HOUR)) WHERE kind IS NOT NULL GROUP BY window_start, window_end, window_time, kind",
        "SELECT s, s + INTERVAL 6 HOUR, s + INTERVAL 6 HOUR - INTERVAL 1 MILLISECOND, kind, count(*) FROM (SELECT kind, "
        "time_bucket(INTERVAL 6 HOUR, ts, TIMESTAMP '2017-01-01 01:00:00') AS s FROM events WHERE kind IS NOT NULL) GROUP BY ALL",
    ),
    "hopping windows, and the best kind of each": (
        "CREATE TABLE db.s (window_start TIMESTAMP(3), most BIGINT, kinds BIGINT, PRIMARY KEY (window_start) NOT ENFORCED)",
        "SELECT window_start, MAX(n), COUNT(*) FROM (SELECT window_start, kind, COUNT(*) AS n FROM TABLE(HOP(DATA => TABLE db.events, "
        "TIMECOL => DESCRIPTOR(ts), SLIDE => INTERVAL '4' HOUR, SIZE => INTERVAL '12' HOUR)) GROUP BY window_start, kind) "
        "GROUP BY window_start",
        "SELECT s, max(n), count(*) FROM (SELECT s, kind, count(*) AS n FROM (SELECT kind, time_bucket(INTERVAL 4 HOUR, ts, "
        "TIMESTAMP '2017-01-01') - i * INTERVAL 4 HOUR AS s FROM (SELECT *, unnest(range(0, 3)) AS i FROM events)) GROUP BY ALL) "
        "GROUP BY s",
    ),
    "cumulating windows": (
        "CREATE TABLE db.s (window_start TIMESTAMP(3), window_end TIMESTAMP(3), n BIGINT, users BIGINT, "
        "PRIMARY KEY (window_start, window_end) NOT ENFORCED)",
        "SELECT window_start, window_end, COUNT(*), COUNT(DISTINCT uid) FROM "
        "TABLE(CUMULATE(TABLE db.events, DESCRIPTOR(ts), INTERVAL '6' HOUR, INTERVAL '1' DAY)) GROUP BY window_start, window_end",
        "SELECT d, d + e * INTERVAL 6 HOUR, count(*), count(DISTINCT uid) FROM (SELECT uid, ts, date_trunc('day', ts) AS d, "
        "unnest(range(1, 5)) AS e FROM events) WHERE ts < d + e * INTERVAL 6 HOUR GROUP BY ALL",
    ),
    "sums over the last rows and hours": (
        "CREATE TABLE db.s (id BIGINT, shop BIGINT, q INT, n BIGINT, mean INT, low INT, before INT, behind BIGINT, first INT, "
        "PRIMARY KEY (id) NOT ENFORCED)",
        "SELECT id, shop, SUM(qty) OVER (PARTITION BY shop ORDER BY ts RANGE BETWEEN INTERVAL '5' HOUR PRECEDING AND CURRENT ROW), "
        "COUNT(*) OVER (PARTITION BY shop ORDER BY ts RANGE BETWEEN INTERVAL '5' HOUR PRECEDING AND CURRENT ROW), "
        "AVG(qty) OVER (PARTITION BY shop ORDER BY ts ROWS BETWEEN 3 PRECEDING AND CURRENT ROW), "
        "MIN(qty) OVER (PARTITION BY shop ORDER BY ts), LAG(qty) OVER (PARTITION BY shop ORDER BY ts), "
        "LEAD(id, 2, -1) OVER (PARTITION BY shop ORDER BY ts), FIRST_VALUE(qty) OVER (PARTITION BY shop ORDER BY ts) FROM db.events",
        "SELECT id, shop, "
        "CAST(sum(qty) OVER (PARTITION BY shop ORDER BY ts RANGE BETWEEN INTERVAL 5 HOUR PRECEDING AND CURRENT ROW) AS INT), "
        "count(*) OVER (PARTITION BY shop ORDER BY ts RANGE BETWEEN INTERVAL 5 HOUR PRECEDING AND CURRENT ROW), "
        "CAST(trunc(avg(qty) OVER (PARTITION BY shop ORDER BY ts ROWS BETWEEN 3 PRECEDING AND CURRENT ROW)) AS INT), "
        "min(qty) OVER (PARTITION BY shop ORDER BY ts), lag(qty) OVER (PARTITION BY shop ORDER BY ts), "
        "lead(id, 2, -1) OVER (PARTITION BY shop ORDER BY ts), first_value(qty IGNORE NULLS) OVER (PARTITION BY shop ORDER BY ts) "
        "FROM events",
    ),
    "a running total over everything": (
        "CREATE TABLE db.s (id BIGINT, total DECIMAL(38,2), mean DECIMAL(38,6), PRIMARY KEY (id) NOT ENFORCED)",
        "SELECT id, SUM(amount) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING), AVG(amount) OVER (ORDER BY id) FROM db.events WHERE qty > 3",
        "SELECT id, sum(amount) OVER (ORDER BY id), CAST(round(sum(amount) OVER (ORDER BY id) / count(amount) OVER (ORDER BY id), 6) "
        "AS DECIMAL(38,6)) FROM events WHERE qty > 3",
    ),
    "sessions of users": (
        "CREATE TABLE db.s (uid BIGINT, s TIMESTAMP(3), e TIMESTAMP(3), n BIGINT, q INT, PRIMARY KEY (uid, s, e) NOT ENFORCED)",
        "SELECT COALESCE(uid, -1), window_start, window_end, COUNT(*), MAX(qty) FROM TABLE(SESSION(TABLE db.events PARTITION BY uid, "
        "DESCRIPTOR(ts), INTERVAL '4' HOUR)) GROUP BY uid, window_start, window_end",
        "SELECT coalesce(uid, -1), min(ts), max(ts) + INTERVAL 4 HOUR, count(*), max(qty) FROM (SELECT *, sum(b) OVER (PARTITION BY uid "
        "ORDER BY ts ROWS UNBOUNDED PRECEDING) AS g FROM (SELECT *, CASE WHEN ts <= lag(ts) OVER (PARTITION BY uid ORDER BY ts) + "
        "INTERVAL 4 HOUR THEN 0 ELSE 1 END AS b FROM events)) GROUP BY uid, g",
    ),
    "an interval join": (
        "CREATE TABLE db.s (a BIGINT, b BIGINT)",
        "SELECT a.id, b.id FROM db.events a JOIN db.events b ON a.uid = b.uid AND "
        "b.ts BETWEEN a.ts - INTERVAL '1' HOUR AND a.ts + INTERVAL '6' HOUR AND a.id <> b.id",
        "SELECT a.id, b.id AS b FROM events a JOIN events b ON a.uid = b.uid AND "
        "b.ts BETWEEN a.ts - INTERVAL 1 HOUR AND a.ts + INTERVAL 6 HOUR AND a.id <> b.id",
    ),
    "distinct rows": (
        "CREATE TABLE db.s (shop BIGINT, kind STRING, PRIMARY KEY (shop, kind) NOT ENFORCED)",
        "SELECT DISTINCT shop, kind FROM db.events WHERE kind IS NOT NULL AND shop IS NOT NULL",
        "SELECT DISTINCT shop, kind FROM events WHERE kind IS NOT NULL AND shop IS NOT NULL",
    ),
}  # fmt: skip

KEYED_CASES = {
    "a copy with a filter": (
        "CREATE TABLE db.s (id BIGINT, amount DECIMAL(12,2), PRIMARY KEY (id) NOT ENFORCED)",
        "SELECT id, amount FROM db.orders WHERE kind <> 'c'",
        "SELECT id, amount FROM orders WHERE kind <> 'c'",
    ),
    "counts in the sink, groups may empty": (
        "CREATE TABLE db.s (shop BIGINT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT shop, COUNT(*) FROM db.orders WHERE shop IS NOT NULL GROUP BY shop",
        "SELECT shop, count(*) FROM orders WHERE shop IS NOT NULL GROUP BY shop",
    ),
    "sums that may become null again": (
        "CREATE TABLE db.s (shop BIGINT, total DECIMAL(38,2), q INT, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT shop, SUM(amount), SUM(qty) FROM db.orders WHERE shop IS NOT NULL GROUP BY shop",
        "SELECT shop, sum(amount), CAST(sum(qty) AS INT) FROM orders WHERE shop IS NOT NULL GROUP BY shop",
    ),
    "distinct counts with retraction": (
        "CREATE TABLE db.s (shop BIGINT, kinds BIGINT, mean INT, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT shop, COUNT(DISTINCT kind), AVG(qty) FROM db.orders WHERE shop IS NOT NULL GROUP BY shop",
        "SELECT shop, count(DISTINCT kind), CAST(trunc(sum(qty) / count(qty)) AS INT) FROM orders WHERE shop IS NOT NULL GROUP BY shop",
    ),
    "an aggregation table takes rows back": (
        "CREATE TABLE db.s (shop BIGINT, n BIGINT, ids BIGINT, q INT, seen BIGINT, PRIMARY KEY (shop) NOT ENFORCED) WITH ("
        "'table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'fields.ids.agg' = 'sum', 'fields.q.agg' = 'sum', "
        "'fields.seen.agg' = 'sum', 'table.delete.on-zero' = 'n', 'bucket.num' = '2')",
        "SELECT shop, COUNT(*), SUM(id), SUM(COALESCE(qty, 0)), COUNT(qty) FROM db.orders WHERE shop IS NOT NULL GROUP BY shop",
        "SELECT shop, count(*), CAST(sum(id) AS BIGINT), CAST(sum(coalesce(qty, 0)) AS INT), count(qty) FROM orders "
        "WHERE shop IS NOT NULL GROUP BY shop",
    ),
    "distinct counts in an aggregation table": (
        "CREATE TABLE db.s (shop BIGINT, n BIGINT, kinds BIGINT, PRIMARY KEY (shop) NOT ENFORCED) WITH ("
        "'table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'fields.kinds.agg' = 'sum', 'table.delete.on-zero' = 'n')",
        "SELECT shop, COUNT(*), COUNT(DISTINCT kind) FROM db.orders WHERE shop IS NOT NULL GROUP BY shop",
        "SELECT shop, count(*), count(DISTINCT kind) FROM orders WHERE shop IS NOT NULL GROUP BY shop",
    ),
    "having with retraction": (
        "CREATE TABLE db.s (shop BIGINT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT shop, COUNT(*) FROM db.orders WHERE shop IS NOT NULL GROUP BY shop HAVING COUNT(*) > 3",
        "SELECT shop, count(*) FROM orders WHERE shop IS NOT NULL GROUP BY shop HAVING count(*) > 3",
    ),
    "two levels with retraction": (
        "CREATE TABLE db.s (n BIGINT, shops BIGINT, PRIMARY KEY (n) NOT ENFORCED)",
        "SELECT n, COUNT(*) FROM (SELECT shop, kind, COUNT(*) AS n FROM db.orders GROUP BY shop, kind) GROUP BY n",
        "SELECT n, count(*) FROM (SELECT shop, kind, count(*) AS n FROM orders GROUP BY shop, kind) GROUP BY n",
    ),
    "distinct rows with retraction": (
        "CREATE TABLE db.s (shop BIGINT, kind STRING, PRIMARY KEY (shop, kind) NOT ENFORCED)",
        "SELECT DISTINCT shop, kind FROM db.orders WHERE kind IS NOT NULL AND shop IS NOT NULL",
        "SELECT DISTINCT shop, kind FROM orders WHERE kind IS NOT NULL AND shop IS NOT NULL",
    ),
    "a rollup with retraction": (
        "CREATE TABLE db.s (gid BIGINT, shop BIGINT, kind STRING, n BIGINT, q INT, PRIMARY KEY (gid, shop, kind) NOT ENFORCED)",
        "SELECT GROUPING_ID(shop, kind), COALESCE(shop, 0), COALESCE(kind, '-'), COUNT(*), SUM(qty) FROM db.orders "
        "GROUP BY ROLLUP (shop, kind)",
        "SELECT grouping_id(shop, kind), coalesce(shop, 0), coalesce(kind, '-'), count(*), sum(qty)::INT FROM orders "
        "GROUP BY ROLLUP (shop, kind) HAVING count(*) > 0",
    ),
    "a union with retraction": (
        "CREATE TABLE db.s (shop BIGINT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED)",
        "SELECT shop, COUNT(*) FROM (SELECT shop FROM db.orders WHERE kind = 'a' UNION ALL SELECT CAST(qty AS BIGINT) FROM db.orders) "
        "WHERE shop IS NOT NULL GROUP BY shop",
        "SELECT shop, count(*) FROM (SELECT shop FROM orders WHERE kind = 'a' UNION ALL SELECT qty FROM orders) "
        "WHERE shop IS NOT NULL GROUP BY shop",
    ),
    "extremes of rows that may go": (
        "CREATE TABLE db.s (half BIGINT, low DECIMAL(12,2), high INT, n BIGINT, total INT, PRIMARY KEY (half) NOT ENFORCED)",
        "SELECT COALESCE(shop / 2, -1), MIN(amount), MAX(qty), COUNT(*), SUM(qty) FROM db.orders GROUP BY shop / 2",
        "SELECT coalesce(shop // 2, -1), min(amount), max(qty), count(*), sum(qty)::INT FROM orders GROUP BY shop // 2",
    ),
    "the two dearest of each shop": (
        "CREATE TABLE db.s (shop BIGINT, rn BIGINT, id BIGINT, amount DECIMAL(12,2), PRIMARY KEY (shop, rn) NOT ENFORCED)",
        "SELECT shop, rn, id, amount FROM (SELECT shop, id, amount, ROW_NUMBER() OVER (PARTITION BY shop ORDER BY amount DESC, id) AS rn "
        "FROM db.orders WHERE shop IS NOT NULL) WHERE rn < 3",
        "SELECT shop, row_number() OVER (PARTITION BY shop ORDER BY amount DESC NULLS LAST, id) AS rn, id, amount FROM orders "
        "WHERE shop IS NOT NULL QUALIFY rn < 3",
    ),
    "pairs of one shop": (
        "CREATE TABLE db.s (a BIGINT, b BIGINT, PRIMARY KEY (a, b) NOT ENFORCED)",
        "SELECT a.id, b.id FROM db.orders a JOIN db.orders b ON a.shop = b.shop AND a.kind = b.kind AND a.id < b.id",
        "SELECT a.id, b.id AS b FROM orders a JOIN orders b ON a.shop = b.shop AND a.kind = b.kind AND a.id < b.id",
    ),
    "neighbours in the order of amounts": (
        "CREATE TABLE db.s (id BIGINT, dearer DECIMAL(12,2), n BIGINT, last INT, PRIMARY KEY (id) NOT ENFORCED)",
        "SELECT id, LAG(amount) OVER (PARTITION BY shop ORDER BY amount DESC, id), COUNT(qty) OVER (PARTITION BY shop "
        "ORDER BY amount DESC, id), LAST_VALUE(qty) OVER (PARTITION BY shop ORDER BY amount DESC, id) FROM db.orders",
        "SELECT id, lag(amount) OVER (PARTITION BY shop ORDER BY amount DESC NULLS LAST, id), count(qty) OVER (PARTITION BY shop "
        "ORDER BY amount DESC NULLS LAST, id), last_value(qty IGNORE NULLS) OVER (PARTITION BY shop ORDER BY amount DESC NULLS LAST, id) "
        "FROM orders",
    ),
    "a changed key column moves the row": (
        "CREATE TABLE db.s (id BIGINT, shop BIGINT, qty INT, PRIMARY KEY (id, shop) NOT ENFORCED)",
        "SELECT id, shop, qty FROM db.orders WHERE shop IS NOT NULL",
        "SELECT id, shop, qty FROM orders WHERE shop IS NOT NULL",
    ),
}  # fmt: skip


def event(rng: random.Random, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "shop": rng.choice([None, *range(1, 6)]),
        "kind": rng.choice(["a", "b", "c", None]),
        "qty": rng.choice([None, *range(10)]),
        "amount": rng.choice([None, Decimal(rng.randrange(-500, 5000)) / 100]),
        "uid": rng.choice([None, *range(40)]),
        "ts": 1_483_228_800_000 + rng.randrange(0, 3 * 86_400_000),
    }


def event_table(rows: list[dict[str, Any]]) -> pa.Table:
    types = {
        "id": pa.int64(),
        "shop": pa.int64(),
        "kind": pa.string(),
        "qty": pa.int32(),
        "amount": pa.decimal128(12, 2),
        "uid": pa.int64(),
        "ts": pa.timestamp("ms"),
    }
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()})


def submit(store: Store, source: str, sink: str, select: str) -> None:
    session = SqlSession(store)
    session.execute(f"{source}; {sink}; SET 'pipeline.name' = 'job'; INSERT INTO db.s {select}")
