"""Key snapshots: a start that uses them knows exactly what a replay of the whole changelog knows, and damage to them costs only time."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from storage_engine.client.store import Store
from storage_engine.connection import wrap
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.engine.key_snapshots import FOLDER
from storage_engine.log.disk import Disk

ALWAYS = CheckpointPolicy(rows=1, rows_at_close=1)
NEVER = CheckpointPolicy(rows=1 << 60, rows_at_close=1 << 60)
DDL = """
CREATE TABLE k.items (shop BIGINT, item STRING, n BIGINT, PRIMARY KEY (shop, item) NOT ENFORCED)
    WITH ('bucket.num' = '2', 'bucket.key' = 'shop');
CREATE TABLE k.days (id BIGINT, ds STRING, n BIGINT, PRIMARY KEY (id, ds) NOT ENFORCED) PARTITIONED BY (ds);
"""


def opened(directory: Path, policy: CheckpointPolicy = ALWAYS) -> Store:
    return wrap(EmbeddedBackend.open(directory, checkpoints=policy))


def change(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(8):
        keys = {(chance.randrange(20), f"item{chance.randrange(10)}") for _ in range(30)}
        rows = {"shop": [k[0] for k in keys], "item": [k[1] for k in keys]}
        store.table("k.items").upsert(rows | {"n": [chance.randrange(1000) for _ in keys]})
        store.table("k.items").delete({name: values[:5] for name, values in rows.items()})
        store.table("k.days").upsert({"id": list(range(5)), "ds": [f"d{chance.randrange(3)}"] * 5, "n": [chance.randrange(9)] * 5})


def answers(store: Store) -> dict[str, object]:
    items, days = store.table("k.items"), store.table("k.days")
    keys = pa.table({"shop": [i // 10 for i in range(200)], "item": [f"item{i % 10}" for i in range(200)]})
    return {
        "rows": sorted(items.read().to_pylist(), key=str),
        "days": sorted(days.read().to_pylist(), key=str),
        "found": items.lookup(keys, missing="null").to_pylist(),
        "prefixes": items.prefix_lookup({"shop": list(range(20))}).to_pylist(),
        "counts": [items.count(), days.count()],
    }


def replayed(directory: Path) -> dict[str, object]:
    """What the changelogs alone say."""
    for path in (directory / FOLDER).iterdir():
        path.rename(path.with_suffix(".hidden"))
    store = opened(directory, NEVER)
    found = answers(store)
    crash(store)
    for path in (directory / FOLDER).iterdir():
        path.rename(path.with_suffix(".index"))
    return found


def crash(store: Store) -> None:
    """Leave the directory as a killed process leaves it: nothing is written any more."""
    backend = store.backend
    assert isinstance(backend, EmbeddedBackend), "an embedded store"
    backend.maintenance.stop()
    backend.core.checkpointer.stop()
    assert backend.core.lock is not None, "open"
    backend.core.lock.release()


def snapshots(directory: Path) -> list[Path]:
    folder = directory / FOLDER
    return sorted(folder.glob("*.index")) if folder.exists() else []


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    with opened(tmp_path / "s") as store:
        store.execute(DDL)
        change(store, 1)
    return tmp_path / "s"


def test_a_start_from_snapshots_equals_a_replay_of_everything(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(snapshots(filled)) >= 3
    expected = replayed(filled)
    with opened(filled) as store:
        assert answers(store) == expected
    assert caplog.text == ""


def test_changes_after_a_snapshot_are_followed(filled: Path) -> None:
    store = opened(filled, NEVER)
    for seed in (2, 3):
        change(store, seed)
    expected = answers(store)
    crash(store)
    with opened(filled) as store:
        assert answers(store) == expected
        change(store, 4)
        expected = answers(store)
    assert replayed(filled) == expected


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "version"])
def test_a_damaged_snapshot_is_named_and_not_used(filled: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = replayed(filled)
    for path in snapshots(filled):
        data = bytearray(path.read_bytes())
        data[-100] ^= damage == "bit"
        data[:8] = b"FLIX0009" if damage == "version" else data[:8]
        path.write_bytes(data[: {"cut": -70, "empty": 0}.get(damage, len(data))])
    with caplog.at_level(logging.WARNING), opened(filled) as store:
        assert answers(store) == expected
    assert all(str(path) in caplog.text for path in snapshots(filled))


def test_a_snapshot_of_another_store_is_not_used(filled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path / "other") as other:
        other.execute(DDL)
        other.table("k.items").upsert({"shop": [1], "item": ["only"], "n": [1]})
        change(other, 9)
        expected = answers(other)
    for path in snapshots(filled):
        (tmp_path / "other" / FOLDER / path.name).write_bytes(path.read_bytes())
    with opened(tmp_path / "other") as other:
        assert answers(other) == expected
    assert "belongs to another changelog" in caplog.text


def test_an_altered_table_starts_from_its_snapshot(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(filled, NEVER)
    store.execute("ALTER TABLE k.items ADD note STRING")
    store.table("k.items").upsert({"shop": [1], "item": ["item1"], "n": [7], "note": ["new"]})
    expected = answers(store)
    crash(store)
    with opened(filled) as store:
        assert answers(store) == expected
        assert store.table("k.items").lookup({"shop": [1], "item": ["item1"]})["note"].to_pylist() == ["new"]
    assert caplog.text == ""


def test_snapshots_of_dropped_partitions_and_tables_are_removed(filled: Path) -> None:
    with opened(filled) as store:
        partition = store.table("k.days").partitions()[0]
        store.execute(f"ALTER TABLE k.days DROP PARTITION (ds = '{partition}')")
        store.table("k.days").upsert({"id": [1], "ds": [partition], "n": [1]})
        expected = answers(store)
    with opened(filled) as store:
        assert answers(store) == expected
        store.execute("DROP TABLE k.days")
        store.execute("DROP TABLE k.items")
        store.execute("CREATE TABLE k.one (id BIGINT, PRIMARY KEY (id) NOT ENFORCED)")
        store.table("k.one").upsert({"id": [1]})
    assert len(snapshots(filled)) == 1


def test_a_running_store_writes_snapshots_and_checkpoints_beside_its_commits(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", CheckpointPolicy(commits=5, rows=50))
    store.execute(DDL)
    deadline = time.monotonic() + 20
    seed = 0
    while not (len(snapshots(tmp_path / "s")) >= 2 and (tmp_path / "s" / "CHECKPOINT").exists()):
        assert time.monotonic() < deadline, "nothing was written in time"
        seed += 1
        change(store, seed)
    expected = answers(store)
    crash(store)
    with opened(tmp_path / "s") as again:
        assert answers(again) == expected


class NoSpaceForIndexes(Disk):
    """A disk on which only the log finds space."""

    def open_file(self, path):
        if path.name.endswith(".index.tmp"):
            raise OSError(28, "No space left on device for a key index")
        return super().open_file(path)

    def replace_file(self, path, buffers):
        if path.name != "FORMAT":
            raise OSError(28, "No space left on device")
        super().replace_file(path, buffers)


def test_a_disk_without_space_for_copies_costs_neither_commits_nor_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = CheckpointPolicy(commits=2, rows=1, rows_at_close=1)
    backend = EmbeddedBackend.open(tmp_path / "s", disk=NoSpaceForIndexes(), checkpoints=policy)
    with caplog.at_level(logging.WARNING), wrap(backend) as store:
        store.execute(DDL)
        change(store, 1)
        expected = answers(store)
    assert "No space left on device for a key index" in caplog.text
    with opened(tmp_path / "s") as again:
        assert answers(again) == expected


KILLED = """
import sys
from tests.engine.test_key_snapshots import DDL, change, opened
from storage_engine.engine.checkpointer import CheckpointPolicy
store = opened(sys.argv[1], CheckpointPolicy(commits=3, rows=1))
store.execute(DDL)
for seed in range(1_000_000):
    change(store, seed)
    print(seed, flush=True)
"""


@pytest.mark.crash
@pytest.mark.parametrize("n_changes", [1, 2, 4, 7])
def test_a_kill_while_copies_are_written_leaves_a_store_that_agrees_with_its_log(tmp_path: Path, n_changes: int) -> None:
    directory = tmp_path / "s"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(directory)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert child.stdout is not None, "opened as a pipe"
    for _ in range(n_changes):
        child.stdout.readline()
    child.kill()
    child.wait()
    child.stdout.close()

    with opened(directory, NEVER) as store:
        found = answers(store)
    assert found == replayed(directory)
