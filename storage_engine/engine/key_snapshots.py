"""Key snapshots: the key index of a bucket in a file, so that a restart replays only the tail of its changelog.

Files DIR/index/<table_id>-<partition_id>-<bucket>.index, each replaced atomically, little endian:
    0  magic "FLIX0001"   8  crc32c of bytes 12 to the end   12  zero   16 table_id   20 partition_id   24 bucket (i32)   28  zero
    32 end_offset (i64)   40 position of the frame that ends there (i64)   48 its length (i64)   56 bytes of the body (u64)
    64 an Arrow IPC stream of one row: hashes, offsets, prefixes, prefix_keys, homeless_keys, homeless_offsets, each a list; keys by slot
Owner: engine/checkpointer.py writes them, Buckets loads them. State: derived, from the changelog below end_offset.
Holds: a snapshot is used only where the changelog has that very frame at that very end; otherwise the changelog is replayed whole.
"""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Final, NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa

from storage_engine.kv import KvSnapshot
from storage_engine.kv.key_index import slot_order
from storage_engine.log.disk import Disk
from storage_engine.log.frame_index import BucketFrames, BucketId

FOLDER: Final = "index"
_SUFFIX: Final = ".index"
_MAGIC: Final = b"FLIX0001"
_HEAD: Final = struct.Struct("<8sI")
_REST: Final = struct.Struct("<IiiiIqqqQ")
HEADER_BYTES: Final = _HEAD.size + _REST.size
_SCHEMA: Final = pa.schema(
    [
        ("hashes", pa.large_list(pa.uint64())),
        ("offsets", pa.large_list(pa.int64())),
        ("prefixes", pa.large_list(pa.uint64())),
        ("prefix_keys", pa.large_list(pa.uint64())),
        ("homeless_keys", pa.large_list(pa.large_binary())),
        ("homeless_offsets", pa.large_list(pa.int64())),
    ]
)
_logger = logging.getLogger(__name__)


class Covered(NamedTuple):
    """What of a changelog a snapshot covers: everything below `end_offset`, whose last frame lies at `position`."""

    end_offset: int
    position: int
    length: int


class StoredSnapshot(NamedTuple):
    """A snapshot read from its file."""

    bucket: BucketId
    covered: Covered
    keys: KvSnapshot


class KeySnapshots:
    """The snapshot files of one store directory, and up to which offset each is known to reach."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self.folder = directory / FOLDER
        self._ends: dict[BucketId, int] = {}

    def covered_offset(self, bucket: BucketId) -> int:
        """The offset up to which a usable snapshot is known to this process; 0: none."""
        return self._ends.get(bucket, 0)

    def load(self, bucket: BucketId, frames: BucketFrames, end_offset: int) -> tuple[KvSnapshot, int] | None:
        """The snapshot of a bucket and its end offset, at most `end_offset`; None where there is none that can be used.

        One that is damaged or of another changelog is named in the log of the process.
        """
        path = self.folder / file_name(bucket)
        try:
            stored = read_snapshot(self._disk, path)
        except OSError as error:
            _logger.warning("%s cannot be read (%s); the changelog is replayed", path, error)
            return None
        if stored is None:
            return None
        if isinstance(stored, str):
            _logger.warning("%s %s; it is not used, the changelog is replayed", path, stored)
            return None
        if stored.bucket != bucket or not belongs(stored.covered, frames):
            _logger.warning("%s belongs to another changelog; it is not used, the changelog is replayed", path)
            return None
        self._ends[bucket] = stored.covered.end_offset
        return (stored.keys, stored.covered.end_offset) if stored.covered.end_offset <= end_offset else None

    def save(self, bucket: BucketId, covered: Covered, keys: KvSnapshot) -> None:
        """Replace a bucket's snapshot. The log must be durable up to `covered`. Errors: OSError."""
        self._disk.make_directory(self.folder)
        self._disk.replace_file(self.folder / file_name(bucket), encode_snapshot(bucket, covered, keys))
        self._ends[bucket] = covered.end_offset

    def keep(self, live: set[BucketId]) -> None:
        """Remove the files of all other buckets, and what an interrupted replacement left. Errors: OSError."""
        if not self._disk.exists(self.folder):
            return
        names = {file_name(bucket) for bucket in live}
        gone = [name for name in self._disk.list(self.folder) if name not in names]
        for name in gone:
            self._disk.unlink(self.folder / name)
        if gone:
            self._disk.sync_directory(self.folder)
        self._ends = {bucket: end for bucket, end in self._ends.items() if bucket in live}


def file_name(bucket: BucketId) -> str:
    return "-".join(map(str, bucket)) + _SUFFIX


def covered_by(frames: BucketFrames) -> Covered | None:
    """The whole of a changelog as it is now; None for an empty one."""
    entries = frames.entries
    if len(entries) == 0:
        return None
    last = entries[-1]
    return Covered(int(last["end_offset"]), int(last["position"]), int(last["length"]))


def belongs(covered: Covered, frames: BucketFrames) -> bool:
    """Whether the changelog has the frame that a snapshot ends with, where the snapshot says."""
    entries = frames.entries
    at = int(np.searchsorted(entries["end_offset"], covered.end_offset, side="left"))
    return at < len(entries) and covered == tuple(int(entries[at][name]) for name in ("end_offset", "position", "length"))


def encode_snapshot(bucket: BucketId, covered: Covered, keys: KvSnapshot) -> list[pa.Buffer | bytes]:
    """The buffers of a snapshot file."""
    order = slot_order(keys.hashes)
    columns = [
        _one_list(pa.array(keys.hashes[order])),
        _one_list(pa.array(keys.offsets[order])),
        _one_list(pa.array(keys.prefixes)),
        _one_list(pa.array(keys.prefix_keys)),
        _one_list(pa.array(list(keys.homeless), pa.large_binary())),
        _one_list(pa.array(list(keys.homeless.values()), pa.int64())),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
    body = sink.getvalue()
    rest = _REST.pack(0, *bucket, 0, *covered, body.size)
    return [_HEAD.pack(_MAGIC, google_crc32c.extend(google_crc32c.value(rest), body)) + rest, body]


def read_snapshot(disk: Disk, path: Path) -> StoredSnapshot | str | None:
    """What a snapshot file holds; a text that says what is wrong with it; None where there is no such file. Errors: OSError."""
    try:
        data = disk.map(path)
    except FileNotFoundError:
        return None
    if data.size < HEADER_BYTES:
        return "is shorter than its header"
    magic, crc = _HEAD.unpack(data.slice(0, _HEAD.size).to_pybytes())
    if magic != _MAGIC:
        return f"has magic {magic!r}, this program reads {_MAGIC!r}"
    if google_crc32c.value(data.slice(_HEAD.size)) != crc:
        return "does not match its checksum"
    _, table_id, partition_id, bucket, _, *covered, _ = _REST.unpack(data.slice(_HEAD.size, _REST.size).to_pybytes())
    try:
        batch = pa.ipc.open_stream(data.slice(HEADER_BYTES)).read_next_batch()
        batch.validate(full=True)
        hashes, offsets, prefixes, prefix_keys = (batch.column(i).values.to_numpy() for i in range(4))
        homeless = dict(zip(batch.column(4).values.to_pylist(), batch.column(5).values.to_pylist(), strict=True))
        if len(hashes) != len(offsets) or len(prefixes) != len(prefix_keys):
            raise ValueError("its lists differ in length")
    except (pa.ArrowException, OSError, EOFError, StopIteration, ValueError, AttributeError, IndexError, TypeError) as error:
        return f"cannot be read: {type(error).__name__}: {error}"
    return StoredSnapshot(
        BucketId(table_id, partition_id, bucket), Covered(*covered), KvSnapshot(hashes, offsets, prefixes, prefix_keys, homeless)
    )


def _one_list(values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
