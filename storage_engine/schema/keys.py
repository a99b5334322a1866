"""Keys: key columns to key bytes, and keys to 64-bit hashes. Column-wise; no loop over rows.

Pure. Source: Fluss's compacted key encoding (CompactedKeyEncoder.java): the columns in order, each self-delimiting, no nulls.
    BOOLEAN, TINYINT  1 byte                    SMALLINT       2 bytes, little endian
    INT, DATE, TIME   varint of the 32-bit pattern (negatives take 5 bytes)
    BIGINT, DECIMAL(p <= 18), TIMESTAMP(p <= 3)  varint of the 64-bit pattern (at most 10 bytes)
    TIMESTAMP(p > 3)  varint of milliseconds, varint of the nanoseconds within the millisecond
    FLOAT, DOUBLE     4 or 8 bytes, little endian
    STRING, BYTES, DECIMAL(p > 18)  varint length, then the bytes
Holds: the encoding of a prefix of the columns is a prefix of the encoding, and only of those keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.errors import SchemaMismatch
from storage_engine.schema.words import WORD, Field, byte_ranges, bytes_field, lay_out, varint_field, window

KeyColumn: TypeAlias = "pa.Array | pa.ChunkedArray"

_BLOCK_ROWS = 16_384  # temporaries of a block stay in the cache and below the size at which malloc maps fresh pages
_BYTES_MAX_32 = 2**31 - 1


def encode_keys(columns: Sequence[KeyColumn]) -> pa.BinaryArray | pa.LargeBinaryArray:
    r"""Key bytes of n rows from k key columns.

    Shapes: k columns (n,) -> (n,); row i is the concatenation of the encoded values of row i. Large offsets beyond 2 GiB.
    Errors: SchemaMismatch for a null or a type that cannot be in a key.
    Cost:   a few passes over 8 bytes per integer; strings are copied once.

    >>> encode_keys([pa.array([100, 300]), pa.array(["a", "bc"])]).to_pylist()
    [b'd\x01a', b'\xac\x02\x02bc']
    """
    assert columns, "a key has at least one column"
    arrays = [_without_nulls(column) for column in columns]
    starts = range(0, max(len(arrays[0]), 1), _BLOCK_ROWS)
    return _concatenated([_encode_block([array.slice(start, _BLOCK_ROWS) for array in arrays]) for start in starts])


def _encode_block(arrays: Sequence[pa.Array]) -> pa.Array:
    parts: list[pa.Array] = []
    fields: list[Field] = []
    for array in arrays:
        if not _has_bytes(array.type):
            fields += _number_fields(array)
            continue
        payload = _as_binary(array)
        fields.append(varint_field(pc.binary_length(payload).to_numpy(zero_copy_only=False).astype(np.uint32)))
        parts += [lay_out(fields), payload]
        fields = []
    if fields:
        parts.append(lay_out(fields))
    if len(parts) == 1:
        return parts[0]
    parts = _with_one_width(parts)
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", parts[0].type))


def _concatenated(blocks: list[pa.Array]) -> pa.Array:
    return blocks[0] if len(blocks) == 1 else pa.concat_arrays(_with_one_width(blocks))


def _with_one_width(parts: list[pa.Array]) -> list[pa.Array]:
    """The arrays with 32-bit offsets, or all with 64-bit offsets where their bytes together need it."""
    if sum(part.nbytes for part in parts) <= _BYTES_MAX_32 and not any(pa.types.is_large_binary(part.type) for part in parts):
        return parts
    return [part.cast(pa.large_binary()) for part in parts]


def hash64(keys: pa.BinaryArray | pa.LargeBinaryArray) -> npt.NDArray[np.uint64]:
    """A 64-bit hash per key, over all its bytes and its length; not for persistence across format versions.

    Shapes: keys (n,) -> (n,). Two keys may share a hash (about n^2 / 2^65): the caller compares keys where that matters.
    """
    data, starts, lengths = byte_ranges(keys)
    hashes = mix64(lengths.astype(np.uint64) * _GOLDEN)
    if not len(starts):
        return hashes
    words = window(data, np.uint64)
    active, at, left, running = None, starts, lengths, hashes
    while len(at):
        word = words[at]
        if int(left.min()) < 8:
            word &= _LOW_BYTES[np.minimum(left, 8)]
        running = mix64((running ^ word) * _GOLDEN)
        if active is None:
            hashes = running
        else:
            hashes[active] = running
        more = np.flatnonzero(left > 8)
        active = more if active is None else active[more]
        at, left, running = at[more] + 8, left[more] - 8, running[more]
    return hashes


def hash64_of(columns: Sequence[KeyColumn]) -> npt.NDArray[np.uint64]:
    """The hash of each row's key, from its columns: one-to-one where has_exact_hash(types), else hash64(encode_keys(columns)).

    Meaning: a table's key types decide which form is used, so hashes of one table always compare.
    """
    if not has_exact_hash([column.type for column in columns]):
        return hash64(encode_keys(columns))
    packed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        array = _without_nulls(column)
        width = _exact_bits(array.type)
        value = _integers(array).view(f"u{width // 8}").astype(np.uint64)
        packed = value if width == 64 else (packed << np.uint64(width)) | value
    return mix64(packed)


def has_exact_hash(types: Sequence[pa.DataType]) -> bool:
    """True when hash64_of gives different keys of these types different hashes: integers, dates, times of 8 bytes in all."""
    widths = [_exact_bits(data_type) for data_type in types]
    return all(widths) and sum(widths) <= 64


# integers, and the fields of a key

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LOW_BYTES = np.array([(1 << (8 * n)) - 1 for n in range(8)] + [(1 << 64) - 1], np.uint64)


def mix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finalizer: one-to-one on 64 bits."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _exact_bits(data_type: pa.DataType) -> int:
    """Bits of a type that hash64_of packs as it is; 0 for all others."""
    if pa.types.is_integer(data_type) or pa.types.is_date32(data_type) or pa.types.is_time32(data_type) or pa.types.is_timestamp(data_type):
        return data_type.bit_width
    return 0


def _integers(array: pa.Array) -> npt.NDArray:
    """The values of an integer-like array as a numpy view."""
    dtype = np.dtype(f"i{array.type.bit_width // 8}")
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize) if len(array) else np.zeros(0, dtype)


def _without_nulls(column: KeyColumn) -> pa.Array:
    """The column as one array."""
    if isinstance(column, pa.ChunkedArray):
        chunks = column.chunks
        column = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
    if column.null_count:
        row = pc.index(pc.is_null(column), pa.scalar(True)).as_py()  # noqa: FBT003 - a scalar, not a flag
        raise SchemaMismatch("a key column is null", where=f"row {row} (from 0)", next_step="Give every key column a value.")
    return column


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)


def _as_binary(array: pa.Array) -> pa.Array:
    is_large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    return array.cast(pa.large_binary() if is_large else pa.binary())


def _number_fields(array: pa.Array) -> list[Field]:
    kind = array.type
    if pa.types.is_int64(kind):
        return [varint_field(_integers(array).view(np.uint64))]
    if pa.types.is_int32(kind) or pa.types.is_date32(kind) or (pa.types.is_time32(kind) and kind.unit == "ms"):
        return [varint_field(_integers(array).view(np.uint32))]
    if pa.types.is_boolean(kind):
        return [Field([array.cast(pa.uint8()).to_numpy(zero_copy_only=False).astype(np.uint64)], 1)]
    if pa.types.is_int8(kind) or pa.types.is_int16(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind):
        width = kind.bit_width // 8
        return [Field([_integers(array).view(f"u{width}").astype(np.uint64)], width)]
    if pa.types.is_timestamp(kind):
        return _timestamp_fields(array)
    if pa.types.is_decimal128(kind):
        return _decimal_fields(array, kind.precision)
    raise SchemaMismatch(
        f"a column of type {kind} cannot be in a key", where="key", next_step="Use strings, bytes, numbers, dates or times."
    )


def _timestamp_fields(array: pa.Array) -> list[Field]:
    values = _integers(array)
    if array.type.unit == "ms":
        return [varint_field(values.view(np.uint64))]
    assert array.type.unit == "us", f"a table has timestamps in ms or us, not {array.type.unit}"
    millis = np.floor_divide(values, 1000)
    return [varint_field(millis.view(np.uint64)), varint_field(((values - millis * 1000) * 1000).astype(np.uint32))]


def _decimal_fields(array: pa.Array, precision: int) -> list[Field]:
    n = len(array)
    raw = np.frombuffer(array.buffers()[1], np.uint8, n * 16, array.offset * 16).reshape(n, 16) if n else np.zeros((0, 16), np.uint8)
    if precision <= 18:
        return [varint_field(np.ascontiguousarray(raw[:, :8]).view(np.uint64).reshape(n))]
    big_endian = raw[:, ::-1]
    sign = np.where(big_endian[:, :1] > 127, np.uint8(255), np.uint8(0))
    is_padding = (big_endian[:, :-1] == sign) & ((big_endian[:, 1:] > 127) == (sign > 127))
    n_padding = np.logical_and.accumulate(is_padding, axis=1).sum(axis=1)
    data = np.concatenate([big_endian.reshape(-1), np.zeros(WORD, np.uint8)])
    field = bytes_field(data, np.arange(0, 16 * n, 16) + n_padding, 16 - n_padding)
    return [varint_field((16 - n_padding).astype(np.uint32)), field]
