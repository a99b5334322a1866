"""Product: values multiplied. Null is no value.

Integers are exact or refused. A product of decimals is rounded to the column's scale, half up, after each row as in Fluss: its value
depends on the order, so a batch hands the factors of a key on as a list (factors_of), to be multiplied with the stored value in turn.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.errors import SchemaMismatch
from storage_engine.kv.key_index import Int64s


def multiplied(stored: pa.Array, incoming: pa.Array, where: str) -> pa.Array:
    """Row by row the stored value times the incoming one, in the type of `stored`.

    Shapes: (n,), (n,) -> (n,); `incoming` may be wider, or lists of factors.
    Errors: SchemaMismatch when a product leaves the column's type.
    """
    if pa.types.is_list(incoming.type):
        return _multiplied_in_turn(stored, incoming, where)
    if pa.types.is_decimal(stored.type):
        return _multiplied_decimals(stored, incoming, where)
    try:
        product = pc.multiply_checked(stored.cast(incoming.type), incoming)
        return pc.coalesce(product, stored.cast(incoming.type), incoming).cast(stored.type)
    except pa.ArrowInvalid as error:
        raise _overflow(stored.type, where) from error


def multiplied_groups(values: pa.Array, group: Int64s, n_groups: int, where: str) -> pa.Array:
    """The product of each group: int64 or float64; for decimals the factors as a list. Shapes: as in listagg.joined_groups.

    Cost: one sort, and a pass over half of the values left, log2(largest group) times.
    """
    valid = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    order = valid[np.argsort(group[valid], kind="stable")]
    count = np.bincount(group[order], minlength=n_groups)
    factors = values.take(pa.array(order))
    if pa.types.is_decimal(values.type):
        return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(count)].astype(np.int32)), factors)
    of = group[order]
    wide = factors.cast(pa.float64() if pa.types.is_floating(values.type) else pa.int64())
    if pa.types.is_int64(wide.type):
        wide = _zeroed(wide, of, n_groups)
    while len(of):
        rank = np.arange(len(of)) - np.searchsorted(of, of, side="left")
        right = np.flatnonzero(rank % 2 == 1)
        if len(right) == 0:
            break
        factor = np.ones(len(of), wide.type.to_pandas_dtype())
        factor[right - 1] = wide.to_numpy(zero_copy_only=False)[right]
        try:
            wide = pc.multiply_checked(wide, pa.array(factor))
        except pa.ArrowInvalid as error:
            raise _overflow(values.type, where) from error
        left = np.flatnonzero(rank % 2 == 0)
        wide, of = wide.take(pa.array(left)), of[left]
    position = np.cumsum(count > 0) - 1
    return wide.take(pa.array(position, mask=count == 0))


def _zeroed(factors: pa.Array, of: Int64s, n_groups: int) -> pa.Array:
    """The same factors, all zero in groups that have a zero: what precedes the zero may be too large to write down."""
    numbers = factors.to_numpy(zero_copy_only=False)
    has_zero = np.zeros(n_groups, np.bool_)
    has_zero[of[numbers == 0]] = True
    return pa.array(np.where(has_zero[of], 0, numbers))


def _multiplied_in_turn(stored: pa.Array, factors: pa.Array, where: str) -> pa.Array:
    """One pass per place in the longest list, over the rows that have a factor there."""
    offsets = factors.offsets.to_numpy()
    start, count, values = offsets[:-1], np.diff(offsets), factors.values
    for place in range(int(count.max(initial=0))):
        rows = np.flatnonzero(count > place)
        merged = _multiplied_decimals(stored.take(pa.array(rows)), values.take(pa.array(start[rows] + place)), where)
        if len(rows) == len(stored):
            stored = merged
        else:
            position = np.arange(len(stored))
            position[rows] = len(stored) + np.arange(len(rows))
            stored = pa.concat_arrays([stored, merged]).take(pa.array(position))
    return stored


def _multiplied_decimals(stored: pa.Array, incoming: pa.Array, where: str) -> pa.Array:
    data_type = stored.type
    wide = pa.decimal256(data_type.precision, data_type.scale)
    try:
        exact = pc.multiply(stored.cast(wide), incoming.cast(wide))
        product = pc.round(exact, ndigits=data_type.scale, round_mode="half_towards_infinity").cast(data_type)
    except pa.ArrowInvalid as error:
        raise _overflow(data_type, where) from error
    return pc.coalesce(product, stored, incoming)


def _overflow(data_type: pa.DataType, where: str) -> SchemaMismatch:
    return SchemaMismatch(f"a product does not fit {data_type}", where=where, next_step="Declare the column wider in a new table.")
