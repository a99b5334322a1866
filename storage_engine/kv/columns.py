"""Columns: small operations on Arrow columns that the kv room shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.kv.key_index import Bools, Int64s


def contiguous(rows: pa.Table, name: str) -> pa.Array:
    """One column as one array, without a copy when it has one chunk."""
    column = rows.column(name)
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def key_columns(rows: pa.Table, names: Sequence[str]) -> list[pa.Array]:
    """The columns of the names (n,), each one contiguous array."""
    return [contiguous(rows, name) for name in names]


def columns_differ(left: pa.Array, right: pa.Array) -> Bools:
    """True where two columns of one type differ. Two nulls are equal; floats are compared by their bits, so NaN equals NaN."""
    if pa.types.is_floating(left.type):
        bits = pa.int32() if left.type.bit_width == 32 else pa.int64()
        left, right = left.view(bits), right.view(bits)
    differ = pc.not_equal(left, right)
    if differ.null_count:
        differ = pc.or_(pc.fill_null(differ, pa.scalar(value=False)), pc.not_equal(left.is_null(), right.is_null()))
    return differ.to_numpy(zero_copy_only=False)


def aligned(column: pa.Array, found: Bools) -> pa.Array:
    """Spread (m,) values over the n rows where `found`; null elsewhere. m is the number of found rows."""
    if len(column) == len(found):
        return column
    if len(column) == 0:
        return pa.nulls(len(found), column.type)
    return column.take(pa.array(np.cumsum(found) - 1, mask=~found))


def take(column: pa.Array, positions: Int64s) -> pa.Array:
    """The values at positions (n,) of a column."""
    return column.take(pa.array(positions))
