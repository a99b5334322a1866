"""Scans: the log between offsets, as frames. Runs on the loop thread.

Holds: frames of a bucket come in the order of its offsets; each has dense offsets and one commit time.
       A log arrives as Arrow batches, which carry no commit time: it is asked for by the first record of a batch.
       A changelog arrives row by row, because the client's Arrow path drops its change types.
       Offsets that hold no rows (Fluss spends one on a write that changes nothing) are passed over after two looks that find nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import fluss
import pyarrow as pa

from storage_engine.api import FetchedFrame
from storage_engine.fluss.session import FlussSession, OpenTable
from storage_engine.schema.descriptor import TableBucket

POLL_MS = 300
QUIET_POLLS = 3
LOOKS = 2


class BucketReader:
    """Reads ranges of a table's buckets until they are covered. next() gives the next frames, [] at the end."""

    def __init__(
        self, session: FlussSession, table: OpenTable, ranges: Mapping[TableBucket, tuple[int, int]], columns: Sequence[str] | None
    ) -> None:
        self._session = session
        self._table = table
        names = list(columns) if columns else list(table.descriptor.column_names[: None if columns is None else 1])
        self._fields = [table.descriptor.arrow_schema.field(name) for name in dict.fromkeys(names)]
        self._left = {bucket: (start, stop) for bucket, (start, stop) in ranges.items() if start < stop}
        self._partition_ids: dict[str, int] = {}
        self._scanner: Any = None
        self._clock: Any = None
        self._quiet = 0
        self._looks = 0

    async def next(self) -> list[FetchedFrame]:
        """Frames of one poll. They may reach over the ends of their ranges; the reader cuts them."""
        while self._left:
            if self._scanner is None:
                await self._subscribe()
            frames = await (self._poll_changes() if self._table.descriptor.has_primary_key else self._poll_log())
            if frames:
                self._quiet, self._looks = 0, 0
                return frames
            self._quiet += 1
            if self._quiet >= QUIET_POLLS:
                self._scanner, self._quiet, self._looks = None, 0, self._looks + 1
                if self._looks >= LOOKS:
                    await self._session.offsets(self._table, "latest")
                    self._left.clear()
        return []

    async def _new_scanner(self, names: list[str], positions: Mapping[TableBucket, int], *, is_by_record: bool) -> Any:
        builder = self._table.handle.new_scan().project_by_name(names)
        scanner = await (builder.create_log_scanner() if is_by_record else builder.create_record_batch_log_scanner())
        if not self._table.descriptor.partition_keys:
            scanner.subscribe_buckets({bucket.bucket: start for bucket, start in positions.items()})
            return scanner
        scanner.subscribe_partition_buckets({(self._partition_ids[b.partition], b.bucket): start for b, start in positions.items()})
        return scanner

    async def _subscribe(self) -> None:
        self._partition_ids = await self._session.partitions(self._table)
        names = [item.name for item in self._fields]
        starts = {bucket: start for bucket, (start, _) in self._left.items()}
        self._scanner = await self._new_scanner(names, starts, is_by_record=self._table.descriptor.has_primary_key)

    def _bucket(self, bucket: fluss.TableBucket) -> TableBucket:
        if bucket.partition_id is None:
            return TableBucket("", bucket.bucket_id)
        name = next(name for name, number in self._partition_ids.items() if number == bucket.partition_id)
        return TableBucket(name, bucket.bucket_id)

    def _advance(self, bucket: TableBucket, offset: int) -> None:
        _, stop = self._left[bucket]
        if offset < stop:
            self._left[bucket] = (offset, stop)
            return
        del self._left[bucket]
        if bucket.partition:
            self._scanner.unsubscribe_partition(self._partition_ids[bucket.partition], bucket.bucket)
        else:
            self._scanner.unsubscribe(bucket.bucket)

    # logs

    async def _poll_log(self) -> list[FetchedFrame]:
        frames = []
        for piece in await self._scanner.poll_record_batch(POLL_MS):
            bucket = self._bucket(piece.bucket)
            if bucket not in self._left or piece.batch.num_rows == 0:
                continue
            stamp = await self._timestamp(bucket, piece.base_offset)
            frames.append(self._frame(bucket, piece.base_offset, piece.batch, stamp, None))
            self._advance(bucket, piece.base_offset + piece.batch.num_rows)
        return frames

    async def _timestamp(self, bucket: TableBucket, offset: int) -> int:
        """Commit time of the record at an offset, from a scanner of its own that carries one column."""
        clock = self._clock
        if clock is None:
            clock = self._clock = _Clock(self)
        return await clock.at(bucket, offset)

    # changelogs

    async def _poll_changes(self) -> list[FetchedFrame]:
        frames: list[FetchedFrame] = []
        for named, records in (await self._scanner.poll(POLL_MS)).items():
            bucket = self._bucket(named)
            if bucket not in self._left:
                continue
            for run in runs(records):
                rows = [record.row for record in run]
                arrays = [pa.array([row[item.name] for row in rows], item.type) for item in self._fields]
                batch = pa.RecordBatch.from_arrays(arrays, names=[item.name for item in self._fields])
                types = bytes(int(record.change_type) for record in run)
                frames.append(self._frame(bucket, run[0].offset, batch, run[0].timestamp, types))
            if records:
                self._advance(bucket, records[-1].offset + 1)
        return frames

    def _frame(self, bucket: TableBucket, base: int, batch: pa.RecordBatch, stamp: int, types: bytes | None) -> FetchedFrame:
        cast = pa.RecordBatch.from_arrays(
            [batch.column(item.name).cast(item.type) for item in self._fields], names=[item.name for item in self._fields]
        )
        names = tuple(cast.schema.names)
        descriptor = self._table.descriptor
        stored = tuple(descriptor.column(name).type for name in names)
        return FetchedFrame(bucket, base, cast.num_rows, stamp, descriptor.schema_id, names, stored, types, (cast.serialize(),))


class _Clock:
    """Commit times by offset. Records of one poll are kept, since small batches lie close together."""

    def __init__(self, reader: BucketReader) -> None:
        self._reader = reader
        self._known: dict[TableBucket, dict[int, int]] = {}

    async def at(self, bucket: TableBucket, offset: int) -> int:
        known = self._known.get(bucket, {})
        if offset in known:
            return known[offset]
        reader = self._reader
        narrow = min(reader._table.descriptor.columns, key=lambda column: _width(column.arrow.type)).name
        scanner = await reader._new_scanner([narrow], {bucket: offset}, is_by_record=True)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            records = list(await scanner.poll(POLL_MS))
            if records:
                self._known[bucket] = {record.offset: record.timestamp for record in records}
                return self._known[bucket][offset]
        raise TimeoutError(f"no record at offset {offset} of {bucket}")


def _width(kind: pa.DataType) -> int:
    try:
        return kind.bit_width
    except ValueError:
        return 1 << 20


def runs(records: Iterable[Any]) -> list[list[Any]]:
    """Records cut where offsets have a gap or the commit time changes.

    >>> from types import SimpleNamespace as R
    >>> [len(run) for run in runs([R(offset=1, timestamp=5), R(offset=2, timestamp=5), R(offset=4, timestamp=5), R(offset=5, timestamp=6)])]
    [2, 1, 1]
    """
    cut: list[list[Any]] = []
    for record in records:
        if cut and record.offset == cut[-1][-1].offset + 1 and record.timestamp == cut[-1][-1].timestamp:
            cut[-1].append(record)
        else:
            cut.append([record])
    return cut
