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


def begin_of(covered: Offsets, earliest: Offsets) -> Offsets:
    """Where a round begins: where the lake ends, or where the log begins when that is behind it."""
    return {bucket: max(covered.get(bucket, 0), offset) for bucket, offset in earliest.items()}


def n_rows_gone(covered: Offsets, earliest: Offsets) -> int:
    """Rows that the lake does not have and the log has no more: they expired while the table was not tiered."""
    return sum(max(offset - covered.get(bucket, 0), 0) for bucket, offset in earliest.items())


def plan_stop(
    start_version: int, start: Offsets, version: int, offsets_at: Callable[[int], Offsets | None], rows_max: int
) -> tuple[int, Offsets]:
    """The newest version, and its offsets, that a round of at most `rows_max` rows reaches; always at least one commit.

    A round ends at a version of the store, never inside a commit: the lake shows whole commits only.
    `offsets_at` is monotonic in the version, and None at versions that the log does not reach back to any more; `version` >
    `start_version` has rows after `start`.
    """
    newest = offsets_at(version)
    assert newest is not None, "the newest version can be read"
    if n_rows_between(start, newest) <= rows_max:
        return version, newest
    fits, too_far = start_version, version
    stop, beyond = None, newest
    while too_far - fits > 1:
        middle = (fits + too_far) // 2
        found = offsets_at(middle)
        if found is None or n_rows_between(start, found) <= rows_max:
            fits, stop = middle, found
        else:
            too_far, beyond = middle, found
    if stop is not None and n_rows_between(start, stop) > 0:
        return fits, stop
    return too_far, beyond  # one commit that alone exceeds the bound, or the first version that can be read


def due_ms(oldest_ms: int, freshness_ms: int, round_ms: float) -> float:
    """When the next round must start so that the oldest row not in the lake is there before `freshness_ms` is over.

    Half of the bound is kept as reserve, and the time a round takes is taken off; a round that takes longer than that is due at once.

    >>> due_ms(1_000, 10_000, 500), due_ms(1_000, 1_000, 900)
    (5500.0, 1000)
    """
    return max(oldest_ms, oldest_ms + freshness_ms * _DUE_SHARE - round_ms)
