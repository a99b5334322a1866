"""Damaged bytes are reported with file and offset, never returned as data; foreign formats are refused by name."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import google_crc32c
import pytest

from storage_engine.errors import DamagedFrame, DamageError, UnsupportedFormatVersion
from storage_engine.log.commit_log import CommitLog, LogPosition
from storage_engine.log.disk import Disk
from storage_engine.log.frame import HEADER_BYTES, encode_commit_frame
from storage_engine.log.stored_frame import FrameLocation
from tests.log.commits import COMMITS, acknowledge, encoded, open_log, stored_commits


def written(directory: Path, *, is_closed: bool = True) -> list[Path]:
    """The log files of a store with COMMITS in it."""
    log, _ = open_log(Disk(), directory)
    assert list(acknowledge(log, COMMITS)) == COMMITS
    if is_closed:
        log.close()
    return sorted((directory / "log").iterdir())


def flip(path: Path, offset: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ mask]))


def test_every_flipped_byte_of_a_closed_log_is_damage_with_file_and_offset(tmp_path: Path) -> None:
    files = written(tmp_path)
    assert len(files) > 2
    for path in files:
        size = path.stat().st_size
        seal = size - HEADER_BYTES if path == files[-1] else size  # the seal says nothing but that the rest is durable
        for offset in range(0, seal):
            flip(path, offset, 1 << (offset % 8))

            with pytest.raises(DamageError) as damage:
                open_log(Disk(), tmp_path)
            if isinstance(damage.value, DamagedFrame):
                assert damage.value.file == str(path)
                assert damage.value.offset <= offset

            flip(path, offset, 1 << (offset % 8))
    assert stored_commits(tmp_path) == COMMITS


def test_a_flipped_byte_of_the_seal_costs_nothing(tmp_path: Path) -> None:
    path = written(tmp_path)[-1]
    flip(path, path.stat().st_size - HEADER_BYTES + 30, 0x10)

    assert stored_commits(tmp_path) == COMMITS


def test_after_a_kill_damage_below_the_last_commit_is_damage_and_in_it_is_a_torn_tail(tmp_path: Path) -> None:
    path = written(tmp_path, is_closed=False)[-1]
    size = path.stat().st_size
    log, _ = open_log(Disk(), tmp_path)
    last_start = list(CommitLog.open(Disk(), tmp_path).recover())[-2].end
    file_start = int(path.stem)
    assert last_start > file_start
    log._disk.close(log._fd)  # as a killed process leaves it: no seal
    assert path.stat().st_size == size

    flip(path, last_start - file_start - 1, 0x01)
    with pytest.raises(DamagedFrame):
        open_log(Disk(), tmp_path)
    flip(path, last_start - file_start - 1, 0x01)

    flip(path, size - 1, 0x01)
    assert stored_commits(tmp_path) == COMMITS[:-1]


def test_damage_that_appears_while_the_log_is_open_is_reported_by_the_first_read(tmp_path: Path) -> None:
    log, _ = open_log(Disk(), tmp_path)
    appended = [log.append(encoded(value), value.record) for value in COMMITS]
    location = appended[1].locations[0]
    path = tmp_path / "log" / "00000000000000000000.log"
    flip(path, location.position + HEADER_BYTES + 3, 0x40)

    with pytest.raises(DamagedFrame) as damage:
        log.read(location)

    assert (damage.value.file, damage.value.offset) == (str(path), location.position)
    assert log.read(appended[1].locations[1]).header.bucket == 1


def test_a_read_at_another_position_than_a_frames_is_damage(tmp_path: Path) -> None:
    log, _ = open_log(Disk(), tmp_path)
    location = log.append(encoded(COMMITS[0]), b"{}").locations[0]

    position, length = location
    for wrong in ((position + 8, length), (position + 64, length), (position, length + 64), (10**9, length), (-64, length)):
        with pytest.raises(DamagedFrame):
            log.read(FrameLocation(*wrong))


def test_frames_moved_to_another_place_are_damage(tmp_path: Path) -> None:
    log, _ = open_log(Disk(), tmp_path)
    ends = [log.append(encoded(COMMITS[0]), b"{}").end for _ in range(3)]
    log.close()
    path = tmp_path / "log" / "00000000000000000000.log"
    data = path.read_bytes()
    path.write_bytes(data[: ends[0]] + data[64 : ends[0]] + data[ends[1] :])  # the second commit replaced by a copy of the first
    assert len(data) == path.stat().st_size

    with pytest.raises(DamagedFrame) as damage:
        open_log(Disk(), tmp_path)
    assert damage.value.offset == ends[0]


def test_check_lists_every_damaged_frame_and_reads_what_it_already_read_again(tmp_path: Path) -> None:
    files = written(tmp_path)
    log, _ = open_log(Disk(), tmp_path)
    assert list(log.check()) == []
    second = [found.frames[0][1].position for found in CommitLog.open(Disk(), tmp_path).recover() if found.frames]
    flip(files[0], second[0] - int(files[0].stem) + 70, 0x01)  # a payload
    flip(files[1], 64, 0x01)  # the magic of a frame header
    flip(files[-1], 3, 0x01)  # a file header

    found = [(Path(damage.file), damage.offset) for damage in log.check()]

    assert found == [(files[0], second[0] - int(files[0].stem)), (files[1], 64), (files[-1], 0)]


def test_a_commit_frame_that_counts_other_frames_than_there_are_is_damage(tmp_path: Path) -> None:
    log, _ = open_log(Disk(), tmp_path)
    log.close()
    path = tmp_path / "log" / "00000000000000000000.log"
    position = path.stat().st_size
    frames = [*encoded(COMMITS[1]), encode_commit_frame(b"{}", n_frames=1, durable=0)]
    assert len(frames) == 3
    with path.open("ab") as file:
        for frame in frames:
            file.write(frame.header.encode(position) + b"".join(bytes(memoryview(buffer)) for buffer in frame.buffers))
            position += frame.header.length

    with pytest.raises(DamagedFrame, match="a commit of 1 frames follows 2"):
        open_log(Disk(), tmp_path)


def test_check_works_on_a_log_that_refuses_to_recover(tmp_path: Path) -> None:
    path = written(tmp_path)[0]
    flip(path, 64 + 8, 0x01)
    log = CommitLog.open(Disk(), tmp_path)
    with pytest.raises(DamagedFrame):
        list(log.recover())

    assert [(Path(damage.file), damage.offset) for damage in log.check()] == [(path, 64)]


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_file_before_the_last_is_damage(tmp_path: Path, which: int) -> None:
    files = written(tmp_path)
    assert len(files) > 2
    files[which].unlink()

    with pytest.raises(DamagedFrame):
        open_log(Disk(), tmp_path)


def test_a_missing_last_file_is_damage_when_a_checkpoint_knows_of_it(tmp_path: Path) -> None:
    path = written(tmp_path)[-1]
    end = list(CommitLog.open(Disk(), tmp_path).recover())[-1].end
    path.unlink()

    with pytest.raises(DamagedFrame):
        CommitLog.open(Disk(), tmp_path, start=end)


def test_a_log_shorter_than_the_checkpoint_says_is_damage(tmp_path: Path) -> None:
    log = CommitLog.open(Disk(), tmp_path)  # one file
    list(log.recover())
    ends = [log.append(encoded(value), value.record).end for value in COMMITS[:3]]
    log.close()
    path = tmp_path / "log" / "00000000000000000000.log"
    path.write_bytes(path.read_bytes()[: ends[1]])

    with pytest.raises(DamagedFrame, match=f"checkpoint says {ends[2]}"):
        CommitLog.open(Disk(), tmp_path, start=ends[2])
    assert [found.record for found in CommitLog.open(Disk(), tmp_path, start=ends[0]).recover()] == [COMMITS[1].record]


def test_a_cut_file_before_the_last_is_damage(tmp_path: Path) -> None:
    path = written(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-64])

    with pytest.raises(DamagedFrame) as damage:
        open_log(Disk(), tmp_path)
    assert damage.value.file == str(path)


def test_recovery_from_every_commit_gives_the_commits_after_it(tmp_path: Path) -> None:
    written(tmp_path)
    ends = [LogPosition(0), *(found.end for found in CommitLog.open(Disk(), tmp_path).recover())]

    for n, start in enumerate(ends):
        log = CommitLog.open(Disk(), tmp_path, start=start)
        assert [found.record for found in log.recover()] == [value.record for value in COMMITS[n:]]
        log.close()


# formats


def test_an_unknown_format_version_is_refused_by_name_and_version(tmp_path: Path) -> None:
    text = b"flashlake-store 7\n"
    (tmp_path / "FORMAT").write_bytes(text + b"crc32c %08x\n" % google_crc32c.value(text))

    with pytest.raises(
        UnsupportedFormatVersion, match=re.escape("'flashlake-store' version 7; this program reads 'flashlake-store' up to version 2")
    ):
        CommitLog.open(Disk(), tmp_path)


def test_another_format_name_is_refused_by_name(tmp_path: Path) -> None:
    text = b"other-store 1\n"
    (tmp_path / "FORMAT").write_bytes(text + b"crc32c %08x\n" % google_crc32c.value(text))

    with pytest.raises(UnsupportedFormatVersion, match="other-store"):
        CommitLog.open(Disk(), tmp_path)


def test_every_flipped_byte_of_the_format_file_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "FORMAT"
    for offset, bit in itertools.product(range(path.stat().st_size), range(8)):
        flip(path, offset, 1 << bit)
        with pytest.raises(DamageError):
            CommitLog.open(Disk(), tmp_path)
        flip(path, offset, 1 << bit)


def test_log_files_without_a_format_file_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "FORMAT").unlink()

    with pytest.raises(UnsupportedFormatVersion, match="no FORMAT file"):
        CommitLog.open(Disk(), tmp_path)


def test_a_log_file_of_another_version_is_refused_by_version(tmp_path: Path) -> None:
    path = written(tmp_path)[-1]
    data = bytearray(path.read_bytes())
    data[12:16] = (9).to_bytes(4, "little")
    data[8:12] = google_crc32c.value(bytes(data[12:64])).to_bytes(4, "little")
    path.write_bytes(bytes(data))

    with pytest.raises(UnsupportedFormatVersion, match="version 9") as refusal:
        open_log(Disk(), tmp_path)
    assert refusal.value.where == str(path)
