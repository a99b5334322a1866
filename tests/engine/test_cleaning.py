"""Small frames become large ones and empty files go, beside readers, writers and backups, none of whom notices."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from storage_engine.client.store import Store
from storage_engine.engine.backup import restore
from storage_engine.engine.cleaner import CleaningPolicy
from storage_engine.engine.fsck import check_store
from storage_engine.errors import OffsetOutOfRange
from tests.engine.cleaning import (
    DDL,
    EAGER,
    HOUR_MS,
    ONE,
    Clock,
    append,
    backend_of,
    directory_of,
    log_bytes,
    log_files,
    opened,
    overwrite,
    rows,
    small_files,
)


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
