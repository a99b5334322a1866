"""Incarnations: a partition that is dropped and created again under its name is another one; readers of the first are told. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from storage_engine.engine.buckets import Bucket, Buckets
from storage_engine.engine.progress import born
from storage_engine.engine.state import StoreState, TableState
from storage_engine.errors import PartitionChanged
from storage_engine.schema.descriptor import TableBucket

_NEXT_STEP = "Start again from the offsets of now; the other partitions are as they were."


def require_as_of(state: StoreState, table: TableState, buckets: Iterable[TableBucket], as_of: int) -> None:
    """Errors: PartitionChanged when a partition (or the table) is not the one that stood under its name at version `as_of`."""
    name = table.descriptor.name
    if state.born_tables.get(table.descriptor.table_id, 0) > as_of:
        raise PartitionChanged(f"{name} was dropped and created again while it was read", where=name, next_step=_NEXT_STEP)
    if not table.descriptor.partition_keys:
        return
    for partition in {bucket.partition for bucket in buckets}:
        if partition not in table.partitions:
            raise PartitionChanged(f"partition {partition} of {name} was dropped while it was read", where=name, next_step=_NEXT_STEP)
        if born(state, table, partition) > as_of:
            what = f"partition {partition} of {name} was dropped and created again while it was read"
            raise PartitionChanged(what, where=name, next_step=_NEXT_STEP)


def raise_if_dropped(buckets: Buckets, table: str, read: Iterable[Bucket], cause: Exception) -> None:
    """Errors: PartitionChanged when a bucket that was read is not there any more."""
    for bucket in read:
        if buckets.get(bucket.id) is not bucket:
            what = f"partition {bucket.name.partition} of {table} was dropped while it was read"
            raise PartitionChanged(what, where=table, next_step=_NEXT_STEP) from cause
