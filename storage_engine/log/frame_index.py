"""Frame index: which frames hold the rows of a bucket, and where; 56 bytes per frame, in memory.

Owner: the engine; only the committing thread changes it, any thread may read at the same time: `entries` is replaced, never shifted.
State: derived from the log: rebuilt by CommitLog.recover, or loaded from `to_table` of a checkpoint and completed by the tail.
Holds: a bucket's frames are in order and without gaps, each begins at the end offset of the one before. A sparse frame answers for all
       offsets up to the next one and holds rows at some of them. Readers of the log begin at `start_offset`; frames below it, which
       only a primary-key bucket has, hold the rows that were current there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage_engine.errors import OffsetOutOfRange
from storage_engine.log.frame import FLAG_CHANGE_TYPES, FLAG_ORIGINS, ORIGIN, FrameHeader
from storage_engine.log.stored_frame import FrameLocation

_ENTRY: Final = np.dtype(
    [
        ("base_offset", np.int64),
        ("end_offset", np.int64),
        ("position", np.int64),
        ("version", np.int64),
        ("timestamp_ms", np.int64),
        ("length", np.int32),
        ("schema_id", np.int32),
        ("n_rows", np.int32),
        ("flags", np.int32),
    ]
)
ENTRY_FIELDS: Final = _ENTRY.names or ()
FLAG_MOVED: Final = 256
"""In the index only: cleaning has written the frame again, so that it lies later in the log than its commit."""
ReadOrigins = Callable[[FrameLocation], npt.NDArray[np.void]]


class BucketId(NamedTuple):
    """A bucket as frames name it: ids of table and partition, number of the bucket."""

    table_id: int
    partition_id: int
    bucket: int


class IndexedFrame(NamedTuple):
    """A frame of a bucket: its offsets, where it lies, and the version and time of its commit."""

    base_offset: int
    end_offset: int
    location: FrameLocation
    version: int
    timestamp_ms: int
    schema_id: int
    n_rows: int = -1
    flags: int = 0


class BucketFrames:
    """The frames of one bucket, in the order of their offsets.

    log_start  the first offset that readers of the log get, once retention has set one; -1: the first frame's
    """

    __slots__ = ("_read_origins", "_room", "entries", "log_start")

    def __init__(self, entries: npt.NDArray[np.void] | None = None, read_origins: ReadOrigins | None = None) -> None:
        self._room = np.zeros(4, _ENTRY) if entries is None else entries
        self._read_origins = read_origins
        self.log_start = -1
        self.entries: npt.NDArray[np.void] = self._room[: 0 if entries is None else len(entries)]
        """The frames (n_frames,): base_offset, end_offset, position, version, timestamp_ms, length, schema_id, n_rows, flags."""

    def add(self, header: FrameHeader, location: FrameLocation, version: int) -> None:
        """Append a frame, which must begin at `end_offset` (a bucket's first frame: anywhere)."""
        n = len(self.entries)
        is_first = n == 0 and self.log_start < 0
        assert is_first or header.base_offset == self.end_offset, f"frame at {header.base_offset}, bucket ends at {self.end_offset}"
        if n == len(self._room):
            room = np.zeros(max(4, 2 * n), _ENTRY)
            room[:n] = self.entries
            self._room = room
        self._room[n] = (
            header.base_offset, header.end_offset, location.position, version, header.timestamp_ms, location.length, header.schema_id,
            header.n_rows, header.flags & ~FLAG_CHANGE_TYPES,
        )  # fmt: skip
        self.entries = self._room[: n + 1]  # last: a reader sees whole entries only

    def replace(self, base_offset: int, end_offset: int, entries: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Let `entries` answer for the offsets [base_offset, end_offset) instead of the frames that did; those are returned.

        No entry: nothing is held there any more, and the bucket must begin there.
        """
        held = self.entries
        first = int(np.searchsorted(held["end_offset"], base_offset, side="right"))
        last = int(np.searchsorted(held["base_offset"], end_offset, side="left"))
        replaced = held[first:last]
        assert len(replaced), f"no frame holds {base_offset} to {end_offset}"
        assert (int(replaced["base_offset"][0]), int(replaced["end_offset"][-1])) == (base_offset, end_offset), "whole frames are replaced"
        assert len(entries) or first == 0, "a hole between frames"
        self._room = np.concatenate([held[:first], entries, held[last:]])
        self.entries = self._room[:]
        return replaced

    def begin_at(self, offset: int, *, drop: bool) -> None:
        """Readers of the log begin at `offset`, where a frame begins or the bucket ends. `drop`: forget the frames below it."""
        self.log_start = offset
        if drop:
            self._room = self.entries[int(np.searchsorted(self.entries["end_offset"], offset, side="right")) :].copy()
            self.entries = self._room[:]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def start_offset(self) -> int:
        """The first offset of the log, for its readers; 0 for a bucket never written."""
        return self.log_start if self.log_start >= 0 else self.held_from

    @property
    def held_from(self) -> int:
        """The first offset that a frame answers for; where none does, the end."""
        entries = self.entries
        return int(entries["base_offset"][0]) if len(entries) else max(self.log_start, 0)

    @property
    def end_offset(self) -> int:
        """The first offset not written."""
        entries = self.entries
        return int(entries["end_offset"][-1]) if len(entries) else max(self.log_start, 0)

    def find(self, start: int, stop: int) -> list[IndexedFrame]:
        """The frames that answer for any of the offsets [start, stop), in order. The first and last may reach beyond them.

        Errors: OffsetOutOfRange when the frames do not begin at or before `start`, or do not reach `stop`.
        """
        if start >= stop:
            return []
        entries = self.entries
        if not len(entries) or start < entries["base_offset"][0] or stop > entries["end_offset"][-1]:
            raise OffsetOutOfRange(
                f"offsets {start} to {stop} were asked for, the bucket holds {self.held_from} to {self.end_offset}",
                where="frame index",
                next_step="Ask for offsets between earliest and latest.",
            )
        first = int(np.searchsorted(entries["end_offset"], start, side="right"))
        last = int(np.searchsorted(entries["base_offset"], stop, side="left"))
        return [_indexed(*entry) for entry in entries[first:last].tolist()]

    def locate(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of the frame that holds each offset, as an index into `entries`. Shapes: (n,) -> (n,).

        Errors: OffsetOutOfRange naming the first offset that no frame answers for.
        """
        return locate(self.entries, offsets)

    def locate_one(self, offset: int) -> IndexedFrame | None:
        """The frame that answers for an offset; None when none does."""
        entries = self.entries
        number = bisect_right(entries["end_offset"], offset)
        if number == len(entries):
            return None
        found = _indexed(*entries[number].item())
        return found if found.base_offset <= offset else None

    def offset_at_version(self, version: int) -> int:
        """The end offset as it was at a version: rows of that commit and all before it lie below. Exact from `start_offset` on."""
        entries = self.entries
        n = int(np.searchsorted(entries["version"], version, side="right"))
        end = int(entries["end_offset"][n - 1]) if n else self.held_from
        if n < len(entries) and (entries["flags"][n] & FLAG_ORIGINS):
            origins = self.origins(entries[n])
            k = int(np.searchsorted(origins["version"], version, side="right"))
            end += int(origins["row_end"][k - 1]) if k else 0
        return max(end, self.start_offset)

    def offset_at_timestamp(self, timestamp_ms: int) -> int:
        """The first offset committed at or after a time, at least `start_offset`; the end offset if there is none."""
        entries = self.entries[int(np.searchsorted(self.entries["end_offset"], self.start_offset, side="right")) :]
        found = np.flatnonzero(entries["timestamp_ms"] >= timestamp_ms)  # clocks step back: not sorted
        if not len(found):
            return self.end_offset
        entry = entries[found[0]]
        if not entry["flags"] & FLAG_ORIGINS:
            return int(entry["base_offset"])
        origins = self.origins(entry)
        k = int(np.argmax(origins["timestamp_ms"] >= timestamp_ms))
        return int(entry["base_offset"]) + (int(origins["row_end"][k - 1]) if k else 0)

    def origins(self, entry: npt.NDArray[np.void] | np.void) -> npt.NDArray[np.void]:
        """The commits that the rows of a dense frame came from: row after the last, version, time; one for a frame as it was written."""
        if not int(entry["flags"]) & FLAG_ORIGINS:
            return np.array([(entry["n_rows"], entry["version"], entry["timestamp_ms"])], ORIGIN)
        assert self._read_origins is not None, "an index with re-packed frames was given no log"
        return self._read_origins(FrameLocation(int(entry["position"]), int(entry["length"])))


class FrameIndex:
    """The frames of every bucket of the store."""

    def __init__(self) -> None:
        self._buckets: dict[BucketId, BucketFrames] = {}
        self.read_origins: ReadOrigins | None = None
        """How the origins of a re-packed frame are read; set by whoever has the log."""

    def add(self, header: FrameHeader, location: FrameLocation, version: int) -> None:
        """Append a data frame to its bucket."""
        self.ensure(BucketId(header.table_id, header.partition_id, header.bucket)).add(header, location, version)

    def ensure(self, bucket_id: BucketId) -> BucketFrames:
        """The frames of a bucket, kept from now on."""
        frames = self._buckets.get(bucket_id)
        if frames is None:
            frames = self._buckets[bucket_id] = BucketFrames(None, self._origins_at)
        return frames

    def bucket(self, table_id: int, partition_id: int, bucket: int) -> BucketFrames:
        """The frames of a bucket; an empty one, not kept, if nothing was written to it."""
        frames = self._buckets.get(BucketId(table_id, partition_id, bucket))
        return BucketFrames() if frames is None else frames

    def buckets(self, table_id: int) -> Iterator[tuple[BucketId, BucketFrames]]:
        """The buckets of a table that hold frames, or held some."""
        return iter([(key, frames) for key, frames in list(self._buckets.items()) if key.table_id == table_id])

    def drop(self, table_id: int, partition_id: int | None = None) -> None:
        """Forget a table, or one partition of it."""
        for key in [key for key in self._buckets if key.table_id == table_id and partition_id in (None, key.partition_id)]:
            del self._buckets[key]

    def all(self) -> list[tuple[BucketId, BucketFrames]]:
        """Every bucket that holds frames, or held some."""
        return list(self._buckets.items())

    def _origins_at(self, location: FrameLocation) -> npt.NDArray[np.void]:
        assert self.read_origins is not None, "an index with re-packed frames was given no log"
        return self.read_origins(location)

    @property
    def n_frames(self) -> int:
        return sum(map(len, self._buckets.values()))

    def to_table(self) -> pa.Table:
        """All entries, for a checkpoint: table_id, partition_id, bucket, then the columns of `BucketFrames.entries`."""
        keys = list(self._buckets)
        arrays = [self._buckets[key].entries for key in keys]
        lengths = [len(array) for array in arrays]
        entries = np.concatenate(arrays) if arrays else np.zeros(0, _ENTRY)
        ids = np.repeat(np.array(keys, np.int32).reshape(-1, 3), lengths, axis=0)
        columns = {name: pa.array(np.ascontiguousarray(ids[:, i])) for i, name in enumerate(BucketId._fields)}
        columns |= {name: pa.array(np.ascontiguousarray(entries[name])) for name in ENTRY_FIELDS}
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> FrameIndex:
        """The index that `to_table` described."""
        index = cls()
        entries = np.zeros(table.num_rows, _ENTRY)
        for name in ENTRY_FIELDS:
            if name in table.column_names:
                entries[name] = table.column(name).to_numpy()
        if "n_rows" not in table.column_names:  # of version 1, which has dense frames only
            entries["n_rows"] = entries["end_offset"] - entries["base_offset"]
        ids = np.stack([table.column(name).to_numpy() for name in BucketId._fields], axis=1)
        cuts = np.flatnonzero((ids[1:] != ids[:-1]).any(axis=1)) + 1
        for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            if start < stop:
                index._buckets[BucketId(*ids[start].tolist())] = BucketFrames(entries[start:stop], index._origins_at)
        return index


def locate(entries: npt.NDArray[np.void], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of the frame among `entries` that answers for each offset. Shapes: (n,) -> (n,). Errors: OffsetOutOfRange."""
    frames = np.searchsorted(entries["end_offset"], offsets, side="right")
    first, last = (int(entries["base_offset"][0]), int(entries["end_offset"][-1])) if len(entries) else (0, 0)
    outside = (offsets < first) | (offsets >= last)
    if outside.any():
        raise OffsetOutOfRange(
            f"offset {int(offsets[outside.argmax()])} was asked for, the bucket holds {first} to {last}",
            where="frame index",
            next_step="Ask for offsets between earliest and latest.",
        )
    return frames


def entries_of(rows: Sequence[Sequence[int]]) -> npt.NDArray[np.void]:
    """Entries from the values of their fields, in the order of ENTRY_FIELDS."""
    return np.array([tuple(row) for row in rows], _ENTRY)


def _indexed(
    base_offset: int,
    end_offset: int,
    position: int,
    version: int,
    timestamp_ms: int,
    length: int,
    schema_id: int,
    n_rows: int,
    flags: int,
) -> IndexedFrame:
    return IndexedFrame(base_offset, end_offset, FrameLocation(position, length), version, timestamp_ms, schema_id, n_rows, flags)
