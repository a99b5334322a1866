"""The decisions of cleaning, on plain numbers: which frames are joined, how far a log's start moves, which files are emptied and go."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_engine.engine.file_cleaning import FileUse, mostly_dead, removable, should_finish
from storage_engine.engine.repacking import BYTES_MAX, RUN_FRAMES_MIN, SMALL_ROWS_MAX, plan_runs
from storage_engine.engine.retention import Readers, plan_log_start
from storage_engine.engine.state import LogStart
from storage_engine.engine.transaction import FRAME_ROWS_MAX
from storage_engine.log.disk import Disk
from storage_engine.log.frame import FLAG_SPARSE
from storage_engine.log.frame_index import BucketFrames, entries_of
from storage_engine.log.log_file import LogFile

NOBODY = Readers(None, None)


def frames(sizes: list[int], *, ms: list[int] | None = None, schema: list[int] | None = None, n_bytes: int = 100) -> np.ndarray:
    """Dense frames of these numbers of rows, version i + 1, one a minute unless said."""
    rows, base = [], 0
    for i, size in enumerate(sizes):
        time_ms = ms[i] if ms else 60_000 * i
        rows.append((base, base + size, 1000 * i, i + 1, time_ms, n_bytes, schema[i] if schema else 0, size, 0))
        base += size
    return entries_of(rows)


# joining


def test_many_small_frames_are_joined_and_few_are_not() -> None:
    assert plan_runs(frames([10] * RUN_FRAMES_MIN), 1 << 60, 0, None) == [(0, RUN_FRAMES_MIN)]
    assert plan_runs(frames([10] * (RUN_FRAMES_MIN - 1)), 1 << 60, 0, None) == []
    assert plan_runs(frames([SMALL_ROWS_MAX, SMALL_ROWS_MAX]), 1 << 60, 0, None) == [(0, 2)]
    assert plan_runs(frames([SMALL_ROWS_MAX + 1] * 40), 1 << 60, 0, None) == []


def test_young_frames_frames_below_the_logs_start_and_sparse_ones_are_left() -> None:
    entries = frames([10] * 40)
    assert plan_runs(entries, 60_000 * 20, 0, None) == [(0, 21)]
    assert plan_runs(entries, 1 << 60, 200, None) == [(20, 40)]
    entries["flags"][:20] = FLAG_SPARSE
    assert plan_runs(entries, 1 << 60, 0, None) == [(20, 40)]


def test_a_run_is_of_one_schema_and_of_a_short_time() -> None:
    assert plan_runs(frames([10] * 40, schema=[0] * 20 + [1] * 20), 1 << 60, 0, None) == [(0, 20), (20, 40)]
    assert plan_runs(frames([10] * 60), 1 << 60, 0, 60_000 * 19) == [(0, 20), (20, 40), (40, 60)]


@given(sizes=st.lists(st.sampled_from([1, 99, 5000, 40_000]), max_size=70), n_bytes=st.sampled_from([100, BYTES_MAX // 20, BYTES_MAX // 3]))
def test_runs_are_in_order_apart_and_within_bounds(sizes: list[int], n_bytes: int) -> None:
    entries = frames(sizes, n_bytes=n_bytes)
    runs = plan_runs(entries, 1 << 60, 0, None)

    assert [first for first, _ in runs] == sorted({first for first, _ in runs})
    assert all(stop <= after for (_, stop), (after, _) in itertools.pairwise(runs))
    for first, stop in runs:
        run = entries[first:stop]
        assert 2 <= len(run)
        assert run["n_rows"].sum() <= FRAME_ROWS_MAX
        assert run["length"].sum() <= BYTES_MAX


# retention


def test_whole_frames_expire_up_to_the_first_that_is_young() -> None:
    entries = frames([10, 10, 10, 10], ms=[0, 100, 50, 300])
    assert plan_log_start(entries, 0, None, 100, NOBODY, now_ms=151) == LogStart(10, 1, 10, 0, 151)  # a later, older frame waits
    assert plan_log_start(entries, 0, None, 100, NOBODY, now_ms=201) == LogStart(30, 3, 30, 0, 201)
    assert plan_log_start(entries, 30, None, 100, NOBODY, now_ms=201) is None
    assert plan_log_start(entries, 30, LogStart(30, 3, 30, 5, 1), 100, NOBODY, now_ms=500) == LogStart(40, 4, 40, 5, 500)


@pytest.mark.parametrize(
    ("readers", "now_ms", "offset", "n_unread"),
    [
        (Readers(15, None), 150, 10, 0),  # waits at the frame that the reader is in
        (Readers(15, None), 250, 20, 5),  # twice the time to live has passed for the first two frames
        (Readers(None, 35), 10_000, 30, 0),  # the lake is waited for without bound
        (Readers(15, 25), 10_000, 20, 5),
        (Readers(40, 40), 10_000, 40, 0),
    ],
)
def test_unread_rows_wait_and_are_counted_when_they_go(readers: Readers, now_ms: int, offset: int, n_unread: int) -> None:
    entries = frames([10, 10, 10, 10], ms=[0, 49, 60, 70])
    start = plan_log_start(entries, 0, None, 100, readers, now_ms)
    assert start is not None
    assert (start.offset, start.n_unread) == (offset, n_unread)


# files


def use(start: int, n_bytes: int, n_live: int, *, grows: bool = False) -> FileUse:
    return FileUse(LogFile(Disk(), Path(f"{start}"), start, None if grows else start + n_bytes), n_bytes, n_live)


def test_half_dead_files_are_emptied_and_the_emptiest_others_only_while_space_is_short() -> None:
    uses = [use(0, 100, 40), use(100, 100, 70), use(200, 100, 100), use(300, 100, 0), use(400, 10, 0, grows=True)]
    assert [found.file.start for found in mostly_dead(uses, 1)] == [0, 100]
    assert [found.file.start for found in mostly_dead(uses[:3], 1)] == [0]
    assert mostly_dead(uses, 1000) == []


def test_the_growing_file_is_finished_when_most_of_it_is_dead() -> None:
    assert should_finish([use(0, 100, 40, grows=True)], 50)
    assert not should_finish([use(0, 100, 60, grows=True)], 10)
    assert not should_finish([use(0, 100, 40, grows=True)], 100)


def test_a_file_goes_only_when_it_is_empty_covered_and_followed_by_a_state() -> None:
    uses = [use(0, 100, 0), use(100, 100, 0), use(200, 100, 5), use(300, 100, 0), use(400, 100, 0), use(500, 100, 0, grows=True)]

    def gone(has_state: list[bool], covered: int) -> list[int]:
        return sorted(found.file.start for found in removable(uses, has_state, covered))

    assert gone([True] * 6, 1000) == [0, 100, 300, 400]
    assert gone([False] * 6, 1000) == []
    assert gone([False, False, True, True, True, True], 1000) == [0, 100, 300, 400]
    assert gone([False, False, False, True, True, True], 1000) == [300, 400]
    assert gone([True] * 6, 450) == [0, 100, 300]


# the index


def test_a_move_replaces_whole_frames_and_a_bucket_without_frames_keeps_its_end() -> None:
    bucket = BucketFrames(frames([10, 10, 10]))
    kept = bucket.entries
    joined = entries_of([(0, 20, 9000, 2, 60_000, 100, 0, 20, 0)])

    assert bucket.replace(0, 20, joined)["end_offset"].tolist() == [10, 20]
    assert bucket.entries["position"].tolist() == [9000, 2000]
    assert kept["position"].tolist() == [0, 1000, 2000]  # who reads goes on with what it had
    with pytest.raises(AssertionError, match="whole frames"):
        bucket.replace(0, 25, joined)
    with pytest.raises(AssertionError, match="hole"):
        bucket.replace(20, 30, entries_of([]))
    bucket.begin_at(30, drop=True)
    assert (bucket.start_offset, bucket.held_from, bucket.end_offset, len(bucket)) == (30, 30, 30, 0)
