"""Positions: what start and stop of a scan mean, as offsets per bucket.

"earliest", "latest", a moment (an aware datetime: rows committed at or after it; as a stop, before it), or offsets per bucket.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Literal

from storage_engine.errors import UserError
from storage_engine.schema.descriptor import Offsets, TableBucket

Start = Literal["earliest", "latest"] | dt.datetime | Offsets
Stop = Literal["latest"] | dt.datetime | Offsets

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MS = dt.timedelta(milliseconds=1)


def milliseconds(moment: dt.datetime, *, where: str) -> int:
    """Milliseconds since 1970, rounded up: the first whole one at or after the moment. Errors: UserError without a zone.

    >>> milliseconds(dt.datetime(1970, 1, 1, 0, 0, 1, 1, tzinfo=dt.UTC), where="scan")
    1001
    """
    if moment.tzinfo is None:
        raise UserError(f"{moment} has no time zone", where=where, next_step="Write datetime(..., tzinfo=timezone.utc).")
    return -((_EPOCH - moment) // _MS)


def scan_ranges(
    start: Start, stop: Stop, partitions: set[str] | None, offsets_of: Callable[[str | dt.datetime], Offsets]
) -> dict[TableBucket, tuple[int, int]]:
    """The ranges of a scan that are not empty. `offsets_of` answers "earliest", "latest" and moments.

    Meaning: a bucket not named by `stop` is not read; one not named by `start` begins at its earliest offset.
    """
    stops = stop if isinstance(stop, dict) else offsets_of(stop)
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
