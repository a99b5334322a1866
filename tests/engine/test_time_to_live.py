"""Rows that have outlived their time are gone, and do not come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage_engine.client.store import Store
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.fsck import check_store
from storage_engine.errors import InvalidOption
from tests.engine.cleaning import (
    HOUR_MS,
    ONE,
    Clock,
    backend_of,
    opened,
    small_files,
)
from tests.engine.test_key_snapshots import crash


@pytest.mark.parametrize("column", [None, "at"])
def test_rows_that_have_outlived_their_time_are_gone_and_do_not_come_back(tmp_path: Path, clock: Clock, column: str | None) -> None:
    by = f", 'table.kv.ttl.time-column' = '{column}'" if column else ""
    ddl = (
        "CREATE TABLE c.sessions (id BIGINT, v STRING, at BIGINT, PRIMARY KEY (id) NOT ENFORCED) "
        f"WITH ('table.log.ttl' = '1h', 'table.kv.ttl' = '10h'{by})"
    )
    always = CheckpointPolicy(rows=1, rows_at_close=1)

    def live(store: Store) -> list[int]:
        found = sorted(store.table("c.sessions").read()["id"].to_pylist())
        assert store.table("c.sessions").lookup({"id": list(range(40))})["id"].to_pylist() == found
        assert store.table("c.sessions").count() == len(found)
        return found

    with small_files(20_000), opened(tmp_path / "s", clock, checkpoints=always) as store:
        store.execute(ddl)
        for n in range(4):
            ids = list(range(n * 10, n * 10 + 10))
            store.table("c.sessions").upsert({"id": ids, "v": ["x"] * 10, "at": [clock.now_ms] * 10})
            clock.pass_ms(4 * HOUR_MS)
            backend_of(store).clean()
        store.table("c.sessions").upsert({"id": [12], "v": ["again"], "at": [clock.now_ms]})
        clock.pass_ms(3 * HOUR_MS)
        backend_of(store).clean()
        expected = [12, *range(30, 40)]
        n_changes = store.table("c.sessions").offsets("latest")

        assert live(store) == expected
        assert backend_of(store).cleaning().n_rows_outlived == 30
        assert store.table("c.sessions").offsets("latest") == n_changes == {ONE: 41}  # no -D is written

        store.close()
        with opened(tmp_path / "s", clock, checkpoints=always) as again:
            assert live(again) == expected
            clock.pass_ms(30 * HOUR_MS)
            backend_of(again).clean()
            assert live(again) == []
            again.table("c.sessions").upsert({"id": [5], "v": ["back"], "at": [clock.now_ms]})
            assert live(again) == [5]
        with opened(tmp_path / "s", clock) as last:
            assert live(last) == [5]
    assert check_store(tmp_path / "s", keys=True).findings == []


def test_a_key_whose_first_rows_have_outlived_their_time_is_found_by_its_prefix_after_a_replay(tmp_path: Path, clock: Clock) -> None:
    with small_files(20_000):
        store = opened(tmp_path / "s", clock)
        store.execute(
            "CREATE TABLE c.carts (shop BIGINT, id BIGINT, v STRING, PRIMARY KEY (shop, id) NOT ENFORCED) "
            "WITH ('bucket.key' = 'shop', 'table.log.ttl' = '1h', 'table.kv.ttl' = '10h')"
        )
        carts = store.table("c.carts")
        carts.upsert({"shop": [1, 1, 2, 3], "id": [1, 2, 1, 1], "v": ["old"] * 4})
        clock.pass_ms(11 * HOUR_MS)
        carts.upsert({"shop": [1, 2], "id": [1, 1], "v": ["new"] * 2})
        carts.delete({"shop": [3], "id": [1]})
        backend_of(store).clean()
        expected = carts.prefix_lookup({"shop": [1, 2, 3]}).to_pylist()
        assert [(row["shop"], row["id"], row["v"]) for row in expected] == [(1, 1, "new"), (2, 1, "new")]
        crash(store)

        with opened(tmp_path / "s", clock) as again:
            assert again.table("c.carts").prefix_lookup({"shop": [1, 2, 3]}).to_pylist() == expected
            assert again.table("c.carts").count() == 2
    assert check_store(tmp_path / "s", keys=True).findings == []


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("'table.kv.ttl' = '1d'", "changelog"),
        ("'table.kv.ttl' = '30d', 'table.log.ttl' = '-1'", "changelog"),
        ("'table.kv.ttl' = '30d', 'table.kv.ttl.time-column' = 'v'", "no column that holds a time"),
        ("'table.kv.ttl.time-column' = 'id'", "without table.kv.ttl"),
    ],
)
def test_a_time_to_live_that_could_not_be_kept_is_refused(store: Store, options: str, what: str) -> None:
    with pytest.raises(InvalidOption, match=what):
        store.execute(f"CREATE TABLE c.x (id BIGINT, v STRING, PRIMARY KEY (id) NOT ENFORCED) WITH ({options})")
    with pytest.raises(InvalidOption, match="primary-key table"):
        store.execute("CREATE TABLE c.y (id BIGINT) WITH ('table.kv.ttl' = '30d')")
