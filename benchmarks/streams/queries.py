"""Queries: Nexmark's q0 to q22 in Flink's dialect, over the logs person, auction and bid.

One text serves both engines where both take it. Where Flink's own (nexmark-flink's) differs, it stands beside ours with the reason.
"""

from __future__ import annotations

from typing import Final

from benchmarks.streams.case import StreamCase

NEXMARK: Final = """
CREATE TABLE bench.person (id BIGINT, name STRING, email_address STRING, credit_card STRING, city STRING, state STRING,
  date_time TIMESTAMP(3), extra STRING{watermark}) WITH ('bucket.num' = '1');
CREATE TABLE bench.auction (id BIGINT, item_name STRING, description STRING, initial_bid BIGINT, reserve BIGINT,
  date_time TIMESTAMP(3), expires TIMESTAMP(3), seller BIGINT, category BIGINT, extra STRING{watermark}) WITH ('bucket.num' = '1');
CREATE TABLE bench.bid (auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, date_time TIMESTAMP(3),
  extra STRING{watermark}) WITH ('bucket.num' = '1');
CREATE TABLE bench.side (side_key BIGINT, side_value STRING, PRIMARY KEY (side_key) NOT ENFORCED) WITH ('bucket.num' = '1')
"""
WATERMARK: Final = ", WATERMARK FOR date_time AS date_time - INTERVAL '4' SECOND"
SIDE_ROWS: Final = 10_000

_HOP = "TABLE(HOP(TABLE bench.bid, DESCRIPTOR(date_time), INTERVAL '2' SECOND, INTERVAL '10' SECOND))"
_TUMBLE = "TABLE(TUMBLE(TABLE bench.{}, DESCRIPTOR(date_time), INTERVAL '10' SECOND))"
_RANKS = (
    "COUNT({0}) FILTER (WHERE price < 10000), COUNT({0}) FILTER (WHERE price >= 10000 AND price < 1000000), "
    "COUNT({0}) FILTER (WHERE price >= 1000000)"
)
_DAY = "DATE_FORMAT(date_time, 'yyyy-MM-dd')"
_COUNTS = (
    f"COUNT(*), {_RANKS.format('*')}, COUNT(DISTINCT bidder), {_RANKS.format('DISTINCT bidder')}, "
    f"COUNT(DISTINCT auction), {_RANKS.format('DISTINCT auction')}"
)
_BEST = "FROM bench.auction A, bench.bid B WHERE A.id = B.auction AND B.date_time BETWEEN A.date_time AND A.expires"
_BID = "auction BIGINT, bidder BIGINT, price BIGINT"
_MINI_BATCH = {
    "table.exec.mini-batch.enabled": "true",
    "table.exec.mini-batch.allow-latency": "2 s",
    "table.exec.mini-batch.size": "50000",
    "table.optimizer.distinct-agg.split.enabled": "true",
}


def _counters(n: int) -> str:
    return ", ".join(f"c{i} BIGINT" for i in range(n))


def _query(
    name: str, sink: str, select: str, flink_rows_per_s: float | None = None, factor: float | None = None, **flink: object
) -> StreamCase:
    conf = {**_MINI_BATCH, **flink.pop("conf", {})}  # type: ignore[dict-item]
    return StreamCase(name, sink, select, flink_rows_per_s, factor, is_nexmark=True, flink_conf=conf, **flink)  # type: ignore[arg-type]


QUERIES: Final = (
    _query(
        "q0",
        f"({_BID}, date_time TIMESTAMP(3), extra STRING)",
        "SELECT auction, bidder, price, date_time, extra FROM bench.bid",
        443_000,
        2,
    ),
    _query(
        "q1",
        "(auction BIGINT, bidder BIGINT, price DECIMAL(23, 3), date_time TIMESTAMP(3), extra STRING)",
        "SELECT auction, bidder, 0.908 * price, date_time, extra FROM bench.bid",
        476_000,
        2,
    ),
    _query("q2", "(auction BIGINT, price BIGINT)", "SELECT auction, price FROM bench.bid WHERE MOD(auction, 123) = 0", 534_000, 2),
    _query(
        "q3",
        "(name STRING, city STRING, state STRING, id BIGINT)",
        "SELECT P.name, P.city, P.state, A.id FROM bench.auction AS A INNER JOIN bench.person AS P ON A.seller = P.id "
        "WHERE A.category = 10 AND (P.state = 'OR' OR P.state = 'ID' OR P.state = 'CA')",
        461_000,
        2,
    ),
    _query(
        "q4",
        "(category BIGINT NOT NULL, mean BIGINT, PRIMARY KEY (category) NOT ENFORCED)",
        f"SELECT Q.category, AVG(Q.final) FROM (SELECT MAX(B.price) AS final, A.category {_BEST} GROUP BY A.id, A.category) Q "
        "GROUP BY Q.category",
        208_000,
        3,
    ),
    _query(
        "q5",
        "(auction BIGINT, num BIGINT, starttime TIMESTAMP(3), PRIMARY KEY (auction, starttime) NOT ENFORCED)",
        "SELECT AuctionBids.auction, AuctionBids.num, AuctionBids.starttime FROM (SELECT auction, COUNT(*) AS num, "
        f"window_start AS starttime FROM {_HOP} GROUP BY window_start, auction) AS AuctionBids JOIN "
        "(SELECT MAX(CountBids.num) AS maxn, CountBids.starttime FROM "
        f"(SELECT COUNT(*) AS num, window_start AS starttime FROM {_HOP} GROUP BY auction, window_start) AS CountBids "
        "GROUP BY CountBids.starttime) AS MaxBids ON AuctionBids.starttime = MaxBids.starttime AND AuctionBids.num >= MaxBids.maxn",
        425_000,
        2,
        # grouped by start and end, Flink aggregates by window; by the start alone it would keep every group for ever
        flink_select="SELECT AuctionBids.auction, AuctionBids.num, AuctionBids.starttime FROM (SELECT auction, COUNT(*) AS num, "
        f"window_start AS starttime, window_end AS endtime FROM {_HOP} GROUP BY auction, window_start, window_end) AS AuctionBids JOIN "
        "(SELECT MAX(CountBids.num) AS maxn, CountBids.starttime, CountBids.endtime FROM (SELECT COUNT(*) AS num, window_start AS "
        f"starttime, window_end AS endtime FROM {_HOP} GROUP BY auction, window_start, window_end) AS CountBids GROUP BY "
        "CountBids.starttime, CountBids.endtime) AS MaxBids ON AuctionBids.starttime = MaxBids.starttime AND "
        "AuctionBids.endtime = MaxBids.endtime AND AuctionBids.num >= MaxBids.maxn",
    ),
    _query(
        "q6",
        "(seller BIGINT, mean DECIMAL(38, 6), id BIGINT, PRIMARY KEY (id, seller) NOT ENFORCED)",
        "SELECT Q.seller, AVG(CAST(Q.final AS DECIMAL(20, 0))) OVER (PARTITION BY Q.seller ORDER BY Q.date_time "
        "ROWS BETWEEN 10 PRECEDING AND CURRENT ROW) AS mean, Q.id FROM (SELECT A.id, A.seller, B.price AS final, B.date_time, "
        f"ROW_NUMBER() OVER (PARTITION BY A.id, A.seller ORDER BY B.price) AS rownum {_BEST}) Q WHERE Q.rownum <= 1",
    ),
    _query(
        "q7",
        f"({_BID}, date_time TIMESTAMP(3), PRIMARY KEY (auction, price, bidder, date_time) NOT ENFORCED)",
        "SELECT DISTINCT B.auction, B.price, B.bidder, B.date_time FROM bench.bid B JOIN (SELECT MAX(price) AS maxprice, window_end AS "
        f"date_time FROM {_TUMBLE.format('bid')} GROUP BY window_end) B1 ON B.price = B1.maxprice "
        "WHERE B.date_time BETWEEN B1.date_time - INTERVAL '10' SECOND AND B1.date_time",
        163_000,
        3,
        # nexmark-flink's text: no DISTINCT, and a window closed by the watermark, so that the result is a log
        flink_sink=f"({_BID}, date_time TIMESTAMP(3), extra STRING)",
        flink_select="SELECT B.auction, B.price, B.bidder, B.date_time, B.extra FROM bench.bid B JOIN (SELECT MAX(price) AS maxprice, "
        f"window_end AS date_time FROM {_TUMBLE.format('bid')} GROUP BY window_start, window_end) B1 ON B.price = B1.maxprice "
        "WHERE B.date_time BETWEEN B1.date_time - INTERVAL '10' SECOND AND B1.date_time",
    ),
    _query(
        "q8",
        "(id BIGINT, name STRING, starttime TIMESTAMP(3), PRIMARY KEY (id, starttime, name) NOT ENFORCED)",
        "SELECT P.id, P.name, P.starttime FROM (SELECT id, name, window_start AS starttime, window_end AS endtime FROM "
        f"{_TUMBLE.format('person')} GROUP BY id, name, window_start, window_end) P JOIN (SELECT seller, window_start AS starttime, "
        f"window_end AS endtime FROM {_TUMBLE.format('auction')} GROUP BY seller, window_start, window_end) A "
        "ON P.id = A.seller AND P.starttime = A.starttime AND P.endtime = A.endtime",
        442_000,
        2,
    ),
    _query(
        "q9",
        "(id BIGINT NOT NULL, item_name STRING, description STRING, initial_bid BIGINT, reserve BIGINT, date_time TIMESTAMP(3), "
        "expires TIMESTAMP(3), seller BIGINT, category BIGINT, auction BIGINT, bidder BIGINT, price BIGINT, bid_time TIMESTAMP(3), "
        "PRIMARY KEY (id) NOT ENFORCED)",
        "SELECT id, item_name, description, initial_bid, reserve, date_time, expires, seller, category, auction, bidder, price, bid_time "
        "FROM (SELECT A.*, B.auction, B.bidder, B.price, B.date_time AS bid_time, ROW_NUMBER() OVER "
        f"(PARTITION BY A.id ORDER BY B.price DESC, B.date_time ASC) AS rownum {_BEST}) WHERE rownum <= 1",
    ),
    _query(
        "q10",
        f"({_BID}, date_time TIMESTAMP(3), ds STRING, tm STRING)",
        f"SELECT auction, bidder, price, date_time, {_DAY}, DATE_FORMAT(date_time, 'HH:mm') FROM bench.bid",
    ),
    _query(
        "q11",
        "(bidder BIGINT, bid_count BIGINT, starttime TIMESTAMP(3), endtime TIMESTAMP(3), "
        "PRIMARY KEY (bidder, starttime, endtime) NOT ENFORCED)",
        "SELECT bidder, COUNT(*), window_start, window_end FROM TABLE(SESSION(TABLE bench.bid PARTITION BY bidder, "
        "DESCRIPTOR(date_time), INTERVAL '10' SECOND)) GROUP BY bidder, window_start, window_end",
    ),
    _query(
        "q12",
        "(bidder BIGINT, bid_count BIGINT, starttime TIMESTAMP(3), endtime TIMESTAMP(3), "
        "PRIMARY KEY (bidder, starttime, endtime) NOT ENFORCED)",
        "SELECT bidder, COUNT(*), window_start, window_end FROM TABLE(TUMBLE((SELECT bidder, PROCTIME() AS p_time FROM bench.bid), "
        "DESCRIPTOR(p_time), INTERVAL '10' SECOND)) GROUP BY bidder, window_start, window_end",
        439_000,
        2,
    ),
    _query(
        "q13",
        f"({_BID}, date_time TIMESTAMP(3), side_value STRING)",
        "SELECT B.auction, B.bidder, B.price, B.date_time, S.side_value FROM (SELECT *, CAST(MOD(auction, 10000) AS BIGINT) AS k, "
        "PROCTIME() AS p_time FROM bench.bid) B JOIN bench.side FOR SYSTEM_TIME AS OF B.p_time AS S ON B.k = S.side_key",
        # Fluss's defaults (100 ms of linger) give 750 lookups/s: its cache, no linger and a wide buffer instead
        flink_select="SELECT B.auction, B.bidder, B.price, B.date_time, S.side_value FROM (SELECT *, CAST(MOD(auction, 10000) AS BIGINT) "
        "AS k, PROCTIME() AS p_time FROM bench.bid) B JOIN bench.side /*+ OPTIONS('lookup.cache' = 'PARTIAL', "
        "'lookup.partial-cache.max-rows' = '500000', 'client.lookup.batch-timeout' = '1ms') */ "
        "FOR SYSTEM_TIME AS OF B.p_time AS S ON B.k = S.side_key",
        conf={"table.exec.async-lookup.buffer-capacity": "2000"},
    ),
    _query(
        "q14",
        "(auction BIGINT, bidder BIGINT, price DECIMAL(23, 3), bid_time_type STRING, date_time TIMESTAMP(3), c_counts INT)",
        "SELECT auction, bidder, 0.908 * price, CASE WHEN HOUR(date_time) >= 8 AND HOUR(date_time) <= 18 THEN 'dayTime' "
        "WHEN HOUR(date_time) <= 6 OR HOUR(date_time) >= 20 THEN 'nightTime' ELSE 'otherTime' END, date_time, "
        "CHAR_LENGTH(extra) - CHAR_LENGTH(REPLACE(extra, 'c', '')) FROM bench.bid "
        "WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000",
    ),
    _query(
        "q15",
        f"(d STRING, {_counters(12)}, PRIMARY KEY (d) NOT ENFORCED)",
        f"SELECT {_DAY}, {_COUNTS} FROM bench.bid GROUP BY {_DAY}",
        167_000,
        3,
    ),
    _query(
        "q16",
        f"(channel STRING, d STRING, m STRING, {_counters(12)}, PRIMARY KEY (channel, d) NOT ENFORCED)",
        f"SELECT channel, {_DAY}, MAX(DATE_FORMAT(date_time, 'HH:mm')), {_COUNTS} FROM bench.bid GROUP BY channel, {_DAY}",
    ),
    _query(
        "q17",
        f"(auction BIGINT, d STRING, {_counters(8)}, PRIMARY KEY (auction, d) NOT ENFORCED)",
        f"SELECT auction, {_DAY}, COUNT(*), {_RANKS.format('*')}, MIN(price), MAX(price), AVG(price), SUM(price) FROM bench.bid "
        f"GROUP BY auction, {_DAY}",
        352_000,
        2,
    ),
    _query(
        "q18",
        f"({_BID}, channel STRING, url STRING, date_time TIMESTAMP(3), extra STRING, PRIMARY KEY (bidder, auction) NOT ENFORCED)",
        "SELECT auction, bidder, price, channel, url, date_time, extra FROM (SELECT *, ROW_NUMBER() OVER "
        "(PARTITION BY bidder, auction ORDER BY date_time DESC) AS rank_number FROM bench.bid) WHERE rank_number <= 1",
    ),
    _query(
        "q19",
        f"({_BID}, channel STRING, url STRING, date_time TIMESTAMP(3), extra STRING, rank_number BIGINT NOT NULL, "
        "PRIMARY KEY (auction, rank_number) NOT ENFORCED)",
        "SELECT * FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY auction ORDER BY price DESC) AS rank_number FROM bench.bid) "
        "WHERE rank_number <= 10",
    ),
    _query(
        "q20",
        f"({_BID}, channel STRING, url STRING, bid_time TIMESTAMP(3), bid_extra STRING, "
        "item_name STRING, description STRING, initial_bid BIGINT, reserve BIGINT, auction_time TIMESTAMP(3), expires TIMESTAMP(3), "
        "seller BIGINT, category BIGINT, auction_extra STRING)",
        "SELECT auction, bidder, price, channel, url, B.date_time, B.extra, item_name, description, initial_bid, reserve, A.date_time, "
        "expires, seller, category, A.extra FROM bench.bid AS B INNER JOIN bench.auction AS A ON B.auction = A.id WHERE A.category = 10",
        202_000,
        3,
    ),
    _query(
        "q21",
        f"({_BID}, channel STRING, channel_id STRING)",
        "SELECT auction, bidder, price, channel, CASE WHEN LOWER(channel) = 'apple' THEN '0' WHEN LOWER(channel) = 'google' THEN '1' "
        "WHEN LOWER(channel) = 'facebook' THEN '2' WHEN LOWER(channel) = 'baidu' THEN '3' "
        "ELSE REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2) END FROM bench.bid "
        "WHERE REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2) IS NOT NULL OR LOWER(channel) IN ('apple', 'google', 'facebook', 'baidu')",
    ),
    _query(
        "q22",
        f"({_BID}, channel STRING, dir1 STRING, dir2 STRING, dir3 STRING)",
        "SELECT auction, bidder, price, channel, SPLIT_INDEX(url, '/', 3), SPLIT_INDEX(url, '/', 4), SPLIT_INDEX(url, '/', 5) "
        "FROM bench.bid",
    ),
)
