"""File set: the files that a log consists of, in order. Cleaning removes files, so there may be gaps between them.

Owner: CommitLog replaces its set as a whole when a file is begun or removed; readers keep the one they have.
Holds: between two files a gap is legitimate only where the second begins with a state: nothing before it is needed to recover. Which
       files must be there, and how long they are, the state says (FileEntry); `missing` compares.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from storage_engine.errors import DamagedFrame
from storage_engine.log.disk import Disk
from storage_engine.log.frame import parse_header
from storage_engine.log.log_file import (
    FILE_HEADER_BYTES,
    STATE_VERSION,
    FrameMoved,
    LogFile,
    check_file_header,
    damaged,
    file_name,
    frames_after,
    is_acknowledged,
    start_of,
)


class FileEntry(NamedTuple):
    """A finished file of the log: the positions [start, stop)."""

    start: int
    stop: int


class FileSet:
    """Files by position; immutable."""

    def __init__(self, files: Iterable[LogFile]) -> None:
        self.files = tuple(files)
        self._starts = [file.start for file in self.files]

    def at(self, position: int) -> LogFile:
        """The file that holds a position. Errors: FrameMoved when no file does any more."""
        number = bisect_right(self._starts, position) - 1
        file = self.files[max(number, 0)]
        if position >= 0 and (number < 0 or (file.stop is not None and position >= file.stop)):
            raise FrameMoved(f"position {position}")
        return file

    def before(self, position: int) -> int:
        """The number of the file in which a position lies, or ends."""
        return max(0, bisect_right(self._starts, position) - 1)

    def missing(self, expected: Iterable[FileEntry]) -> str:
        """What is wrong with the first expected file that is not there as it was; empty: nothing."""
        present = {file.start: file for file in self.files}
        for start, stop in expected:
            file = present.get(start)
            if file is None:
                return f"the log file {file_name(start)} is missing: {stop - start} bytes that the log has not given up"
            if file.stop is not None and file.stop != stop:
                return f"the log file {file_name(start)} holds {file.stop - start} bytes where {stop - start} were written"
        return ""

    def require(self, expected: Iterable[FileEntry], directory: Path, torn: DamagedFrame | None = None) -> None:
        """Errors: DamagedFrame when an expected file is not there as it was; at `torn`, the end of the log, where that looks torn."""
        what = self.missing(expected)
        if what and torn is None:
            raise DamagedFrame(what, where=str(directory), next_step="Restore the file from a copy.", file=str(directory), offset=0)
        if what and torn is not None:
            what = f"{torn.what}, and {what}"
            raise DamagedFrame(what, where=torn.where, next_step=torn.next_step, file=torn.file, offset=torn.offset)


def files_of(disk: Disk, directory: Path) -> list[LogFile]:
    """The files that the directory of a log holds, in order; all but the last are finished."""
    starts = sorted(position for name in disk.list(directory) if (position := start_of(name)) is not None)
    files = [LogFile(disk, directory / file_name(position), position) for position in starts]
    for file in files[:-1]:
        file.stop = file.start + disk.file_size(file.path)
    return files


def begins_with_state(file: LogFile) -> bool:
    """Whether nothing before the file is needed. Errors: DamagedFrame, UnsupportedFormatVersion."""
    return check_file_header(file.map(), file.start, str(file.path)) == STATE_VERSION


def gaps(files: list[LogFile]) -> list[DamagedFrame]:
    """Places after which files ought to come that are not there. A header that could allow the gap and is damaged is named itself."""
    found = []
    for file, successor in itertools.pairwise(files):
        assert file.stop is not None, "only the last file grows"
        if file.stop == successor.start:
            continue
        try:
            if file.stop < successor.start and begins_with_state(successor):
                continue
            n_bytes = file.stop - file.start
            damaged(f"the file holds {n_bytes} bytes where {successor.start - file.start} were written", file, n_bytes)
        except DamagedFrame as damage:
            found.append(damage)
    return found


def drop_unfinished_file(disk: Disk, directory: Path, files: list[LogFile], start: int | None) -> None:
    """Remove a last file whose creation did not finish: header or state are not whole, and nothing in it was acknowledged.

    `start`: where a checkpoint says that the log was durable.
    """
    if not files:
        return
    file = files[-1]
    data = file.map()
    try:
        if check_file_header(data, file.start, str(file.path)) == STATE_VERSION:
            file.check(data, parse_header(data, FILE_HEADER_BYTES, file.start + FILE_HEADER_BYTES, str(file.path)))
    except DamagedFrame:
        if (start is not None and start > file.start) or is_acknowledged(data, file, file.start):
            raise
        disk.unlink(file.path)
        disk.sync_directory(directory)
        files.pop()
        if files:
            files[-1].stop = None


def usable_files(disk: Disk, directory: Path, start: int | None) -> tuple[list[LogFile], int]:
    """The files of a log that is to be opened, without an unfinished last one, and the position to recover from.

    start   where a checkpoint says that the log was durable; None: the last file that begins with a state, or the beginning of the log
    Errors: DamagedFrame when files are missing, cut, or shorter than `start`.
    """
    files = files_of(disk, directory)
    drop_unfinished_file(disk, directory, files, start)
    for damage in gaps(files):
        raise damage
    first = files[0].start if files else 0
    if start is None:
        begin = next((file.start for file in reversed(files) if begins_with_state(file)), first)
        if begin != 0 and not begins_with_state(files[0]):
            damaged("the log begins here, and what came before is not on disk", files[0], 0)
        return files, begin
    end = files[-1].start + disk.file_size(files[-1].path) if files else 0
    if first <= start <= end and any(file.start <= start and (file.stop is None or start <= file.stop) for file in files):
        return files, start
    raise DamagedFrame(
        f"the checkpoint says {start}, the log holds {first} to {end}",
        where=str(directory),
        next_step="Restore the missing log files, or remove the checkpoint to recover from the log alone.",
        file=str(directory),
        offset=start,
    )


def check_files(files: Iterable[LogFile], end: int | None) -> Iterator[DamagedFrame]:
    """Compare every byte below `end` (None: every byte) with its checksum, whatever was checked before; each damage found, in order."""
    for file in files:
        try:
            data = file.map()
        except DamagedFrame as damage:
            yield damage
            continue
        try:
            check_file_header(data, file.start, str(file.path))
        except DamagedFrame as damage:
            yield damage
        at = FILE_HEADER_BYTES
        stop = data.size if end is None else min(data.size, end - file.start)
        while at < stop:
            try:
                header = parse_header(data, at, file.start + at, str(file.path))
                at += header.length
                file.check(data, header)
            except DamagedFrame as damage:
                yield damage
                if damage.offset == at:  # the header itself: its length cannot be followed
                    following = frames_after(data, file.start, at + 1)
                    at = following[0].position - file.start if following else stop
