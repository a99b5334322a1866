"""The frame index finds the frames of a range, offsets by version and by time, and survives a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_engine.errors import OffsetOutOfRange
from storage_engine.log.frame import FrameHeader, FrameKind
from storage_engine.log.frame_index import BucketFrames, BucketId, FrameIndex
from storage_engine.log.stored_frame import FrameLocation


def header(
    base_offset: int, n_rows: int, *, bucket: int = 0, timestamp_ms: int = 0, table_id: int = 1, partition_id: int = 0
) -> FrameHeader:
    return FrameHeader(0, 128, 0, FrameKind.DATA, 0, 0, n_rows, table_id, 3, partition_id, bucket, base_offset, timestamp_ms)


def frames_of(sizes: list[int], *, first: int = 0) -> BucketFrames:
    """Frames of these numbers of rows; frame i has version 10 * (i + 1) and time 1000 * (i + 1)."""
    frames = BucketFrames()
    base = first
    for i, size in enumerate(sizes):
        frames.add(header(base, size, timestamp_ms=1000 * (i + 1)), FrameLocation(64 * i, 128), 10 * (i + 1))
        base += size
    return frames


def test_find_gives_the_frames_that_hold_any_offset_of_the_range() -> None:
    frames = frames_of([3, 4, 5])  # [0, 3) [3, 7) [7, 12)

    assert [(f.base_offset, f.end_offset, f.location.position) for f in frames.find(2, 4)] == [(0, 3, 0), (3, 7, 64)]
    assert [f.base_offset for f in frames.find(3, 7)] == [3]
    assert [f.version for f in frames.find(0, 12)] == [10, 20, 30]
    assert frames.find(5, 5) == []
    assert (frames.find(7, 8)[0].timestamp_ms, frames.find(7, 8)[0].schema_id) == (3000, 3)


@given(sizes=st.lists(st.integers(1, 5), max_size=20), first=st.integers(0, 9), start=st.integers(0, 120), length=st.integers(1, 50))
def test_find_equals_a_walk_over_all_frames(sizes: list[int], first: int, start: int, length: int) -> None:
    frames, stop = frames_of(sizes, first=first), start + length
    if sizes and first <= start and stop <= frames.end_offset:
        bases = [int(e["base_offset"]) for e in frames.entries if any(start <= o < stop for o in range(e["base_offset"], e["end_offset"]))]
        assert [f.base_offset for f in frames.find(start, stop)] == bases
        offsets = np.arange(start, stop)
        assert all(
            frames.entries["base_offset"][frame] <= offset < frames.entries["end_offset"][frame]
            for frame, offset in zip(frames.locate(offsets), offsets, strict=True)
        )
    else:
        with pytest.raises(OffsetOutOfRange):
            frames.find(start, stop)
        with pytest.raises(OffsetOutOfRange):
            frames.locate(np.arange(start, stop))


def test_offsets_at_a_version_end_with_its_commit() -> None:
    frames = frames_of([3, 4, 5])

    assert [frames.offset_at_version(version) for version in (0, 9, 10, 19, 20, 30, 99)] == [0, 0, 3, 3, 7, 12, 12]


def test_offsets_at_a_time_begin_with_the_first_frame_not_older_even_if_the_clock_stepped_back() -> None:
    frames = frames_of([3, 4])
    frames.add(header(7, 5, timestamp_ms=500), FrameLocation(0, 64), 30)

    assert [frames.offset_at_timestamp(ms) for ms in (0, 1000, 1001, 2000, 2001)] == [0, 0, 3, 3, 12]


def test_a_frame_that_leaves_a_gap_is_refused() -> None:
    frames = frames_of([3])
    with pytest.raises(AssertionError):
        frames.add(header(4, 1), FrameLocation(0, 64), 20)


def test_an_index_equals_itself_after_a_checkpoint_and_goes_on() -> None:
    index = FrameIndex()
    for version in range(1, 40):
        for bucket in range(version % 3):
            end = index.bucket(1 + bucket, 7, bucket).end_offset
            index.add(header(end, version, table_id=1 + bucket, partition_id=7, bucket=bucket), FrameLocation(version, 64), version)

    loaded = FrameIndex.from_table(index.to_table())

    assert loaded.to_table().equals(index.to_table())
    assert loaded.n_frames == index.n_frames
    loaded.add(header(loaded.bucket(1, 7, 0).end_offset, 2, partition_id=7), FrameLocation(0, 64), 40)
    assert loaded.bucket(1, 7, 0).end_offset == index.bucket(1, 7, 0).end_offset + 2
    assert FrameIndex.from_table(FrameIndex().to_table()).n_frames == 0


def test_a_dropped_partition_is_forgotten_and_the_others_stay() -> None:
    index = FrameIndex()
    for table_id, partition_id in ((1, 1), (1, 2), (2, 1)):
        index.add(header(0, 1, table_id=table_id, partition_id=partition_id), FrameLocation(0, 64), 1)

    index.drop(1, 2)
    assert [key for key, _ in index.buckets(1)] == [BucketId(1, 1, 0)]
    index.drop(1)
    assert (list(index.buckets(1)), index.n_frames) == ([], 1)
    assert index.bucket(1, 1, 0).end_offset == 0
