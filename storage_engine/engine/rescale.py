"""Rescale: move the rows of a partition whose bucket changes with the number of buckets, as one commit.

Owner: engine/embedded.py, for ALTER TABLE and for what was cut short before the store was opened. The writer's lock is held while a
       move is planned and written, one partition after another; between them others write.
Holds: a row is moved as it is: -D with its key alone in the bucket it leaves, +I in the bucket it enters, in internal frames. They
       take offsets and no reader of the changelog sees them. Killed anywhere, a partition has its rows in the old buckets or in the new.
Cost:  three vectorised passes (keys, rows, frames). All rows that move are in memory once, encoded: a commit is written as a whole.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa

from storage_engine.api import CommitRequest
from storage_engine.engine.core import Core
from storage_engine.engine.routing import bucket_of_rows
from storage_engine.engine.state import TableState
from storage_engine.engine.transaction import Transaction
from storage_engine.log.frame_index import BucketId
from storage_engine.schema.descriptor import TableDescriptor

RESUME_MS: Final = 60_000


class Rescaler:
    """Rescales tables of one store. As a task it completes what was cut short when the store was opened."""

    name = "rescale"
    interval_ms = RESUME_MS

    def __init__(self, core: Core) -> None:
        self._core = core

    def run(self, now_ms: int) -> None:  # noqa: ARG002 - the task's form
        """Rescale every table with partitions that wait for it."""
        with self._core.readers:
            waiting = [table.descriptor for table in self._core.state.tables.values() if table.bucket_counts]
        for descriptor in waiting:
            self.rescale(descriptor)

    def rescale(self, of: TableDescriptor) -> None:
        """Move the rows of every partition that has another number of buckets than its table. Errors: WriteFailed."""
        core = self._core
        while True:
            with core.writing():
                table = core.state.by_id(of.table_id)
                if table is None or not table.bucket_counts:
                    return
                partition = min(table.bucket_counts)
                change = {"op": "rescale", "table": of.name, "partition": partition}
                _, written = core.write(CommitRequest(), [change], plan=partial(plan_moves, table, partition))
            core.await_durable(written)


def plan_moves(table: TableState, partition: str, transaction: Transaction) -> int:
    """Stage what brings the rows of a partition to the buckets they have among as many as the table has now; how many move."""
    descriptor = table.descriptor
    n_buckets = descriptor.n_buckets
    buckets = transaction.buckets
    arrivals: dict[int, list[pa.Table]] = {}
    n_moved = 0
    for bucket in list(buckets.of_partition(table, partition)):
        kv = buckets.kv_of(bucket)
        offsets = kv.current_offsets()
        if len(offsets) == 0:
            continue
        keys = buckets.rows_at(bucket, offsets, list(descriptor.bucket_keys))
        target = bucket_of_rows(descriptor, keys, n_buckets)
        moving = np.flatnonzero(target != bucket.id.bucket)
        if len(moving) == 0:
            continue
        order = moving[np.argsort(target[moving], kind="stable")]
        rows = buckets.rows_at(bucket, offsets[order])
        transaction.stage_move(table, bucket, kv.leaving(rows))
        ordered = target[order]
        bounds = np.flatnonzero(np.diff(ordered)) + 1
        for begin, end in zip(np.r_[0, bounds], np.r_[bounds, len(order)], strict=True):
            arrivals.setdefault(int(ordered[begin]), []).append(rows.slice(begin, end - begin))
        n_moved += len(order)
    partition_id = table.partitions[partition] if descriptor.partition_keys else 0
    for number, parts in sorted(arrivals.items()):
        bucket = buckets.get_or_create(BucketId(descriptor.table_id, partition_id, number), partition)
        transaction.stage_move(table, bucket, buckets.kv_of(bucket).arriving(pa.concat_tables(parts).combine_chunks()))
    return n_moved
