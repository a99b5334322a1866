"""Routing: which partition and bucket each row goes to, and the rows cut accordingly.

Pure: takes rows and what is known of a table, returns slices. Order inside a bucket is the order of the batch.
Source: buckets by Fluss's hash of the bucket key (schema/bucketing.py), over as many buckets as the row's partition has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.schema.bucketing import bucket_ids
from storage_engine.schema.descriptor import TableBucket, TableDescriptor
from storage_engine.schema.keys import encode_keys
from storage_engine.schema.partitions import partition_names

NO_COUNTS: Mapping[str, int] = MappingProxyType({})


def column_array(rows: pa.Table, name: str) -> pa.Array:
    """One column as one contiguous array."""
    column = rows[name]
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def key_arrays(rows: pa.Table, names: tuple[str, ...]) -> list[pa.Array]:
    """The columns of the names (n,), each one contiguous array."""
    return [column_array(rows, name) for name in names]


def bucket_of_rows(
    descriptor: TableDescriptor, rows: pa.Table, n_buckets: int | np.ndarray, turn: int = 0, keys: pa.Array | None = None
) -> np.ndarray:
    """Bucket of each row, int32 (n,). A table without a bucket key puts the whole batch into one bucket, the next one each `turn`.

    Shapes: rows (n,); n_buckets is one number, or one per row (n,); `keys` (n,) are the encoded bucket keys, where the caller has them.
    """
    if descriptor.bucket_keys and not (isinstance(n_buckets, int) and n_buckets == 1):
        return bucket_ids(encode_keys(key_arrays(rows, descriptor.bucket_keys)) if keys is None else keys, n_buckets)
    return np.broadcast_to(np.asarray(turn % n_buckets, np.int32), rows.num_rows)


def split(
    descriptor: TableDescriptor,
    rows: pa.Table,
    turn: int = 0,
    bucket_counts: Mapping[str, int] = NO_COUNTS,
    keys: pa.Array | None = None,
) -> Iterator[tuple[TableBucket, pa.Table, np.ndarray | None]]:
    """Cut rows by (partition, bucket): the bucket, its rows in batch order, and their positions in `rows` (None: all of them).

    bucket_counts  buckets of the partitions that have another number than the descriptor says
    keys           (n,) encoded bucket keys, where the caller has them
    Shapes: rows (n,); the parts' lengths add up to n. Cost: one hash pass, one stable argsort, one take.
    """
    if rows.num_rows == 0:
        return
    stride = n_buckets = bucket_counts.get("", descriptor.n_buckets)
    names, partition = [""], np.zeros(1, np.int64)
    if descriptor.partition_keys:
        encoded = pc.dictionary_encode(partition_names(column_array(rows, descriptor.partition_keys[0]), table=descriptor.name))
        names = encoded.dictionary.to_pylist()
        partition = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        counts = [bucket_counts.get(name, descriptor.n_buckets) for name in names]
        stride = max(counts)
        n_buckets = stride if min(counts) == stride else np.array(counts, np.int64)[partition]
    codes = partition * stride + bucket_of_rows(descriptor, rows, n_buckets, turn, keys)
    first = codes[0]
    if (codes == first).all():
        yield TableBucket(names[int(first) // stride], int(first) % stride), rows, None
        return
    n_codes = stride * len(names)
    order = np.argsort(codes.astype(np.uint16) if n_codes <= 1 << 16 else codes, kind="stable")  # few codes are counted, not compared
    ordered = codes[order]
    bounds = np.flatnonzero(np.diff(ordered)) + 1
    taken = rows.take(pa.array(order))
    for begin, end in zip(np.r_[0, bounds], np.r_[bounds, len(order)], strict=True):
        code = int(ordered[begin])
        yield TableBucket(names[code // stride], code % stride), taken.slice(begin, end - begin), order[begin:end]
