"""Nexmark's queries in Flink's dialect give the rows that RisingWave publishes, however the events are ordered and cut."""

from __future__ import annotations

import datetime as dt
import os
import random
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage_engine import Store
from storage_engine.stream import SqlSession, Worker
from tests.engine.cleaning import Clock, opened
from tests.stream.comparing import differing_jobs, query_rows, sink_rows

VECTORS = Path(__file__).parents[1] / "vectors" / "risingwave_nexmark"
TABLES = """
CREATE TABLE nexmark.person (id BIGINT NOT NULL, name STRING NOT NULL, email_address STRING, credit_card STRING,
  city STRING NOT NULL, state STRING NOT NULL, date_time TIMESTAMP(3) NOT NULL, extra STRING);
CREATE TABLE nexmark.auction (id BIGINT NOT NULL, item_name STRING NOT NULL, description STRING, initial_bid BIGINT, reserve BIGINT,
  date_time TIMESTAMP(3) NOT NULL, expires TIMESTAMP(3) NOT NULL, seller BIGINT NOT NULL, category BIGINT NOT NULL, extra STRING);
CREATE TABLE nexmark.item (id BIGINT, item_name STRING NOT NULL, PRIMARY KEY (id) NOT ENFORCED);
CREATE TABLE nexmark.bid (auction BIGINT NOT NULL, bidder BIGINT NOT NULL, price BIGINT NOT NULL, channel STRING NOT NULL, url STRING,
  date_time TIMESTAMP(3) NOT NULL, extra STRING)
  WITH ('bucket.num' = '2', 'bucket.key' = 'auction');
"""
_RANKS = """
  count(*) AS total_bids, count(*) FILTER (WHERE price < 10000) AS rank1_bids,
  count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS rank2_bids, count(*) FILTER (WHERE price >= 1000000) AS rank3_bids"""
_DISTINCT = "".join(
    f""", count(DISTINCT {of}) AS total_{of}, count(DISTINCT {of}) FILTER (WHERE price < 10000) AS rank1_{of},
  count(DISTINCT {of}) FILTER (WHERE price >= 10000 AND price < 1000000) AS rank2_{of},
  count(DISTINCT {of}) FILTER (WHERE price >= 1000000) AS rank3_{of}"""
    for of in ("bidder", "auction")
)
_HOP = "TABLE(HOP(TABLE nexmark.bid, DESCRIPTOR(date_time), INTERVAL '2' SECOND, INTERVAL '10' SECOND))"
_TUMBLE = "TABLE(TUMBLE(TABLE nexmark.{}, DESCRIPTOR(date_time), INTERVAL '10' SECOND))"
_BEST = "FROM nexmark.auction A, nexmark.bid B WHERE A.id = B.auction AND B.date_time BETWEEN A.date_time AND A.expires"

# query -> (SELECT, columns that identify a row beside those that are compared)
QUERIES: dict[str, tuple[str, int]] = {
    "q0": ("SELECT auction, bidder, price, date_time FROM nexmark.bid", 0),
    "q1": ("SELECT auction, bidder, 0.908 * price AS price, date_time FROM nexmark.bid", 0),
    "q2": ("SELECT auction, price FROM nexmark.bid WHERE auction IN (1007, 1020, 2001, 2019, 2087)", 0),
    "q3": (
        "SELECT P.name, P.city, P.state, A.id FROM nexmark.auction AS A INNER JOIN nexmark.person AS P ON A.seller = P.id "
        "WHERE A.category = 10 AND (P.state = 'or' OR P.state = 'id' OR P.state = 'ca')",
        0,
    ),
    "q4": (
        "SELECT Q.category, AVG(CAST(Q.final AS DECIMAL(20, 0))) AS mean FROM "
        f"(SELECT MAX(B.price) AS final, A.category {_BEST} GROUP BY A.id, A.category) Q GROUP BY Q.category",
        0,
    ),
    "q5": (
        "SELECT AuctionBids.auction, AuctionBids.num, AuctionBids.starttime FROM "
        f"(SELECT auction, count(*) AS num, window_start AS starttime FROM {_HOP} GROUP BY window_start, auction) AS AuctionBids JOIN "
        f"(SELECT max(CountBids.num) AS maxn, CountBids.starttime FROM (SELECT count(*) AS num, window_start AS starttime FROM {_HOP} "
        "GROUP BY auction, window_start) AS CountBids GROUP BY CountBids.starttime) AS MaxBids "
        "ON AuctionBids.starttime = MaxBids.starttime AND AuctionBids.num >= MaxBids.maxn",
        1,
    ),
    "q6_group_top1": (
        "SELECT Q.seller, AVG(CAST(Q.final AS DECIMAL(20, 0))) OVER (PARTITION BY Q.seller ORDER BY Q.date_time "
        "ROWS BETWEEN 10 PRECEDING AND CURRENT ROW) AS mean, Q.id FROM (SELECT A.id, A.seller, B.price AS final, B.date_time, "
        f"ROW_NUMBER() OVER (PARTITION BY A.id, A.seller ORDER BY B.price) AS rownum {_BEST}) Q WHERE Q.rownum <= 1",
        1,
    ),
    "q7": (
        "SELECT DISTINCT B.auction, B.price, B.bidder, B.date_time FROM nexmark.bid B JOIN (SELECT MAX(price) AS maxprice, window_end AS "
        f"date_time FROM {_TUMBLE.format('bid')} GROUP BY window_end) B1 ON B.price = B1.maxprice "
        "WHERE B.date_time BETWEEN B1.date_time - INTERVAL '10' SECOND AND B1.date_time",
        0,
    ),
    "q8": (
        "SELECT P.id, P.name, P.starttime, P.endtime FROM (SELECT id, name, window_start AS starttime, window_end AS endtime FROM "
        f"{_TUMBLE.format('person')} GROUP BY id, name, window_start, window_end) P JOIN (SELECT seller, window_start AS starttime, "
        f"window_end AS endtime FROM {_TUMBLE.format('auction')} GROUP BY seller, window_start, window_end) A "
        "ON P.id = A.seller AND P.starttime = A.starttime AND P.endtime = A.endtime",
        1,
    ),
    "q9": (
        "SELECT id, item_name, description, initial_bid, reserve, date_time, expires, seller, category, auction, bidder, price, bid_time "
        "FROM (SELECT A.*, B.auction, B.bidder, B.price, B.date_time AS bid_time, ROW_NUMBER() OVER "
        f"(PARTITION BY A.id ORDER BY B.price DESC, B.date_time ASC) AS rownum {_BEST}) WHERE rownum <= 1",
        0,
    ),
    "q10": (
        "SELECT auction, bidder, price, date_time, DATE_FORMAT(date_time, 'yyyy-MM-dd') AS ds, DATE_FORMAT(date_time, 'hh:mm') AS tm "
        "FROM nexmark.bid",
        0,
    ),
    "q14": (
        "SELECT auction, bidder, 0.908 * price AS price, CASE WHEN HOUR(date_time) >= 8 AND HOUR(date_time) <= 18 THEN 'dayTime' "
        "WHEN HOUR(date_time) <= 6 OR HOUR(date_time) >= 20 THEN 'nightTime' ELSE 'otherTime' END AS bidTimeType, date_time, "
        "CHAR_LENGTH(extra) - CHAR_LENGTH(REPLACE(extra, 'c', '')) AS c_counts FROM nexmark.bid "
        "WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000",
        0,
    ),
    "q15": (
        f"SELECT DATE_FORMAT(date_time, 'yyyy-MM-dd') AS `day`, {_RANKS} {_DISTINCT} FROM nexmark.bid "
        "GROUP BY DATE_FORMAT(date_time, 'yyyy-MM-dd')",
        0,
    ),
    "q16": (
        "SELECT channel, DATE_FORMAT(date_time, 'yyyy-MM-dd') AS `day`, MAX(DATE_FORMAT(date_time, 'hh:MM')) AS `minute`, "
        f"{_RANKS} {_DISTINCT} FROM nexmark.bid GROUP BY channel, DATE_FORMAT(date_time, 'yyyy-MM-dd')",
        0,
    ),
    "q17": (
        f"SELECT auction, DATE_FORMAT(date_time, 'yyyy-MM-dd') AS `day`, {_RANKS}, min(price) AS min_price, max(price) AS max_price, "
        "avg(CAST(price AS DECIMAL(20, 0))) AS avg_price, sum(price) AS sum_price FROM nexmark.bid "
        "GROUP BY auction, DATE_FORMAT(date_time, 'yyyy-MM-dd')",
        0,
    ),
    "q18": (
        "SELECT auction, bidder, price, channel, url, date_time, extra FROM (SELECT *, ROW_NUMBER() OVER "
        "(PARTITION BY bidder, auction ORDER BY date_time DESC, extra) AS rank_number FROM nexmark.bid) WHERE rank_number <= 1",
        0,
    ),
    "q19": (
        "SELECT * FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY auction ORDER BY price DESC) AS rank_number FROM nexmark.bid) "
        "WHERE rank_number <= 10",
        0,
    ),
    "q20": (
        "SELECT auction, bidder, price, channel, url, B.date_time AS bid_date_time, B.extra AS bid_extra, item_name, description, "
        "initial_bid, reserve, A.date_time AS auction_date_time, expires, seller, category, A.extra AS auction_extra "
        "FROM nexmark.bid AS B INNER JOIN nexmark.auction AS A ON B.auction = A.id WHERE A.category = 10",
        0,
    ),
    "q21": (
        "SELECT auction, bidder, price, channel, CASE WHEN LOWER(channel) = 'apple' THEN '0' WHEN LOWER(channel) = 'google' THEN '1' "
        "WHEN LOWER(channel) = 'facebook' THEN '2' WHEN LOWER(channel) = 'baidu' THEN '3' "
        "ELSE REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2) END AS channel_id FROM nexmark.bid "
        "WHERE REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2) IS NOT NULL OR LOWER(channel) IN ('apple', 'google', 'facebook', 'baidu')",
        0,
    ),
    "q22": (
        "SELECT auction, bidder, price, channel, SPLIT_INDEX(url, '/', 3) AS dir1, SPLIT_INDEX(url, '/', 4) AS dir2, "
        "SPLIT_INDEX(url, '/', 5) AS dir3 FROM nexmark.bid",
        0,
    ),
    "q101": (
        "SELECT a.id AS auction_id, a.item_name AS auction_item_name, b.max_price AS current_highest_bid FROM nexmark.item a "
        "LEFT OUTER JOIN (SELECT b1.auction, MAX(b1.price) AS max_price FROM nexmark.bid b1 GROUP BY b1.auction) b ON a.id = b.auction",
        0,
    ),
    "q102": (
        "SELECT a.id AS auction_id, a.item_name AS auction_item_name, COUNT(b.auction) AS bid_count FROM nexmark.item a "
        "JOIN nexmark.bid b ON a.id = b.auction GROUP BY a.id, a.item_name "
        "HAVING COUNT(b.auction) >= (SELECT COUNT(*) / COUNT(DISTINCT auction) FROM nexmark.bid)",
        0,
    ),
    "q103": (
        "SELECT a.id AS auction_id, a.item_name AS auction_item_name FROM nexmark.item a WHERE a.id IN "
        "(SELECT b.auction FROM nexmark.bid b GROUP BY b.auction HAVING COUNT(*) >= 20)",
        0,
    ),
    "q104": (
        "SELECT a.id AS auction_id, a.item_name AS auction_item_name FROM nexmark.item a WHERE a.id NOT IN "
        "(SELECT b.auction FROM nexmark.bid b GROUP BY b.auction HAVING COUNT(*) < 20)",
        0,
    ),
    "q105": (
        "SELECT a.id AS auction_id, a.item_name AS auction_item_name, COUNT(b.auction) AS bid_count FROM nexmark.item a "
        "JOIN nexmark.bid b ON a.id = b.auction GROUP BY a.id, a.item_name ORDER BY bid_count DESC LIMIT 1000",
        0,
    ),
    "q106": (
        f"SELECT MIN(final) AS min_final, 1 AS one FROM (SELECT A.id, MAX(price) AS final {_BEST} GROUP BY A.id)",
        1,
    ),
}  # fmt: skip


def inserted(name: str) -> list[tuple[str, ...]]:
    """The rows of an INSERT file: string literals and numbers in parentheses."""
    text = (VECTORS / "nexmark" / f"insert_{name}.slt.part").read_text()
    rows = re.findall(r"^\((.*)\)[,;]?$", text.split("VALUES", 1)[1], re.MULTILINE)
    return [tuple(a or b for a, b in re.findall(r"'((?:[^']|'')*)'|([^,'\s][^,]*)", row)) for row in rows]


def events(store: Store, name: str) -> pa.Table:
    schema = store.describe(f"nexmark.{name}").arrow_schema
    columns = zip(*inserted(name), strict=True)
    return pa.table([pa.array(values, pa.string()).cast(item.type) for values, item in zip(columns, schema, strict=True)], schema=schema)


def expected(query: str) -> Counter[str]:
    text = (VECTORS / "streaming" / "nexmark" / f"{query}.slt.part").read_text()
    answer = text.split("----\n", 1)[1].split("\n\n")[0]
    return Counter(" ".join(plain(token) for token in line.split()) for line in answer.splitlines() if line.strip())


def plain(token: str) -> str:
    """A decimal without zeros at its end, an endless one to two digits: each engine prints a scale of its own."""
    if re.fullmatch(r"-?\d+\.\d{7,}", token):
        token = str(Decimal(token).quantize(Decimal("0.01")))
    return token.rstrip("0").rstrip(".") if re.fullmatch(r"-?\d+\.\d+", token) else token


def printed(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, Decimal):
        is_endless = value.as_tuple().exponent == -6 and value * 1000 % 1 != 0
        return plain(f"{value.quantize(Decimal('0.01')) if is_endless else value:f}")
    text = str(value)
    return re.sub(r"(\.\d{3})000$", r"\1", text)


def fed(store: Store, rng: random.Random) -> None:
    """All events, tables interleaved and shuffled, in batches; the worker runs now and then."""
    worker = Worker(store, n_rows_max=rng.choice([9, 100_000]))
    batches = []
    for name in ("person", "auction", "bid"):
        rows = events(store, name)
        rows = rows.take(pa.array(rng.sample(range(rows.num_rows), rows.num_rows)))
        batches += [(name, rows.slice(start, 7)) for start in range(0, rows.num_rows, 7)]
    rng.shuffle(batches)
    for name, rows in batches:
        store.table(f"nexmark.{name}").append(rows)
        if name == "auction":
            store.table("nexmark.item").upsert(rows.select(["id", "item_name"]))
        if rng.random() < 0.4:
            worker.run_until_idle()
    worker.run_until_idle()


SESSIONS = (
    "SELECT bidder, COUNT(*) AS bid_count, window_start AS starttime, window_end AS endtime FROM TABLE(SESSION(TABLE nexmark.bid "
    "PARTITION BY bidder, DESCRIPTOR(date_time), INTERVAL '10' SECOND)) GROUP BY bidder, window_start, window_end"
)


def test_q11_gives_the_sessions_of_each_bidder(store: Store) -> None:
    """RisingWave publishes no answer to q11: an independent query over the same bids does."""
    session = SqlSession(store)
    session.execute(TABLES)
    session.execute(f"CREATE MATERIALIZED VIEW nexmark.q11 REFRESH ASYNC AS {SESSIONS}")
    fed(store, random.Random(3))
    oracle = (
        "SELECT bidder, count(*), min(date_time), max(date_time) + INTERVAL 10 SECOND FROM (SELECT *, sum(b) OVER (PARTITION BY bidder "
        "ORDER BY date_time ROWS UNBOUNDED PRECEDING) AS g FROM (SELECT *, CASE WHEN date_time <= lag(date_time) OVER "
        "(PARTITION BY bidder ORDER BY date_time) + INTERVAL 10 SECOND THEN 0 ELSE 1 END AS b FROM bids)) GROUP BY bidder, g"
    )
    assert sink_rows(store, "nexmark.q11") == query_rows(oracle, bids=events(store, "bid"))
    assert differing_jobs(store) == []


PROCESSING = (
    "CREATE VIEW nexmark.timed AS SELECT *, PROCTIME() AS p_time FROM nexmark.bid; CREATE MATERIALIZED VIEW nexmark.q12 REFRESH ASYNC AS "
    "SELECT B.bidder, COUNT(*) AS bid_count, window_start AS starttime, window_end AS endtime FROM "
    "TABLE(TUMBLE(TABLE nexmark.timed, DESCRIPTOR(p_time), INTERVAL '10' SECOND)) B GROUP BY B.bidder, window_start, window_end"
)


def test_q12_counts_the_bids_of_each_bidder_by_when_they_were_committed(tmp_path: Path) -> None:
    """Nobody can publish an answer: the store's clock, which says when a bid is committed, is the test's own, and so is the count."""
    clock, rng = Clock(), random.Random(12)
    counts: Counter[tuple[Any, ...]] = Counter()
    with opened(tmp_path / "store", clock) as store:
        session = SqlSession(store)
        session.execute(TABLES)
        session.execute(PROCESSING)
        bids = events(store, "bid")
        worker = Worker(store, n_rows_max=9)
        while bids.num_rows:
            clock.pass_ms(rng.choice([0, 700, 9000, 25_000]))
            rows, bids = bids.slice(0, 2), bids.slice(2)
            store.table("nexmark.bid").append(rows)
            start = dt.datetime.fromtimestamp(clock.now_ms // 10_000 * 10, dt.UTC).replace(tzinfo=None)
            counts.update((bidder, start, start + dt.timedelta(seconds=10)) for bidder in rows["bidder"].to_pylist())
            if rng.random() < 0.3:
                worker.run_until_idle()
        worker.run_until_idle()
        worker.close()
        expected_rows = sorted(((bidder, n, start, end) for (bidder, start, end), n in counts.items()), key=repr)
        assert sink_rows(store, "nexmark.q12", ["bidder", "bid_count", "starttime", "endtime"]) == expected_rows
        assert len({start for _, start, _ in counts}) > 6
        assert differing_jobs(store) == []


@pytest.mark.parametrize("seed", range(int(os.environ.get("FLASHLAKE_CAMPAIGN", "1"))))
def test_nexmark_gives_the_published_rows(store: Store, seed: int) -> None:
    session = SqlSession(store)
    session.execute(TABLES)
    for query, (select, _) in QUERIES.items():
        session.execute(f"CREATE MATERIALIZED VIEW nexmark.{query} REFRESH ASYNC AS {select}")

    fed(store, random.Random(seed))

    wrong = {}
    for query, (_, n_hidden) in QUERIES.items():
        table = store.table(f"nexmark.{query}")
        rows = table.read() if table.descriptor.has_primary_key else table.scan().read_all()
        names = rows.column_names[: rows.num_columns - n_hidden]
        got = Counter(" ".join(" ".join(printed(row[name]).split()) for name in names) for row in rows.to_pylist())
        if got != expected(query):
            wrong[query] = (got - expected(query), expected(query) - got)
    assert wrong == {}
    assert differing_jobs(store) == []
