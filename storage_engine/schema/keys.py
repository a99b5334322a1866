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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.errors import SchemaMismatch

KeyColumn = pa.Array | pa.ChunkedArray
_BYTES_MAX_32 = 2**31 - 1


@dataclass(frozen=True)
class _Cells:
    """Bytes of one field for n rows: `matrix` (n, width) uint8; `is_used` (n, width) or None when every byte counts."""

    matrix: npt.NDArray[np.uint8]
    is_used: npt.NDArray[np.bool_] | None


def encode_keys(columns: Sequence[KeyColumn]) -> pa.BinaryArray | pa.LargeBinaryArray:
    r"""Key bytes of n rows from k key columns.

    Shapes: k columns (n,) -> (n,); row i is the concatenation of the encoded values of row i. Large offsets beyond 2 GiB.
    Errors: SchemaMismatch for a null or a type that cannot be in a key.
    Cost:   a few passes over 8 bytes per integer; strings are copied once.

    >>> encode_keys([pa.array([100, 300]), pa.array(["a", "bc"])]).to_pylist()
    [b'd\x01a', b'\xac\x02\x02bc']
    """
    assert columns, "a key has at least one column"
    parts: list[pa.Array] = []
    cells: list[_Cells] = []
    for column in columns:
        array = _contiguous(column)
        if array.null_count:
            raise SchemaMismatch(
                "a key column is null", where=f"row {_first_null(array)} (from 0)", next_step="Give every key column a value."
            )
        field_cells, payload = _encode_field(array)
        cells.extend(field_cells)
        if payload is not None:
            parts += [_to_binary(cells), payload]
            cells = []
    if cells:
        parts.append(_to_binary(cells))
    return _join(parts)


def hash64(keys: pa.BinaryArray | pa.LargeBinaryArray) -> npt.NDArray[np.uint64]:
    """A 64-bit hash per key, over all its bytes and its length; not for persistence across format versions.

    Shapes: keys (n,) -> (n,). Two keys may share a hash (about n^2 / 2^65): the caller compares keys where that matters.
    """
    data, starts, lengths = byte_ranges(keys)
    hashes = _mix(lengths.astype(np.uint64) * _GOLDEN)
    if not len(starts):
        return hashes
    words = window(data, np.uint64)
    active, at, left, running = None, starts, lengths, hashes
    while len(at):
        word = words[at]
        if int(left.min()) < 8:
            word &= _LOW_BYTES[np.minimum(left, 8)]
        running = _mix((running ^ word) * _GOLDEN)
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
        array = _contiguous(column)
        if array.null_count:
            raise SchemaMismatch(
                "a key column is null", where=f"row {_first_null(array)} (from 0)", next_step="Give every key column a value."
            )
        width = _exact_bits(array.type)
        value = _integers(array).view(f"u{width // 8}").astype(np.uint64)
        packed = value if width == 64 else (packed << np.uint64(width)) | value
    return _mix(packed)


def has_exact_hash(types: Sequence[pa.DataType]) -> bool:
    """True when hash64_of gives different keys of these types different hashes: integers, dates, times of 8 bytes in all."""
    widths = [_exact_bits(data_type) for data_type in types]
    return all(widths) and sum(widths) <= 64


def byte_ranges(keys: pa.BinaryArray | pa.LargeBinaryArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The data bytes of a binary array, padded by 8, with start and length of each row."""
    _, offsets_buffer, data_buffer = keys.buffers()
    assert keys.null_count == 0, "keys are never null"
    width = np.int64 if pa.types.is_large_binary(keys.type) else np.int32
    if len(keys) == 0 or offsets_buffer is None:
        return np.zeros(8, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64)
    offsets = np.frombuffer(offsets_buffer, width, len(keys) + 1, keys.offset * np.dtype(width).itemsize).astype(np.int64)
    n_bytes = int(offsets[-1] - offsets[0])
    data = np.empty(n_bytes + 8, np.uint8)
    data[n_bytes:] = 0
    if n_bytes:
        data[:n_bytes] = np.frombuffer(data_buffer, np.uint8, n_bytes, int(offsets[0]))
    return data, offsets[:-1] - offsets[0], np.diff(offsets)


def window(data: npt.NDArray[np.uint8], word: type[np.uint32] | type[np.uint64]) -> npt.NDArray:
    """Every little-endian word of the bytes, one per byte position (overlapping, unaligned): index it with start positions."""
    size = np.dtype(word).itemsize
    return np.ndarray((len(data) - size + 1,), np.dtype(word).newbyteorder("<"), buffer=data, strides=(1,))


# integers, and the fields of a key

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LOW_BYTES = np.array([(1 << (8 * n)) - 1 for n in range(8)] + [(1 << 64) - 1], np.uint64)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
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


def _contiguous(column: KeyColumn) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return (
            column.chunk(0)
            if column.num_chunks == 1
            else pa.concat_arrays(column.chunks)
            if column.num_chunks
            else pa.array([], column.type)
        )
    return column


def _first_null(array: pa.Array) -> int:
    return pc.index(pc.is_null(array), pa.scalar(True)).as_py()  # noqa: FBT003 - a scalar, not a flag


def _encode_field(array: pa.Array) -> tuple[list[_Cells], pa.Array | None]:
    """The cells of a field and, for lengths followed by bytes, the bytes as a binary array."""
    kind = array.type
    if pa.types.is_int64(kind):
        return [_varint(_integers(array).view(np.uint64))], None
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        payload = array.cast(pa.large_binary() if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) else pa.binary())
        return [_varint(pc.binary_length(payload).to_numpy(zero_copy_only=False).astype(np.uint32))], payload
    if pa.types.is_int32(kind) or pa.types.is_date32(kind):
        return [_varint(_integers(array).view(np.uint32))], None
    if pa.types.is_time32(kind):
        return [_varint(_integers(array.cast(pa.time32("ms"))).view(np.uint32))], None
    if pa.types.is_boolean(kind):
        return [_Cells(array.cast(pa.uint8()).to_numpy(zero_copy_only=False).reshape(-1, 1), None)], None
    if pa.types.is_int8(kind) or pa.types.is_int16(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind):
        width = kind.bit_width // 8
        values = (
            np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width) if len(array) else np.zeros(0, np.uint8)
        )
        return [_Cells(values.reshape(-1, width), None)], None
    if pa.types.is_timestamp(kind):
        return _timestamp_cells(array), None
    if pa.types.is_decimal128(kind):
        return _decimal_cells(array, kind.precision), None
    raise SchemaMismatch(
        f"a column of type {kind} cannot be in a key", where="key", next_step="Use strings, bytes, numbers, dates or times."
    )


def _timestamp_cells(array: pa.Array) -> list[_Cells]:
    values = _integers(array)
    if array.type.unit == "ms":
        return [_varint(values.view(np.uint64))]
    assert array.type.unit == "us", f"a table has timestamps in ms or us, not {array.type.unit}"
    millis = np.floor_divide(values, 1000)
    return [_varint(millis.view(np.uint64)), _varint(((values - millis * 1000) * 1000).astype(np.uint32))]


def _decimal_cells(array: pa.Array, precision: int) -> list[_Cells]:
    n = len(array)
    raw = np.frombuffer(array.buffers()[1], np.uint8, n * 16, array.offset * 16).reshape(n, 16) if n else np.zeros((0, 16), np.uint8)
    if precision <= 18:
        return [_varint(np.ascontiguousarray(raw[:, :8]).view(np.uint64).reshape(n))]
    big_endian = raw[:, ::-1]
    sign = np.where(big_endian[:, :1] > 127, np.uint8(255), np.uint8(0))
    is_padding = (big_endian[:, :-1] == sign) & ((big_endian[:, 1:] > 127) == (sign > 127))
    n_padding = np.logical_and.accumulate(is_padding, axis=1).sum(axis=1)
    is_used = np.arange(16) >= n_padding[:, None]
    return [_varint((16 - n_padding).astype(np.uint32)), _Cells(big_endian, is_used)]


def _varint(values: npt.NDArray) -> _Cells:
    """Unsigned LEB128 of 32- or 64-bit patterns."""
    n = len(values)
    largest = int(values.max()) if n else 0
    width = max((largest.bit_length() + 6) // 7, 1)
    if width == 1:
        return _Cells(values.astype(np.uint8).reshape(n, 1), None)
    matrix = np.empty((n, width), np.uint8)
    is_used = np.empty((n, width), np.bool_)
    is_used[:, 0] = True
    rest = values
    for position in range(width):
        low = rest.astype(np.uint8)
        if position + 1 < width:
            rest = rest >> values.dtype.type(7)
            has_more = rest != 0
            is_used[:, position + 1] = has_more
            matrix[:, position] = (low & np.uint8(0x7F)) | (has_more.view(np.uint8) << np.uint8(7))
        else:
            matrix[:, position] = low
    return _Cells(matrix, None if is_used[:, -1].all() else is_used)


def _to_binary(cells: list[_Cells]) -> pa.Array:
    """Adjacent cells side by side, unused bytes squeezed out, as one binary array."""
    matrix = cells[0].matrix if len(cells) == 1 else np.concatenate([cell.matrix for cell in cells], axis=1)
    n, width = matrix.shape
    if all(cell.is_used is None for cell in cells):
        offsets = np.arange(0, (n + 1) * width, width, dtype=np.int64)[: n + 1]
        data = np.ascontiguousarray(matrix).reshape(-1)
    else:
        is_used = [np.ones(cell.matrix.shape, np.bool_) if cell.is_used is None else cell.is_used for cell in cells]
        used = is_used[0] if len(is_used) == 1 else np.concatenate(is_used, axis=1)
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(np.count_nonzero(used, axis=1), out=offsets[1:])
        data = matrix[used]
    is_large = offsets[-1] > _BYTES_MAX_32
    kind = pa.large_binary() if is_large else pa.binary()
    return pa.Array.from_buffers(kind, n, [None, pa.py_buffer(offsets if is_large else offsets.astype(np.int32)), pa.py_buffer(data)])


def _join(parts: list[pa.Array]) -> pa.Array:
    if len(parts) == 1:
        return parts[0]
    if sum(part.nbytes for part in parts) > _BYTES_MAX_32 or any(pa.types.is_large_binary(part.type) for part in parts):
        parts = [part.cast(pa.large_binary()) for part in parts]
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", parts[0].type))
