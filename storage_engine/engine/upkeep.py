"""Upkeep: the records of commits that change how rows are stored, and not what a reader is told: no version counts them.

COMMIT payloads, JSON with a key "u":
    state     s: the whole state, i: the frame index (base64 of a compressed Arrow IPC stream): what a log file begins with
    prepared  nothing: the frames of the commit are copies in preparation; nobody reads them before a `moved` names them
    moved     m: moves, each [bucket, [base, end), entries]: the entries answer for these offsets from now on (none: nothing is held there)
    expired   l: log starts: readers of these buckets' logs begin there
    removed   f: starts of log files that are given up; their names may go once this is durable
Owner: engine/cleaner.py writes them; `follow` is the one place that applies them, while running and in recovery.
State: none of its own. Replaying the records gives the same state and index.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage_engine.engine.state import UNREADABLE, CommitRecord, LogStart, StoreState, unreadable_record
from storage_engine.log.file_set import FileEntry
from storage_engine.log.frame_index import BucketFrames, BucketId, FrameIndex, entries_of


@dataclass(frozen=True)
class WholeState:
    """All that was known where a log file begins."""

    value: dict[str, Any]

    @property
    def version(self) -> int:
        return int(self.value["s"]["version"])

    @property
    def files(self) -> list[FileEntry]:
        return [FileEntry(*pair) for pair in self.value["s"]["files"]]

    def state(self) -> StoreState:
        return StoreState.from_json(self.value["s"])

    def index(self) -> FrameIndex:
        stream = pa.ipc.open_stream(pa.py_buffer(base64.b64decode(self.value["i"])))
        index = FrameIndex.from_table(stream.read_all())
        apply_log_starts(self.state(), index)
        return index


@dataclass(frozen=True)
class Prepared:
    """The frames of this commit are nobody's rows yet."""


@dataclass(frozen=True)
class Move:
    """`entries` answer for [base_offset, end_offset) of a bucket from now on."""

    bucket: BucketId
    base_offset: int
    end_offset: int
    entries: npt.NDArray[np.void]


@dataclass(frozen=True)
class Moved:
    """Moves that happen together."""

    moves: Sequence[Move]


@dataclass(frozen=True)
class Expired:
    """New starts of logs."""

    starts: Sequence[tuple[BucketId, LogStart]]


@dataclass(frozen=True)
class Removed:
    """Log files that are given up, by their starts."""

    files: Sequence[int]


Upkeep = WholeState | Prepared | Moved | Expired | Removed


def encode_state(state: StoreState, index: FrameIndex) -> bytes:
    """The record that a log file begins with."""
    table = index.to_table()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return _encode({"u": "state", "s": state.to_json(), "i": base64.b64encode(sink.getvalue()).decode()})


def encode(record: Prepared | Moved | Expired | Removed) -> bytes:
    """A record of cleaning as bytes for the log: JSON with `u` and no version (docs/store.md)."""
    match record:
        case Prepared():
            return _encode({"u": "prepared"})
        case Moved(moves):
            moved = [[move.bucket, [move.base_offset, move.end_offset], move.entries.tolist()] for move in moves]
            return _encode({"u": "moved", "m": moved})
        case Expired(starts):
            return _encode({"u": "expired", "l": [[*bucket, *start] for bucket, start in starts]})
        case Removed(files):
            return _encode({"u": "removed", "f": list(files)})


def decode(payload: bytes) -> CommitRecord | Upkeep:
    """What a COMMIT frame's payload says. Errors: DamagedFrame for bytes that no such record has."""
    try:
        value = json.loads(payload)
        match value.get("u"):
            case None:
                return CommitRecord.decode(payload)
            case "state":
                return WholeState(value)
            case "prepared":
                return Prepared()
            case "moved":
                return Moved([Move(BucketId(*bucket), reach[0], reach[1], entries_of(entries)) for bucket, reach, entries in value["m"]])
            case "expired":
                return Expired([(BucketId(*item[:3]), LogStart(*item[3:])) for item in value["l"]])
            case "removed":
                return Removed(value["f"])
            case other:
                raise ValueError(f"a commit record of kind {other!r} is not known")
    except UNREADABLE as error:
        raise unreadable_record(error) from error


def follow(record: Prepared | Moved | Expired | Removed, state: StoreState, index: FrameIndex) -> npt.NDArray[np.void]:
    """Change state and index as the record says; the entries of frames that answer for nothing any more."""
    match record:
        case Moved(moves):
            live = [move for move in moves if state.holds(move.bucket)]
            replaced = [index.ensure(move.bucket).replace(move.base_offset, move.end_offset, move.entries) for move in live]
            return np.concatenate([entries_of([]), *replaced])
        case Expired(starts):
            return np.concatenate([entries_of([]), *(_begin(state, index, *item) for item in starts)])
        case Removed(files):
            gone = set(files)
            state.files = None if state.files is None else [file for file in state.files if file.start not in gone]
        case Prepared():
            pass
    return entries_of([])


def _begin(state: StoreState, index: FrameIndex, bucket: BucketId, start: LogStart) -> npt.NDArray[np.void]:
    table = state.by_id(bucket.table_id)
    if table is None or not state.holds(bucket):
        return entries_of([])
    state.log_starts[bucket] = start
    frames: BucketFrames = index.ensure(bucket)
    before = frames.entries
    frames.begin_at(start.offset, drop=not table.descriptor.has_primary_key)
    return before[: len(before) - len(frames)]


def apply_log_starts(state: StoreState, index: FrameIndex) -> None:
    """What a stored index does not say: where readers of the logs begin."""
    for bucket, start in state.log_starts.items():
        index.ensure(bucket).log_start = start.offset


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
