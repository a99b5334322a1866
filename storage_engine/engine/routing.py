"""Routing: which partition and bucket each row goes to, and the rows cut accordingly.

Pure: takes rows and a descriptor, returns slices. Order inside a bucket is the order of the batch.
Source: buckets by Fluss's hash of the bucket key (schema/bucketing.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.schema.bucketing import bucket_ids
from storage_engine.schema.descriptor import TableBucket, TableDescriptor
from storage_engine.schema.keys import encode_keys
from storage_engine.schema.partitions import partition_names


def column_array(rows: pa.Table, name: str) -> pa.Array:
    """One column as one contiguous array."""
    column = rows[name]
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def key_arrays(rows: pa.Table, names: tuple[str, ...]) -> list[pa.Array]:
    return [column_array(rows, name) for name in names]


def bucket_of_rows(descriptor: TableDescriptor, rows: pa.Table, keyless_bucket: int) -> np.ndarray:
    """Bucket of each row, int32 (n,). A table without a bucket key puts the whole batch into `keyless_bucket`."""
    if descriptor.n_buckets == 1 or not descriptor.bucket_keys:
        return np.full(rows.num_rows, 0 if descriptor.n_buckets == 1 else keyless_bucket, np.int32)
    return bucket_ids(encode_keys(key_arrays(rows, descriptor.bucket_keys)), descriptor.n_buckets)


def split(descriptor: TableDescriptor, rows: pa.Table, keyless_bucket: int) -> Iterator[tuple[TableBucket, pa.Table, np.ndarray | None]]:
    """Cut rows by (partition, bucket): the bucket, its rows in batch order, and their positions in `rows` (None: all of them).

    Shapes: rows (n,); the parts' lengths add up to n. Cost: one hash pass, one stable argsort, one take.
    """
    if rows.num_rows == 0:
        return
    buckets = bucket_of_rows(descriptor, rows, keyless_bucket)
    if descriptor.partition_keys:
        encoded = pc.dictionary_encode(partition_names(column_array(rows, descriptor.partition_keys[0]), table=descriptor.name))
        names = encoded.dictionary.to_pylist()
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64) * descriptor.n_buckets + buckets
    else:
        names = [""]
        codes = buckets.astype(np.int64)
    first = codes[0]
    if (codes == first).all():
        yield TableBucket(names[int(first) // descriptor.n_buckets], int(first) % descriptor.n_buckets), rows, None
        return
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    bounds = np.flatnonzero(np.diff(ordered)) + 1
    taken = rows.take(pa.array(order))
    for begin, end in zip(np.r_[0, bounds], np.r_[bounds, len(order)], strict=True):
        code = int(ordered[begin])
        name = TableBucket(names[code // descriptor.n_buckets], code % descriptor.n_buckets)
        yield name, taken.slice(begin, end - begin), order[begin:end]
