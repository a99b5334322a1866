"""Planning: how far a round goes and when it is due. Pure: values in, values out, no clock, no store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from storage_engine.schema.descriptor import Offsets

_DUE_SHARE = 0.5


@dataclass(frozen=True)
class Limits:
    """Bounds of the tierer.

    round_rows_max         log rows of one round of a log table (they stream through)
    round_changes_max      changelog rows of one round of a primary-key table (they are netted in memory)
    compact_commits        data commits between two compactions into files of `compact_bytes`
    full_compact_every     every n-th compaction goes on to files of `full_compact_bytes`
    vacuum_hours           files that no version of the last hours uses are deleted
    vacuum_every_s         seconds between two vacuums of a table
    """

    round_rows_max: int = 4_000_000
    round_changes_max: int = 500_000
    compact_commits: int = 16
    compact_bytes: int = 8 << 20
    full_compact_every: int = 8
    full_compact_bytes: int = 64 << 20
    vacuum_hours: int = 168
    vacuum_every_s: float = 3600.0


def n_rows_between(start: Offsets, stop: Offsets) -> int:
    """Rows in [start, stop); a bucket that `start` does not name begins at 0."""
    return sum(end - start.get(bucket, 0) for bucket, end in stop.items())


def plan_stop(start_version: int, start: Offsets, version: int, offsets_at: Callable[[int], Offsets], rows_max: int) -> tuple[int, Offsets]:
    """The newest version, and its offsets, that a round of at most `rows_max` rows reaches; always at least one commit.

    A round ends at a version of the store, never inside a commit: the lake shows whole commits only.
    `offsets_at` is monotonic in the version; `version` > `start_version` has rows after `start`.
    """
    stop = offsets_at(version)
    if n_rows_between(start, stop) <= rows_max:
        return version, stop
    fits, too_far = start_version, version
    while too_far - fits > 1:
        middle = (fits + too_far) // 2
        if n_rows_between(start, offsets_at(middle)) <= rows_max:
            fits = middle
        else:
            too_far = middle
    stop = offsets_at(fits)
    if n_rows_between(start, stop) > 0:
        return fits, stop
    return too_far, offsets_at(too_far)  # one commit that alone exceeds the bound


def due_ms(oldest_ms: int, freshness_ms: int, round_ms: float) -> float:
    """When the next round must start so that the oldest row not in the lake is there before `freshness_ms` is over.

    Half of the bound is kept as reserve, and the time a round takes is taken off; a round that takes longer than that is due at once.

    >>> due_ms(1_000, 10_000, 500), due_ms(1_000, 1_000, 900)
    (5500.0, 1000)
    """
    return max(oldest_ms, oldest_ms + freshness_ms * _DUE_SHARE - round_ms)
