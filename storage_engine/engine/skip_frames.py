"""Skip frames: which frames of a fetch no row of which can meet the reader's condition, told from their statistics alone.

Owner of nothing: it reads header and statistics block of a frame, never its rows. The counts belong to the backend.
Holds: conservative. A frame without statistics, or of a column that has none, is read; the reader filters rows itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

from storage_engine.engine.schemas import Schemas
from storage_engine.log.commit_log import CommitLog
from storage_engine.log.frame_index import BucketId
from storage_engine.log.log_file import FrameMoved
from storage_engine.log.statistics import decode_statistics
from storage_engine.log.stored_frame import FrameLocation
from storage_engine.schema.descriptor import TableBucket
from storage_engine.schema.skipping import ColumnRange, FrameFilter


class FetchStep(NamedTuple):
    """One frame to fetch: it answers for [base_offset, end_offset) of a bucket. `version`: of its last commit."""

    bucket: TableBucket
    bucket_id: BucketId
    location: FrameLocation
    base_offset: int
    end_offset: int
    version: int


@dataclass
class FetchCounts:
    """What fetches have read and skipped since the store was opened, in frames and in bytes of frames."""

    n_frames_read: int = 0
    n_bytes_read: int = 0
    n_frames_skipped: int = 0
    n_bytes_skipped: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def read(self, n_bytes: int) -> None:
        with self._lock:
            self.n_frames_read += 1
            self.n_bytes_read += n_bytes

    def skipped(self, n_bytes: int) -> None:
        with self._lock:
            self.n_frames_skipped += 1
            self.n_bytes_skipped += n_bytes


def skip_frames(log: CommitLog, schemas: Schemas, steps: Iterable[FetchStep], where: str, counts: FetchCounts) -> Iterator[FetchStep]:
    """The steps whose frames may hold a row that meets `where`, in order; each is looked at when its turn comes.

    Errors: StatementRefused for a text that is no condition; DamagedFrame.
    """
    descriptor = schemas.descriptor
    wanted = FrameFilter(where, descriptor.arrow_schema)
    fields = {column.field_id: column.name for column in descriptor.columns if column.name in wanted.columns}
    return _kept(log, schemas, steps, wanted, fields, counts)


def _kept(
    log: CommitLog, schemas: Schemas, steps: Iterable[FetchStep], wanted: FrameFilter, fields: dict[int, str], counts: FetchCounts
) -> Iterator[FetchStep]:
    lacking: dict[int, list[str]] = {}
    widened: dict[int, list[str]] = {}
    present = {column.field_id: column.type for column in schemas.descriptor.columns}
    for step in steps:
        try:
            header, block = log.read_statistics(step.location)
        except FrameMoved:  # the fetch finds where its rows are now
            yield step
            continue
        ranges = decode_statistics(block, header.n_rows, fields) if block is not None else {}
        if header.schema_id not in lacking:
            held = {column.field_id: column.type for column in schemas.stored[header.schema_id]}
            lacking[header.schema_id] = [name for field_id, name in fields.items() if field_id not in held]
            widened[header.schema_id] = [name for field_id, name in fields.items() if held.get(field_id) not in (None, present[field_id])]
        for name in widened[header.schema_id]:  # bounds in another unit or type say nothing
            ranges.pop(name, None)
        for name in lacking[header.schema_id]:  # a column added after the frame was written reads as null
            ranges[name] = ColumnRange(header.n_rows, header.n_rows, "none", None, None)
        if wanted.may_match(ranges):
            yield step
        else:
            counts.skipped(step.location.length)
