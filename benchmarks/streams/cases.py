"""Cases: what is measured. Flink's recorded steady rates, with Fluss (benchmarks/RESULTS.md says when), are what is asked to be beaten."""

from __future__ import annotations

from typing import Final

from benchmarks.streams.case import StreamCase
from benchmarks.streams.events import EVENT_COLUMNS
from benchmarks.streams.queries import QUERIES

EVENTS: Final = f"CREATE TABLE bench.events ({EVENT_COLUMNS}{{watermark}}) WITH ('bucket.num' = '1')"
EVENTS_WATERMARK: Final = ", WATERMARK FOR ts AS ts - INTERVAL '5' SECOND"
USER_MAP: Final = (
    "CREATE TABLE bench.user_map (user_id BIGINT NOT NULL, uid BIGINT, PRIMARY KEY (user_id) NOT ENFORCED) "
    "WITH ('bucket.num' = '1', 'auto-increment.fields' = 'uid')"
)
_MINI_BATCH = {
    "table.exec.mini-batch.enabled": "true",
    "table.exec.mini-batch.allow-latency": "1 s",
    "table.exec.mini-batch.size": "50000",
}

CASES: Final = (
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
        flink_conf=_MINI_BATCH,
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
        # Flink wants the time as an attribute of a subquery, and tuned lookups: 750 a second by default. Its ids are given before.
        flink_select="SELECT t1.stat_date, t1.stat_hour, t1.mm, CAST(t2.uid % 4 AS INT), BITMAP_BUILD_AGG(CAST(t2.uid / 4 AS INT)) FROM "
        "(SELECT user_id, stat_date, stat_hour, DATE_FORMAT(ts, 'mm') AS mm, PROCTIME() AS pt FROM bench.events) t1 JOIN bench.user_map "
        "/*+ OPTIONS('lookup.cache' = 'PARTIAL', 'lookup.partial-cache.max-rows' = '500000', 'client.lookup.batch-timeout' = '1ms') */ "
        "FOR SYSTEM_TIME AS OF t1.pt AS t2 ON t1.user_id = t2.user_id GROUP BY t1.stat_date, t1.stat_hour, t1.mm, CAST(t2.uid % 4 AS INT)",
        flink_conf={**_MINI_BATCH, "table.exec.async-lookup.buffer-capacity": "2000"},
    ),
    *QUERIES,
)


def chosen(words: list[str]) -> list[StreamCase]:
    """The cases that have one of the words in their name; all without words.

    >>> [case.name for case in chosen(["q4", "q20"])]
    ['q4', 'q20']
    """
    return [case for case in CASES if not words or any(word in case.name.replace(",", "").split() for word in words)]
