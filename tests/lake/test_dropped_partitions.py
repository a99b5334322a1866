"""Partitions dropped in the store while they are tiered and read: the lake keeps their history, their successors are tiered once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import storage_engine
from storage_engine.api import Backend
from storage_engine.client.store import Store
from storage_engine.lake import Tierer, union_read
from tests.meddling import meddled

LAKE = "'table.datalake.enabled' = 'true'"
LOG = f"CREATE TABLE shop.visits (x BIGINT, day STRING) PARTITIONED BY (day) WITH ({LAKE})"
KEYED = f"CREATE TABLE shop.stock (x BIGINT, day STRING, n BIGINT, PRIMARY KEY (x, day) NOT ENFORCED) PARTITIONED BY (day) WITH ({LAKE})"
OLD, OTHER, NEW = range(10), range(10, 14), range(100, 105)


def write(store: Store, xs: range, day: str, n: int = 0) -> None:
    rows = {"x": list(xs), "day": [day] * len(xs)}
    if "shop.visits" in store.tables():
        store.table("shop.visits").append(rows)
    else:
        store.table("shop.stock").upsert(rows | {"n": [n] * len(xs)})


def drop_and_create(store: Store, table: str) -> Callable[[], None]:
    def act() -> None:
        store.backend.drop_partition(table, "a", if_exists=False)
        write(store, NEW, "a", 2)
        if table == "shop.stock":
            write(store, OLD[:2], "a", 3)  # keys of the first one, in the second

    return act


def expected_log(found: Counter[int], *, has_acted: bool) -> None:
    assert max(found.values()) == 1
    if has_acted:
        assert {*OTHER, *NEW} <= set(found) <= {*OLD, *OTHER, *NEW}
    else:
        assert set(found) == {*OLD, *OTHER}


@pytest.mark.parametrize("table", ["shop.visits", "shop.stock"])
def test_a_drop_between_any_two_calls_of_the_tierer_leaves_the_lake_equal_to_what_was_tiered_once(tmp_path: Path, duck, table: str):
    n_gaps = 0
    for at_call in itertools.count(1):
        with storage_engine.connect((tmp_path / f"s{at_call}").as_uri(), sync="none") as store:
            lake = tmp_path / f"lake{at_call}"
            store.execute(LOG if table == "shop.visits" else KEYED)
            write(store, OLD[:6], "a", 1)
            with Tierer(store, lake) as tierer:
                tierer.run_once(force=True)
            write(store, OLD[6:], "a", 1)
            write(store, OTHER, "b", 1)

            other, meddler = meddled(store, at_call, drop_and_create(store, table))
            with Tierer(other, lake) as tierer:
                tierer.run_once(force=True)
            before = union_read(duck, store, lake, table)
            with Tierer(store, lake) as tierer:
                tierer.run_once(force=True)
            after = union_read(duck, store, lake, table)

            assert sorted(before.to_pylist(), key=str) == sorted(after.to_pylist(), key=str)
            found = Counter(after["x"].to_pylist())
            if table == "shop.visits":
                expected_log(found, has_acted=meddler.has_acted)
            else:
                values = dict(zip(after["x"].to_pylist(), after["n"].to_pylist(), strict=True))
                assert max(found.values()) == 1
                assert {x: n for x, n in values.items() if x in OTHER} == dict.fromkeys(OTHER, 1)
                if meddler.has_acted:
                    assert {x: n for x, n in values.items() if x in NEW or x in OLD[:2]} == {**dict.fromkeys(NEW, 2), 0: 3, 1: 3}
        n_gaps += meddler.has_acted
        if not meddler.has_acted:
            break
    assert n_gaps > 10


@pytest.mark.parametrize("table", ["shop.visits", "shop.stock"])
def test_a_drop_between_any_two_calls_of_a_union_read_gives_the_table_before_or_after_it(tmp_path: Path, duck, table: str):
    n_gaps = 0
    for at_call in itertools.count(1):
        with storage_engine.connect((tmp_path / f"s{at_call}").as_uri(), sync="none") as store:
            lake = tmp_path / f"lake{at_call}"
            store.execute(LOG if table == "shop.visits" else KEYED)
            write(store, OLD[:6], "a", 1)
            with Tierer(store, lake) as tierer:
                tierer.run_once(force=True)
            write(store, OLD[6:], "a", 1)
            write(store, OTHER, "b", 1)

            other, meddler = meddled(store, at_call, drop_and_create(store, table))
            before = rows_of(duck, store.backend, lake, table)
            during = rows_of(duck, other.backend, lake, table)
            after = rows_of(duck, store.backend, lake, table)

            assert during in (before, after)
        n_gaps += meddler.has_acted
        if not meddler.has_acted:
            break
    assert n_gaps > 3


def rows_of(duck, backend: Backend, lake: Path, table: str) -> list[str]:
    return sorted(str(row) for row in union_read(duck, storage_engine.connection.wrap(backend), lake, table).to_pylist())
