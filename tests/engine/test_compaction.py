"""Dead rows of primary-key tables give their space back, in the background and on demand, and no reader is told anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage_engine.client.store import Store
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.cleaner import CleaningPolicy
from storage_engine.engine.fsck import check_store
from storage_engine.errors import OffsetOutOfRange, StoreUnavailable
from storage_engine.kv import KvBucket
from tests.engine.cleaning import (
    DDL,
    HOUR_MS,
    ONE,
    Clock,
    append,
    backend_of,
    directory_of,
    log_bytes,
    opened,
    overwrite,
    rows,
    small_files,
)
from tests.engine.test_key_snapshots import crash


def test_on_demand_what_is_dead_goes_however_little_it_is(tmp_path: Path, clock: Clock) -> None:
    with small_files(20_000), opened(tmp_path / "s", clock, policy=CleaningPolicy()) as store:
        store.execute(DDL)
        overwrite(store, clock, 1)
        overwrite(store, clock, 2, n_keys=20)
        clock.pass_ms(2 * HOUR_MS)
        expected = rows(store)
        assert backend_of(store).clean().n_bytes_reclaimed == 0  # too little for the background

        done = store.table("c.pk").compact()

        assert done.n_bytes_reclaimed > done.n_bytes_rewritten > 0
        assert rows(store) == expected
        assert store.table("c.pk").compact().n_bytes_rewritten == 0  # nothing is left to do
    assert check_store(tmp_path / "s", keys=True).findings == []


def test_on_demand_rows_that_a_consumer_has_yet_to_read_stay_as_in_the_background(store: Store, clock: Clock) -> None:
    append(store, clock, 10)
    consumer = store.table("c.log").consumer("slow")
    consumer.poll(max_rows=12)
    consumer.commit()
    clock.pass_ms(HOUR_MS + 600_000)

    assert store.table("c.log").compact().n_rows_expired == 12
    assert store.table("c.log").offsets("earliest") == {ONE: 12}
    assert consumer.poll()["id"].to_pylist() == [n for n in range(4, 10) for _ in range(3)]


def test_on_demand_another_table_keeps_what_has_expired(store: Store, clock: Clock) -> None:
    append(store, clock, 4)
    overwrite(store, clock, 4)
    clock.pass_ms(2 * HOUR_MS)

    store.table("c.pk").compact()

    assert store.table("c.log").scan(start="earliest").read_all().num_rows == 12


def test_a_closing_store_ends_a_compaction_and_begins_none(tmp_path: Path, clock: Clock) -> None:
    store = opened(tmp_path / "s", clock)
    store.execute(DDL)
    backend_of(store).maintenance.stop()

    with pytest.raises(StoreUnavailable, match="closing"):
        store.table("c.pk").compact()
    store.close()


def test_overwritten_rows_give_their_space_back_once_the_changelog_has_expired(store: Store, clock: Clock) -> None:
    overwrite(store, clock, 1)
    once = log_bytes(directory_of(store))
    overwrite(store, clock, 30)
    before, expected = log_bytes(directory_of(store)), rows(store)
    clock.pass_ms(2 * HOUR_MS)

    stats = backend_of(store).clean()

    assert log_bytes(directory_of(store)) < 2 * once < before / 10
    assert rows(store) == expected
    assert stats.n_bytes_rewritten < before
    assert store.table("c.pk").offsets("earliest") == store.table("c.pk").offsets("latest")


def test_after_compaction_the_key_index_is_found_again_from_the_log_alone(store: Store, clock: Clock, tmp_path: Path) -> None:
    overwrite(store, clock, 5)
    store.table("c.pk").delete({"id": list(range(0, 200, 3))})
    clock.pass_ms(2 * HOUR_MS)
    backend_of(store).clean()
    overwrite(store, clock, 2, n_keys=50)
    expected, keys = rows(store), list(range(250))
    found = store.table("c.pk").lookup({"id": keys}, missing="null").to_pylist()
    crash(store)
    (tmp_path / "s" / "CHECKPOINT").unlink()

    with opened(tmp_path / "s", clock) as again:
        assert rows(again) == expected
        assert again.table("c.pk").lookup({"id": keys}, missing="null").to_pylist() == found
        assert again.table("c.pk").prefix_lookup is not None
        assert again.table("c.pk").lookup({"id": [7]}).to_pylist() == [row for row in expected if row["id"] == 7]


def test_a_key_snapshot_that_compaction_has_overtaken_is_not_used(tmp_path: Path, clock: Clock) -> None:
    always = CheckpointPolicy(rows=1, rows_at_close=1)
    with opened(tmp_path / "s", clock, checkpoints=always) as store:
        store.execute(DDL)
        overwrite(store, clock, 2)
    (snapshot,) = (tmp_path / "s" / "index").glob("*.index")
    old = snapshot.read_bytes()
    store = opened(tmp_path / "s", clock)
    store.table("c.pk").delete({"id": list(range(100))})
    overwrite(store, clock, 1, n_keys=10)
    expected = rows(store)
    clock.pass_ms(2 * HOUR_MS)
    backend_of(store).clean()
    crash(store)
    snapshot.write_bytes(old)

    with opened(tmp_path / "s", clock) as again:
        assert rows(again) == expected


def test_versions_and_times_of_what_is_retained_stay_exact_and_older_ones_are_refused_by_name(store: Store, clock: Clock) -> None:
    table = store.table("c.pk")
    at: dict[int, list[dict[str, object]]] = {}
    for n in range(100):
        clock.pass_ms(60_000)
        table.upsert({"id": [n % 7, 100 + n], "v": ["x", "y"], "n": [n, n]})
        at[store.version()] = rows(store)
    ends = {version: table.offsets(at_version=version) for version in at}
    before = table.scan(metadata=True).read_all().to_pylist()
    journal = store.backend.commits(0, 1000)
    backend_of(store).clean()
    oldest = table.offsets("earliest")[ONE]

    assert 0 < oldest < len(before)
    assert table.scan(metadata=True).read_all().to_pylist() == before[oldest:]
    assert [info for info in journal if info.ranges["c.pk"][ONE][0] >= oldest] == store.backend.commits(0, 1000)
    n_read = 0
    for version, expected in at.items():
        if ends[version][ONE] >= oldest:
            n_read += 1
            assert sorted(table.read(at=version).to_pylist(), key=lambda row: row["id"]) == expected
            assert table.offsets(at_version=version) == ends[version]
        else:
            with pytest.raises(OffsetOutOfRange, match="The oldest version that can be read is"):
                table.read(at=version)
            with pytest.raises(OffsetOutOfRange, match="The oldest version that can be read is"):
                table.offsets(at_version=version)
    assert 20 < n_read < 80


def test_a_bucket_whose_keys_share_a_hash_is_left_as_it_is(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KvBucket, "n_homeless", property(lambda kv: 1))
    overwrite(store, clock, 5)
    expected = rows(store)
    clock.pass_ms(2 * HOUR_MS)

    assert backend_of(store).clean().n_buckets_kept == 1
    assert rows(store) == expected


def test_rows_added_by_an_altered_table_are_compacted_with_the_older_ones(store: Store, clock: Clock) -> None:
    overwrite(store, clock, 3)
    store.execute("ALTER TABLE c.pk ADD COLUMN extra BIGINT")
    store.table("c.pk").upsert({"id": [3, 500], "v": ["new", "new"], "n": [1, 1], "extra": [7, None]})
    expected = rows(store)
    clock.pass_ms(2 * HOUR_MS)

    backend_of(store).clean()

    assert rows(store) == expected
    assert store.table("c.pk").lookup({"id": [3, 4]})["extra"].to_pylist() == [7, None]
