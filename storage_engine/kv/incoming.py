"""Incoming: the rows of an upsert with each key once, their keys and the hashes by which a bucket knows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from storage_engine.kv.batch import combine, group_keys
from storage_engine.kv.columns import contiguous, key_columns, take
from storage_engine.kv.key_index import Hashes, nonzero
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.integer_keys import integer_hashes
from storage_engine.schema.keys import encode_keys, hash64

HashKeys = Callable[[pa.Array], Hashes]


class IntegerKeys:
    """Encoded keys of an integer column, made one by one: only keys whose hash another key has are asked for."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column

    def __getitem__(self, row: int) -> pa.Scalar:
        return encode_keys([self._column.slice(row, 1)])[0]


Keys = pa.Array | IntegerKeys


def distinct_rows(
    descriptor: TableDescriptor, rows: pa.Table, targets: Sequence[str] | None, hash_keys: HashKeys, keys: pa.Array | None = None
) -> tuple[pa.Table, Keys, Hashes]:
    """The rows with each key once, as combine() leaves them; their keys and hashes. `keys` are the encoded keys, where known.

    Cost: integer keys are grouped and hashed as integers: half the time.
    """
    names = descriptor.physical_primary_key
    if keys is None and len(names) == 1 and hash_keys is hash64:
        column = contiguous(rows, names[0])
        hashes = integer_hashes(column)
        if hashes is not None:
            hashes = nonzero(hashes)
            incoming, chosen = combine(descriptor, rows, targets, groups=group_keys(column, hashes))
            if chosen is not None:
                column, hashes = take(column, chosen), hashes[chosen]
            return incoming, IntegerKeys(column), hashes
    if keys is None:
        keys = encode_keys(key_columns(rows, names))
    hashes = nonzero(hash_keys(keys))
    incoming, chosen = combine(descriptor, rows, targets, groups=group_keys(keys, hashes))
    if chosen is not None:
        keys, hashes = take(keys, chosen), hashes[chosen]
    return incoming, keys, hashes
