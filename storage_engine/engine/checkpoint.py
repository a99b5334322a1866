"""Checkpoint: a copy of the derived state at one position of the log, so that opening replays only what came after.

File DIR/CHECKPOINT, replaced atomically: magic "FLCP0002", crc32c (u32, of all that follows), position (u64),
bytes of state (u64), state as JSON, then the frame index as one Arrow IPC stream. Everything little endian.
State: derived. A checkpoint that is missing, of another version or damaged is not used: the whole log is replayed instead.
"""

from __future__ import annotations

import json
import logging
import struct
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import pyarrow as pa

from storage_engine.engine.state import UNREADABLE, StoreState
from storage_engine.engine.upkeep import apply_log_starts
from storage_engine.log.commit_log import LogPosition
from storage_engine.log.disk import Disk
from storage_engine.log.frame_index import FrameIndex

_MAGIC = b"FLCP0002"
_OLDER = b"FLCP0001"  # says too little: no versions in which tables and partitions were made
_HEAD = struct.Struct("<8sI")
_BODY = struct.Struct("<QQ")
_logger = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """State and frame index as they were when the log ended at `position`."""

    state: StoreState
    frames: FrameIndex
    position: LogPosition


def encode(state: StoreState, frames: FrameIndex, position: LogPosition) -> bytes:
    """The file's bytes. The caller keeps state and frames still meanwhile."""
    encoded = json.dumps(state.to_json(), separators=(",", ":")).encode()
    sink = pa.BufferOutputStream()
    table = frames.to_table()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = b"".join([_BODY.pack(int(position), len(encoded)), encoded, sink.getvalue()])
    return _HEAD.pack(_MAGIC, google_crc32c.value(body)) + body


def write(disk: Disk, directory: Path, encoded: bytes) -> None:
    """Replace the checkpoint. The log must be durable up to its position. Errors: OSError."""
    disk.replace_file(_path(directory), [encoded])


def load(disk: Disk, directory: Path) -> Checkpoint | None:
    """The checkpoint, or None when there is none that can be used; a damaged one is named in the log of the process."""
    try:
        data = disk.read_file(_path(directory))
    except OSError as error:
        _logger.warning("%s cannot be read (%s); the whole log is replayed", _path(directory), error)
        return None
    if data is None:
        return None
    body = data[_HEAD.size :]
    if len(data) < _HEAD.size + _BODY.size or _HEAD.unpack_from(data) != (_MAGIC, google_crc32c.value(body)):
        _logger.warning("%s does not match its checksum or version; the whole log is replayed", _path(directory))
        return None
    try:
        position, n_state = _BODY.unpack_from(body)
        state = StoreState.from_json(json.loads(body[_BODY.size : _BODY.size + n_state]))
        table = pa.ipc.open_stream(pa.py_buffer(body[_BODY.size + n_state :])).read_all()
        table.validate(full=True)
        index = FrameIndex.from_table(table)
        apply_log_starts(state, index)
        return Checkpoint(state, index, LogPosition(position))
    except (*UNREADABLE, pa.ArrowException, OSError, EOFError) as error:
        _logger.warning("%s cannot be read (%s: %s); the whole log is replayed", _path(directory), type(error).__name__, error)
        return None


def is_older(disk: Disk, directory: Path) -> bool:
    """True for a checkpoint of an earlier version, which is not used."""
    return (disk.read_file(_path(directory)) or b"").startswith(_OLDER)


def _path(directory: Path) -> Path:
    return directory / "CHECKPOINT"
