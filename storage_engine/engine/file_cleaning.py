"""File cleaning: which log files go, and which are emptied first. Decisions on sizes; evacuate() moves what they still hold.

A file goes when no frame in it answers for anything, a checkpoint covers it, and what follows the gap begins with a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storage_engine.engine import upkeep
from storage_engine.engine.mover import Copy, Mover
from storage_engine.errors import DamagedFrame
from storage_engine.log.frame_index import BucketId, FrameIndex
from storage_engine.log.log_file import LogFile

SPARE_RATIO = 1.5
"""Files may take so many times what they hold before the emptiest of them are evacuated."""
_MOSTLY_DEAD, _PARTLY_DEAD = 0.5, 0.75


@dataclass(frozen=True)
class FileUse:
    """A log file: its bytes, and how many of them belong to frames that answer for something."""

    file: LogFile
    n_bytes: int
    n_live: int

    @property
    def ratio(self) -> float:
        return self.n_live / self.n_bytes


def use_of(files: Sequence[LogFile], end: int, index: FrameIndex) -> list[FileUse]:
    """How much of each file is in use; the log ends at `end`."""
    starts = np.array([file.start for file in files])
    live = np.zeros(len(files), np.int64)
    for _, frames in index.all():
        entries = frames.entries
        live += np.bincount(np.searchsorted(starts, entries["position"], side="right") - 1, entries["length"], len(files)).astype(np.int64)
    return [FileUse(file, (file.stop or end) - file.start, int(n)) for file, n in zip(files, live.tolist(), strict=True)]


def mostly_dead(uses: Sequence[FileUse], bytes_min: int) -> list[FileUse]:
    """Finished files worth emptying: at least half dead; the emptiest more while all files take SPARE_RATIO of what they hold."""
    total, live = sum(use.n_bytes for use in uses), sum(use.n_live for use in uses)
    if total - live < bytes_min:
        return []
    chosen = []
    for use in sorted((use for use in uses if use.file.stop is not None and use.n_live), key=lambda use: use.ratio):
        if use.ratio <= _MOSTLY_DEAD or (use.ratio <= _PARTLY_DEAD and total > SPARE_RATIO * live):
            chosen.append(use)
            total -= use.n_bytes - use.n_live
    return chosen


def should_finish(uses: Sequence[FileUse], bytes_min: int) -> bool:
    """Whether the file that still grows is mostly dead and takes much of the space: it can only be cleaned once it is finished."""
    last = uses[-1]
    n_dead = last.n_bytes - last.n_live
    return n_dead >= bytes_min and last.ratio <= _MOSTLY_DEAD


def removable(uses: Sequence[FileUse], has_state: Sequence[bool], covered: int) -> list[FileUse]:
    """Files without a live frame, below `covered`, whose next remaining file begins with a state (`has_state`, per file)."""
    chosen: list[FileUse] = []
    next_has_state = False
    for use, begins in zip(reversed(uses), reversed(has_state), strict=True):
        stop = use.file.stop
        if stop is not None and stop <= covered and use.n_live == 0 and next_has_state:
            chosen.append(use)
        else:
            next_has_state = begins
    return chosen


def evacuate(mover: Mover, file: LogFile) -> int:
    """Move the frames that answer for something out of a file, as they are; the number that could not be, because they are damaged.

    Errors: WriteFailed.
    """
    n_damaged = 0
    for bucket_id, frames in mover.buckets.index.all():
        entries = frames.entries
        inside = np.flatnonzero((entries["position"] >= file.start) & (entries["position"] < (file.stop or 0)))
        for group in _groups(entries, inside, mover.chunk_bytes):
            copies: list[Copy] = []
            moved: list[int] = []
            for i in group:
                try:
                    copies.append(mover.copy(entries[i]))
                    moved.append(i)
                except DamagedFrame as damage:
                    n_damaged += 1
                    mover.note_damage(damage)
            if moved:
                _publish(mover, bucket_id, entries[moved], copies)
    return n_damaged


def _publish(mover: Mover, bucket_id: BucketId, replaced: np.ndarray, copies: list[Copy]) -> None:
    entries = mover.prepare(copies)
    entries["base_offset"] = replaced["base_offset"]
    mover.publish(
        [
            upkeep.Move(bucket_id, int(entry["base_offset"]), int(entry["end_offset"]), entries[i : i + 1])
            for i, entry in enumerate(replaced)
        ]
    )


def _groups(entries: np.ndarray, chosen: np.ndarray, n_bytes_max: int) -> list[list[int]]:
    """The chosen entries in groups of about n_bytes_max bytes."""
    groups: list[list[int]] = []
    n_bytes = 0
    for i in chosen.tolist():
        if not groups or n_bytes >= n_bytes_max:
            groups.append([])
            n_bytes = 0
        groups[-1].append(i)
        n_bytes += int(entries["length"][i])
    return groups
