"""Single: one key encoded and hashed in plain Python, equal to what schema/keys.py does for columns. A column of one row costs more.

Pure. Holds: for every key, encode_key == encode_keys of one row and hash_key == nonzero(hash64); other types answer None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import types

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def encode_key(values: Sequence[Any], kinds: Sequence[pa.DataType]) -> bytes | None:
    r"""Key bytes of one key of INT, BIGINT, STRING and BYTES columns; None when a value is null or of another type.

    >>> encode_key([300, "bc"], [pa.int64(), pa.string()])
    b'\xac\x02\x02bc'
    """
    parts: list[bytes] = []
    for value, kind in zip(values, kinds, strict=True):
        if value is None:
            return None
        if types.is_int64(kind):
            parts.append(_varint(value & _MASK))
        elif types.is_int32(kind):
            parts.append(_varint(value & 0xFFFFFFFF))
        elif types.is_string(kind) or types.is_binary(kind):
            payload = value.encode() if isinstance(value, str) else value
            parts += [_varint(len(payload)), payload]
        else:
            return None
    return b"".join(parts)


def hash_key(key: bytes) -> int:
    """The index hash of an encoded key."""
    running = _mix(len(key) * _GOLDEN & _MASK)
    for start in range(0, max(len(key), 1), 8):
        running = _mix((running ^ int.from_bytes(key[start : start + 8], "little")) * _GOLDEN & _MASK)
    return max(running, 1)


def _mix(value: int) -> int:
    value ^= value >> 30
    value = value * 0xBF58476D1CE4E5B9 & _MASK
    value ^= value >> 27
    value = value * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
