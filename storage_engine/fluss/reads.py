"""Reads: the current rows of a primary-key table, bucket by bucket. Runs on the loop thread.

Fluss's Python client has no full scan. A limit scan whose limit is beyond the bucket's rows is one; a bucket with ROWS_MAX rows or more
would come cut, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import fluss
import pyarrow as pa

from storage_engine.fluss.features import refused
from storage_engine.fluss.lookups import selected
from storage_engine.fluss.session import FlussSession, OpenTable
from storage_engine.schema.descriptor import TableBucket

ROWS_MAX = 2_000_000
"""Rows of one bucket that one answer may carry; a bucket with more is refused."""


async def read(
    session: FlussSession,
    name: str,
    columns: Sequence[str] | None,
    partitions: Sequence[str] | None,
    backend: str,
    limit: int | None = None,
) -> pa.Table:
    """Current rows with the columns asked for, at most `limit`.

    Errors: UnsupportedByBackend when a bucket has more than ROWS_MAX rows and the limit does not cut it.
    """
    table = await session.table(name)
    fields = selected(table.descriptor, columns)
    ids = await session.partitions(table) if table.descriptor.partition_keys else {"": None}
    pieces = [pa.schema(fields).empty_table()]
    for partition, number in sorted(ids.items()):
        if partitions is not None and partition not in partitions:
            continue
        buckets = [TableBucket(partition, bucket) for bucket in range(table.descriptor.n_buckets)]
        pieces += [await _read_bucket(table, bucket, number, fields, backend, limit) for bucket in buckets]
    return pa.concat_tables(pieces).slice(0, limit)


async def _read_bucket(
    table: OpenTable, bucket: TableBucket, partition_id: int | None, fields: list[pa.Field], backend: str, limit: int | None
) -> pa.Table:
    table_id = table.descriptor.table_id
    if partition_id is None:
        named = fluss.TableBucket(table_id, bucket.bucket)
    else:
        named = fluss.TableBucket.with_partition(table_id, partition_id, bucket.bucket)
    scan = table.handle.new_scan()
    names = [item.name for item in fields] or [table.descriptor.primary_key[0]]
    rows_max = ROWS_MAX if limit is None else max(1, min(limit, ROWS_MAX))
    rows = await scan.project_by_name(list(dict.fromkeys(names))).limit(rows_max).create_bucket_batch_scanner(named).to_arrow()
    if rows.num_rows >= ROWS_MAX:
        raise refused("read", backend=f"{backend}: {table.descriptor.name} {bucket} has {ROWS_MAX} rows or more")
    return pa.Table.from_arrays([rows[item.name].cast(item.type) for item in fields], schema=pa.schema(fields))


async def count(session: FlussSession, name: str, backend: str) -> int:
    table = await session.table(name)
    if table.descriptor.has_primary_key:
        return (await read(session, name, list(table.descriptor.primary_key), None, backend)).num_rows
    earliest, latest = await session.offsets(table, "earliest"), await session.offsets(table, "latest")
    return sum(end - earliest[bucket] for bucket, end in latest.items())
