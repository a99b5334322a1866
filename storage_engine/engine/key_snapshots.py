"""Key snapshots: the key index of a bucket in a file, so that a restart replays only the tail of its changelog.

Files DIR/index/<table_id>-<partition_id>-<bucket>.index, each replaced atomically, little endian; docs/store.md describes every byte.
The body is the index's own arrays, mapped at a start: hashes are used where they are, only offsets, which change, are copied.
Owner: engine/checkpointer.py writes them, Buckets loads them. State: derived, from the changelog below end_offset.
Holds: a snapshot is used only where the changelog has that very frame at that very end; otherwise the changelog is replayed whole.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import google_crc32c
import numpy as np

from storage_engine.kv import ArrayCopy, KvSnapshot
from storage_engine.log.disk import Disk
from storage_engine.log.frame import FLAG_SPARSE
from storage_engine.log.frame_index import FLAG_MOVED, BucketFrames, BucketId

FOLDER: Final = "index"
_SUFFIX: Final = ".index"
_MAGIC: Final = b"FLIX0002"
_OLDER: Final = b"FLIX0001"
OF_EARLIER_VERSION: Final = "is of an earlier version and is not used"
_HEAD: Final = struct.Struct("<8sI")
_REST: Final = struct.Struct("<IiiiIqqqQQQQQ")
HEADER_BYTES: Final = _HEAD.size + _REST.size
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
        """Replace a bucket's snapshot. The log must be durable up to `covered`. Errors: OSError.

        The body is written as it comes, piece by piece, so that an index on disk is never in memory as a whole.
        """
        disk = self._disk
        disk.make_directory(self.folder)
        path = self.folder / file_name(bucket)
        temporary = path.with_name(path.name + ".tmp")
        body = _Body()
        fd = disk.open_file(temporary)
        try:
            disk.truncate(fd, 0)
            for piece in body.pieces(keys):
                disk.write(fd, [piece], HEADER_BYTES + body.n_bytes - piece.nbytes)
            disk.write(fd, [_header(bucket, covered, body)], 0)
            disk.fdatasync(fd)
        finally:
            disk.close(fd)
        disk.rename(temporary, path)
        disk.sync_directory(self.folder)
        self._ends[bucket] = covered.end_offset

    def forget(self, bucket: BucketId) -> None:
        """Remove a bucket's snapshot: rows that it leads to are about to go. Errors: OSError."""
        self._ends.pop(bucket, None)
        path = self.folder / file_name(bucket)
        if self._disk.exists(path):
            self._disk.unlink(path)
            self._disk.sync_directory(self.folder)

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
    """TABLE-PARTITION-BUCKET.index, of the three ids."""
    return "-".join(map(str, bucket)) + _SUFFIX


def covered_by(frames: BucketFrames) -> Covered | None:
    """The whole of a changelog as it is now; None for an empty one."""
    entries = frames.entries
    if len(entries) == 0:
        return None
    last = entries[-1]
    return Covered(int(last["end_offset"]), int(last["position"]), int(last["length"]))


def belongs(covered: Covered, frames: BucketFrames) -> bool:
    """Whether the changelog has the frame that a snapshot ends with, where the snapshot says, or written again later.

    A changelog that was compacted beyond the snapshot's end no longer says what became of the snapshot's keys in between.
    """
    entries = frames.entries
    at = int(np.searchsorted(entries["end_offset"], covered.end_offset, side="left"))
    if at == len(entries) or covered.end_offset < compacted_to(entries):
        return False
    is_moved = bool(entries[at]["flags"] & FLAG_MOVED) and covered.position < entries[at]["position"]
    return is_moved or covered == tuple(int(entries[at][name]) for name in ("end_offset", "position", "length"))


def compacted_to(entries: np.ndarray) -> int:
    """The offset below which only rows are held that were current there; where the frames begin, if nothing was compacted."""
    sparse = np.flatnonzero(entries["flags"] & FLAG_SPARSE)
    return int(entries["end_offset"][sparse[-1]]) if len(sparse) else int(entries["base_offset"][0]) if len(entries) else 0


class _Body:
    """The body of a snapshot file while it is written: checksum, bytes, and the numbers that the header says."""

    def __init__(self) -> None:
        self.crc = 0
        self.n_bytes = 0
        self.counts = [0, 0, 0, 0, 0]

    def pieces(self, keys: KvSnapshot) -> Iterator[np.ndarray]:
        """Every array of the body in its order, counted."""
        recent, recent_offsets = keys.keys.recent
        homeless = list(keys.homeless)
        self.counts = [
            self._count((yield from self._write(keys.keys.spread_pieces()))),
            len(recent),
            0,
            len(homeless),
            sum(map(len, homeless)),
        ]
        n_offsets = self._count((yield from self._write(keys.keys.offset_pieces())))
        assert n_offsets == self.counts[0], f"{self.counts[0]} keys have {n_offsets} offsets"
        yield from self._write([recent, recent_offsets])
        self.counts[2] = self._count((yield from self._write(keys.prefixes))) // 2
        yield from self._write([np.fromiter(keys.homeless.values(), np.int64), np.cumsum([len(key) for key in homeless], dtype=np.int64)])
        yield from self._write([np.frombuffer(b"".join(homeless), np.uint8)])

    def _write(self, arrays: Iterable[Any]) -> Iterator[np.ndarray]:
        before = self.n_bytes
        for array in arrays:
            piece = np.ascontiguousarray(array)
            if piece.nbytes:
                self.crc = google_crc32c.extend(self.crc, piece.view(np.uint8))
                self.n_bytes += piece.nbytes
                yield piece
        return self.n_bytes - before

    @staticmethod
    def _count(n_bytes: int) -> int:
        return n_bytes // 8


def _header(bucket: BucketId, covered: Covered, body: _Body) -> bytes:
    rest = _REST.pack(body.crc, *bucket, 0, *covered, *body.counts)
    return _HEAD.pack(_MAGIC, google_crc32c.value(rest)) + rest


def read_snapshot(disk: Disk, path: Path) -> StoredSnapshot | str | None:
    """What a snapshot file holds; a text that says what is wrong with it; None where there is no such file. Errors: OSError."""
    try:
        data = disk.map(path)
    except FileNotFoundError:
        return None
    if data.size < HEADER_BYTES:
        return "is shorter than its header"
    magic, crc = _HEAD.unpack(data.slice(0, _HEAD.size).to_pybytes())
    if magic == _OLDER:
        return OF_EARLIER_VERSION
    if magic != _MAGIC:
        return f"has magic {magic!r}, this program reads {_MAGIC!r}"
    rest = data.slice(_HEAD.size, _REST.size)
    body_crc, table_id, partition_id, bucket, _, *numbers = _REST.unpack(rest.to_pybytes())
    covered, (n_sorted, n_recent, n_prefixes, n_homeless, homeless_bytes) = numbers[:3], numbers[3:]
    n_words = 2 * (n_sorted + n_recent + n_prefixes + n_homeless)
    if google_crc32c.value(rest) != crc or data.size != HEADER_BYTES + 8 * n_words + homeless_bytes:
        return "does not match its checksum"
    if google_crc32c.value(data.slice(HEADER_BYTES)) != body_crc:
        return "does not match its checksum"
    try:
        words = np.frombuffer(data, np.uint64, n_words, HEADER_BYTES)
        sizes = (n_sorted, n_sorted, n_recent, n_recent, 2 * n_prefixes, n_homeless, n_homeless)
        spread, offsets, recent, recent_offsets, pairs, homeless, ends = np.split(words, np.cumsum(sizes)[:-1])
        text = data.slice(HEADER_BYTES + 8 * n_words).to_pybytes()
        starts = [0, *ends.tolist()]
        homeless_keys = [text[start:stop] for start, stop in pairwise(starts)]
        places = dict(zip(homeless_keys, homeless.view(np.int64).tolist(), strict=True))
        keys = ArrayCopy((spread,), (offsets.view(np.int64),), (recent, recent_offsets.view(np.int64)))
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        return f"cannot be read: {type(error).__name__}: {error}"
    return StoredSnapshot(
        BucketId(table_id, partition_id, bucket),
        Covered(*covered),
        KvSnapshot(keys, (pairs.reshape(-1, 2),), places),
    )
