"""The commit log as its callers use it: read back at once, few mappings, no copies, refusals by assertion."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage_engine.errors import WriteFailed
from storage_engine.log.commit_log import CommitLog
from storage_engine.log.disk import Disk
from storage_engine.log.frame import decode_batch, encode_data_frame
from tests.log.commits import COMMITS, acknowledge, open_log, stored_commits


def frame(n_rows: int) -> object:
    batch = pa.record_batch({"a": np.arange(n_rows)})
    return encode_data_frame(
        table_id=1, partition_id=0, bucket=0, schema_id=0, base_offset=0, timestamp_ms=0, batch=batch, change_types=None
    )


def test_what_was_appended_is_found_after_closing_and_after_not_closing(tmp_path: Path) -> None:
    log, found = open_log(Disk(), tmp_path)
    assert found == []
    assert list(acknowledge(log, COMMITS[:4])) == COMMITS[:4]
    log.close()
    log.close()

    log, found = open_log(Disk(), tmp_path)
    assert found == COMMITS[:4]
    assert list(acknowledge(log, COMMITS[4:])) == COMMITS[4:]
    assert stored_commits(tmp_path) == COMMITS  # the first log object is still open, as after a kill


def test_a_closed_log_takes_no_writes_and_one_not_recovered_neither(tmp_path: Path) -> None:
    log, _ = open_log(Disk(), tmp_path)
    log.close()
    with pytest.raises(WriteFailed, match="closed"):
        log.append([], b"{}")

    with pytest.raises(AssertionError, match="recover"):
        CommitLog.open(Disk(), tmp_path).append([], b"{}")


def test_opening_reading_and_closing_writes_nothing(tmp_path: Path) -> None:
    log, _ = open_log(Disk(), tmp_path)
    list(acknowledge(log, COMMITS))
    log.close()
    before = {path: path.read_bytes() for path in (tmp_path / "log").iterdir()}

    assert stored_commits(tmp_path) == COMMITS
    assert {path: path.read_bytes() for path in (tmp_path / "log").iterdir()} == before


def test_files_roll_at_their_size_and_a_commit_never_spans_two(tmp_path: Path) -> None:
    log = CommitLog.open(Disk(), tmp_path, file_bytes_max=100_000)
    list(log.recover())
    for n_rows in (1000, 1000, 50_000, 1000, *[5000] * 10):
        appended = log.append([frame(n_rows), frame(n_rows)], b"{}")
        files = sorted((tmp_path / "log").iterdir())
        assert int(files[-1].stem) < appended.locations[0].position
        assert int(files[-1].stem) + files[-1].stat().st_size == appended.end

    sizes = [path.stat().st_size for path in sorted((tmp_path / "log").iterdir())]
    assert len(sizes) > 5
    assert sorted(sizes)[-1] > 800_000  # one commit larger than a file has a file of its own
    assert all(size < 100_000 for size in sizes if size < 800_000)


def test_rows_read_from_a_mapped_file_are_not_copied(tmp_path: Path) -> None:
    log = CommitLog.open(Disk(), tmp_path)
    list(log.recover())
    location = log.append([frame(200_000)], b"{}").locations[0]
    pool = pa.total_allocated_bytes()

    stored = log.read(location)
    column = decode_batch(stored.message, pa.schema([("a", pa.int64())])).column(0)

    assert column.to_numpy(zero_copy_only=True)[-1] == 199_999
    assert stored.message.address <= column.buffers()[1].address < stored.message.address + stored.message.size
    assert pa.total_allocated_bytes() - pool < 1000


def test_rows_kept_from_thousands_of_frames_hold_few_mappings_and_no_descriptors(tmp_path: Path) -> None:
    log = CommitLog.open(Disk(), tmp_path)
    list(log.recover())
    n_descriptors = len(os.listdir("/proc/self/fd"))

    kept = [log.read(log.append([frame(100)], b"{}").locations[0]) for _ in range(3000)]

    n_mappings = sum(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())
    assert n_mappings <= 5  # 3.4 MB of frames
    assert len(os.listdir("/proc/self/fd")) <= n_descriptors + 1
    assert all(stored.header.n_rows == 100 for stored in kept)
