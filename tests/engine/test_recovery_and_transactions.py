"""The engine: what a restart finds, what a failed transaction leaves, and what the journal tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import storage_engine
from storage_engine import Progress, TableBucket, WriteOp
from storage_engine.errors import SchemaMismatch, StoreLocked, UnsupportedFormatVersion, WriteFailed
from storage_engine.log.disk import Disk

DDL = """
CREATE TABLE shop.events (id BIGINT, note STRING, ds STRING) PARTITIONED BY (ds) WITH ('bucket.num' = '2', 'bucket.key' = 'id');
CREATE TABLE shop.orders (id BIGINT, item STRING, n BIGINT, PRIMARY KEY (id, item) NOT ENFORCED) WITH ('bucket.key' = 'id');
CREATE TABLE shop.ids (name STRING, no BIGINT, PRIMARY KEY (name) NOT ENFORCED) WITH ('auto-increment.fields' = 'no');
"""


def fill(store: storage_engine.Store) -> None:
    store.execute(DDL)
    store.table("shop.events").append({"id": [1, 2, 3], "note": ["a", "b", None], "ds": ["d1", "d1", "d2"]})
    store.table("shop.orders").upsert({"id": [1, 1, 2], "item": ["x", "y", "x"], "n": [1, 2, 3]})
    store.table("shop.orders").upsert({"id": [1], "item": ["x"], "n": [10]})
    store.table("shop.orders").delete({"id": [2], "item": ["x"]})
    store.table("shop.ids").lookup({"name": ["ann", "bob"]}, insert_if_not_exists=True)
    store.commit((), (Progress("job:j", {"shop.events": {TableBucket("d1", 0): 2, TableBucket("d2", 0): 1}}),))


def content(store: storage_engine.Store) -> dict[str, object]:
    return {
        "events": sorted(store.table("shop.events").scan(metadata=True).read_all().drop_columns("_commit_timestamp").to_pylist(), key=str),
        "changes": store.table("shop.orders").scan(metadata=True).read_all().drop_columns("_commit_timestamp").to_pylist(),
        "orders": sorted(store.table("shop.orders").read().to_pylist(), key=str),
        "ids": sorted(store.table("shop.ids").read().to_pylist(), key=str),
        "progress": store.progress(""),
        "version": store.version(),
    }


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Path, dict[str, object]]:
    with storage_engine.connect(f"file://{tmp_path}/s") as store:
        fill(store)
        expected = content(store)
    return tmp_path / "s", expected


def test_a_clean_restart_finds_the_same_rows_offsets_and_progress(filled: tuple[Path, dict[str, object]]) -> None:
    directory, expected = filled
    with storage_engine.connect(f"file://{directory}") as store:
        assert content(store) == expected


def test_without_its_checkpoint_the_store_is_rebuilt_from_the_log(filled: tuple[Path, dict[str, object]]) -> None:
    directory, expected = filled
    (directory / "CHECKPOINT").unlink()
    with storage_engine.connect(f"file://{directory}") as store:
        assert content(store) == expected


def test_a_damaged_checkpoint_is_not_used(filled: tuple[Path, dict[str, object]]) -> None:
    directory, expected = filled
    data = bytearray((directory / "CHECKPOINT").read_bytes())
    data[len(data) // 2] ^= 1
    (directory / "CHECKPOINT").write_bytes(data)
    with storage_engine.connect(f"file://{directory}") as store:
        assert content(store) == expected


def test_another_format_version_is_refused_by_name(filled: tuple[Path, dict[str, object]]) -> None:
    directory, _ = filled
    (directory / "FORMAT").unlink()
    with pytest.raises(UnsupportedFormatVersion, match="FORMAT"):
        storage_engine.connect(f"file://{directory}")


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    import os

    with storage_engine.connect(f"file://{tmp_path}/s"):
        code = f"import storage_engine; storage_engine.connect('file://{tmp_path}/s')"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert StoreLocked.__name__ in other.stderr
    assert str(os.getpid()) in other.stderr


def test_a_transaction_with_one_bad_operation_leaves_nothing(filled: tuple[Path, dict[str, object]]) -> None:
    directory, expected = filled
    with storage_engine.connect(f"file://{directory}") as store:
        good = WriteOp("shop.orders", "upsert", pa.table({"id": [7], "item": ["q"], "n": [7]}))
        fresh = WriteOp("shop.events", "append", pa.table({"id": [9], "note": ["new"], "ds": ["d9"]}))
        named = WriteOp("shop.ids", "upsert", pa.table({"name": ["eve"]}), ("name",))
        bad = WriteOp("shop.events", "append", pa.table({"wrong": [1]}))
        with pytest.raises(SchemaMismatch, match="wrong"):
            store.commit((good, fresh, named, bad), (Progress("job:j", {}),))
        assert content(store) == expected
        assert store.table("shop.events").partitions() == ["d1", "d2"]
        store.table("shop.events").append({"id": [1], "note": ["x"], "ds": ["d3"]})
        assert set(store.table("shop.events").offsets()) >= {TableBucket("d3", 0)}
        assert store.table("shop.ids").lookup({"name": ["zoe"]}, insert_if_not_exists=True).to_pylist() == [{"name": "zoe", "no": 3}]


def test_operations_of_one_transaction_see_each_other(tmp_path: Path) -> None:
    with storage_engine.connect(f"file://{tmp_path}/s") as store:
        store.execute(DDL)
        up = WriteOp("shop.orders", "upsert", pa.table({"id": [1], "item": ["x"], "n": [1]}))
        again = WriteOp("shop.orders", "upsert", pa.table({"id": [1, 2], "item": ["x", "x"], "n": [2, 5]}))
        gone = WriteOp("shop.orders", "delete", pa.table({"id": [2], "item": ["x"]}))
        store.commit((up, again, gone))
        assert store.table("shop.orders").read().to_pylist() == [{"id": 1, "item": "x", "n": 2}]
        changes = store.table("shop.orders").scan(["n"]).read_all().to_pydict()
        assert changes == {"_change_type": ["+I", "-U", "+U", "+I", "-D"], "n": [1, 1, 2, 5, 5]}


def test_a_dropped_partition_of_the_same_name_starts_again_at_offset_zero_for_jobs_too(filled: tuple[Path, dict[str, object]]) -> None:
    directory, _ = filled
    with storage_engine.connect(f"file://{directory}") as store:
        store.execute("ALTER TABLE shop.events DROP PARTITION (ds = 'd1')")
        assert store.progress("job:")["job:j"].offsets == {"shop.events": {TableBucket("d2", 0): 1}}
        store.table("shop.events").append({"id": [5], "note": ["again"], "ds": ["d1"]})
        rows = store.table("shop.events").scan(["note"], where="ds = 'd1'").read_all().to_pylist()
        assert rows == [{"note": "again"}]
    with storage_engine.connect(f"file://{directory}") as store:
        assert store.table("shop.events").count() == 2


def test_the_journal_lists_commits_with_whole_ranges_page_by_page(filled: tuple[Path, dict[str, object]]) -> None:
    directory, _ = filled
    with storage_engine.connect(f"file://{directory}") as store:
        everything = store.commits(0, 1000)
        paged = []
        while page := store.commits(paged[-1].version if paged else 0, 2):
            assert len(page) <= 2
            paged += page
        assert paged == everything
        n_rows = sum(stop - start for commit in everything for ranges in commit.ranges.values() for start, stop in ranges.values())
        tables = ("shop.events", "shop.orders", "shop.ids")
        assert n_rows == sum(sum(store.table(name).offsets().values()) for name in tables)


class FullDisk(Disk):
    """A disk that takes no more bytes once it is full."""

    is_full = False

    def write(self, fd, buffers, offset):
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(fd, buffers, offset)


def test_a_full_disk_refuses_writes_and_serves_reads_and_recovers(tmp_path: Path) -> None:
    from storage_engine.connection import wrap
    from storage_engine.engine.embedded import EmbeddedBackend

    disk = FullDisk()
    store = wrap(EmbeddedBackend.open(tmp_path / "s", disk=disk))
    fill(store)
    before = content(store)
    disk.is_full = True
    with pytest.raises(WriteFailed, match="No space left"):
        store.table("shop.orders").upsert({"id": [1], "item": ["x"], "n": [99]})
    assert content(store) == before
    disk.is_full = False
    store.table("shop.orders").upsert({"id": [1], "item": ["x"], "n": [99]})
    assert store.table("shop.orders").lookup({"id": [1], "item": ["x"]}).to_pylist() == [{"id": 1, "item": "x", "n": 99}]
    store.close()
    with storage_engine.connect(f"file://{tmp_path}/s") as again:
        assert again.table("shop.orders").count() == 2
