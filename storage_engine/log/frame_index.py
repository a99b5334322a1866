"""Frame index: which frames hold the rows of a bucket, and where; 48 bytes per frame, in memory.

Owner: the engine; only the committing thread adds, any thread may read at the same time.
State: derived from the log: rebuilt by CommitLog.recover, or loaded from `to_table` of a checkpoint and completed by the tail.
Holds: a bucket's frames are dense and in order, each begins at the end offset of the one before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage_engine.errors import OffsetOutOfRange
from storage_engine.log.commit_log import FrameLocation
from storage_engine.log.frame import FrameHeader

_ENTRY: Final = np.dtype(
    [
        ("base_offset", np.int64),
        ("end_offset", np.int64),
        ("position", np.int64),
        ("version", np.int64),
        ("timestamp_ms", np.int64),
        ("length", np.int32),
        ("schema_id", np.int32),
    ]
)


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


class BucketFrames:
    """The frames of one bucket, in the order of their offsets."""

    __slots__ = ("_entries", "_n")

    def __init__(self, entries: npt.NDArray[np.void] | None = None) -> None:
        self._entries = np.zeros(4, _ENTRY) if entries is None else entries
        self._n = 0 if entries is None else len(entries)

    def add(self, header: FrameHeader, location: FrameLocation, version: int) -> None:
        """Append a frame, which must begin at `end_offset` (a bucket's first frame: anywhere)."""
        n = self._n
        assert n == 0 or header.base_offset == self.end_offset, f"frame at {header.base_offset}, bucket ends at {self.end_offset}"
        if n == len(self._entries):
            entries = np.zeros(2 * n, _ENTRY)
            entries[:n] = self._entries
            self._entries = entries
        self._entries[n] = (
            header.base_offset, header.end_offset, location.position, version, header.timestamp_ms, location.length, header.schema_id,
        )  # fmt: skip
        self._n = n + 1  # last: a reader sees whole entries only

    def __len__(self) -> int:
        return self._n

    @property
    def entries(self) -> npt.NDArray[np.void]:
        """The frames as a structured array (n_frames,): base_offset, end_offset, position, version, timestamp_ms, length, schema_id."""
        n = self._n
        return self._entries[:n]

    @property
    def start_offset(self) -> int:
        """The first offset held; 0 for an empty bucket."""
        return int(self._entries["base_offset"][0]) if self._n else 0

    @property
    def end_offset(self) -> int:
        """The first offset not written."""
        n = self._n
        return int(self._entries["end_offset"][n - 1]) if n else 0

    def find(self, start: int, stop: int) -> list[IndexedFrame]:
        """The frames that hold any of the offsets [start, stop), in order. The first and last may reach beyond them.

        Errors: OffsetOutOfRange when the log does not begin at or before `start`, or does not reach `stop`.
        """
        if start >= stop:
            return []
        entries = self.entries
        if start < self.start_offset or not len(entries) or stop > entries["end_offset"][-1]:
            raise OffsetOutOfRange(
                f"offsets {start} to {stop} were asked for, the bucket holds {self.start_offset} to {self.end_offset}",
                where="frame index",
                next_step="Ask for offsets between earliest and latest.",
            )
        first = int(np.searchsorted(entries["end_offset"], start, side="right"))
        last = int(np.searchsorted(entries["base_offset"], stop, side="left"))
        return [_indexed(*entry) for entry in entries[first:last].tolist()]

    def locate(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of the frame that holds each offset, as an index into `entries`. Shapes: (n,) -> (n,).

        Errors: OffsetOutOfRange naming the first offset that no frame holds.
        """
        entries = self.entries
        frames = np.searchsorted(entries["end_offset"], offsets, side="right")
        outside = (frames >= len(entries)) | (offsets < self.start_offset)
        if outside.any():
            raise OffsetOutOfRange(
                f"offset {int(offsets[outside.argmax()])} was asked for, the bucket holds {self.start_offset} to {self.end_offset}",
                where="frame index",
                next_step="Ask for offsets between earliest and latest.",
            )
        return frames

    def locate_one(self, offset: int) -> tuple[int, int, FrameLocation] | None:
        """Base offset, end offset and location of the frame that holds an offset; None when no frame does."""
        entries = self.entries
        number = bisect_right(entries["end_offset"], offset)
        if number == len(entries):
            return None
        base_offset, end_offset, position, _, _, length, _ = entries[number].item()
        return (base_offset, end_offset, FrameLocation(position, length)) if base_offset <= offset else None

    def offset_at_version(self, version: int) -> int:
        """The end offset as it was at a version: rows of that commit and all before it lie below."""
        entries = self.entries
        n = int(np.searchsorted(entries["version"], version, side="right"))
        return int(entries["end_offset"][n - 1]) if n else self.start_offset

    def offset_at_timestamp(self, timestamp_ms: int) -> int:
        """The first offset committed at or after a time; the end offset if there is none."""
        entries = self.entries
        found = np.flatnonzero(entries["timestamp_ms"] >= timestamp_ms)  # clocks step back: not sorted
        return int(entries["base_offset"][found[0]]) if len(found) else self.end_offset


class FrameIndex:
    """The frames of every bucket of the store."""

    def __init__(self) -> None:
        self._buckets: dict[BucketId, BucketFrames] = {}

    def add(self, header: FrameHeader, location: FrameLocation, version: int) -> None:
        """Append a data frame to its bucket."""
        key = BucketId(header.table_id, header.partition_id, header.bucket)
        frames = self._buckets.get(key)
        if frames is None:
            frames = self._buckets[key] = BucketFrames()
        frames.add(header, location, version)

    def bucket(self, table_id: int, partition_id: int, bucket: int) -> BucketFrames:
        """The frames of a bucket; an empty one, not kept, if nothing was written to it."""
        return self._buckets.get(BucketId(table_id, partition_id, bucket)) or BucketFrames()

    def buckets(self, table_id: int) -> Iterator[tuple[BucketId, BucketFrames]]:
        """The buckets of a table that hold frames."""
        return iter([(key, frames) for key, frames in list(self._buckets.items()) if key.table_id == table_id])

    def drop(self, table_id: int, partition_id: int | None = None) -> None:
        """Forget a table, or one partition of it."""
        for key in [key for key in self._buckets if key.table_id == table_id and partition_id in (None, key.partition_id)]:
            del self._buckets[key]

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
        columns |= {name: pa.array(np.ascontiguousarray(entries[name])) for name in _ENTRY.names or ()}
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> FrameIndex:
        """The index that `to_table` described."""
        index = cls()
        entries = np.zeros(table.num_rows, _ENTRY)
        for name in _ENTRY.names or ():
            entries[name] = table.column(name).to_numpy()
        ids = np.stack([table.column(name).to_numpy() for name in BucketId._fields], axis=1)
        cuts = np.flatnonzero((ids[1:] != ids[:-1]).any(axis=1)) + 1
        for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            if start < stop:
                index._buckets[BucketId(*ids[start].tolist())] = BucketFrames(entries[start:stop])
        return index


def _indexed(
    base_offset: int, end_offset: int, position: int, version: int, timestamp_ms: int, length: int, schema_id: int
) -> IndexedFrame:
    return IndexedFrame(base_offset, end_offset, FrameLocation(position, length), version, timestamp_ms, schema_id)
