"""Fsck names each damage by file and offset, calls a sound store sound, and changes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import storage_engine
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.fsck import check_store
from storage_engine.errors import DamagedFrame, StoreLocked, UserError
from storage_engine.log.frame import ALIGNMENT
from tests.engine.cleaning import Clock, backend_of, log_files, small_files
from tests.engine.cleaning import opened as cleaned_store
from tests.engine.test_key_snapshots import ALWAYS, DDL, NEVER, answers, change, crash, opened, snapshots


@pytest.fixture
def store_dir(tmp_path: Path) -> Path:
    with opened(tmp_path / "s", ALWAYS) as store:
        store.execute(DDL)
        change(store, 1)
        store.execute("ALTER TABLE k.days DROP PARTITION (ds = 'd1')")
        store.execute("CREATE TABLE k.log (a BIGINT)")
        store.table("k.log").append({"a": [1, 2, 3]})
        change(store, 2)
    return tmp_path / "s"


def log_file(directory: Path) -> Path:
    (path,) = (directory / "log").glob("*.log")
    return path


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def test_a_sound_store_has_no_findings_and_is_left_as_it_was(store_dir: Path) -> None:
    before = {path: path.read_bytes() for path in store_dir.rglob("*") if path.is_file() and path.name != "LOCK"}

    report = check_store(store_dir, keys=True)

    assert report.findings == []
    with storage_engine.connect(store_dir.as_uri()) as store:
        assert (report.version, report.n_tables) == (store.version(), 3)
        assert report.n_keys == store.table("k.items").count() + store.table("k.days").count()
    assert before.keys() == {path for path in store_dir.rglob("*") if path.is_file() and path.name != "LOCK"}


def test_damage_to_what_says_where_cleaning_moved_frames_is_named(tmp_path: Path) -> None:
    """The files that they were in are gone."""
    clock = Clock()
    with small_files(8192):
        store = cleaned_store(
            tmp_path / "s", clock, checkpoints=CheckpointPolicy(commits=3, rows=1 << 60, rows_at_close=1 << 60, is_inline=True)
        )
    store.execute(DDL)
    for seed in range(3):
        change(store, seed)
    for _ in range(3):
        clock.pass_ms(11 * 60_000)
        backend_of(store).clean()
        change(store, 4)
    assert backend_of(store).cleaning().n_files_removed > 0
    crash(store)
    records = [(path, at.start()) for path in log_files(tmp_path / "s") for at in re.finditer(b'"u":"moved"', path.read_bytes())]
    for path, offset in records:
        flip(path, offset)
        report = check_store(tmp_path / "s", keys=True)
        flip(path, offset)
        assert str(path) in {finding.file for finding in report.findings}
    first = log_files(tmp_path / "s")[0]
    assert first.name != "00000000000000000000.log"
    for offset in (6, 15):  # the header of the file that the log now begins with
        flip(first, offset)
        assert str(first) in {finding.file for finding in check_store(tmp_path / "s").findings}
        flip(first, offset)
    assert check_store(tmp_path / "s", keys=True).findings == []
    assert len(records) > 3


def test_a_crashed_store_is_sound(store_dir: Path) -> None:
    store = opened(store_dir, NEVER)
    change(store, 3)
    crash(store)

    assert check_store(store_dir, keys=True).findings == []


def test_damage_that_keeps_the_store_from_opening_is_named_with_file_and_offset(store_dir: Path) -> None:
    path = log_file(store_dir)
    flip(path, 1000)
    (store_dir / "CHECKPOINT").unlink()
    with pytest.raises(DamagedFrame) as refused:
        storage_engine.connect(store_dir.as_uri())

    report = check_store(store_dir, keys=True)

    assert [(finding.file, finding.offset) for finding in report.damages] == [(refused.value.file, refused.value.offset)]
    assert 0 < refused.value.offset <= 1000


def test_two_damages_are_both_named(store_dir: Path) -> None:
    path = log_file(store_dir)
    for offset in (1000, path.stat().st_size // 2):
        flip(path, offset)

    assert len([finding for finding in check_store(store_dir).damages if finding.file == str(path)]) == 2


def test_a_torn_tail_is_a_note_and_the_next_start_mends_it(store_dir: Path) -> None:
    store = opened(store_dir, NEVER)
    change(store, 3)
    expected = answers(store)
    crash(store)
    with log_file(store_dir).open("ab") as file:
        file.write(os.urandom(500))

    report = check_store(store_dir, keys=True)

    assert [(finding.severity, finding.offset) for finding in report.findings] == [("note", log_file(store_dir).stat().st_size - 500)]
    with storage_engine.connect(store_dir.as_uri()) as again:
        assert answers(again) == expected
    assert check_store(store_dir).findings == []


def _cut_log(directory: Path) -> Path:
    path = log_file(directory)
    inside = path.stat().st_size // 2 // ALIGNMENT * ALIGNMENT + 1  # frames end at multiples of it
    path.write_bytes(path.read_bytes()[:inside])
    return path


def _break(name: str, offset: int) -> Callable[[Path], Path]:
    def damage(directory: Path) -> Path:
        flip(directory / name, offset)
        return directory / name

    return damage


def _break_snapshot(directory: Path) -> Path:
    flip(snapshots(directory)[0], 200)
    return snapshots(directory)[0]


def _swap_snapshots(directory: Path) -> Path:
    first, second, *_ = snapshots(directory)
    second.write_bytes(first.read_bytes())
    return second


def _remove_format(directory: Path) -> Path:
    (directory / "FORMAT").unlink()
    return directory / "FORMAT"


@pytest.mark.parametrize(
    "damage", [_cut_log, _break("CHECKPOINT", 300), _break("FORMAT", 3), _break_snapshot, _swap_snapshots, _remove_format]
)
def test_damage_to_other_files_is_named(store_dir: Path, damage: Callable[[Path], Path]) -> None:
    path = damage(store_dir)

    assert str(path) in {finding.file for finding in check_store(store_dir, keys=True).damages}


def test_a_checkpoint_of_another_store_is_damage(store_dir: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "other", NEVER) as other:
        other.execute(DDL)
        other.table("k.items").upsert({"shop": [1], "item": ["a"], "n": [1]})
    (store_dir / "CHECKPOINT").write_bytes((tmp_path / "other" / "CHECKPOINT").read_bytes())

    assert {finding.file for finding in check_store(store_dir).damages} == {str(store_dir / "CHECKPOINT")}


def test_a_directory_in_use_is_refused_with_the_pid(store_dir: Path) -> None:
    with storage_engine.connect(store_dir.as_uri()), pytest.raises(StoreLocked, match=str(os.getpid())):
        check_store(store_dir)


def test_a_directory_that_is_no_store_is_refused_and_stays_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no store"):
        check_store(tmp_path)
    assert list(tmp_path.iterdir()) == []
