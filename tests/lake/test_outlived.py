"""Row time to live on a tiered table: rows leave the store without a -D, and neither a union read nor the lake keeps them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake

from storage_engine.client.store import Store
from storage_engine.lake import Limits, Tierer, table_path, union_read
from tests.lake.aging import Clock

N_HISTORIES = int(os.environ.get("FLASHLAKE_OUTLIVED", "4"))
HOUR_MS = 3_600_000
TABLE = "CREATE TABLE d.t (k INT, v INT, PRIMARY KEY (k) NOT ENFORCED) WITH ({})"
OPTIONS = "'bucket.num' = '2', 'table.log.ttl' = '1h', 'table.kv.ttl' = '2h', 'table.datalake.enabled' = 'true'"
PARTITIONED = "CREATE TABLE d.t (k INT, day STRING, v INT, PRIMARY KEY (k, day) NOT ENFORCED) PARTITIONED BY (day) WITH ({})"


def let_outlive(store: Store, clock: Clock) -> None:
    """Everything written so far outlives its time and is cleaned away."""
    clock.now_ms += 6 * HOUR_MS
    store.table("d.t").compact()


def tier(store: Store, lake: Path) -> None:
    with Tierer(store, lake) as tierer:
        tierer.run_once(force=True)


def current(store: Store) -> list[tuple]:
    return sorted(tuple(row.values()) for row in store.table("d.t").read().to_pylist())


def rows_of(duck: duckdb.DuckDBPyConnection, store: Store, lake: Path) -> list[tuple]:
    return sorted(tuple(row.values()) for row in union_read(duck, store, lake, "d.t").to_pylist())


@pytest.fixture
def union(duck, store, lake) -> Callable[[], list[tuple]]:
    return lambda: rows_of(duck, store, lake)


def test_a_key_written_again_after_it_outlived_is_in_union_and_lake_once(store, clock, lake, lake_rows, union):
    store.execute(TABLE.format(OPTIONS))
    table = store.table("d.t")
    table.upsert({"k": [1, 2], "v": [10, 20]})
    tier(store, lake)
    let_outlive(store, clock)
    assert union() == []
    table.upsert({"k": [1], "v": [11]})
    assert union() == [(1, 11)]

    tier(store, lake)

    assert union() == [(1, 11)]
    assert lake_rows(table_path(lake, "d.t"), "k, v") == [(1, 11)]


def test_a_key_that_outlived_comes_again_and_goes_again_within_one_round(store, clock, lake, lake_rows, union):
    store.execute(TABLE.format(OPTIONS))
    table = store.table("d.t")
    table.upsert({"k": [1, 2], "v": [10, 20]})
    tier(store, lake)
    clock.now_ms += HOUR_MS
    table.upsert({"k": [2], "v": [21]})
    tier(store, lake)
    clock.now_ms += 90 * 60_000
    table.compact()
    assert current(store) == [(2, 21)]
    table.upsert({"k": [1], "v": [11]})
    table.delete({"k": [1]})

    tier(store, lake)

    assert union() == [(2, 21)]
    assert lake_rows(table_path(lake, "d.t"), "k, v") == [(2, 21)]


def test_rows_that_outlive_in_an_idle_table_leave_the_lake_without_a_new_row(store, clock, lake, lake_rows):
    store.execute(TABLE.format(OPTIONS))
    store.table("d.t").upsert({"k": [1, 2], "v": [10, 20]})
    tier(store, lake)
    let_outlive(store, clock)

    with Tierer(store, lake) as tierer:
        assert [done.n_rows for done in tierer.run_once(force=True)] == [0]
        assert tierer.run_once(force=True) == []

    assert lake_rows(table_path(lake, "d.t"), "k, v") == []


def test_a_time_to_live_that_is_switched_off_leaves_no_row_behind_that_had_outlived(store, clock, lake, lake_rows, union):
    store.execute(TABLE.format(OPTIONS.replace("'table.kv.ttl' = '2h', ", "")))
    store.table("d.t").upsert({"k": [1, 2], "v": [10, 20]})
    tier(store, lake)
    store.execute("ALTER TABLE d.t SET ('table.kv.ttl' = '2h')")
    let_outlive(store, clock)
    store.execute("ALTER TABLE d.t SET ('table.kv.ttl' = '-1')")
    store.table("d.t").upsert({"k": [2], "v": [21]})

    assert union() == [(2, 21)]
    tier(store, lake)
    assert union() == [(2, 21)]
    assert lake_rows(table_path(lake, "d.t"), "k, v") == [(2, 21)]


def test_partitions_dropped_in_the_store_stay_in_lake_and_union_when_other_rows_outlive(store, clock, lake, lake_rows, union):
    store.execute(PARTITIONED.format(OPTIONS))
    table = store.table("d.t")
    table.upsert({"k": [1, 2, 1], "day": ["a", "a", "b"], "v": [1, 2, 3]})
    tier(store, lake)
    store.backend.drop_partition("d.t", "a", if_exists=False)
    let_outlive(store, clock)
    table.upsert({"k": [7], "day": ["b"], "v": [7]})

    expected = [(1, "a", 1), (2, "a", 2), (7, "b", 7)]
    assert union() == expected
    tier(store, lake)
    assert union() == expected
    assert lake_rows(table_path(lake, "d.t"), "k, day, v") == expected


def test_a_lake_that_has_a_key_twice_is_taken_afresh(store, clock, lake, lake_rows, union):
    """Releases that took a key written again for a new one left such lakes: without `table.kv.ttl` known, an insert is an append."""
    store.execute(TABLE.format(OPTIONS))
    table = store.table("d.t")
    table.upsert({"k": [1, 2], "v": [10, 20]})
    tier(store, lake)
    path = table_path(lake, "d.t")
    doubled = DeltaTable(str(path)).to_pyarrow_table()
    record = DeltaTable(str(path)).history(1)[0]
    metadata = {name: str(value) for name, value in record.items() if name.startswith("flashlake.")}
    write_deltalake(str(path), doubled.slice(0, 1), mode="append", commit_properties=CommitProperties(custom_metadata=metadata))
    assert lake_rows(path, "count(*), count(DISTINCT k)") == [(3, 2)]
    table.upsert({"k": [3], "v": [30]})

    tier(store, lake)

    assert lake_rows(path, "k, v") == [(1, 10), (2, 20), (3, 30)] == union()


@pytest.mark.parametrize("image", ["FULL", "WAL"])
@pytest.mark.parametrize("seed", range(N_HISTORIES))
def test_the_union_is_the_store_at_every_moment_and_the_lake_after_each_round(store, clock, lake, duck, lake_rows, image, seed):
    pick = random.Random(f"{seed} {image}")
    store.execute(TABLE.format(f"{OPTIONS}, 'table.changelog.image' = '{image}'"))
    table = store.table("d.t")
    limits = Limits(round_changes_max=pick.choice([5, 1000]), compact_commits=3)
    table.upsert({"k": [100], "v": [0]})
    tier(store, lake)
    n_outlived = 0
    for step in range(30):
        match pick.choices(["write", "delete", "time", "clean", "tier"], [6, 3, 3, 3, 4])[0]:
            case "write":
                keys = pick.sample(range(12), pick.randint(1, 5))
                table.upsert({"k": keys, "v": [step] * len(keys)})
            case "delete":
                table.delete({"k": pick.sample(range(12), 2)})
            case "time":
                clock.now_ms += pick.choice([10 * 60_000, HOUR_MS, 3 * HOUR_MS])
            case "clean":
                n_outlived += table.compact().n_rows_outlived
            case "tier":
                with Tierer(store, lake, limits) as tierer:
                    tierer.run_once(force=True)
                assert lake_rows(table_path(lake, "d.t"), "k, v") == current(store), f"seed {seed}, step {step}"
        assert rows_of(duck, store, lake) == current(store), f"seed {seed}, step {step}"
        ((n, n_keys),) = lake_rows(table_path(lake, "d.t"), "count(*), count(DISTINCT k)")
        assert n == n_keys, f"seed {seed}, step {step}: a key twice"
    clock.now_ms += 6 * HOUR_MS
    n_outlived += table.compact().n_rows_outlived
    table.upsert({"k": [100], "v": [1]})
    assert rows_of(duck, store, lake) == current(store)
    tier(store, lake)
    assert lake_rows(table_path(lake, "d.t"), "k, v") == current(store)
    assert n_outlived, "the history has rows that outlive"
