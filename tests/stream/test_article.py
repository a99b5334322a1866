"""The article's statements of scenarios 2 and 5, as printed, against an independent computation."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

import storage_engine
from storage_engine import Store
from storage_engine.stream import SqlSession, Worker
from tests.stream.comparing import differing_jobs, query_rows, sink_rows

PRINTED = (Path(__file__).parents[1] / "vectors" / "seed" / "fluss_instant_commerce.sql").read_text()
N_SHARDS = 4


def printed(beginning: str) -> str:
    """The printed statement that begins so, with the placeholders filled in."""
    start = PRINTED.index(beginning)
    text = PRINTED[start : re.compile(r";\s*$", re.M).search(PRINTED, start).end()]  # type: ignore[union-attr]
    return re.sub(r"\$\{BUCKET_NUM\}", "2", text)


def test_scenario_2_two_streams_fill_one_wide_table(store: Store) -> None:
    session = SqlSession(store)
    session.execute(
        "USE db; CREATE TABLE exposure_log (shop_id BIGINT, stat_date STRING, stat_hour STRING, exp_cnt BIGINT);"
        "CREATE TABLE page_log (shop_id BIGINT, stat_date STRING, stat_hour STRING, page_cnt BIGINT);"
    )
    session.execute(printed("CREATE TABLE shop_stat_wide"))
    session.execute(printed("INSERT INTO shop_stat_wide (shop_id, stat_date, stat_hour, exp_cnt)"))
    session.execute(printed("INSERT INTO shop_stat_wide (shop_id, stat_date, stat_hour, page_cnt)"))
    rng = random.Random(1)
    worker = Worker(store, n_rows_max=100)
    written: dict[str, list[pa.Table]] = {"exposure": [], "page": []}
    for _ in range(6):
        for name, column in (("exposure", "exp_cnt"), ("page", "page_cnt")):
            rows = pa.Table.from_pylist(
                [
                    {"shop_id": rng.randrange(5), "stat_date": "d", "stat_hour": f"{rng.randrange(3):02}", column: rng.randrange(9)}
                    for _ in range(40)
                ]
            )
            written[name].append(rows)
            store.table(f"db.{name}_log").append(rows)
        worker.run_once(ignore_schedule=True)
    worker.run_until_idle()
    oracle = (
        "SELECT shop_id, stat_date, stat_hour, e.exp_cnt, p.page_cnt FROM "
        "(SELECT shop_id, stat_date, stat_hour, CAST(sum(exp_cnt) AS BIGINT) AS exp_cnt FROM e GROUP BY ALL) e FULL JOIN "
        "(SELECT shop_id, stat_date, stat_hour, CAST(sum(page_cnt) AS BIGINT) AS page_cnt FROM p GROUP BY ALL) p USING (shop_id, "
        "stat_date, stat_hour)"
    )
    assert sink_rows(store, "db.shop_stat_wide") == query_rows(
        oracle, e=pa.concat_tables(written["exposure"]), p=pa.concat_tables(written["page"])
    )


def test_scenario_5_ids_by_lookup_and_bitmaps_merged_in_the_store(tmp_path: Path) -> None:
    """Its tables keep the partitions of seven days: the clock of the store stands on the day of the events."""
    noon_ms = int(datetime(2017, 1, 1, 12, tzinfo=UTC).timestamp() * 1000)
    with storage_engine.connect((tmp_path / "store").as_uri(), sync="none", now_ms=lambda: noon_ms) as store:
        run_scenario_5(store)


def run_scenario_5(store: Store) -> None:
    session = SqlSession(store)
    session.execute("USE db; CREATE TABLE log_exp_ri (user_id BIGINT, ds STRING, hh STRING, mm STRING)")
    session.execute(printed("CREATE TABLE `fluss_catalog`.`db`.`user_mapping_table`"))
    session.execute(printed("CREATE TABLE IF NOT EXISTS `fluss_catalog`.`db`.`ads_uv_agg`"))
    mapping = session.execute(
        "SET 'pipeline.name' = 'mapping'; " + printed("INSERT INTO `fluss_catalog`.`db`.`user_mapping_table` (user_id)")
    )
    assert "REPLICATED_SHUFFLE_HASH has no effect" in mapping[-1].message
    rng = random.Random(2)
    events = pa.Table.from_pylist(
        [{"user_id": rng.randrange(300), "ds": "20170101", "hh": "00", "mm": f"{rng.randrange(3):02}"} for _ in range(2_000)]
    )
    store.table("db.log_exp_ri").append(events)
    worker = Worker(store)
    worker.run_until_idle()
    # printed with the name of another table, and with N for the number of shards
    counting = printed("INSERT INTO fluss_catalog.db.ads_uv_agg").replace("`user_mapping`", "`user_mapping_table`")
    counting = re.sub(r"([%/]) N\b", rf"\1 {N_SHARDS}", counting)
    session.execute("SET 'pipeline.name' = 'uv'; " + counting)
    worker.run_until_idle()
    ids = store.table("db.user_mapping_table").read()["uid_int64"].to_pylist()
    assert sorted(ids) == list(range(1, len(ids) + 1))
    session.execute(
        "CREATE MATERIALIZED VIEW db.uv REFRESH ASYNC AS SELECT ds, hh, mm, SUM(RB_CARDINALITY(uv_bitmap)) AS users FROM db.ads_uv_agg "
        "GROUP BY ds, hh, mm"
    )
    worker.run_until_idle()
    oracle = "SELECT ds, hh, mm, count(DISTINCT user_id) FROM events GROUP BY ALL"
    assert sink_rows(store, "db.uv") == query_rows(oracle, events=events)
    assert differing_jobs(store) == []
    store.table("db.log_exp_ri").append(events.slice(0, 500))
    worker.run_until_idle()
    assert sink_rows(store, "db.uv") == query_rows(oracle, events=events)
