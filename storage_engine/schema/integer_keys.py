"""Integer keys: hash and order of keys of one INT or BIGINT column straight from its values, without their bytes being laid out.

Pure. Holds: integer_hashes(values) == hash64(encode_keys([values])), and integer_ranks(values) are ordered as encode_keys([values]) is,
for values that take at most eight bytes as a varint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage_engine.schema.keys import mix64
from storage_engine.schema.words import spread_septets

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_VARINT_BYTES = 8
_TOO_LARGE = 1 << (7 * _VARINT_BYTES)
_SHIFTS = np.arange(0, 7 * _VARINT_BYTES, 7, dtype=np.uint64)
_SEVEN_BITS = np.uint64(0x7F)
_GROWS_AT = np.array([1 << (7 * n) for n in range(1, _VARINT_BYTES)], np.uint64)  # smallest value of n + 1 bytes
_LENGTHS = np.arange(1, _VARINT_BYTES + 1, dtype=np.uint64)
_MORE = np.array([sum(0x80 << (8 * byte) for byte in range(n)) for n in range(_VARINT_BYTES)], np.uint64)  # "another byte follows"
_MANY = 1000
_BYTE = np.uint64(8)
_CARRIES, _FIRST_BITS = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x8080808080808080)
_STARTS = mix64(_LENGTHS * _GOLDEN)


def integer_hashes(array: pa.Array) -> npt.NDArray[np.uint64] | None:
    """hash64 of the keys that n integers are; None for another type, a null, a negative or a very large value.

    Shapes: (n,) int32 or int64 -> (n,). Cost: a dozen passes, a tenth of encoding and hashing many.
    """
    words = _words(array)
    if words is None:
        return None
    word, n_more = words
    word ^= _STARTS.take(n_more)
    word *= _GOLDEN
    return mix64(word)


def integer_ranks(array: pa.Array) -> npt.NDArray[np.uint64] | None:
    """Numbers that compare as the encoded keys that n integers are; None as integer_hashes().

    Shapes: (n,) int32 or int64 -> (n,). No varint is the beginning of another, so that what stands behind its end decides nothing.
    """
    words = _words(array)
    return None if words is None else words[0].byteswap(inplace=True)


def _words(array: pa.Array) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any]] | None:
    """The varint of each integer, its first byte lowest, and its bytes behind the first; None as integer_hashes()."""
    n = len(array)
    if n == 0 or array.null_count or not (pa.types.is_int64(array.type) or pa.types.is_int32(array.type)):
        return None
    width = array.type.bit_width // 8
    values = np.frombuffer(array.buffers()[1], f"u{width}", n, array.offset * width)
    if width == 4:
        if int(values.max()) >= 1 << 31:
            return None
        values = values.astype(np.uint64)
    elif int(values.max()) >= _TOO_LARGE:  # a negative value is one, too
        return None
    if n < _MANY:  # fewer calls
        n_more = _GROWS_AT.searchsorted(values, side="right")
        septets = (values[:, None] >> _SHIFTS & _SEVEN_BITS).astype(np.uint8)
        word = septets.view(np.uint64).reshape(n)
        word |= _MORE.take(n_more)
    else:  # fewer bytes: a third of the time
        word = spread_septets(values)
        more = word >> _BYTE
        for shift in (_BYTE, 2 * _BYTE, 4 * _BYTE):
            more |= more >> shift  # a byte is not zero where one above it is not
        more += _CARRIES  # sets the first bit of those: no byte is more than 127
        more &= _FIRST_BITS
        word |= more
        n_more = np.bitwise_count(more)
    return word, n_more
