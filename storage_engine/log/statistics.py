"""Statistics: least and greatest value and number of nulls per column of a frame, as the block that stands before its message.

    0  crc32c of bytes 4..n   4  n (u32, multiple of 8)   8  number of entries (u32)   12  zero     then 16 bytes per entry, then values
    entry: field id (i32)  nulls (u32)  kind (u8)  scale (u8)  bytes of low (u8)  bytes of high (u8)  where both lie in the block (u32)

Kinds: 0 no values · 1 integer, boolean, date (i64) · 2 float (f64; scale 1: NaNs are among the values and not counted in low and high)
       3 decimal (i128, unscaled) · 4 text, cut to TEXT_BYTES_MAX: low to a prefix, high then raised in its last byte
       5 time (i64, 10**-scale s)
Holds: every value of the column but null and NaN lies in low..high, ends included. The block has a checksum of its own, so that a
       frame is skipped without its payload being read; it lies under the payload's as well.
Never: decides what may be skipped (schema/skipping.py).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from storage_engine.errors import DamagedFrame
from storage_engine.schema.skipping import ColumnRange, unit_digits

TEXT_BYTES_MAX: Final = 32
_HEAD: Final = struct.Struct("<IIII")
_ENTRY: Final = struct.Struct("<iIBBBBI")
_LENGTH_AT: Final = 4
_NONE, _INTEGER, _FLOAT, _DECIMAL, _TEXT, _TIME = range(6)


def encode_statistics(batch: pa.RecordBatch, columns: Sequence[tuple[str, int]]) -> bytes:
    """The block of a batch for (name, field id) of some of its columns. Cost: one pass per column, no copy."""
    entries: list[tuple[int, int, int, int, bytes, bytes]] = []
    for name, field_id in columns:
        column = batch.column(name)
        kind, scale, low, high = _extremes(column)
        entries.append((field_id, column.null_count, kind, scale, low, high))
    at = _HEAD.size + _ENTRY.size * len(entries)
    parts: list[bytes] = []
    values: list[bytes] = []
    for field_id, n_nulls, kind, scale, low, high in entries:
        parts.append(_ENTRY.pack(field_id, n_nulls, kind, scale, len(low), len(high), at))
        values += [low, high]
        at += len(low) + len(high)
    body = b"".join([*parts, *values])
    n_bytes = _HEAD.size + len(body) + (-len(body) % 8)
    checked = struct.pack("<III", n_bytes, len(entries), 0) + body + bytes(-len(body) % 8)
    return google_crc32c.value(checked).to_bytes(4, "little") + checked


def statistics_bytes(frame: pa.Buffer, at: int) -> int:
    """The length of the block that begins at byte `at` of a frame, 0 when there cannot be one."""
    if at + _HEAD.size > frame.size:
        return 0
    n_bytes = int.from_bytes(frame.slice(at + _LENGTH_AT, 4).to_pybytes(), "little")
    return n_bytes if _HEAD.size <= n_bytes <= frame.size - at and n_bytes % 8 == 0 else 0


def decode_statistics(block: pa.Buffer, n_rows: int, fields: Mapping[int, str]) -> dict[str, ColumnRange]:
    """The ranges of the columns named in `fields` (field id -> name) that the block has, of a frame of `n_rows` rows.

    Errors: DamagedFrame when the block does not match its checksum.
    """
    data = block.to_pybytes()
    if google_crc32c.value(data[4:]) != int.from_bytes(data[:4], "little"):
        raise DamagedFrame(
            "a frame's statistics do not match their checksum",
            where="statistics",
            next_step="Restore the file from a copy; run a check of the whole store to learn what else is damaged.",
        )
    n_entries = _HEAD.unpack_from(data)[2]
    ranges: dict[str, ColumnRange] = {}
    for number in range(n_entries):
        field_id, n_nulls, kind, scale, n_low, n_high, at = _ENTRY.unpack_from(data, _HEAD.size + _ENTRY.size * number)
        name = fields.get(field_id)
        if name is not None:
            low, high = data[at : at + n_low], data[at + n_low : at + n_low + n_high]
            ranges[name] = _range(n_rows, n_nulls, kind, scale, low, high)
    return ranges


def _kind(data_type: pa.DataType) -> int:
    if types.is_integer(data_type) or types.is_boolean(data_type) or types.is_date32(data_type):
        return _INTEGER
    if types.is_floating(data_type):
        return _FLOAT
    if types.is_decimal128(data_type):
        return _DECIMAL
    if types.is_string(data_type):
        return _TEXT
    return _TIME if types.is_timestamp(data_type) or types.is_time(data_type) else _NONE


def _extremes(column: pa.Array) -> tuple[int, int, bytes, bytes]:
    """Kind, scale, low and high of a column as they are stored."""
    kind, scale = _kind(column.type), 0
    if kind == _NONE or column.null_count == len(column):
        return _NONE, 0, b"", b""
    if kind == _TIME:
        scale = unit_digits(column.type)
        column = column.view(pa.int32() if types.is_time32(column.type) else pa.int64())
    elif types.is_date32(column.type):
        column = column.view(pa.int32())
    elif kind == _FLOAT:
        scale = int(pc.any(pc.is_nan(column)).as_py())
    extremes = pc.min_max(column)
    low, high = extremes["min"].as_py(), extremes["max"].as_py()
    match kind:
        case 2:
            if low != low:  # nothing but NaN: an empty range
                low, high = float("inf"), float("-inf")
            return kind, scale, struct.pack("<d", low), struct.pack("<d", high)
        case 3:
            return kind, column.type.scale, _unscaled(low), _unscaled(high)
        case 4:
            text = _raised(high.encode())
            return (kind, 0, low.encode()[:TEXT_BYTES_MAX], text) if text is not None else (_NONE, 0, b"", b"")
        case _:
            return kind, scale, struct.pack("<q", low), struct.pack("<q", high)


def _raised(text: bytes) -> bytes | None:
    """A short text that is not less than `text`; None when there is none (the cut part has only bytes 255: never in UTF-8)."""
    if len(text) <= TEXT_BYTES_MAX:
        return text
    cut = text[:TEXT_BYTES_MAX]
    return None if cut[-1] == 0xFF else cut[:-1] + bytes([cut[-1] + 1])


def _unscaled(value: Decimal) -> bytes:
    sign, digits, _ = value.as_tuple()
    number = int("".join(map(str, digits)))
    return (-number if sign else number).to_bytes(16, "little", signed=True)


def _range(n_rows: int, n_nulls: int, kind: int, scale: int, low: bytes, high: bytes) -> ColumnRange:
    match kind:
        case 1:
            return ColumnRange(n_rows, n_nulls, "number", *struct.unpack("<qq", low + high))
        case 2:
            return ColumnRange(n_rows, n_nulls, "number", *struct.unpack("<dd", low + high), has_nan=scale == 1)
        case 3:
            return ColumnRange(n_rows, n_nulls, "number", _decimal(low, scale), _decimal(high, scale))
        case 4:
            return ColumnRange(n_rows, n_nulls, "text", low, high)
        case 5:
            first, last = struct.unpack("<qq", low + high)
            return ColumnRange(n_rows, n_nulls, "time", first * 10 ** (9 - scale), last * 10 ** (9 - scale))
        case _:
            return ColumnRange(n_rows, n_nulls, "none", None, None)


def _decimal(stored: bytes, scale: int) -> Decimal:
    number = int.from_bytes(stored, "little", signed=True)
    return Decimal((int(number < 0), tuple(map(int, str(abs(number)))), -scale))
