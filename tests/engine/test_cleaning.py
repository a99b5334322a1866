"""Space is given back, and no reader is told anything else than before: logs expire when they may, dead rows and empty files go."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage_engine import Progress, TableBucket
from storage_engine.client.store import Store
from storage_engine.engine.backup import restore
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.cleaner import CleaningPolicy
from storage_engine.engine.fsck import check_store
from storage_engine.errors import DamagedFrame, InvalidOption, OffsetOutOfRange, StoreUnavailable
from storage_engine.kv import KvBucket
from tests.engine.cleaning import EAGER, HOUR_MS, Clock, backend_of, log_bytes, log_files, opened, small_files
from tests.engine.test_key_snapshots import crash

ONE = TableBucket("", 0)
DDL = """
CREATE TABLE c.pk (id BIGINT, v STRING, n BIGINT, PRIMARY KEY (id) NOT ENFORCED) WITH ('table.log.ttl' = '1h');
CREATE TABLE c.log (id BIGINT, v STRING) WITH ('table.log.ttl' = '1h');
"""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with small_files(20_000):
        store = opened(tmp_path / "s", clock)
        store.execute(DDL)
        yield store
        store.close()
        assert check_store(tmp_path / "s", keys=True).findings == []


def overwrite(store: Store, clock: Clock, times: int, n_keys: int = 200) -> None:
    for n in range(times):
        clock.pass_ms(60_000)
        store.table("c.pk").upsert({"id": list(range(n_keys)), "v": [f"text {n} {i}" for i in range(n_keys)], "n": [n] * n_keys})


def append(store: Store, clock: Clock, times: int) -> None:
    for n in range(times):
        clock.pass_ms(60_000)
        store.table("c.log").append({"id": [n, n, n], "v": [f"a{n}", f"b{n}", None]})


def directory_of(store: Store) -> Path:
    return backend_of(store).directory


def rows(store: Store, name: str = "c.pk") -> list[dict[str, object]]:
    return sorted(store.table(name).read().to_pylist(), key=lambda row: row["id"])


# on demand


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


# primary-key tables


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


# logs


def test_a_log_expires_and_a_late_reader_is_told_how_many_rows_are_gone_and_since_when(store: Store, clock: Clock) -> None:
    append(store, clock, 100)
    before = store.table("c.log").scan(metadata=True).read_all().to_pylist()
    backend_of(store).clean()
    oldest = store.table("c.log").offsets("earliest")[ONE]

    assert store.table("c.log").count() == 300 - oldest
    assert 0 < oldest < 300
    assert store.table("c.log").scan(metadata=True).read_all().to_pylist() == before[oldest:]
    with pytest.raises(OffsetOutOfRange, match=rf"{oldest - 5:,} of these rows have expired, the last of them at 2023-11-1"):
        store.table("c.log").scan(start={ONE: 5}).read_all()


def test_offsets_go_on_after_everything_has_expired(clock: Clock, tmp_path: Path) -> None:
    store = opened(tmp_path / "s", clock)
    store.execute(DDL)
    append(store, clock, 10)
    clock.pass_ms(2 * HOUR_MS)
    backend_of(store).clean()
    assert store.table("c.log").offsets("earliest") == store.table("c.log").offsets("latest") == {ONE: 30}
    crash(store)
    for without in ("nothing", "CHECKPOINT"):
        (tmp_path / "s" / without).unlink(missing_ok=True)
        store = opened(tmp_path / "s", clock)
        assert store.table("c.log").offsets("latest") == {ONE: 30}
        crash(store)

    with opened(tmp_path / "s", clock) as again:
        again.table("c.log").append({"id": [1], "v": ["new"]})
        assert again.table("c.log").scan(metadata=True).read_all()["_log_offset"].to_pylist() == [30]


def test_retention_waits_for_readers_and_says_what_it_drops_when_it_has_waited_twice_as_long(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    append(store, clock, 10)
    consumer = store.table("c.log").consumer("slow")
    consumer.poll(max_rows=12)
    consumer.commit()
    clock.pass_ms(HOUR_MS + 600_000)

    assert backend_of(store).clean().n_rows_expired == 12
    assert store.table("c.log").offsets("earliest") == {ONE: 12}
    assert caplog.text == ""

    clock.pass_ms(HOUR_MS)
    with caplog.at_level(logging.WARNING):
        stats = backend_of(store).clean()

    assert (stats.n_rows_expired, stats.n_rows_expired_unread) == (30, 18)
    assert "18 rows expired that a job or consumer had yet to read" in caplog.text
    append(store, clock, 1)
    with pytest.raises(OffsetOutOfRange, match="18 of these rows have expired"):
        consumer.poll()


def test_a_tiered_table_keeps_what_the_lake_does_not_have(store: Store, clock: Clock) -> None:
    store.execute("ALTER TABLE c.log SET ('table.datalake.enabled' = 'true')")
    append(store, clock, 10)
    clock.pass_ms(24 * HOUR_MS)
    assert backend_of(store).clean().n_rows_expired == 0

    store.commit((), (Progress("tier:c.log", {"c.log": {ONE: 15}}),))

    assert backend_of(store).clean().n_rows_expired == 15
    assert store.table("c.log").offsets("earliest") == {ONE: 15}


def test_the_time_to_live_can_be_altered_and_switched_off(store: Store, clock: Clock) -> None:
    append(store, clock, 3)
    store.execute("ALTER TABLE c.log SET ('table.log.ttl' = '-1')")
    clock.pass_ms(1000 * HOUR_MS)
    assert backend_of(store).clean().n_rows_expired == 0

    store.execute("ALTER TABLE c.log SET ('table.log.ttl' = '2h')")
    assert backend_of(store).clean().n_rows_expired == 9
    for ttl in ("0", "-2", "-7d"):
        with pytest.raises(InvalidOption, match=r"table\.log\.ttl"):
            store.execute(f"ALTER TABLE c.log SET ('table.log.ttl' = '{ttl}')")


def test_small_frames_become_large_ones_and_take_less_space(store: Store, clock: Clock) -> None:
    store.execute("ALTER TABLE c.log SET ('table.log.ttl' = '-1')")
    append(store, clock, 400)
    before, n_bytes = store.table("c.log").scan(metadata=True).read_all(), log_bytes(directory_of(store))
    frames = backend_of(store).core.buckets.index.bucket(2, 0, 0)
    n_frames = len(frames)
    clock.pass_ms(HOUR_MS)

    backend_of(store).clean()

    assert (n_frames, len(frames)) == (400, 1)
    assert log_bytes(directory_of(store)) < n_bytes / 5
    assert store.table("c.log").scan(metadata=True).read_all().equals(before)
    assert store.table("c.log").scan(start={ONE: 77}, stop={ONE: 79}, metadata=True).read_all().equals(before.slice(77, 2))


def test_offsets_by_time_are_exact_inside_a_repacked_frame(store: Store, clock: Clock) -> None:
    store.execute("ALTER TABLE c.log SET ('table.log.ttl' = '-1')")
    append(store, clock, 50)
    frames = backend_of(store).core.buckets.index.bucket(2, 0, 0)
    times = list(range(clock.now_ms - 60 * 60_000, clock.now_ms + 120_000, 17_000))
    before = [frames.offset_at_timestamp(ms) for ms in times]
    clock.pass_ms(HOUR_MS)
    backend_of(store).clean()

    assert len(frames) == 1
    assert [frames.offset_at_timestamp(ms) for ms in times] == before


# readers beside cleaning


@pytest.mark.parametrize(("n_read", "n_packed"), [(0, 0), (150, 0), (399, 0), (250, 100)])
def test_a_scan_that_began_before_cleaning_ends_with_the_rows_it_began_with(store: Store, clock: Clock, n_read: int, n_packed: int) -> None:
    store.execute("ALTER TABLE c.log SET ('table.log.ttl' = '-1')")
    append(store, clock, n_packed)
    clock.pass_ms(HOUR_MS)
    backend_of(store).clean()
    append(store, clock, 400 - n_packed)
    before = store.table("c.log").scan(metadata=True).read_all().to_pylist()
    reader = store.table("c.log").scan(start={ONE: 3}, metadata=True)
    first = [row for _ in range(n_read - n_packed) for row in reader.read_next_batch().to_pylist()]
    clock.pass_ms(HOUR_MS)
    append(store, clock, 40)

    assert backend_of(store).clean().n_files_removed > 0
    assert first + reader.read_all().to_pylist() == before[3:]


def test_readers_writers_and_cleaning_run_beside_each_other_without_a_wrong_or_missing_row(tmp_path: Path, clock: Clock) -> None:
    """Each version's rows are known: row i of version n says n // 2 * ... so a reader can check any answer by itself."""
    failures: list[BaseException] = []
    is_over = threading.Event()
    with small_files(60_000), opened(tmp_path / "s", clock, policy=CleaningPolicy(60_000, 0, 4096, 1, 1)) as store:
        store.execute(DDL.replace("'1h'", "'1ms'"))
        pk, log = store.table("c.pk"), store.table("c.log")
        pk.upsert({"id": list(range(64)), "v": ["0"] * 64, "n": [0] * 64})

        def guarded(step) -> None:
            try:
                while not is_over.is_set():
                    step()
            except BaseException as error:  # noqa: BLE001 - shown by the test, whatever it is
                failures.append(error)
                is_over.set()

        def read() -> None:
            found = pk.read()
            assert sorted(found["id"].to_pylist()) == list(range(64))
            assert len(set(found["n"].to_pylist())) == 1  # one commit writes all rows

        def look_up() -> None:
            found = pk.lookup({"id": list(range(0, 64, 5))})
            assert found["id"].to_pylist() == list(range(0, 64, 5))
            assert len(set(found["n"].to_pylist())) == 1
            assert pk.lookup({"id": [9]}).num_rows == 1

        def scan() -> None:
            try:
                found = log.scan(metadata=True).read_all()
            except OffsetOutOfRange:
                return  # expired under the reader: said, not skipped
            offsets = found["_log_offset"].to_pylist()
            assert offsets == list(range(offsets[0], offsets[0] + len(offsets))) if offsets else True
            assert found["id"].to_pylist() == [offset // 3 for offset in offsets]

        threads = [threading.Thread(target=guarded, args=(step,)) for step in (read, look_up, scan)]
        for thread in threads:
            thread.start()
        n_appended = 0
        for n in range(1, 120):
            pk.upsert({"id": list(range(64)), "v": [str(n)] * 64, "n": [n] * 64})
            for _ in range(3):
                log.append({"id": [n_appended] * 3, "v": ["x" * 50] * 3})
                n_appended += 1
            clock.pass_ms(1 if n % 3 else 100)
            backend_of(store).clean()
            if is_over.is_set():
                break
        is_over.set()
        for thread in threads:
            thread.join(30)
        assert failures == []
        assert backend_of(store).cleaning().n_files_removed > 10
    assert check_store(tmp_path / "s", keys=True).findings == []


# files


def test_a_dropped_table_gives_its_space_back(store: Store, clock: Clock) -> None:
    empty = log_bytes(directory_of(store))
    overwrite(store, clock, 20)
    append(store, clock, 5)
    store.execute("DROP TABLE c.pk")

    backend_of(store).clean()

    assert log_bytes(directory_of(store)) < empty + 20_000
    assert store.table("c.log").count() == 15


def test_a_removed_file_is_not_kept_on_disk_by_what_was_cached_of_it(store: Store, clock: Clock) -> None:
    overwrite(store, clock, 20)
    rows(store)
    for key in range(0, 200, 7):
        assert store.table("c.pk").lookup({"id": [key]}).num_rows == 1
        assert store.table("c.pk").lookup({"id": [key, key + 1]}).num_rows == 2
    append(store, clock, 3)
    store.table("c.log").scan().read_all()
    clock.pass_ms(2 * HOUR_MS)
    backend_of(store).clean()
    overwrite(store, clock, 3)
    store.execute("DROP TABLE c.pk")
    backend_of(store).clean()
    gc.collect()

    maps = Path("/proc/self/maps").read_text()
    mapped = {line.split()[-2] if line.endswith("(deleted)") else line.split()[-1] for line in maps.splitlines() if ".log" in line}
    directory = directory_of(store)
    assert {Path(name).name for name in mapped if str(directory) in name} <= {path.name for path in log_files(directory)}


def make_store_with_gaps(directory: Path, clock: Clock) -> None:
    """A closed store whose log has lost files between two others."""
    never_joined = replace(EAGER, settled_ms=1 << 60)
    with small_files(20_000), opened(directory, clock, policy=never_joined) as store:
        store.execute(DDL)
        store.execute("ALTER TABLE c.log SET ('table.log.ttl' = '-1')")
        for _ in range(2):
            for n in range(20):  # text that does not compress: files full of living rows
                store.table("c.log").append({"id": [n], "v": [os.urandom(2000).hex()]})
            overwrite(store, clock, 20)
        store.execute("DROP TABLE c.pk")
        store.table("c.log").append({"id": [0], "v": [os.urandom(2000).hex()]})
        backend_of(store).clean()


def test_a_missing_file_is_damage_and_a_gap_left_by_cleaning_is_not(clock: Clock, tmp_path: Path) -> None:
    make_store_with_gaps(tmp_path / "s", clock)
    files = log_files(tmp_path / "s")
    starts = [int(path.stem) for path in files]
    assert any(start + path.stat().st_size < after for path, start, after in zip(files, starts, starts[1:], strict=False))
    assert check_store(tmp_path / "s").findings == []

    for path in files[:-1]:
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(DamagedFrame, match=f"{path.name} is missing"):
            opened(tmp_path / "s", clock)
        assert any(path.name in finding.what for finding in check_store(tmp_path / "s").damages)
        path.write_bytes(data[:-64])
        with pytest.raises(DamagedFrame, match=f"{path.name} holds"):
            opened(tmp_path / "s", clock)
        path.write_bytes(data)
    (tmp_path / "s" / "CHECKPOINT").unlink()
    files[0].unlink()
    with pytest.raises(DamagedFrame, match=f"{files[0].name} is missing"):
        opened(tmp_path / "s", clock)


def test_a_bit_that_took_the_end_of_the_log_is_named_where_a_file_was_given_up_there(store: Store, clock: Clock, tmp_path: Path) -> None:
    overwrite(store, clock, 30)
    clock.pass_ms(2 * HOUR_MS)
    assert backend_of(store).clean().n_files_removed > 0
    directory = tmp_path / "copy"
    shutil.copytree(tmp_path / "s", directory)  # as a kill leaves it: the record that gives the files up is the last one
    (directory / "CHECKPOINT").unlink()
    path = log_files(directory)[-1]
    data = path.read_bytes()
    at = data.rindex(b'"removed"')
    path.write_bytes(data[:at] + b"R" + data[at + 1 :])

    for _ in range(2):  # the bytes are left as they are: the second start finds what the first one did
        with pytest.raises(DamagedFrame, match="is missing") as damage:
            opened(directory, clock)
        assert damage.value.file == str(path)
        assert at - 128 <= damage.value.offset <= at
    found = [(finding.file, finding.offset) for finding in check_store(directory).damages]
    assert (str(path), damage.value.offset) in found


def test_a_damaged_state_does_not_take_the_first_commit_of_its_file_with_it(clock: Clock, tmp_path: Path) -> None:
    with small_files(20_000):
        store = opened(tmp_path / "s", clock, sync="commit")
        store.execute(DDL)
        while len(log_files(tmp_path / "s")) == 1:
            append(store, clock, 1)
        crash(store)
    path = log_files(tmp_path / "s")[-1]
    data = path.read_bytes()
    path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])

    with pytest.raises(DamagedFrame, match="does not match its checksum") as damage:
        opened(tmp_path / "s", clock)

    assert (damage.value.file, damage.value.offset) == (str(path), 64)
    assert path.exists()


def test_a_header_that_allows_a_gap_before_its_file_is_named_when_it_is_damaged(clock: Clock, tmp_path: Path) -> None:
    make_store_with_gaps(tmp_path / "s", clock)
    files = log_files(tmp_path / "s")
    path = next(after for file, after in itertools.pairwise(files) if int(file.stem) + file.stat().st_size < int(after.stem))
    data = path.read_bytes()
    path.write_bytes(data[:30] + bytes([data[30] ^ 1]) + data[31:])

    for without in ("nothing", "CHECKPOINT"):
        (tmp_path / "s" / without).unlink(missing_ok=True)
        with pytest.raises(DamagedFrame, match="header does not match") as damage:
            opened(tmp_path / "s", clock)
        assert (damage.value.file, damage.value.offset) == (str(path), 0)
        assert (str(path), 0) in [(finding.file, finding.offset) for finding in check_store(tmp_path / "s").damages]


def test_a_backup_of_a_cleaned_store_is_restored_and_cleaned_again(store: Store, clock: Clock, tmp_path: Path) -> None:
    overwrite(store, clock, 20)
    append(store, clock, 100)
    clock.pass_ms(2 * HOUR_MS)
    backend_of(store).clean()
    append(store, clock, 3)
    expected = rows(store)
    store.backup(tmp_path / "b")
    clock.pass_ms(2 * HOUR_MS)
    backend_of(store).clean()

    restore(tmp_path / "b", tmp_path / "r")

    with opened(tmp_path / "r", clock) as again:
        assert rows(again) == expected
        assert again.table("c.log").count() == 9
        backend_of(again).clean()
        assert rows(again) == expected
    assert check_store(tmp_path / "r", keys=True).findings == []


def test_files_stay_while_a_backup_runs(store: Store, clock: Clock) -> None:
    overwrite(store, clock, 20)
    store.execute("DROP TABLE c.pk")
    release = backend_of(store)._cleaner.keep_files()
    assert backend_of(store).clean().n_files_removed == 0
    release()
    assert backend_of(store).clean().n_files_removed > 0


def test_damage_in_a_frame_that_would_be_moved_is_named_and_not_copied(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with small_files(20_000), opened(tmp_path / "s", clock) as store:
        store.execute(DDL + "CREATE TABLE c.other (id BIGINT, v STRING) WITH ('table.log.ttl' = '-1');")
        store.execute("ALTER TABLE c.log SET ('table.log.ttl' = '-1')")
        append(store, clock, 200)
        for _ in range(100):
            store.table("c.other").append({"id": [1], "v": ["z"]})
        overwrite(store, clock, 20)
        store.execute("DROP TABLE c.pk")
        path = log_files(tmp_path / "s")[0]
        data = path.read_bytes()
        at = data.index(b"a77") if b"a77" in data else data.index(b"a7")
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"A")
        clock.pass_ms(HOUR_MS)

        stats = backend_of(store).clean()

        assert stats.n_damaged_frames >= 1
        assert str(path) in caplog.text
        assert len(backend_of(store).core.buckets.index.bucket(3, 0, 0)) == 1  # the other table was re-packed
        with pytest.raises(DamagedFrame):
            store.table("c.log").scan().read_all()
    assert {finding.file for finding in check_store(tmp_path / "s").damages} == {str(path)}


# rows with a time to live


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


def test_a_round_without_work_writes_nothing(store: Store, clock: Clock) -> None:
    overwrite(store, clock, 3)
    clock.pass_ms(2 * HOUR_MS)
    backend_of(store).clean()
    n_bytes, end = log_bytes(directory_of(store)), backend_of(store).core.log.end

    for _ in range(3):
        backend_of(store).clean()

    assert (log_bytes(directory_of(store)), backend_of(store).core.log.end) == (n_bytes, end)
    assert EAGER.interval_ms == 60_000
    assert np.isin("clean", list(backend_of(store).maintenance.reports()))
