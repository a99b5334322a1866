"""Fsck: verifies a store directory without changing it, and says what is wrong, in which file and at which byte.

It reads FORMAT, every frame of the log (CommitLog.check), then what the commits say together: versions in order, offsets of each bucket
dense, moves that name frames which are there, each file's first state that of the commits before it; then whether checkpoint and key
snapshots agree with the log. It does not need a log that recovers: it goes as far as it can.
Holds: nothing under the directory is written but LOCK. `damage` are bytes that are not what was written; `note` is what the next start
       mends by itself: a torn tail that nobody was promised, a transaction without its COMMIT frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from storage_engine.api import FORGOTTEN_INPUT
from storage_engine.engine import checkpoint, upkeep
from storage_engine.engine.buckets import Bucket, Buckets, origins_of
from storage_engine.engine.key_snapshots import FOLDER, OF_EARLIER_VERSION, StoredSnapshot, belongs, file_name, read_snapshot
from storage_engine.engine.routing import bucket_of_rows
from storage_engine.engine.state import CommitRecord, StoreState
from storage_engine.errors import DamagedFrame, DamageError, FlashlakeError, UserError
from storage_engine.kv import KvBucket, KvSnapshot, items_of, joined
from storage_engine.log.commit_log import FILE_BYTES_MAX, CommitLog
from storage_engine.log.disk import Disk
from storage_engine.log.file_set import begins_with_state, files_of, gaps
from storage_engine.log.format_file import FILE_NAME, read_format
from storage_engine.log.frame import HEADER_BYTES, FrameHeader, FrameKind, parse_header
from storage_engine.log.frame_index import BucketId, FrameIndex
from storage_engine.log.log_file import FILE_HEADER_BYTES, FrameMoved, LogFile, is_acknowledged
from storage_engine.log.stored_frame import FrameLocation
from storage_engine.schema.keys import encode_keys

Severity = Literal["damage", "note"]
_CACHE_BYTES = 64 * 1024 * 1024
_CHECK_ROWS = 262_144
_DERIVED = "It is derived: remove it, the next start replays the log instead."
_COPY = "Restore the store from a backup; what lies before this place can be read."


@dataclass(frozen=True)
class Finding:
    """One thing found: where (`file`, byte `offset`, -1: the file as a whole), what it is, and what to do."""

    severity: Severity
    file: str
    offset: int
    what: str
    next_step: str


@dataclass
class Report:
    """What a check saw. `end` is the position after the last whole commit or file header, `version` its number; `n_keys` with keys only."""

    directory: str
    findings: list[Finding] = field(default_factory=list)
    n_files: int = 0
    n_bytes: int = 0
    n_frames: int = 0
    n_commits: int = 0
    n_tables: int = 0
    n_buckets: int = 0
    n_keys: int = 0
    version: int = 0
    end: int = 0

    @property
    def damages(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "damage"]

    def add(self, severity: Severity, file: Path | str, offset: int, what: str, next_step: str) -> None:
        self.findings.append(Finding(severity, str(file), offset, what, next_step))


def check_store(directory: Path, *, keys: bool = False, disk: Disk | None = None) -> Report:
    """Verify a directory that no process has open.

    keys    also replay every changelog and compare it with the key snapshots and with the rows it leads to
    Errors: UserError when there is no store; StoreLocked with the pid of the process that has it.
    """
    disk = disk or Disk()
    directory = directory.absolute()
    if not disk.exists(directory / FILE_NAME) and not disk.is_directory(directory / "log"):
        raise UserError("there is no store here", where=str(directory), next_step="Name the directory that holds FORMAT and log/.")
    lock = disk.lock(directory / "LOCK")
    try:
        return _Check(disk, directory).run(keys=keys)
    finally:
        lock.release()


class _Check:
    """One run over one directory; the fields follow the log as the engine would."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self.disk = disk
        self.directory = directory
        self.report = Report(str(directory))
        self.state = StoreState()
        self.index = FrameIndex()
        self.files: list[LogFile] = []
        self.log: CommitLog | None = None
        self.prepared: dict[int, FrameHeader] = {}
        self.torn: Finding | None = None

    def run(self, *, keys: bool) -> Report:
        stored = self._load_checkpoint()
        stop = self._check_format_and_frames(stored.position if stored else 0)
        is_met = stored is None
        for at in self._commits(stop):
            if stored is not None and at == stored.position:
                is_met = True
                self._compare_checkpoint(stored)
        if stored is not None and not is_met and stored.position <= (stop if stop is not None else stored.position):
            what = f"it says that the log was durable to {stored.position}, where no commit ends (the log ends at {self.report.end})"
            self.report.add("damage", self.directory / "CHECKPOINT", 0, what, _COPY)
        self.report.n_tables = len(self.state.tables)
        self.report.n_buckets = sum(1 for table_id in self.state.names for _ in self.index.buckets(table_id))
        if stop is None or (self.torn is not None and not self.report.damages):
            self._check_files()
        self._check_snapshots(is_whole=stop is None)
        if keys:
            self._check_keys()
        return self.report

    # the log

    def _check_format_and_frames(self, durable: int) -> int | None:
        """Findings in FORMAT and in frames; the position of the first damage, where following the log must stop."""
        folder = self.directory / "log"
        if self.disk.read_file(self.directory / FILE_NAME) is None:
            self.report.add("damage", self.directory / FILE_NAME, 0, "the file is missing", "Restore it from a copy of the directory.")
        else:
            try:
                read_format(self.disk, self.directory)
            except DamageError as error:
                self.report.add("damage", self.directory / FILE_NAME, 0, error.what, error.next_step)
        self.files = files_of(self.disk, folder) if self.disk.is_directory(folder) else []
        sizes = [self.disk.file_size(file.path) for file in self.files]
        self.report.n_files, self.report.n_bytes = len(sizes), sum(sizes)
        self.log = CommitLog(self.disk, folder, self.files, FILE_BYTES_MAX, self.files[0].start if self.files else 0)
        self.index.read_origins = lambda location: origins_of(self._log().read(location))
        stops = []
        try:
            if self.files and self.files[0].start != 0 and not begins_with_state(self.files[0]):
                stops.append(self.files[0].start)
                self.report.add("damage", self.files[0].path, 0, "the log begins here, and what came before is not on disk", _COPY)
            found = {(damage.file, damage.offset): damage for damage in [*gaps(self.files), *self.log.check()]}
            stops += [self._judged(damage, durable) for damage in found.values()]
        except DamageError as error:  # another version, or no header to tell: nothing after it can be read
            path = next((file.path for file in self.files if str(file.path) in error.where), error.where)
            self.report.add("damage", path, 0, error.what, error.next_step)
            stops.append(0)
        return min(stops, default=None)

    def _log(self) -> CommitLog:
        assert self.log is not None, "the frames were checked before"
        return self.log

    def _judged(self, damage: DamagedFrame, durable: int) -> int:
        """Record a damage of the log, or the note that it is a torn tail; its position."""
        file = next(file for file in self.files if str(file.path) == damage.file)
        position = file.start + damage.offset
        is_torn = file.stop is None and not is_acknowledged(file.map(), file, position)
        if is_torn and position >= durable:
            self.torn = Finding("note", damage.file, damage.offset, f"torn tail: {damage.what}", "The next start cuts it off.")
            self.report.findings.append(self.torn)
        else:
            self.report.add("damage", damage.file, damage.offset, damage.what, _COPY)
        return position

    def _commits(self, stop: int | None) -> Iterator[int]:
        """Follow the log up to `stop`, or to its end; the position after each commit or seal, state and index being there.

        Where a file begins with a state, because what came before was given up, that state is the one of the position it begins at.
        """
        for file in self.files:
            data = file.map()
            at = file.start + FILE_HEADER_BYTES
            end = file.start + data.size if stop is None else min(stop, file.start + data.size)
            pending: list[FrameHeader] = []
            self.report.end = at  # a file is begun before its first commit
            yield at
            while at < end:
                header = parse_header(data, at - file.start, at, str(file.path))
                self.report.n_frames += 1
                at += header.length
                if header.kind == FrameKind.DATA:
                    pending.append(header)
                    continue
                if header.n_rows != len(pending):
                    what = f"a commit of {header.n_rows} frames follows {len(pending)}"
                    self.report.add("damage", file.path, header.position - file.start, what, _COPY)
                    return
                if header.kind == FrameKind.COMMIT:
                    offset = header.position - file.start
                    record = data.slice(offset + HEADER_BYTES, header.payload_stop - HEADER_BYTES).to_pybytes()
                    if not self._follow(record, pending, file, offset):
                        return
                    if offset == FILE_HEADER_BYTES and self._follows_gap(file) and begins_with_state(file):
                        yield file.start
                pending = []
                self.report.end = at
                yield at
            if stop is not None and end == stop:
                return
            if pending:
                is_last = file.stop is None
                what = f"a transaction of {len(pending)} frames has no COMMIT frame"
                next_step = "The next start cuts it off." if is_last else _COPY
                self.report.add("note" if is_last else "damage", file.path, pending[0].position - file.start, what, next_step)

    def _follow(self, payload: bytes, frames: list[FrameHeader], file: LogFile, offset: int) -> bool:
        try:
            record = upkeep.decode(payload)
            if not isinstance(record, CommitRecord):
                return self._follow_upkeep(record, frames, file, offset)
            self.state.apply(record)
        except (ValueError, KeyError, TypeError, AssertionError, FlashlakeError) as error:
            self.report.add("damage", file.path, offset, f"a commit record does not follow from those before it: {error}", _COPY)
            return False
        for change in record.changes:
            if change["op"] in ("drop_table", "drop_partition"):
                self.index.drop(change["table_id"], change.get("partition_id"))
        for header in frames:
            if self.state.by_id(header.table_id) is None or header.partition_id not in self.state.partition_names:
                continue
            end = self.index.bucket(header.table_id, header.partition_id, header.bucket).end_offset
            if header.base_offset != end:
                bucket = BucketId(header.table_id, header.partition_id, header.bucket)
                what = f"a frame of {tuple(bucket)} begins at offset {header.base_offset}, the bucket ends at {end}"
                self.report.add("damage", file.path, header.position - file.start, what, _COPY)
                return False
            self.index.add(header, FrameLocation(header.position, header.length), record.version)
        self.report.n_commits += 1
        self.report.version = record.version
        return True

    def _follow_upkeep(self, record: upkeep.Upkeep, frames: list[FrameHeader], file: LogFile, offset: int) -> bool:
        if isinstance(record, upkeep.WholeState):
            return self._meet_state(record, file, offset)
        for header in frames if isinstance(record, upkeep.Prepared) else []:
            self.prepared[header.position] = header
        for move in record.moves if isinstance(record, upkeep.Moved) else []:
            for entry in move.entries:
                header = self.prepared.pop(int(entry["position"]), None)
                if header is None and self._is_removed(int(entry["position"])):
                    continue
                if header is None or not _is_of(header, entry, move.bucket):
                    what = f"a move of {tuple(move.bucket)} names a frame at {int(entry['position'])} that is not there"
                    self.report.add("damage", file.path, offset, what, _COPY)
                    return False
        upkeep.follow(record, self.state, self.index)
        return True

    def _meet_state(self, record: upkeep.WholeState, file: LogFile, offset: int) -> bool:
        """A file begins: after a gap with what the state says, else the state must be that of the commits before it."""
        state, index = record.state(), record.index()
        if self._follows_gap(file):
            self.state, self.index = state, index
            self.index.read_origins = lambda location: origins_of(self._log().read(location))
        elif _plain(state) != _plain(self.state) or (wrong := self._other_buckets(index)):
            what = "its state" if _plain(state) != _plain(self.state) else f"its frame index of {tuple(wrong[0])}"
            self.report.add("damage", file.path, offset, f"{what} is not that of the commits before it", _COPY)
            return False
        self.state.files = state.files
        self.report.version = self.state.version
        return True

    def _follows_gap(self, file: LogFile) -> bool:
        number = self.files.index(file)
        return number == 0 or self.files[number - 1].stop != file.start

    def _is_removed(self, position: int) -> bool:
        return all(position < file.start or (file.stop is not None and position >= file.stop) for file in self.files)

    def _check_files(self) -> None:
        """Whether the files that the state names are there, and where the frames lie that the index names."""
        folder = self.directory / "log"
        what = self._log().missing(self.state.files or [])
        if what:
            self.report.add("damage", folder, -1, what, _COPY)
        if what and self.torn is not None:  # no torn write: only a record in it can have given the file up
            self.report.findings.remove(self.torn)
            self.report.add("damage", self.torn.file, self.torn.offset, self.torn.what.removeprefix("torn tail: "), _COPY)
        if self.state.files is not None:
            known = {entry.start for entry in self.state.files}
            for file in self.files:
                if file.stop is not None and file.start not in known:
                    self.report.add("note", file.path, -1, "the log has given the file up", "The next start removes it.")
        for bucket, frames in self.index.all():
            for entry in frames.entries:
                if self._is_removed(int(entry["position"])):
                    what = f"frames of {tuple(bucket)} from offset {int(entry['base_offset'])} on lie in a file that is not there"
                    self.report.add("damage", folder, -1, what, _COPY)
                    break

    # what is derived

    def _load_checkpoint(self) -> checkpoint.Checkpoint | None:
        path = self.directory / "CHECKPOINT"
        stored = checkpoint.load(self.disk, self.directory)
        if checkpoint.is_older(self.disk, self.directory):
            self.report.add("note", path, 0, "the checkpoint is of an earlier version and is not used", _DERIVED)
        elif stored is None and self.disk.read_file(path) is not None:
            self.report.add("damage", path, 0, "the checkpoint does not match its checksum or version", _DERIVED)
        return stored

    def _compare_checkpoint(self, stored: checkpoint.Checkpoint) -> None:
        path = self.directory / "CHECKPOINT"
        if _plain(stored.state) != _plain(self.state):
            self.report.add("damage", path, 0, "its state is not that of the commits below its position", _DERIVED)
        for bucket in self._other_buckets(stored.frames):
            self.report.add("damage", path, 0, f"its frame index of {tuple(bucket)} is not that of the log", _DERIVED)

    def _other_buckets(self, index: FrameIndex) -> list[BucketId]:
        """Buckets of which an index says something else than the log."""
        ours, theirs = ({b: f.entries for b, f in one.all() if len(f) and self.state.holds(b)} for one in (self.index, index))
        found = sorted({*ours, *theirs})
        return [b for b in found if b not in ours or b not in theirs or not np.array_equal(ours[b], theirs[b])]

    def _snapshots(self) -> Iterator[tuple[Path, StoredSnapshot]]:
        folder = self.directory / FOLDER
        for name in self.disk.list(folder) if self.disk.is_directory(folder) else []:
            stored = read_snapshot(self.disk, folder / name) if name.endswith(".index") else None
            if isinstance(stored, str):
                severity: Severity = "note" if stored == OF_EARLIER_VERSION else "damage"
                self.report.add(severity, folder / name, 0, f"the key snapshot {stored}", _DERIVED)
            elif stored is not None:
                yield folder / name, stored

    def _check_snapshots(self, *, is_whole: bool) -> None:
        for path, stored in self._snapshots():
            bucket = stored.bucket
            frames = self.index.bucket(*bucket)
            is_known = bucket.table_id in self.state.names and bucket.partition_id in self.state.partition_names
            if path.name != file_name(bucket):
                self.report.add("damage", path, 16, f"it is the key snapshot of {tuple(bucket)}", _DERIVED)
            elif not is_known:
                self.report.add("note", path, -1, "its table or partition is gone", "The next copy of key indexes removes it.")
            elif is_whole and not belongs(stored.covered, frames):
                self.report.add("damage", path, 32, "it belongs to another changelog", _DERIVED)

    def _check_keys(self) -> None:
        buckets = Buckets(self._log(), self.index, _CACHE_BYTES, self.state.by_id)
        stored = {snapshot.bucket: (path, snapshot) for path, snapshot in self._snapshots_quietly()}
        for table in self.state.tables.values():
            if not table.descriptor.has_primary_key:
                continue
            for bucket_id, frames in self.index.buckets(table.descriptor.table_id):
                bucket = buckets.get_or_create(bucket_id, self.state.partition_names[bucket_id.partition_id])
                try:
                    kv = buckets.kv_until(bucket, frames.end_offset)
                    what = _wrong_rows(kv, buckets, bucket, table.n_buckets_of(bucket.name.partition))
                except FlashlakeError as error:
                    what, kv = error.what, None
                except FrameMoved as error:  # what says where its frames are now is damaged
                    what, kv = f"frames of it are not where the log says: {error}", None
                if what:
                    self.report.add("damage", f"{table.descriptor.name}, bucket {bucket.name}", -1, what, _COPY)
                if kv is None:
                    continue
                self.report.n_keys += kv.n_keys
                path, snapshot = stored.get(bucket_id, (None, None))
                if snapshot is None or not belongs(snapshot.covered, frames):
                    continue
                end = snapshot.covered.end_offset
                replayed = kv if end == frames.end_offset else buckets.kv_until(bucket, end)
                if not _same_keys(replayed.snapshot(), snapshot.keys):
                    self.report.add("damage", str(path), 64, f"its keys are not those of the changelog below offset {end}", _DERIVED)

    def _snapshots_quietly(self) -> list[tuple[Path, StoredSnapshot]]:
        """The readable snapshots; the others have been reported."""
        findings = list(self.report.findings)
        found = list(self._snapshots())
        self.report.findings = findings
        return found


def _plain(state: StoreState) -> Any:
    """What a state says, but for the files: those are as they were when it was written. And but for what was forgotten of jobs' input:
    a state that was written before the store noted it does not say it.
    """
    objects = {kind: of_kind for kind, of_kind in state.objects.items() if kind != FORGOTTEN_INPUT}
    return json.loads(json.dumps(state.to_json() | {"files": None, "objects": objects}))


def _is_of(header: FrameHeader, entry: np.void, bucket: BucketId) -> bool:
    named = (bucket, int(entry["base_offset"]), int(entry["n_rows"]), int(entry["length"]))
    return named == (BucketId(header.table_id, header.partition_id, header.bucket), header.base_offset, header.n_rows, header.length)


def _wrong_rows(kv: KvBucket, buckets: Buckets, bucket: Bucket, n_buckets: int) -> str:
    """What is wrong with the rows that a key index leads to; empty: nothing. `n_buckets` are those that rows are routed to."""
    names = list(kv.descriptor.physical_primary_key)
    offsets = kv.current_offsets()
    n_distinct = 0
    for start in range(0, len(offsets), _CHECK_ROWS):
        part = offsets[start : start + _CHECK_ROWS]
        rows = buckets.rows_at(bucket, part, names)
        encoded = encode_keys([rows[name].combine_chunks() for name in names])
        n_distinct += len(encoded.unique())
        astray = np.flatnonzero(bucket_of_rows(kv.descriptor, rows, n_buckets) != bucket.id.bucket)
        if len(astray):
            return f"the row at offset {int(part[astray[0]])} is current, and its key belongs to another bucket"
        _, found = kv.get(rows)
        if not found.all():
            return f"the row at offset {int(part[np.argmin(found)])} is current, and its key is not found"
    return "" if n_distinct == kv.n_keys else f"the changelog leaves {kv.n_keys} keys, its rows have {n_distinct}"


def _same_keys(left: KvSnapshot, right: KvSnapshot) -> bool:
    return left.homeless == right.homeless and all(np.array_equal(a, b) for a, b in zip(_ordered(left), _ordered(right), strict=True))


def _ordered(keys: KvSnapshot) -> list[np.ndarray]:
    """Arrays that are equal for equal indexes: keys by hash; prefix entries of living keys, each once."""
    hashes, offsets = items_of(keys.keys)
    prefixes, prefix_keys = joined(keys.prefixes)
    order = np.argsort(hashes, kind="stable")
    live = np.isin(prefix_keys, hashes)
    pairs = np.unique(np.stack([prefixes[live], prefix_keys[live]]), axis=1)
    return [hashes[order], offsets[order], pairs]
