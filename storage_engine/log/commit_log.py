"""Commit log: the one series of append-only files that is the truth of a store.

Owner: the engine holds the directory's lock, opens the log, runs `recover` to its end, then appends. One process at a time.
Holds: a transaction exists iff its COMMIT frame and every frame before it are whole; after `sync(end)` it survives power loss.
With `begin_file`, each new file begins with a COMMIT frame of the record that it gives (the whole state): files before it may go.
A failed write leaves the log as it was. After a failed fdatasync, or a write that could not be taken back, the log takes no writes
until `mend` has written again what is not durable: the kernel may have dropped the pages it could not write. Reads go on.
Never: looks into records or rows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, NewType

import pyarrow as pa

from storage_engine.errors import DamagedFrame, WriteFailed
from storage_engine.log.disk import Disk
from storage_engine.log.file_set import FileEntry, FileSet, begins_with_state, check_files, usable_files
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
    PLAIN_VERSION,
    STATE_VERSION,
    LogFile,
    check_file_header,
    damaged,
    encode_file_header,
    file_name,
    is_acknowledged,
    start_of,
)
from storage_engine.log.stored_frame import FrameLocation, StoredFrame, encoded_frame, stored_frame, stored_statistics

LogPosition = NewType("LogPosition", int)
"""A byte of the whole log; the end of a commit is the start of the next one."""

FILE_BYTES_MAX: Final = 256 * 1024 * 1024
_REWRITE_BYTES: Final = 16 * 1024 * 1024
_REPAIR: Final = "Free space or repair the disk, then write again; nothing of this commit is visible."


class AppendedCommit(NamedTuple):
    """Where the data frames of a commit lie, in the order given, and the position after its COMMIT frame."""

    locations: list[FrameLocation]
    end: LogPosition


class RecoveredCommit(NamedTuple):
    """A transaction found in the log: its record, its data frames, the position after it."""

    record: bytes
    frames: list[tuple[FrameHeader, FrameLocation]]
    end: LogPosition


class CommitLog:
    """The log of one store directory. `append` and `sync` may be called from several threads; so may `read`."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        files: list[LogFile],
        file_bytes_max: int,
        start: int,
        begin_file: Callable[[], bytes] | None = None,
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._set = FileSet(files)
        self._file_bytes_max = file_bytes_max
        self._start = start
        self._begin_file = begin_file
        self._fd = -1
        self._begun = 0  # where the last file's first commit begins: an oversized one still gets a file of its own
        self._end = start
        self._durable = start
        self._sealed = -1
        self._is_recovered = False
        self._is_closed = False
        self._is_syncing = False
        self._failure: str | None = None
        self._append_lock = threading.Lock()
        self._state = threading.Condition()
        self._sync_began_s: float | None = None
        self.sync_s = 0.0
        self.n_syncs = 0

    @classmethod
    def open(
        cls,
        disk: Disk,
        directory: Path,
        *,
        file_bytes_max: int = FILE_BYTES_MAX,
        start: LogPosition | None = None,
        begin_file: Callable[[], bytes] | None = None,
    ) -> CommitLog:
        """Open (or begin) the log of store directory `directory`; `recover` must run to its end before the first append.

        start       the end of a commit that was durable, as recorded by a checkpoint; None: the last file that begins with a state, or
                    the beginning of the log.
        begin_file  the record that a new file begins with: the whole state as it is then
        Errors: UnsupportedFormatVersion; DamagedFrame when files are missing, cut, or shorter than `start`.
        """
        disk.make_directory(directory / "log")
        claim_directory(disk, directory)
        log_directory = directory / "log"
        files, begin = usable_files(disk, log_directory, None if start is None else int(start))
        return cls(disk, log_directory, files, file_bytes_max, begin, begin_file)

    # recovery

    def recover(self, upto: LogPosition | None = None, needed: Callable[[], Iterable[FileEntry]] = tuple) -> Iterator[RecoveredCommit]:
        """Every transaction from `start` on, in order. At the end, what no COMMIT frame covers is cut off and the log takes appends.

        Every frame passed is checked. What was committed is made durable before the iterator ends.
        upto    the end of a commit, known to be durable: all behind it is cut off. Where the disk refuses that, the log has failed: it
                can be read below `upto`, and takes writes once it is mended.
        needed  asked before a torn end is cut off: the files that must be there by the commits given so far
        Errors: DamagedFrame for damage below a position that a later frame calls durable: such bytes were acknowledged; so were those of
        an end that looks torn where a needed file is gone: nothing but a record in them can have given it up.
        """
        assert not self._is_recovered, "a log is recovered once"
        position = self._start
        durable = position
        torn: DamagedFrame | None = None
        for file in self._set.files[self._set.before(position) :]:
            is_last = file.stop is None
            data = file.map()
            check_file_header(data, file.start, str(file.path))
            position = max(position, file.start + FILE_HEADER_BYTES)
            durable = max(durable, file.start)  # its header too may be of a file that could not be synced when it was begun
            stop = file.start + data.size if upto is None else min(file.start + data.size, int(upto))
            pending: list[tuple[FrameHeader, FrameLocation]] = []
            at = position
            while at < stop:
                try:
                    header = parse_header(data, at - file.start, at, str(file.path))
                    file.check(data, header)
                except DamagedFrame as damage:
                    if not is_last or upto is not None or is_acknowledged(data, file, at):
                        raise
                    torn = damage
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
            if torn is not None:
                self._set.require(needed(), self._directory, torn)
            self._begin_appending(position, durable)
            return
        if position != upto:
            last = self._set.files[-1]
            damaged(f"the log was durable to {upto}, its commits end at {position}", last, position - last.start)
        try:
            self._begin_appending(position, durable=position)
        except OSError as error:
            self._end = self._durable = position
            self._is_recovered = True
            self._poison(f"what is not durable could not be cut off: {error}")

    def _begin_appending(self, end: int, durable: int) -> None:
        self._disk.sync_directory(self._directory.parent)  # the process that made FORMAT and log/ may have died before it did
        if not self._set.files:
            self._start_file(self._start)
        else:
            file = self._set.files[-1]
            data = file.map()
            self._begun = file.start + FILE_HEADER_BYTES
            if begins_with_state(file):
                self._begun += parse_header(data, FILE_HEADER_BYTES, self._begun, str(file.path)).length
            self._fd = self._disk.open_file(file.path)
            self._write_again(data, durable, end)
            self._disk.sync_directory(self._directory)  # the process that made the file may have died before it did
            self._end = end
        self._durable = self._end
        self._is_recovered = True

    def _write_again(self, data: pa.Buffer, durable: int, end: int) -> None:
        """Make the last file end at `end` and be durable; `data` is the file.

        Pages that a failed fdatasync dropped look clean: writing them again makes this sync real.
        """
        start = self._set.files[-1].start
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
            file = self._set.files[-1]
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
        if name in self._disk.list(self._directory) and self._set.files[-1].start != start_of(name):
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
            commit = self._commit_frame(record, len(frames), timestamp_ms)
            n_bytes = commit.header.length + sum(frame.header.length for frame in frames)
            if self._end + n_bytes > self._set.files[-1].start + self._file_bytes_max and self._end > self._begun:
                self._roll()
                commit = self._commit_frame(record, len(frames), timestamp_ms)  # says that the new file's beginning is durable
            buffers, locations, position = _place([*frames, commit], self._end)
            self._write(buffers)
            self._end = position
            return AppendedCommit(locations[:-1], LogPosition(position))

    def _commit_frame(self, record: bytes, n_frames: int, timestamp_ms: int) -> EncodedFrame:
        return encode_commit_frame(record, n_frames=n_frames, durable=self._durable, timestamp_ms=timestamp_ms)

    def begin_next_file(self) -> None:
        """Finish the last file though it is not full, so that it can be cleaned; one without a commit stays. Errors: WriteFailed."""
        with self._append_lock:
            self._require_writable()
            if self._end > self._begun:
                self._roll()

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
            self._sync_began_s = begin = time.monotonic()
            try:
                self._sync_file(fd)
            finally:
                self._sync_began_s = None
            self.sync_s += time.monotonic() - begin
            self.n_syncs += 1
            self._end_sync(reached)

    def _sync_file(self, fd: int) -> None:
        """fdatasync, by the caller who has set `_is_syncing`: a failure resets it. Errors: WriteFailed; the log then takes no writes."""
        try:
            self._disk.fdatasync(fd)
        except OSError as error:
            self._poison(f"fdatasync failed: {error}")
            self._end_sync(self._durable)
            self._require_writable()
        except BaseException:  # interrupted: the next caller syncs, nobody waits for ever
            self._end_sync(self._durable)
            raise

    def _end_sync(self, durable: int) -> None:
        with self._state:
            self._durable = max(self._durable, durable)
            self._is_syncing = False
            self._state.notify_all()

    def await_sync(self) -> None:
        """Return when no sync is running any more: of a log that has failed, `durable` then stays as it is until it is mended."""
        with self._state:
            while self._is_syncing:
                self._state.wait()

    def syncing_s(self) -> float:
        """For how long the running fdatasync has been running; 0 when none is. `sync_s` and `n_syncs` add up those that ended."""
        began_s = self._sync_began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

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
        offset = self._end - self._set.files[-1].start
        try:
            self._disk.write(self._fd, buffers, offset)
        except OSError as error:
            try:
                self._disk.truncate(self._fd, offset)
                self._disk.fdatasync(self._fd)
            except OSError as second:
                self._poison(f"a failed write could not be taken back: {second}")
            what, where, is_absent = f"the disk refused a write: {error}", str(self._set.files[-1].path), self._failure is None
            raise WriteFailed(what, where=where, next_step=_REPAIR, is_absent=is_absent) from error

    def _roll(self) -> None:
        """Make the last file durable and begin a new one; on failure the last file stays in use."""
        with self._state:
            while self._is_syncing:
                self._state.wait()
            self._require_writable()
            self._is_syncing = True
        old = self._fd
        self._sync_file(old)
        try:
            self._start_file(self._end)
        except OSError as error:
            where = str(self._directory / file_name(self._end))
            raise WriteFailed(f"no new log file could be begun: {error}", where=where, next_step=_REPAIR) from error
        else:
            self._disk.close(old)
        finally:
            self._end_sync(self._end)

    def _start_file(self, start: int) -> None:
        path = self._directory / file_name(start)
        begun = start + FILE_HEADER_BYTES
        buffers: list[object] = [encode_file_header(start, STATE_VERSION if self._begin_file else PLAIN_VERSION)]
        if self._begin_file:
            state, _, begun = _place([encode_commit_frame(self._begin_file(), n_frames=0, durable=start)], begun)
            buffers += state
        fd = self._disk.open_file(path)
        try:
            self._disk.truncate(fd, 0)
            self._disk.write(fd, buffers, 0)
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
        if self._set.files:
            self._set.files[-1].stop = start
        self._set = FileSet([*self._set.files, LogFile(self._disk, path, start)])
        self._end = self._begun = begun

    def _poison(self, reason: str) -> None:
        with self._state:
            self._failure = self._failure or reason
            self._state.notify_all()

    def _require_writable(self) -> None:
        assert self._is_recovered, "recover() must run to its end before the log is written"
        if self._failure is not None:
            next_step = "Free space or repair the disk, then write again; what was acknowledged is safe."
            raise WriteFailed(f"the log takes no writes: {self._failure}", where=str(self._directory), next_step=next_step)

    # files

    @property
    def files(self) -> tuple[LogFile, ...]:
        """The files of the log, in order; the last one grows."""
        return self._set.files

    def missing(self, expected: Iterable[FileEntry]) -> str:
        """What is wrong with the first expected file that is not there as it was; empty: nothing."""
        return self._set.missing(expected)

    def require_files(self, expected: Iterable[FileEntry]) -> None:
        """Errors: DamagedFrame when a file that the state says is part of the log is missing or cut."""
        self._set.require(expected, self._directory)

    def release(self, starts: set[int]) -> list[LogFile]:
        """Take finished files, whose frames nobody needs, out of the log. Readers that still plan with them get FrameMoved."""
        with self._append_lock:
            gone = [file for file in self._set.files if file.start in starts and file.stop is not None]
            self._set = FileSet(file for file in self._set.files if file not in gone)
        for file in gone:
            file.is_removed = True
        return gone

    def remove(self, gone: Sequence[LogFile]) -> None:
        """Remove released files from the disk. Errors: OSError; the next start tries again."""
        for file in reversed(gone):  # what follows a gap on disk must begin with a state: the oldest file goes last
            self._disk.unlink(file.path)
            self._disk.sync_directory(self._directory)

    # reading

    def read(self, location: FrameLocation, *, verify: bool = False) -> StoredFrame:
        """The data frame at a location that `append` or `recover` gave. Nothing is copied.

        Errors: DamagedFrame. The checksum is compared at the first read of a frame since the log was opened, with `verify` now.
        FrameMoved when its file was removed.
        """
        return stored_frame(self._set.at(location.position), location, verify=verify)

    def read_encoded(self, location: FrameLocation) -> EncodedFrame:
        """A data frame as it is stored, compared with its checksum now, to be written elsewhere. Errors: as `read`."""
        return encoded_frame(self._set.at(location.position), location)

    def read_statistics(self, location: FrameLocation) -> tuple[FrameHeader, pa.Buffer | None]:
        """Header and statistics block of the data frame at a location, None when it has none. The rest of it is not read.

        Errors: DamagedFrame. Only the header's checksum is compared; the block has one of its own.
        """
        return stored_statistics(self._set.at(location.position), location)

    def check(self) -> Iterator[DamagedFrame]:
        """Compare every byte below the end with its checksum, whatever was checked before; each damage found, in order.

        Works before `recover` too, for a log that refuses to recover; a torn tail is then among the damages.
        """
        return check_files(self._set.files, self._end if self._is_recovered else None)


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
