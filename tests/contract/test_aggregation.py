"""Contract: the aggregation merge engine keeps sum, max, min, last and first values and bitmap unions, whatever the batches were."""

from __future__ import annotations

from decimal import Decimal

import pytest
from pyroaring import BitMap

pytestmark = pytest.mark.needs("aggregation")


@pytest.fixture
def stats(store, db):
    store.execute(f"""
        CREATE TABLE {db}.stats (
          k STRING NOT NULL, n BIGINT, money DECIMAL(12, 2), high INT, low INT, last_v STRING, first_v STRING, kept STRING, uv BYTES,
          PRIMARY KEY (k) NOT ENFORCED
        ) WITH (
          'table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'fields.money.agg' = 'sum', 'fields.high.agg' = 'max',
          'fields.low.agg' = 'min', 'fields.last_v.agg' = 'last_value', 'fields.first_v.agg' = 'first_value', 'fields.uv.agg' = 'rbm32'
        )
    """)
    return store.table(f"{db}.stats")


def row(k, n=None, money=None, high=None, low=None, last_v=None, first_v=None, kept=None, uv=None):
    names = ("k", "n", "money", "high", "low", "last_v", "first_v", "kept", "uv")
    money = None if money is None else Decimal(money)
    return dict(zip(names, (k, n, money, high, low, last_v, first_v, kept, BitMap(uv).serialize() if uv else None), strict=True))


def only(table):
    (found,) = table.read().to_pylist()
    return {**found, "uv": None if found["uv"] is None else set(BitMap.deserialize(found["uv"]))}


FIRST = row("a", 1, "0.10", 5, 5, "l1", "f1", "k1", [1, 2])
SECOND = row("a", 2, "0.20", 9, 7, "l2", "f2", "k2", [2, 70_000])
THIRD = row("a", 4, "0.40", 2, 1, None, "f3", None, [3])
MERGED = {
    "k": "a", "n": 7, "money": Decimal("0.70"), "high": 9, "low": 1, "last_v": None, "first_v": "f1", "kept": "k2", "uv": {1, 2, 3, 70_000},
}  # fmt: skip


@pytest.mark.parametrize(
    "batches", [[[FIRST], [SECOND], [THIRD]], [[FIRST, SECOND, THIRD]], [[FIRST, SECOND], [THIRD]]], ids=["1+1+1", "3", "2+1"]
)
def test_rows_of_a_key_are_merged_the_same_however_they_are_cut_into_batches(stats, batches):
    for batch in batches:
        stats.upsert(batch)

    assert only(stats) == MERGED


def test_nulls_do_not_change_a_sum_a_maximum_a_minimum_or_a_bitmap(stats):
    stats.upsert([FIRST])

    stats.upsert([row("a", last_v="l1")])

    assert only(stats) == {**FIRST, "uv": {1, 2}}


@pytest.mark.needs("partial_update")
def test_streams_that_write_different_columns_merge_into_one_row(stats):
    stats.upsert({"k": ["a"], "n": [1]}, columns=["k", "n"])
    stats.upsert({"k": ["a"], "uv": [BitMap([5]).serialize()]}, columns=["k", "uv"])
    stats.upsert({"k": ["a"], "n": [2]}, columns=["k", "n"])

    assert {name: only(stats)[name] for name in ("n", "uv", "high")} == {"n": 3, "uv": {5}, "high": None}


def test_the_changelog_of_an_aggregation_has_the_old_and_the_new_total(stats):
    stats.upsert([row("a", 1)])
    stats.upsert([row("a", 2)])

    changes = stats.scan(columns=["n"]).read_all().to_pydict()

    assert changes == {"_change_type": ["+I", "-U", "+U"], "n": [1, 1, 3]}


def test_totals_are_the_same_after_a_restart_and_go_on_from_there(own):
    own.store.execute("""
        CREATE TABLE a.t (k BIGINT NOT NULL, n BIGINT, PRIMARY KEY (k) NOT ENFORCED)
        WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'bucket.num' = '2')
    """)
    for _ in range(3):
        own.store.table("a.t").upsert({"k": [1, 2, 3], "n": [1, 10, 100]})

    own.restart()
    own.store.table("a.t").upsert({"k": [1], "n": [1]})

    assert own.store.table("a.t").read().sort_by("k").to_pydict() == {"k": [1, 2, 3], "n": [4, 30, 300]}
