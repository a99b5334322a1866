"""Held: whether what a job reads, or has read, is still there. A log's head expires, a partition is dropped: nobody reads them again.

Holds: what is gone is named, with how much of it and where what is left begins. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from storage_engine.api import FORGOTTEN_INPUT, Progress
from storage_engine.client.store import Store
from storage_engine.client.table import Table
from storage_engine.errors import OffsetOutOfRange
from storage_engine.schema.descriptor import Offsets, TableBucket
from storage_engine.stream.jobs.job import JobDescriptor
from storage_engine.stream.operators.inputs import rows_between

BEGUN = "begun"
"""In a job's progress: the version at which an upgrade began it anew. What was dropped before is not among its results."""
FIRST_VERSION = "first_version"
"""In a job's progress: the store's version when it read its first rows. Tables that it looks up may have changed after it."""


class InputGone(OffsetOutOfRange):
    """Rows that a result was computed from have expired, or their partition was dropped."""


@dataclass(frozen=True)
class Gap:
    """Rows [start, held) of a bucket that its log does not hold any more."""

    bucket: TableBucket
    start: int
    held: int

    @property
    def n_rows(self) -> int:
        return self.held - self.start


def gaps_of(table: Table, start: Offsets, stop: Offsets) -> list[Gap]:
    """What has expired of [start, stop); a bucket that `start` does not name begins at 0."""
    earliest = table.offsets("earliest") if stop else {}
    held = {bucket: min(earliest.get(bucket, 0), end) for bucket, end in stop.items()}
    return [Gap(bucket, start.get(bucket, 0), first) for bucket, first in sorted(held.items()) if start.get(bucket, 0) < first]


def expired(table: str, gaps: Iterable[Gap]) -> str:
    """What has expired of a table, in words."""
    listed = list(gaps)
    widest = max(listed, key=lambda gap: gap.n_rows)
    others = f" (bucket {widest.bucket}; {len(listed)} buckets in all)" if len(listed) > 1 else ""
    return f"{sum(gap.n_rows for gap in listed):,} rows of {table} below offset {widest.held:,}{others} have expired"


def forgotten_input(store: Store, job: JobDescriptor, recorded: Progress | None) -> dict[str, dict[str, int]]:
    """Table -> partition -> rows that the job had read of it when it was dropped. A partition "" of a partitioned table: not known which.

    The store notes what is dropped; of a drop from before it did, there are more rows counted than the offsets say.
    """
    noted = store.objects(FORGOTTEN_INPUT).get(job.name, {})
    begun = int(recorded.detail.get(BEGUN, 0)) if recorded else 0
    found: dict[str, dict[str, int]] = {}
    for table, of in noted.items():
        skipped: dict[str, int] = {}  # before its start: not read
        for bucket, offset in job.starts.get(table, {}).items():
            skipped[bucket.partition] = skipped.get(bucket.partition, 0) + offset
        read = {name: int(n) - skipped.get(name, 0) for name, (version, n) in of.items() if version > begun}
        if any(n > 0 for n in read.values()):
            found[table] = {name: n for name, n in read.items() if n > 0}
    if recorded is not None and not found:
        n_unknown = int(recorded.detail.get("n_rows_in", 0)) - rows_between(job.starts, recorded.offsets)
        if n_unknown > 0 and recorded.offsets:
            found = {next(iter(recorded.offsets)): {"": n_unknown}}
    return found


def dropped(table: str, partitions: Mapping[str, int]) -> str:
    """What was dropped of a table, in words."""
    n_rows = sum(partitions.values())
    named = [name for name in sorted(partitions) if name]
    listed = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
    verb = "were dropped" if len(named) > 1 else "was dropped"
    reason = f"partition{'s' if len(named) > 1 else ''} {listed} {verb}" if named else "their partitions were dropped"
    return f"{n_rows:,} rows that were read of {table} are gone ({reason})"
