"""A backup is the store at one moment, whole, whoever writes meanwhile; what comes back was checked, and nothing is overwritten."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import storage_engine
from storage_engine import WriteOp
from storage_engine.engine.backup import restore
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.engine.fsck import check_store
from storage_engine.errors import AlreadyExists, DamagedFrame, UnsupportedFormatVersion, UserError
from storage_engine.log import commit_log
from tests.engine.test_key_snapshots import DDL, answers, change
from tests.waiting import let_pass

PAIR = """
CREATE TABLE p.log (i BIGINT);
CREATE TABLE p.pk (i BIGINT, n BIGINT, PRIMARY KEY (i) NOT ENFORCED);
"""


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log files of 4 KiB, so that there are many."""
    opened = commit_log.CommitLog.open.__func__
    monkeypatch.setattr(
        commit_log.CommitLog,
        "open",
        classmethod(lambda cls, disk, directory, **options: opened(cls, disk, directory, **{**options, "file_bytes_max": 4096})),
    )


@pytest.mark.parametrize("links", [True, False])
def test_a_restored_store_answers_as_the_store_did_and_both_go_their_own_way(small_files: None, tmp_path: Path, links: bool) -> None:
    with storage_engine.connect(f"file://{tmp_path}/s") as store:
        store.execute(DDL)
        change(store, 1)
        expected = answers(store)
        info = store.backup(tmp_path / "b", links=links)
        assert info.version == store.version()
        change(store, 2)
        after = answers(store)
        restored = restore(tmp_path / "b", tmp_path / "r")
        assert restored.version == info.version
        with storage_engine.connect(f"file://{tmp_path}/r") as again:
            assert (answers(again), again.version()) == (expected, info.version)
            change(again, 3)
        assert answers(store) == after
    assert len(list((tmp_path / "b" / "log").iterdir())) > 3
    shared = [path.stat().st_nlink > 1 for path in sorted((tmp_path / "b" / "log").iterdir())]
    assert shared == [links] * (len(shared) - 1) + [False]
    for name in ("s", "r"):
        assert check_store(tmp_path / name, keys=True).findings == []
    assert restore(tmp_path / "b", tmp_path / "r2").version == info.version


def test_backups_while_writers_run_hold_whole_transactions(small_files: None, tmp_path: Path) -> None:
    with storage_engine.connect(f"file://{tmp_path}/s", sync="none") as store:
        store.execute(PAIR)
        is_over = threading.Event()

        def write(writer: int) -> None:
            i = writer
            while not is_over.is_set():
                store.commit([WriteOp("p.log", "append", _rows(i=[i])), WriteOp("p.pk", "upsert", _rows(i=[i % 50], n=[i]))])
                i += 2

        writers = [threading.Thread(target=write, args=(n,)) for n in range(2)]
        for thread in writers:
            thread.start()
        versions = [store.backup(tmp_path / f"b{n}").version for n in range(4)]
        is_over.set()
        for thread in writers:
            thread.join()

    for n, version in enumerate(versions):
        restore(tmp_path / f"b{n}", tmp_path / f"r{n}")
        with storage_engine.connect(f"file://{tmp_path}/r{n}") as again:
            assert again.version() == version
            logged = again.table("p.log").scan().read_all()["i"].to_pylist()
            assert len(logged) == version - 2
            newest = {i % 50: i for i in logged}
            assert {row["i"]: row["n"] for row in again.table("p.pk").read().to_pylist()} == newest


def test_a_server_writes_a_backup_for_its_client(tmp_path: Path) -> None:
    from storage_engine.server.process import ServerProcess

    with ServerProcess(tmp_path / "s") as server, storage_engine.connect(server.url) as store:
        store.execute(DDL)
        change(store, 1)
        expected = answers(store)
        store.backup(tmp_path / "b")
        with pytest.raises(AlreadyExists, match="not empty"):
            store.backup(tmp_path / "b")
        with pytest.raises(UserError, match="absolute"):
            store.backup("b")
    restore(tmp_path / "b", tmp_path / "r")
    with storage_engine.connect(f"file://{tmp_path}/r") as again:
        assert answers(again) == expected


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    with storage_engine.connect(f"file://{tmp_path}/s") as store:
        store.execute(DDL)
        change(store, 1)
        store.backup(tmp_path / "b")
    return tmp_path / "b"


@pytest.mark.parametrize("at", [70, 1000, 0.5, -1, -65, -200])
def test_a_damaged_backup_is_refused_by_file_and_offset_and_leaves_no_store(backup: Path, tmp_path: Path, at: float) -> None:
    (path,) = (backup / "log").iterdir()
    data = bytearray(path.read_bytes())
    data[int(at * len(data)) if isinstance(at, float) else at] ^= 1
    path.write_bytes(data)

    with pytest.raises(DamagedFrame) as refused:
        restore(backup, tmp_path / "r")

    assert refused.value.file == str(path)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest", "checkpoint"])
def test_a_backup_that_is_not_whole_is_refused(backup: Path, tmp_path: Path, damage: str) -> None:
    (path,) = (backup / "log").iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-64])
    elif damage == "missing":
        path.unlink()
    else:
        name = backup / damage.replace("manifest", "BACKUP").replace("checkpoint", "CHECKPOINT")
        name.write_bytes(name.read_bytes().replace(b"1", b"2", 1))

    with pytest.raises(DamagedFrame):
        restore(backup, tmp_path / "r")

    assert not (tmp_path / "r").exists()


def test_nothing_is_overwritten(backup: Path, tmp_path: Path) -> None:
    before = sorted(path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file())
    with pytest.raises(AlreadyExists, match="nothing is overwritten"):
        restore(backup, tmp_path / "s")
    assert sorted(path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()) == before

    (tmp_path / "r.partial").mkdir()
    (tmp_path / "r.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(AlreadyExists, match="no interrupted copy"):
        restore(backup, tmp_path / "r")
    assert (tmp_path / "r.partial" / "thesis.txt").read_text() == "mine"


def test_a_backup_is_no_store_and_a_store_is_no_backup(backup: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatVersion):
        EmbeddedBackend.open(backup)
    with pytest.raises(UserError, match="no backup"):
        restore(tmp_path / "s", tmp_path / "r")


KILLED = """
import sys
import storage_engine
store = storage_engine.connect("file://" + sys.argv[1])
print("go", flush=True)
for n in range(1000):
    store.table("k.items").upsert({"shop": [n], "item": ["x"], "n": [n]})
    store.backup(f"{sys.argv[2]}/{n}", links=False)
"""


def _rows(**columns: list[int]) -> object:
    import pyarrow as pa

    return pa.table(columns)


@pytest.mark.crash
@pytest.mark.parametrize("delay_s", [0.01, 0.05, 0.09, 0.14])
def test_a_kill_during_a_backup_leaves_the_store_and_only_whole_backups(tmp_path: Path, delay_s: float) -> None:
    with storage_engine.connect(f"file://{tmp_path}/s") as store:
        store.execute(DDL)
        for seed in range(5):
            change(store, seed)
    (tmp_path / "all").mkdir()
    command = [sys.executable, "-c", KILLED, f"{tmp_path}/s", f"{tmp_path}/all"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert child.stdout is not None, "opened as a pipe"
    child.stdout.readline()
    let_pass(delay_s)  # the moment of the kill is the input of this test
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()

    assert check_store(tmp_path / "s", keys=True).damages == []
    for path in sorted((tmp_path / "all").iterdir()):
        if path.suffix == ".partial":
            if not (path / "BACKUP").exists():
                with pytest.raises(UserError, match="no backup"):
                    restore(path, tmp_path / "nothing")
        else:
            restore(path, tmp_path / "restored" / path.name)
            with storage_engine.connect(f"file://{tmp_path}/restored/{path.name}") as store:
                assert store.table("k.items").lookup({"shop": [int(path.name)], "item": ["x"]}).num_rows == 1
    with storage_engine.connect(f"file://{tmp_path}/s") as store:
        for path in sorted((tmp_path / "all").glob("*.partial")):
            store.backup(path.with_suffix(""))
            restore(path.with_suffix(""), tmp_path / "retaken")
