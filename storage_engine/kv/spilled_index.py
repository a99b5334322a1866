"""Spilled indexes: what KeyIndex and PrefixIndex do, in RocksDB on disk, for tables whose keys are more than memory may hold.

Directory given by the engine, one database per index: `keys` spread hash (big endian u64) -> offset (i64); `prefixes` prefix hash, key
hash (two big endian u64) -> nothing. No write-ahead log: the index is derived, an interrupted process leaves nothing that is used again.
Owner: KvBucket, the only writer; any thread reads. RocksDB does its own file access: what it holds can be lost, never wrong.
Holds: after a failed read or write the index answers no more (RetriableError), and on_failure() has been told to make another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DataBlockIndexType,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)  # fmt: skip

from storage_engine.errors import RetriableError
from storage_engine.kv.key_index import MISSING, Bools, Hashes, Int64s, KeyCopy, spread_hashes, unspread
from storage_engine.kv.key_run import MARK
from storage_engine.log.disk import Disk

_PIECE_KEYS: Final = 1 << 18
_BLOCK_CACHE_BYTES: Final = 8 << 20
_WRITE_BUFFER_BYTES: Final = 16 << 20
_KEY: Final = np.dtype(">u8")
_logger = logging.getLogger(__name__)


class IndexChange(NamedTuple):
    """One change of a bucket's indexes: hashes put at `offsets`, or entered under `prefixes`, or (neither) removed."""

    hashes: Hashes
    offsets: Int64s | None = None
    prefixes: Hashes | None = None


class _Database:
    """One RocksDB of this process; a failure closes it for good."""

    def __init__(self, path: Path, on_failure: Callable[[], None]) -> None:
        self._path = path
        self._on_failure = on_failure
        self._is_broken = False
        self._writing = WriteOptions()
        setattr(self._writing, "disable_wal", True)  # noqa: B010 - an attribute that its stub calls a method
        self.db = self._guarded(lambda: Rdict(str(path), _options(), access_type=AccessType.read_write()))

    @property
    def n_bytes(self) -> int:
        """Memory that RocksDB holds for it: write buffers, bloom filters and indexes of files, cached blocks."""
        names = ("rocksdb.cur-size-all-mem-tables", "rocksdb.estimate-table-readers-mem", "rocksdb.block-cache-usage")
        return 0 if self._is_broken else sum(self.db.property_int_value(name) or 0 for name in names)

    @property
    def disk_bytes(self) -> int:
        return 0 if self._is_broken else self.db.property_int_value("rocksdb.total-sst-files-size") or 0

    def get(self, keys: list[bytes]) -> list[Any]:
        return self._guarded(lambda: self.db[keys])

    def write(self, puts: Iterable[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in puts:
            batch.put(key, value)
        for key in deletes:
            batch.delete(key)
        self._guarded(lambda: self.db.write(batch, write_opt=self._writing))

    def under(self, prefixes: Sequence[bytes]) -> list[list[bytes]]:
        """The keys that begin with each prefix, ascending."""

        def scan() -> list[list[bytes]]:
            iterator, found = self.db.iter(), []
            for prefix in prefixes:
                keys: list[bytes] = []
                iterator.seek(prefix)
                while iterator.valid() and (key := iterator.key()).startswith(prefix):
                    keys.append(key)
                    iterator.next()
                found.append(keys)
            return found

        return self._guarded(scan)

    def keys(self) -> Iterator[bytes]:
        """All keys, ascending, as they are at this moment: RocksDB's iterators see no later writes (rocksdict's snapshots do)."""
        return self._guarded(self.db.keys)

    def values(self) -> Iterator[bytes]:
        """Their values, likewise."""
        return self._guarded(self.db.values)

    def close(self) -> None:
        if not self._is_broken:
            self._is_broken = True
            self.db.close()
        with suppress(OSError):  # the next start removes what is left
            Disk().remove_tree(self._path)

    def _guarded(self, work: Callable[[], Any]) -> Any:
        cause: Exception | None = None
        if not self._is_broken:
            try:
                return work()
            except Exception as error:
                cause, self._is_broken = error, True
                _logger.warning("the key index on disk at %s failed and is made anew in memory", self._path, exc_info=error)
                self._on_failure()
        raise RetriableError(
            "the key index on disk cannot be used any more", where=str(self._path), next_step="Call again: it is rebuilt from the log."
        ) from cause


class SpilledIndex:
    """A KeyIndex on disk. Cost: a batch of 10,000 keys takes tens of milliseconds; memory is RocksDB's buffers and filters."""

    def __init__(self, path: Path, on_failure: Callable[[], None] = lambda: None) -> None:
        self._database = _Database(path, on_failure)
        self._n_keys = 0
        self._searched: tuple[Hashes, int] | None = None  # hashes and how many of them are not here, until something is written

    @property
    def n_keys(self) -> int:
        return self._n_keys

    @property
    def n_bytes(self) -> int:
        return self._database.n_bytes

    @property
    def disk_bytes(self) -> int:
        return self._database.disk_bytes

    def load(self, copy: KeyCopy) -> None:
        """Take over the keys of an index; this one is empty."""
        pieces = zip(copy.spread_pieces(), copy.offset_pieces(), strict=True)
        for spread, offsets in (*pieces, copy.recent):
            for start in range(0, len(spread), _PIECE_KEYS):
                part = slice(start, start + _PIECE_KEYS)
                live = np.flatnonzero(offsets[part] >= 0)
                self._write(spread[part][live], offsets[part][live])
                self._n_keys += len(live)

    def get(self, hashes: Hashes) -> Int64s:
        spread = spread_hashes(hashes)
        order = np.argsort(spread)
        values = self._database.get(_split(spread[order]))
        offsets = np.full(len(hashes), MISSING, np.int64)
        found = np.array([value is not None for value in values], np.bool_)
        offsets[order[found]] = np.frombuffer(b"".join([value for value in values if value is not None]), np.int64)
        return offsets

    def get_one(self, key_hash: int) -> int:
        return int(self.get(np.array([key_hash], np.uint64))[0])

    def get_to_put(self, hashes: Hashes) -> Int64s:
        """See KeyIndex: a put of the same hashes that comes next does not read them again."""
        offsets = self.get(hashes)
        self._searched = (hashes, int(np.count_nonzero(offsets < 0)))
        return offsets

    def put(self, hashes: Hashes, offsets: Int64s) -> None:
        searched, self._searched = self._searched, None
        if len(hashes):
            is_known = searched is not None and np.array_equal(searched[0], hashes)
            n_new = searched[1] if searched and is_known else int(np.count_nonzero(self.get(hashes) < 0))
            spread = spread_hashes(hashes)
            order = np.argsort(spread)
            self._write(spread[order], np.asarray(offsets, np.int64)[order])
            self._n_keys += n_new

    def remove(self, hashes: Hashes) -> None:
        self._searched = None
        held = hashes[self.get(hashes) >= 0] if len(hashes) else hashes
        if len(held):
            self._database.write((), _split(np.sort(spread_hashes(held))))
            self._n_keys -= len(held)

    def items(self) -> tuple[Hashes, Int64s]:
        copy = self.copy()
        return unspread(np.concatenate(list(copy.spread_pieces()))[:-1]), np.concatenate(list(copy.offset_pieces()))[:-1]

    def offsets(self) -> Int64s:
        return np.concatenate(list(self.copy().offset_pieces()))[:-1]

    def copy(self) -> SpilledCopy:
        """The index as it is now, read from disk piece by piece when it is asked for."""
        return SpilledCopy(self._database.keys(), self._database.values(), self._n_keys)

    def close(self) -> None:
        """Give up the index and its files."""
        self._database.close()

    def _write(self, spread: Hashes, offsets: Int64s) -> None:
        self._database.write(zip(_split(spread), _values(offsets), strict=True))


class SpilledCopy:
    """A KeyCopy that RocksDB keeps; its pieces can be read once."""

    def __init__(self, keys: Iterator[bytes], values: Iterator[bytes], n_keys: int) -> None:
        self._keys, self._values = keys, values
        self.n_sorted = n_keys + 1
        self.recent = (np.empty(0, np.uint64), np.empty(0, np.int64))

    def spread_pieces(self) -> Iterator[Hashes]:
        for part in _pieces(self._keys):
            yield np.frombuffer(part, _KEY).astype(np.uint64)
        yield np.array([MARK])

    def offset_pieces(self) -> Iterator[Int64s]:
        for part in _pieces(self._values):
            yield np.frombuffer(part, np.int64)
        yield np.array([MISSING], np.int64)


class SpilledPrefixes:
    """A PrefixIndex on disk."""

    def __init__(self, path: Path, on_failure: Callable[[], None] = lambda: None) -> None:
        self._database = _Database(path, on_failure)
        self.n_entries = 0

    @property
    def n_bytes(self) -> int:
        return self._database.n_bytes

    @property
    def disk_bytes(self) -> int:
        return self._database.disk_bytes

    def add(self, prefixes: Hashes, keys: Hashes) -> None:
        for start in range(0, len(prefixes), _PIECE_KEYS):
            pairs = np.stack([prefixes[start : start + _PIECE_KEYS], keys[start : start + _PIECE_KEYS]], axis=1)
            pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
            self._database.write((pair, b"") for pair in _split(pairs))
            self.n_entries += len(pairs)

    def find(self, prefixes: Hashes) -> tuple[Int64s, Hashes]:
        found = self._database.under(_split(prefixes))
        position = np.repeat(np.arange(len(prefixes)), [len(keys) for keys in found])
        keys = _pairs(b"".join([key for keys in found for key in keys]))[:, 1]
        order = np.lexsort((keys, position))
        return position[order], keys[order]

    def keep(self, are_live: Callable[[Hashes], Bools]) -> None:
        n_entries = 0
        for pairs in self.pieces():
            gone = ~are_live(pairs[:, 1])
            self._database.write((), _split(pairs[gone]))
            n_entries += len(pairs) - int(gone.sum())
        self.n_entries = n_entries

    def pieces(self) -> Iterable[Hashes]:
        """The entries as they are now, read from disk when they are asked for; they can be read once."""
        return map(_pairs, _pieces(self._database.keys()))

    def close(self) -> None:
        self._database.close()


def follow(changes: Iterable[IndexChange], index: SpilledIndex, prefixes: SpilledPrefixes | None) -> None:
    """Change the indexes as a bucket's own ones have been changed."""
    for change in changes:
        if change.offsets is not None:
            index.put(change.hashes, change.offsets)
        elif change.prefixes is None:
            index.remove(change.hashes)
        elif prefixes is not None:
            prefixes.add(change.prefixes, change.hashes)


def _pieces(values: Iterable[Any]) -> Iterator[bytes]:
    iterator = iter(values)
    while True:
        try:
            part = list(islice(iterator, _PIECE_KEYS))
        except Exception as error:
            raise RetriableError(
                f"the key index on disk cannot be read: {error}", where="a copy of it", next_step="Try again later."
            ) from error
        if not part:
            return
        yield b"".join(part)


def _split(hashes: Hashes) -> list[bytes]:
    """Hashes (n,), or rows of hashes (n, 2), as big-endian bytes, one value each."""
    width = 8 * (hashes.size // max(len(hashes), 1))
    return np.ascontiguousarray(hashes, _KEY).view(f"V{width}").ravel().tolist() if len(hashes) else []


def _values(offsets: Int64s) -> list[bytes]:
    return np.ascontiguousarray(offsets).view("V8").tolist()


def _pairs(joined: bytes) -> Hashes:
    return np.frombuffer(joined, _KEY).astype(np.uint64).reshape(-1, 2)


def _options() -> Options:
    """Measured best for small values read by sorted batches (ADR 0010): 4 KiB blocks with a hash index, no compression, mapped reads."""
    blocks = BlockBasedOptions()
    blocks.set_block_size(4096)
    blocks.set_block_restart_interval(4)
    blocks.set_bloom_filter(10, block_based=False)
    blocks.set_data_block_index_type(DataBlockIndexType.binary_and_hash())
    blocks.set_block_cache(Cache(_BLOCK_CACHE_BYTES))
    options = Options(raw_mode=True)
    options.create_if_missing(True)  # noqa: FBT003 - its only argument
    options.set_block_based_table_factory(blocks)
    options.set_compression_type(DBCompressionType.none())
    options.set_allow_mmap_reads(True)
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_max_open_files(256)
    options.set_keep_log_file_num(1)
    return options
