"""Commit log: the one series of append-only files that is the truth of a store.

Owner: the engine holds the directory's lock, opens the log, runs `recover` to its end, then appends. One process at a time.
Holds: a transaction exists iff its COMMIT frame and every frame before it are whole; after `sync(end)` it survives power loss.
A failed write leaves the log as it was. After a failed fdatasync, or a write that could not be taken back, the log takes no writes
until `mend` has written again what is not durable: the kernel may have dropped the pages it could not write. Reads go on.
Never: looks into records or rows.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, NewType

import pyarrow as pa

from storage_engine.errors import DamagedFrame, WriteFailed
from storage_engine.log.disk import Disk
from storage_engine.log.format_file import claim_directory
from storage_engine.log.frame import (
    HEADER_BYTES,
    EncodedFrame,
    FrameHeader,
    FrameKind,
    encode_commit_frame,
    encode_seal_frame,
    parse_header,
    verify_payload,
)
from storage_engine.log.log_file import (
    FILE_HEADER_BYTES,
    LogFile,
    check_file_header,
    damaged,
    encode_file_header,
    file_name,
    frames_after,
    is_acknowledged,
    start_of,
)
from storage_engine.log.statistics import statistics_bytes

LogPosition = NewType("LogPosition", int)
"""A byte of the whole log; the end of a commit is the start of the next one."""

FILE_BYTES_MAX: Final = 256 * 1024 * 1024
_REWRITE_BYTES: Final = 16 * 1024 * 1024


class FrameLocation(NamedTuple):
    """Where a frame lies: its position in the log and its length in bytes."""

    position: int
    length: int


class AppendedCommit(NamedTuple):
    """Where the data frames of a commit lie, in the order given, and the position after its COMMIT frame."""

    locations: list[FrameLocation]
    end: LogPosition


class RecoveredCommit(NamedTuple):
    """A transaction found in the log: its record, its data frames, the position after it."""

    record: bytes
    frames: list[tuple[FrameHeader, FrameLocation]]
    end: LogPosition


class StoredFrame(NamedTuple):
    """A data frame read from the log. `message` (and `change_types`, one byte per row, or None) refer to the mapped file."""

    header: FrameHeader
    change_types: memoryview | None
    message: pa.Buffer


class CommitLog:
    """The log of one store directory. `append` and `sync` may be called from several threads; so may `read`."""

    def __init__(self, disk: Disk, directory: Path, files: list[LogFile], file_bytes_max: int, start: int) -> None:
        self._disk = disk
        self._directory = directory
        self._files = files
        self._starts = [file.start for file in files]
        self._file_bytes_max = file_bytes_max
        self._start = start
        self._fd = -1
        self._end = start
        self._durable = start
        self._sealed = -1
        self._is_recovered = False
        self._is_closed = False
        self._is_syncing = False
        self._failure: str | None = None
        self._append_lock = threading.Lock()
        self._state = threading.Condition()

    @classmethod
    def open(cls, disk: Disk, directory: Path, *, file_bytes_max: int = FILE_BYTES_MAX, start: LogPosition | None = None) -> CommitLog:
        """Open (or begin) the log of store directory `directory`; `recover` must run to its end before the first append.

        start   the end of a commit that was durable, as recorded by a checkpoint; None: the beginning of the log.
        Errors: UnsupportedFormatVersion; DamagedFrame when files are missing, cut, or shorter than `start`.
        """
        disk.make_directory(directory / "log")
        claim_directory(disk, directory)
        log_directory = directory / "log"
        starts = sorted(position for name in disk.list(log_directory) if (position := start_of(name)) is not None)
        files = [LogFile(disk, log_directory / file_name(position), position) for position in starts]
        for file, successor in itertools.pairwise(files):
            size = disk.file_size(file.path)
            if file.start + size != successor.start:
                damaged(f"the file holds {size} bytes where {successor.start - file.start} were written", file, size)
        first = files[0].start if files else 0
        if start is None and first != 0:
            damaged("the log begins here, and what came before is not on disk", files[0], 0)
        log = cls(disk, log_directory, files, file_bytes_max, first if start is None else int(start))
        end = files[-1].start + disk.file_size(files[-1].path) if files else 0
        if start is not None and (not files or not first <= start <= end):
            raise DamagedFrame(
                f"the checkpoint says {start}, the log holds {first} to {end}",
                where=str(log_directory),
                next_step="Restore the missing log files, or remove the checkpoint to recover from the log alone.",
                file=str(log_directory),
                offset=int(start),
            )
        return log

    # recovery

    def recover(self, upto: LogPosition | None = None) -> Iterator[RecoveredCommit]:
        """Every transaction from `start` on, in order. At the end, what no COMMIT frame covers is cut off and the log takes appends.

        Every frame passed is checked. What was committed is made durable before the iterator ends.
        upto    the end of a commit, known to be durable: all behind it is cut off. Where the disk refuses that, the log has failed: it
                can be read below `upto`, and takes writes once it is mended.
        Errors: DamagedFrame for damage below a position that a later frame calls durable: such bytes were acknowledged.
        """
        assert not self._is_recovered, "a log is recovered once"
        self._drop_headless_file()
        position = self._start
        durable = position
        for index in range(max(0, bisect_right(self._starts, position) - 1), len(self._files)):
            file = self._files[index]
            is_last = index == len(self._files) - 1
            data = file.map()
            check_file_header(data, file.start, str(file.path))
            position = max(position, file.start + FILE_HEADER_BYTES)
            durable = max(durable, file.start + FILE_HEADER_BYTES)
            stop = file.start + data.size if upto is None else min(file.start + data.size, int(upto))
            pending: list[tuple[FrameHeader, FrameLocation]] = []
            at = position
            while at < stop:
                try:
                    header = parse_header(data, at - file.start, at, str(file.path))
                    file.check(data, header)
                except DamagedFrame:
                    if not is_last or upto is not None or is_acknowledged(data, file, at):
                        raise
                    break
                if header.kind != FrameKind.DATA and header.n_rows != len(pending):
                    damaged(f"a commit of {header.n_rows} frames follows {len(pending)}", file, at - file.start)
                at += header.length
                if header.kind == FrameKind.DATA:
                    pending.append((header, FrameLocation(header.position, header.length)))
                    continue
                durable = max(durable, header.base_offset)
                position = at
                if header.kind == FrameKind.SEAL:
                    self._sealed = at
                    continue
                offset = header.position - file.start
                record = data.slice(offset + HEADER_BYTES, header.payload_stop - HEADER_BYTES).to_pybytes()
                yield RecoveredCommit(record, pending, LogPosition(at))
                pending = []
            if not is_last and position != stop:
                damaged("the file ends inside a transaction", file, position - file.start)
        if upto is None:
            self._begin_appending(position, durable)
            return
        if position != upto:
            damaged(f"the log was durable to {upto}, its commits end at {position}", self._files[-1], position - self._files[-1].start)
        try:
            self._begin_appending(position, durable=position)
        except OSError as error:
            self._end = self._durable = position
            self._is_recovered = True
            self._poison(f"what is not durable could not be cut off: {error}")

    def _drop_headless_file(self) -> None:
        """Remove a last file whose creation did not finish: its header is not whole and nothing in it was acknowledged."""
        if not self._files:
            return
        file = self._files[-1]
        data = file.map()
        try:
            check_file_header(data, file.start, str(file.path))
        except DamagedFrame:
            if self._start > file.start or is_acknowledged(data, file, file.start):
                raise
            self._disk.unlink(file.path)
            self._disk.sync_directory(self._directory)
            self._files.pop()
            self._starts.pop()

    def _begin_appending(self, end: int, durable: int) -> None:
        self._disk.sync_directory(self._directory.parent)  # the process that made FORMAT and log/ may have died before it did
        if not self._files:
            self._start_file(self._start)
        else:
            file = self._files[-1]
            self._fd = self._disk.open_file(file.path)
            self._write_again(file.map(), durable, end)
            self._disk.sync_directory(self._directory)  # the process that made the file may have died before it did
            self._end = end
        self._durable = self._end
        self._is_recovered = True

    def _write_again(self, data: pa.Buffer, durable: int, end: int) -> None:
        """Make the last file end at `end` and be durable; `data` is the file.

        Pages that a failed fdatasync dropped look clean: writing them again makes this sync real.
        """
        start = self._starts[-1]
        self._disk.truncate(self._fd, end - start)
        for offset in range(durable - start, end - start, _REWRITE_BYTES):
            n_bytes = min(_REWRITE_BYTES, end - start - offset)
            self._disk.write(self._fd, [data.slice(offset, n_bytes).to_pybytes()], offset)
        self._disk.fdatasync(self._fd)

    def mend(self) -> None:
        """Take writes again after a failure: what was appended and is not durable is checked, written once more and synced.

        A caller that waits in `sync` has been refused already; whether its commit is durable now, `durable` says.
        Errors: OSError when the disk still refuses; DamagedFrame when the bytes cannot be read back. The log has then still failed.
        """
        with self._append_lock:
            if self._is_closed or self._failure is None:
                return
            file = self._files[-1]
            self._remove_unfinished(file_name(self._end))
            if self._fd < 0:
                self._fd = self._disk.open_file(file.path)
            data = file.map()
            at = self._durable
            while at < self._end:
                header = parse_header(data, at - file.start, at, str(file.path))
                verify_payload(data, at - file.start, header, str(file.path))
                at += header.length
            self._write_again(data, self._durable, self._end)
            with self._state:
                self._durable = self._end
                self._failure = None

    def _remove_unfinished(self, name: str) -> None:
        """Remove a file that was begun at the end of the last one and could not be removed then."""
        if name in self._disk.list(self._directory) and self._starts[-1] != start_of(name):
            self._disk.unlink(self._directory / name)
        self._disk.sync_directory(self._directory)

    # writing

    @property
    def has_failed(self) -> bool:
        """True while the log takes no writes."""
        return self._failure is not None

    @property
    def end(self) -> LogPosition:
        """The position after the last commit appended."""
        return LogPosition(self._end)

    @property
    def durable(self) -> LogPosition:
        """Everything below this position survives power loss."""
        return LogPosition(self._durable)

    def append(self, frames: Sequence[EncodedFrame], record: bytes, timestamp_ms: int = 0) -> AppendedCommit:
        """Write `frames` and a COMMIT frame with `record` as one transaction. Not durable until `sync(result.end)` returns.

        Errors: WriteFailed; the log is then as before, and a later append may succeed unless a sync has failed.
        """
        with self._append_lock:
            self._require_writable()
            commit = encode_commit_frame(record, n_frames=len(frames), durable=self._durable, timestamp_ms=timestamp_ms)
            n_bytes = commit.header.length + sum(frame.header.length for frame in frames)
            if self._end + n_bytes > self._starts[-1] + self._file_bytes_max and self._end > self._starts[-1] + FILE_HEADER_BYTES:
                self._roll()
            buffers, locations, position = _place([*frames, commit], self._end)
            self._write(buffers)
            self._end = position
            return AppendedCommit(locations[:-1], LogPosition(position))

    def sync(self, upto: LogPosition | None = None) -> None:
        """Return when everything below `upto` (None: below the present end) survives power loss.

        Threads that wait together are served by one fdatasync. Errors: WriteFailed; the log then takes no writes until it is mended.
        """
        target = self._end if upto is None else int(upto)
        while True:
            with self._state:
                while self._is_syncing and self._durable < target:
                    self._state.wait()
                if self._durable >= target:
                    return
                self._require_writable()
                self._is_syncing = True
                reached, fd = self._end, self._fd
            try:
                self._disk.fdatasync(fd)
            except OSError as error:
                self._poison(f"fdatasync failed: {error}")
                self._require_writable()
            except BaseException:  # interrupted: the next caller syncs, nobody waits for ever
                self._end_sync(self._durable)
                raise
            self._end_sync(reached)

    def _end_sync(self, durable: int) -> None:
        with self._state:
            self._durable = max(self._durable, durable)
            self._is_syncing = False
            self._state.notify_all()

    def close(self) -> None:
        """Make everything durable, seal the log and close its files; a second call does nothing."""
        if self._is_closed:
            return
        try:
            if self._failure is None and self._sealed != self._end:
                with suppress(WriteFailed):
                    self.sync()
                    self._seal()
        finally:
            self.retire()

    def retire(self) -> None:
        """Close the files as they are: nothing is written or made durable any more. Reads go on."""
        with self._append_lock:
            fd, self._fd = self._fd, -1
            self._is_closed = True
            self._failure = self._failure or "the log is closed"
            if fd >= 0:
                self._disk.close(fd)

    def _seal(self) -> None:
        """Say in the log that all of it is durable, so that damage to its last commit is told from a torn write."""
        with self._append_lock:
            self._require_writable()
            buffers, _, position = _place([encode_seal_frame(durable=self._end)], self._end)
            self._write(buffers)
            self._end = self._sealed = position
        self.sync()

    def _write(self, buffers: list[object]) -> None:
        offset = self._end - self._starts[-1]
        try:
            self._disk.write(self._fd, buffers, offset)
        except OSError as error:
            try:
                self._disk.truncate(self._fd, offset)
                self._disk.fdatasync(self._fd)
            except OSError as second:
                self._poison(f"a failed write could not be taken back: {second}")
            raise WriteFailed(
                f"the disk refused a write: {error}",
                where=str(self._files[-1].path),
                next_step="Free space or repair the disk, then write again; nothing of this commit is visible.",
                is_absent=self._failure is None,
            ) from error

    def _roll(self) -> None:
        """Make the last file durable and begin a new one; on failure the last file stays in use."""
        with self._state:
            while self._is_syncing:
                self._state.wait()
            self._require_writable()
            self._is_syncing = True
        old = self._fd
        try:
            self._disk.fdatasync(old)
        except OSError as error:
            self._poison(f"fdatasync failed: {error}")
            self._require_writable()
        try:
            self._start_file(self._end)
        except OSError as error:
            raise WriteFailed(
                f"no new log file could be begun: {error}",
                where=str(self._directory / file_name(self._end)),
                next_step="Free space or repair the disk, then write again; nothing of this commit is visible.",
            ) from error
        else:
            self._disk.close(old)
        finally:
            self._end_sync(self._end)

    def _start_file(self, start: int) -> None:
        path = self._directory / file_name(start)
        fd = self._disk.open_file(path)
        try:
            self._disk.truncate(fd, 0)
            self._disk.write(fd, [encode_file_header(start)], 0)
            self._disk.fdatasync(fd)
            self._disk.sync_directory(self._directory)
        except OSError:
            self._disk.close(fd)
            try:
                self._disk.unlink(path)
                self._disk.sync_directory(self._directory)
            except OSError as second:  # the old file must not grow while a successor of its present end may be on disk
                self._poison(f"an unfinished log file could not be removed: {second}")
            raise
        self._fd = fd
        self._files = [*self._files, LogFile(self._disk, path, start)]
        self._starts = [*self._starts, start]
        self._end = start + FILE_HEADER_BYTES

    def _poison(self, reason: str) -> None:
        with self._state:
            self._failure = self._failure or reason
            self._is_syncing = False
            self._state.notify_all()

    def _require_writable(self) -> None:
        assert self._is_recovered, "recover() must run to its end before the log is written"
        if self._failure is not None:
            raise WriteFailed(
                f"the log takes no writes: {self._failure}",
                where=str(self._directory),
                next_step="Free space or repair the disk, then write again; what was acknowledged is safe.",
            )

    # reading

    def read(self, location: FrameLocation) -> StoredFrame:
        """The data frame at a location that `append` or `recover` gave. Nothing is copied.

        Errors: DamagedFrame. The checksum is compared at the first read of a frame since the log was opened.
        """
        file = self._files[max(0, bisect_right(self._starts, location.position) - 1)]
        header, data = file.frame_at(location.position, location.length)
        if header.length != location.length or header.kind != FrameKind.DATA:
            damaged("another frame lies here than the index says", file, location.position - file.start)
        start = header.message_start
        if header.has_statistics:
            start += self._statistics_bytes(data, header, file)
        codes = memoryview(data)[HEADER_BYTES : HEADER_BYTES + header.n_rows] if header.has_change_types else None
        return StoredFrame(header, codes, data.slice(start, header.payload_stop - start))

    def read_statistics(self, location: FrameLocation) -> tuple[FrameHeader, pa.Buffer | None]:
        """Header and statistics block of the data frame at a location, None when it has none. The rest of it is not read.

        Errors: DamagedFrame. Only the header's checksum is compared; the block has one of its own.
        """
        file = self._files[max(0, bisect_right(self._starts, location.position) - 1)]
        header, data = file.frame_at(location.position, location.length, is_whole=False)
        if not header.has_statistics:
            return header, None
        return header, data.slice(header.message_start, self._statistics_bytes(data, header, file))

    @staticmethod
    def _statistics_bytes(data: pa.Buffer, header: FrameHeader, file: LogFile) -> int:
        n_bytes = statistics_bytes(data, header.message_start)
        if n_bytes == 0 or header.message_start + n_bytes > header.payload_stop:
            damaged("a frame's statistics do not fit into it", file, header.position - file.start)
        return n_bytes

    def check(self) -> Iterator[DamagedFrame]:
        """Compare every byte below the end with its checksum, whatever was checked before; each damage found, in order.

        Works before `recover` too, for a log that refuses to recover; a torn tail is then among the damages.
        """
        for file in self._files:
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
            stop = min(data.size, self._end - file.start) if self._is_recovered else data.size
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


def _place(frames: Sequence[EncodedFrame], position: int) -> tuple[list[object], list[FrameLocation], int]:
    """Headers and payload buffers of `frames` written one after another from `position`; their locations; the end."""
    buffers: list[object] = []
    locations: list[FrameLocation] = []
    for frame in frames:
        buffers.append(frame.header.encode(position))
        buffers.extend(frame.buffers)
        locations.append(FrameLocation(position, frame.header.length))
        position += frame.header.length
    return buffers, locations, position
