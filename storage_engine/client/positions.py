"""Positions: what start and stop of a scan mean, as offsets per bucket.

"earliest", "latest", a moment (an aware datetime: rows committed at or after it; as a stop, before it), or offsets per bucket.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Literal

from storage_engine.errors import OffsetOutOfRange, UserError
from storage_engine.schema.descriptor import Offsets, TableBucket

Start = Literal["earliest", "latest"] | dt.datetime | Offsets
Stop = Literal["latest"] | dt.datetime | Offsets

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MS = dt.timedelta(milliseconds=1)


def milliseconds(moment: dt.datetime, *, where: str) -> int:
    """Milliseconds since 1970, rounded up: the first whole one at or after the moment; 0 for one before, when nothing was committed.

    Errors: UserError without a zone.

    >>> milliseconds(dt.datetime(1970, 1, 1, 0, 0, 1, 1, tzinfo=dt.UTC), where="scan")
    1001
    """
    if moment.tzinfo is None:
        raise UserError(f"{moment} has no time zone", where=where, next_step="Write datetime(..., tzinfo=timezone.utc).")
    return max(-((_EPOCH - moment) // _MS), 0)


def check_limit(limit: int | None, *, where: str) -> None:
    """Errors: UserError for a number of rows below zero."""
    if limit is not None and limit < 0:
        raise UserError(f"limit = {limit} is no number of rows", where=where, next_step="Give at least 0, or leave it out for all rows.")


def scan_ranges(
    start: Start, stop: Stop, partitions: set[str] | None, offsets_of: Callable[[str | dt.datetime], Offsets]
) -> dict[TableBucket, tuple[int, int]]:
    """The ranges of a scan that are not empty. `offsets_of` answers "earliest", "latest" and moments.

    Meaning: a bucket not named by `stop` is not read; one not named by `start` begins at its earliest offset.
             Offsets of a partition that is not there are passed over: it was dropped.
    Errors:  OffsetOutOfRange for a start beyond the end of the log, where that is the stop; UserError for what is no position.
    """
    for name, given, words in (("start", start, ("earliest", "latest")), ("stop", stop, ("latest",))):
        if given not in words if isinstance(given, str) else not isinstance(given, dict | dt.datetime):
            known = " or ".join(f'"{word}"' for word in words)
            raise UserError(
                f"{name} = {given!r} is no position", where="scan", next_step=f"Give {known}, a datetime, or offsets per bucket."
            )
    stops = stop if isinstance(stop, dict) else offsets_of(stop)
    if isinstance(start, dict) and stop == "latest":
        _check_starts(start, stops)
    match start:
        case "latest":
            starts: Offsets = dict(stops)
        case "earliest":
            starts = {}
        case dt.datetime():
            starts = offsets_of(start)
        case _:
            starts = start
    earliest = offsets_of("earliest") if any(bucket not in starts for bucket in stops) else {}
    ranges = {}
    for bucket, end in stops.items():
        begin = starts.get(bucket, earliest.get(bucket, 0))
        if begin < end and (partitions is None or bucket.partition in partitions):
            ranges[bucket] = (begin, end)
    return ranges


def _check_starts(starts: Offsets, ends: Offsets) -> None:
    partitions = {bucket.partition for bucket in ends}
    for bucket, offset in starts.items():
        if bucket.partition in partitions and offset > ends.get(bucket, -1):
            held = f"the log ends at {ends[bucket]}" if bucket in ends else "there is no such bucket"
            raise OffsetOutOfRange(
                f"start {offset} of bucket {bucket} is asked for, {held}", where="scan", next_step="table.offsets() says where each ends."
            )
