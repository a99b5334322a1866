"""Stored frame: what one data frame of a log file holds, as views of the mapped file.

Layout of the payload: change types, origins, statistics and the Arrow message, each where the header's flags say so; sparse offsets
behind them (log/frame.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage_engine.log.frame import FLAG_ORIGINS, FLAG_SPARSE, HEADER_BYTES, ORIGIN, EncodedFrame, FrameHeader, FrameKind, verify_payload
from storage_engine.log.log_file import LogFile, damaged
from storage_engine.log.statistics import statistics_bytes


class FrameLocation(NamedTuple):
    """Where a frame lies: its position in the log and its length in bytes."""

    position: int
    length: int


class StoredFrame(NamedTuple):
    """A data frame read from the log. `message` (and `change_types`, one byte per row, or None) refer to the mapped file.

    offsets (n_rows,) of a sparse frame; origins (n_commits,) of one that was re-packed; else None.
    """

    header: FrameHeader
    change_types: memoryview | None
    message: pa.Buffer
    offsets: npt.NDArray[np.int64] | None = None
    origins: npt.NDArray[np.void] | None = None


def stored_frame(file: LogFile, location: FrameLocation, *, verify: bool) -> StoredFrame:
    """The data frame at a location of a file; `verify`: compared with its checksum now, else at its first read. Errors: DamagedFrame."""
    header, data = file.frame_at(location.position, location.length)
    if verify:
        verify_payload(data, 0, header, str(file.path), location.position - file.start)
    if header.length != location.length or header.kind != FrameKind.DATA:
        damaged("another frame lies here than the index says", file, location.position - file.start)
    start = header.message_start
    codes = memoryview(data)[HEADER_BYTES : HEADER_BYTES + header.n_rows] if header.has_change_types else None
    offsets = np.frombuffer(data, np.int64, header.n_rows, header.sparse_start) if header.flags & FLAG_SPARSE else None
    origins = None
    if header.flags & FLAG_ORIGINS:
        n_origins = int.from_bytes(data.slice(start, 8).to_pybytes(), "little")
        origins = np.frombuffer(data, ORIGIN, n_origins, start + 8)
        start += 8 + origins.nbytes
    if header.has_statistics:
        start += _statistics_bytes(data, start, header, file)
    return StoredFrame(header, codes, data.slice(start, header.payload_stop - start), offsets, origins)


def encoded_frame(file: LogFile, location: FrameLocation) -> EncodedFrame:
    """A data frame as it is stored, compared with its checksum now. Errors: DamagedFrame."""
    stored_frame(file, location, verify=True)
    header, data = file.frame_at(location.position, location.length)
    return EncodedFrame(header, [data.slice(HEADER_BYTES)])


def stored_statistics(file: LogFile, location: FrameLocation) -> tuple[FrameHeader, pa.Buffer | None]:
    """Header and statistics block of a data frame, None when it has none; only the header's checksum is compared. Errors: DamagedFrame."""
    header, data = file.frame_at(location.position, location.length, is_whole=False)
    if not header.has_statistics:
        return header, None
    start = header.message_start
    if header.flags & FLAG_ORIGINS:
        start += 8 + ORIGIN.itemsize * int.from_bytes(data.slice(start, 8).to_pybytes(), "little")
    return header, data.slice(start, _statistics_bytes(data, start, header, file))


def _statistics_bytes(data: pa.Buffer, start: int, header: FrameHeader, file: LogFile) -> int:
    n_bytes = statistics_bytes(data, start) if start <= header.payload_stop else 0
    if n_bytes == 0 or start + n_bytes > header.payload_stop:
        damaged("a frame's statistics do not fit into it", file, header.position - file.start)
    return n_bytes
