"""What the log tests write and what they must find again: numbered commits of small tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from storage_engine.log.commit_log import CommitLog, RecoveredCommit
from storage_engine.log.disk import Disk
from storage_engine.log.frame import EncodedFrame, decode_batch, encode_data_frame

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])
FILE_BYTES_MAX = 2048  # a few commits: the tests cross files


class Commit(NamedTuple):
    """A commit as plain values: its record, and (bucket, base offset, rows) of each frame."""

    record: bytes
    frames: tuple[tuple[int, int, tuple[tuple[int, str], ...]], ...]


def commit(number: int) -> Commit:
    """Commit `number`: number % 3 frames of up to 9 rows; offsets are made from the number."""
    frames = tuple((bucket, 100 * number, rows_of(number, bucket)) for bucket in range(number % 3))
    return Commit(b'{"version": %d}' % number, frames)


def rows_of(number: int, bucket: int) -> tuple[tuple[int, str], ...]:
    return tuple((row, f"commit {number} bucket {bucket} row {row}") for row in range(1 + (number * 7 + bucket) % 9))


COMMITS = [commit(number) for number in range(1, 9)]


def encoded(value: Commit) -> list[EncodedFrame]:
    return [
        encode_data_frame(
            table_id=1,
            partition_id=0,
            bucket=bucket,
            schema_id=0,
            base_offset=base,
            timestamp_ms=0,
            batch=batch_of(rows),
            change_types=None if bucket else np.ones(len(rows), np.uint8),
            compression=("none", "lz4", "zstd")[base % 3],
        )
        for bucket, base, rows in value.frames
    ]


def batch_of(rows: tuple[tuple[int, str], ...]) -> pa.RecordBatch:
    return pa.record_batch([[row[0] for row in rows], [row[1] for row in rows]], schema=SCHEMA)


def decoded(log: CommitLog, found: RecoveredCommit) -> Commit:
    frames = []
    for header, location in found.frames:
        stored = log.read(location)
        assert stored.header == header
        assert stored.change_types is None or set(stored.change_types) == {1}
        rows = decode_batch(stored.message, SCHEMA).to_pylist()
        frames.append((header.bucket, header.base_offset, tuple((row["id"], row["name"]) for row in rows)))
    return Commit(found.record, tuple(frames))


def open_log(disk: Disk, directory: Path) -> tuple[CommitLog, list[Commit]]:
    """An opened log and the commits it recovered, decoded."""
    log = CommitLog.open(disk, directory, file_bytes_max=FILE_BYTES_MAX)
    found = list(log.recover())
    return log, [decoded(log, one) for one in found]


def stored_commits(directory: Path) -> list[Commit]:
    log, commits = open_log(Disk(), directory)
    log.close()
    return commits


def acknowledge(log: CommitLog, commits: list[Commit]) -> Iterator[Commit]:
    """Append and sync; yields each commit once it is acknowledged."""
    for value in commits:
        log.sync(log.append(encoded(value), value.record).end)
        yield value
