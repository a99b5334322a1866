"""Cases: what is measured, as SQL. Flink's steady rates with Fluss (docs: benchmarks/RESULTS.md) are what is asked to be beaten."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.streams.events import EVENT_COLUMNS

EVENTS = f"CREATE TABLE IF NOT EXISTS bench.events ({EVENT_COLUMNS}) WITH ('bucket.num' = '1')"
NEXMARK = """
CREATE TABLE IF NOT EXISTS bench.person (id BIGINT, name STRING, email_address STRING, credit_card STRING, city STRING, state STRING,
  date_time TIMESTAMP(3), extra STRING);
CREATE TABLE IF NOT EXISTS bench.auction (id BIGINT, item_name STRING, description STRING, initial_bid BIGINT, reserve BIGINT,
  date_time TIMESTAMP(3), expires TIMESTAMP(3), seller BIGINT, category BIGINT, extra STRING);
CREATE TABLE IF NOT EXISTS bench.bid (auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, date_time TIMESTAMP(3),
  extra STRING);
"""
_HOP = "TABLE(HOP(TABLE bench.bid, DESCRIPTOR(date_time), INTERVAL '2' SECOND, INTERVAL '10' SECOND))"
_TUMBLE = "TABLE(TUMBLE(TABLE bench.{}, DESCRIPTOR(date_time), INTERVAL '10' SECOND))"
_RANKS = (
    "COUNT({0}) FILTER (WHERE price < 10000), COUNT({0}) FILTER (WHERE price >= 10000 AND price < 1000000), "
    "COUNT({0}) FILTER (WHERE price >= 1000000)"
)
_DAY = "DATE_FORMAT(date_time, 'yyyy-MM-dd')"
_BEST = "FROM bench.auction A, bench.bid B WHERE A.id = B.auction AND B.date_time BETWEEN A.date_time AND A.expires"


@dataclass(frozen=True)
class StreamCase:
    """One job. `sink`: its columns and options; `flink_rows_per_s`: the rate of Flink 2.2 (with Fluss, where the case has a store's sink)
    that is to be beaten `factor` times.
    """

    name: str
    sink: str
    select: str
    flink_rows_per_s: float
    factor: float
    columns: str = ""
    is_nexmark: bool = False


CASES = (
    StreamCase(
        "projection and filter into a log",
        "(user_id BIGINT, shop_id BIGINT, a2 BIGINT)",
        "SELECT user_id, shop_id, amt * 2 FROM bench.events WHERE ev = 'pv'",
        1_071_000,
        2,
    ),
    StreamCase(
        "scenario 2, SUM GROUP BY into the wide table",
        "(shop_id BIGINT, stat_date STRING, stat_hour STRING, exp_cnt BIGINT, page_cnt BIGINT, "
        "PRIMARY KEY (shop_id, stat_date, stat_hour) NOT ENFORCED) WITH ('bucket.key' = 'shop_id')",
        "SELECT shop_id, stat_date, stat_hour, SUM(cnt) FROM bench.events GROUP BY shop_id, stat_date, stat_hour",
        831_000,
        3,
        columns="(shop_id, stat_date, stat_hour, exp_cnt)",
    ),
    StreamCase(
        "minute pv, exact uv, gmv by 1,000 shops",
        "(m TIMESTAMP(3), shop_id BIGINT, pv BIGINT, uv BIGINT, gmv BIGINT, PRIMARY KEY (m, shop_id) NOT ENFORCED)",
        "SELECT window_start, shop_id, COUNT(*), COUNT(DISTINCT user_id), SUM(amt) FROM TABLE(TUMBLE(TABLE bench.events, "
        "DESCRIPTOR(ts), INTERVAL '1' MINUTE)) GROUP BY window_start, window_end, shop_id",
        544_000,
        3,
    ),
    StreamCase(
        "scenario 5, id mapping and bitmaps",
        "(ds STRING, hh STRING, mm STRING, shard_id INT, uv_bitmap BYTES, PRIMARY KEY (ds, hh, mm, shard_id) NOT ENFORCED) "
        "WITH ('bucket.key' = 'shard_id', 'table.merge-engine' = 'aggregation', 'fields.uv_bitmap.agg' = 'rbm32')",
        "SELECT t1.stat_date, t1.stat_hour, DATE_FORMAT(t1.ts, 'mm'), CAST(t2.uid % 4 AS INT), "
        "BITMAP_BUILD_AGG(CAST(t2.uid / 4 AS INT)) FROM bench.events AS t1 JOIN bench.user_map "
        "/*+ OPTIONS('lookup.insert-if-not-exists' = 'true') */ FOR SYSTEM_TIME AS OF PROCTIME() AS t2 ON t1.user_id = t2.user_id "
        "GROUP BY t1.stat_date, t1.stat_hour, DATE_FORMAT(t1.ts, 'mm'), CAST(t2.uid % 4 AS INT)",
        264_000,
        3,
    ),
    StreamCase(
        "q0",
        "(auction BIGINT, bidder BIGINT, price BIGINT, date_time TIMESTAMP(3), extra STRING)",
        "SELECT auction, bidder, price, date_time, extra FROM bench.bid",
        443_000,
        2,
        is_nexmark=True,
    ),
    StreamCase(
        "q1",
        "(auction BIGINT, bidder BIGINT, price DECIMAL(23, 3), date_time TIMESTAMP(3), extra STRING)",
        "SELECT auction, bidder, 0.908 * price, date_time, extra FROM bench.bid",
        476_000,
        2,
        is_nexmark=True,
    ),
    StreamCase(
        "q2",
        "(auction BIGINT, price BIGINT)",
        "SELECT auction, price FROM bench.bid WHERE MOD(auction, 123) = 0",
        534_000,
        2,
        is_nexmark=True,
    ),
    StreamCase(
        "q3",
        "(name STRING, city STRING, state STRING, id BIGINT)",
        "SELECT P.name, P.city, P.state, A.id FROM bench.auction AS A INNER JOIN bench.person AS P ON A.seller = P.id "
        "WHERE A.category = 10 AND (P.state = 'OR' OR P.state = 'ID' OR P.state = 'CA')",
        461_000,
        2,
        is_nexmark=True,
    ),
    StreamCase(
        "q4",
        "(category BIGINT NOT NULL, mean BIGINT, PRIMARY KEY (category) NOT ENFORCED)",
        f"SELECT Q.category, AVG(Q.final) FROM (SELECT MAX(B.price) AS final, A.category {_BEST} GROUP BY A.id, A.category) Q "
        "GROUP BY Q.category",
        208_000,
        3,
        is_nexmark=True,
    ),
    StreamCase(
        "q5",
        "(auction BIGINT, num BIGINT, starttime TIMESTAMP(3), PRIMARY KEY (auction, starttime) NOT ENFORCED)",
        "SELECT AuctionBids.auction, AuctionBids.num, AuctionBids.starttime FROM (SELECT auction, COUNT(*) AS num, "
        f"window_start AS starttime FROM {_HOP} GROUP BY window_start, auction) AS AuctionBids JOIN "
        "(SELECT MAX(CountBids.num) AS maxn, CountBids.starttime FROM "
        f"(SELECT COUNT(*) AS num, window_start AS starttime FROM {_HOP} GROUP BY auction, window_start) AS CountBids "
        "GROUP BY CountBids.starttime) AS MaxBids ON AuctionBids.starttime = MaxBids.starttime AND AuctionBids.num >= MaxBids.maxn",
        425_000,
        2,
        is_nexmark=True,
    ),
    StreamCase(
        "q7",
        "(auction BIGINT, price BIGINT, bidder BIGINT, date_time TIMESTAMP(3), "
        "PRIMARY KEY (auction, price, bidder, date_time) NOT ENFORCED)",
        "SELECT DISTINCT B.auction, B.price, B.bidder, B.date_time FROM bench.bid B JOIN (SELECT MAX(price) AS maxprice, window_end AS "
        f"date_time FROM {_TUMBLE.format('bid')} GROUP BY window_end) B1 ON B.price = B1.maxprice "
        "WHERE B.date_time BETWEEN B1.date_time - INTERVAL '10' SECOND AND B1.date_time",
        163_000,
        3,
        is_nexmark=True,
    ),
    StreamCase(
        "q8",
        "(id BIGINT, name STRING, starttime TIMESTAMP(3), PRIMARY KEY (id, starttime, name) NOT ENFORCED)",
        "SELECT P.id, P.name, P.starttime FROM (SELECT id, name, window_start AS starttime, window_end AS endtime FROM "
        f"{_TUMBLE.format('person')} GROUP BY id, name, window_start, window_end) P JOIN (SELECT seller, window_start AS starttime, "
        f"window_end AS endtime FROM {_TUMBLE.format('auction')} GROUP BY seller, window_start, window_end) A "
        "ON P.id = A.seller AND P.starttime = A.starttime AND P.endtime = A.endtime",
        442_000,
        2,
        is_nexmark=True,
    ),
    StreamCase(
        "q15",
        "(d STRING, " + ", ".join(f"c{i} BIGINT" for i in range(12)) + ", PRIMARY KEY (d) NOT ENFORCED)",
        f"SELECT {_DAY}, COUNT(*), {_RANKS.format('*')}, COUNT(DISTINCT bidder), {_RANKS.format('DISTINCT bidder')}, "
        f"COUNT(DISTINCT auction), {_RANKS.format('DISTINCT auction')} FROM bench.bid GROUP BY {_DAY}",
        167_000,
        3,
        is_nexmark=True,
    ),
    StreamCase(
        "q17",
        "(auction BIGINT, d STRING, " + ", ".join(f"c{i} BIGINT" for i in range(8)) + ", PRIMARY KEY (auction, d) NOT ENFORCED)",
        f"SELECT auction, {_DAY}, COUNT(*), {_RANKS.format('*')}, MIN(price), MAX(price), AVG(price), SUM(price) FROM bench.bid "
        f"GROUP BY auction, {_DAY}",
        352_000,
        2,
        is_nexmark=True,
    ),
    StreamCase(
        "q20",
        "(auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, bid_time TIMESTAMP(3), bid_extra STRING, "
        "item_name STRING, description STRING, initial_bid BIGINT, reserve BIGINT, auction_time TIMESTAMP(3), expires TIMESTAMP(3), "
        "seller BIGINT, category BIGINT, auction_extra STRING)",
        "SELECT auction, bidder, price, channel, url, B.date_time, B.extra, item_name, description, initial_bid, reserve, A.date_time, "
        "expires, seller, category, A.extra FROM bench.bid AS B INNER JOIN bench.auction AS A ON B.auction = A.id WHERE A.category = 10",
        202_000,
        3,
        is_nexmark=True,
    ),
)
USER_MAP = (
    "CREATE TABLE IF NOT EXISTS bench.user_map (user_id BIGINT NOT NULL, uid BIGINT, PRIMARY KEY (user_id) NOT ENFORCED) "
    "WITH ('auto-increment.fields' = 'uid')"
)
