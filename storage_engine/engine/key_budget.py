"""Key budget: what key indexes may take of memory, all tables together. Beyond it, whole buckets move their indexes to RocksDB on disk.

Directory DIR/spill/<table_id>-<partition_id>-<bucket>-<n>/{keys,prefixes}: derived, of this process alone; cleared at every start.
Owner: engine/core.py opens and stops it; Buckets tells it of every index that is made, changed or dropped.
Holds: commits go on while an index moves; they wait for the copy of its offsets, and at the end for the last changes. A move that fails
       (a full disk) costs memory only: the index stays where it is, and the move is tried again later.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from storage_engine.errors import RetriableError
from storage_engine.kv import KvBucket, SpilledIndex, SpilledPrefixes, follow
from storage_engine.log.disk import Disk
from storage_engine.log.frame_index import BucketId

if TYPE_CHECKING:
    from storage_engine.engine.buckets import Bucket

FOLDER: Final = "spill"
BYTES_MAX: Final = 4 << 30
RETRY_S: Final = 60.0
_CHANGES_MAX: Final = 8
"""So many changes are followed while writers wait; of more, those that are there are followed first."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyMemory:
    """Key indexes now: bytes in memory of all, what they may take, and bytes on disk of the buckets that have moved."""

    n_bytes: int
    n_bytes_max: int
    spilled: dict[BucketId, int]


@dataclass
class _Index:
    """An index that counts: its bucket, its bytes in memory, and when it last changed (a count of changes)."""

    bucket: Bucket
    n_bytes: int
    changed: int


class KeyBudget:
    """Weighs the key indexes of one store, and moves them."""

    def __init__(self, disk: Disk, directory: Path, bytes_max: int, writer: threading.RLock) -> None:  # type: ignore[valid-type]
        """`writer`: the lock under which indexes change."""
        self._disk = disk
        self._folder = directory / FOLDER
        self._bytes_max = bytes_max
        self._writer = writer
        self._weights: dict[BucketId, _Index] = {}
        self._total = 0
        self._n_changes = 0
        self._n_moves = 0
        self._not_before = 0.0
        self._wake = threading.Condition()
        self._is_closing = False
        self._thread: threading.Thread | None = None
        if disk.exists(self._folder):
            disk.remove_tree(self._folder)

    def weigh(self, bucket: Bucket) -> None:
        """The bucket's index was made or has changed."""
        kv = bucket.kv
        if kv is None:
            return
        with self._wake:
            self._n_changes += 1
            n_bytes = kv.n_bytes
            known = self._weights.get(bucket.id)
            self._total += n_bytes - (known.n_bytes if known else 0)
            self._weights[bucket.id] = _Index(bucket, n_bytes, self._n_changes)
            if self._total <= self._bytes_max or self._is_closing or time.monotonic() < self._not_before:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="flashlake-spill", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def drop(self, bucket: Bucket) -> None:
        """The bucket is gone, or its index is: what it has on disk is removed."""
        with self._wake:
            known = self._weights.pop(bucket.id, None)
            self._total -= known.n_bytes if known else 0
        if bucket.kv is not None:
            bucket.kv.close()
        self._remove_files(bucket.id)

    def forget(self) -> None:
        """The store goes back, to other buckets: give up the indexes on disk, and weigh nothing. The caller holds the writer's lock."""
        with self._wake:
            buckets = [weight.bucket for weight in self._weights.values()]
            self._weights.clear()
            self._total = 0
        for bucket in buckets:
            if bucket.kv is not None and bucket.kv.spilled_bytes is not None:
                bucket.kv.close()
                bucket.kv = None

    @property
    def memory(self) -> KeyMemory:
        with self._wake:
            weights = list(self._weights.items())
            total = self._total
        kvs = {bucket_id: weight.bucket.kv for bucket_id, weight in weights}
        spilled = {bucket_id: kv.spilled_bytes for bucket_id, kv in kvs.items() if kv is not None}
        return KeyMemory(total, self._bytes_max, {bucket_id: n for bucket_id, n in spilled.items() if n is not None})

    def stop(self) -> None:
        """End the thread and give up a move under way. The caller must not hold the writer's lock."""
        with self._wake:
            self._is_closing = True
            self._wake.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def clear(self) -> None:
        """Give up all indexes on disk: the store is closed."""
        with self._wake:
            buckets = [weight.bucket for weight in self._weights.values()]
        for bucket in buckets:
            if bucket.kv is not None:
                bucket.kv.close()
        self._remove(self._folder)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._is_closing or self._victim() is not None)
                if self._is_closing:
                    return
                victim = self._victim()
            assert victim is not None, "waited for one"
            if not self._move(victim):
                with self._wake:
                    self._not_before = time.monotonic() + RETRY_S
                    self._wake.wait_for(lambda: self._is_closing, RETRY_S)

    def _victim(self) -> Bucket | None:
        """The bucket to move: of those with at least half the bytes of the largest, the one that has not changed for longest."""
        if self._total <= self._bytes_max:
            return None
        held = [weight for weight in self._weights.values() if weight.bucket.kv is not None and weight.bucket.kv.spilled_bytes is None]
        largest = max((weight.n_bytes for weight in held), default=0)
        large = [weight for weight in held if 2 * weight.n_bytes >= largest]
        return min(large, key=lambda weight: weight.changed).bucket if large else None

    def _move(self, bucket: Bucket) -> bool:
        with self._writer:
            kv = bucket.kv
            if kv is None or not self._is_weighed(bucket):
                return True
            copy = kv.begin_move()
            self._n_moves += 1
        path = self._folder / _name(bucket.id, self._n_moves)
        index: SpilledIndex | None = None
        prefixes: SpilledPrefixes | None = None
        is_done = False
        try:
            self._disk.make_directory(path)
            index = SpilledIndex(path / "keys", lambda: self._give_up(bucket, kv))
            index.load(copy.keys)
            if kv.descriptor.is_prefix_lookup_possible:
                prefixes = SpilledPrefixes(path / "prefixes", lambda: self._give_up(bucket, kv))
                for pairs in copy.prefixes:
                    prefixes.add(pairs[:, 0], pairs[:, 1])
            del copy
            is_done = self._swap(bucket, kv, index, prefixes)
            return True  # a bucket that is gone, or of a store that went back, is no failure
        except (OSError, RetriableError) as error:
            _logger.warning("the key index of bucket %s stays in memory, it could not be moved to %s: %s", bucket.id, path, error)
            return False
        finally:
            if not is_done:
                with self._writer:
                    kv.end_move(None, None)
                for part in (index, prefixes):
                    if part is not None:
                        part.close()
                self._remove(path)

    def _swap(self, bucket: Bucket, kv: KvBucket, index: SpilledIndex, prefixes: SpilledPrefixes | None) -> bool:
        """Follow what has changed meanwhile, then use the new indexes; False when the bucket is gone or the store closes."""
        while True:
            with self._writer:
                if self._is_closing or bucket.kv is not kv or not self._is_weighed(bucket):
                    return False
                changes = kv.take_changes()
                if len(changes) <= _CHANGES_MAX:
                    follow(changes, index, prefixes)
                    kv.end_move(index, prefixes)
                    self.weigh(bucket)
                    return True
            follow(changes, index, prefixes)

    def _is_weighed(self, bucket: Bucket) -> bool:
        """Whether this is a bucket of the store as it is: not dropped, nor one from before the store went back."""
        known = self._weights.get(bucket.id)
        return known is not None and known.bucket is bucket

    def _remove_files(self, bucket_id: BucketId) -> None:
        """Remove what a bucket has on disk."""
        if self._n_moves == 0:
            return
        try:
            names = self._disk.list(self._folder)
        except FileNotFoundError:
            return
        for name in names:
            if name.startswith(_name(bucket_id, "")):
                self._remove(self._folder / name)

    def _remove(self, path: Path) -> None:
        try:
            if self._disk.exists(path):
                self._disk.remove_tree(path)
        except OSError as error:
            _logger.debug("%s is left until the next start: %s", path, error)

    def _give_up(self, bucket: Bucket, kv: KvBucket) -> None:
        """An index on disk has failed: the next to need it makes another."""
        if bucket.kv is kv and kv.spilled_bytes is not None:
            bucket.kv = None
            kv.close()


def _name(bucket_id: BucketId, number: object) -> str:
    return "-".join(map(str, (*bucket_id, number)))
