"""Words: bytes of many rows read and written eight at a time, so that rows of different length need no loop over rows.

Pure. Owner: schema/keys.py lays key fields side by side with lay_out(); keys and bucketing read with byte_ranges() and window().
Holds: a word written behind its field's end is overwritten by what follows, because words are written in order of their position.
       That order is numpy's for an assignment by index; tests compare it with the naive form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

WORD = 8
_BYTES_MAX_32 = 2**31 - 1


@dataclass(frozen=True)
class Field:
    """One field of n rows: `words[j]` (n,) holds its bytes 8j .. 8j + 8, little endian; `lengths` its bytes per row, or one for all."""

    words: Sequence[Words]
    lengths: Int64s | int


def lay_out(fields: Sequence[Field]) -> pa.BinaryArray | pa.LargeBinaryArray:
    """The fields of each row side by side, as one binary array; large offsets beyond 2 GiB.

    Shapes: every field (n,) -> (n,).
    Cost:   one indexed write per word and row.
    """
    n = len(fields[0].words[0])
    lengths = sum((field.lengths for field in fields), start=0)
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(np.broadcast_to(np.asarray(lengths, np.int64), n), out=offsets[1:])
    n_words = sum(len(field.words) for field in fields)
    words = np.empty((n, n_words), np.uint64)
    places = np.empty((n, n_words), np.int64)
    column, start = 0, offsets[:-1]
    for field in fields:
        for index, word in enumerate(field.words):
            words[:, column] = word
            places[:, column] = start if index == 0 else start + np.minimum(index * WORD, field.lengths)
            column += 1
        start = start + field.lengths
    data = np.empty(int(offsets[-1]) + WORD, np.uint8)
    window(data, np.uint64)[places.reshape(-1)] = words.reshape(-1)
    is_large = offsets[-1] > _BYTES_MAX_32
    kind = pa.large_binary() if is_large else pa.binary()
    buffers = [None, pa.py_buffer(offsets if is_large else offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(kind, n, buffers)


def varint_field(values: npt.NDArray[Any]) -> Field:
    """Unsigned LEB128 of 32- or 64-bit patterns: seven bits a byte, low bits first, the top bit of a byte says that more follow."""
    largest = int(values.max()) if len(values) else 0
    n_bytes_max = max((largest.bit_length() + 6) // 7, 1)
    if n_bytes_max == 1:
        return Field([values.astype(np.uint64)], 1)
    lengths = np.ones(len(values), np.int64)
    for n_bytes in range(1, n_bytes_max):
        lengths += values >= values.dtype.type(1 << (7 * n_bytes))
    wide = values.astype(np.uint64)
    low = spread_septets(wide) | _MORE[lengths]
    if n_bytes_max <= WORD:
        return Field([low], lengths)
    rest = ((wide >> np.uint64(56)) & np.uint64(0x7F)) | ((wide >> np.uint64(63)) << np.uint64(8))
    rest |= np.where(lengths == 10, np.uint64(0x80), np.uint64(0))
    return Field([low, rest], lengths)


def bytes_field(data: Bytes, starts: Int64s, lengths: Int64s) -> Field:
    """Bytes of each row, from its start; `data` is padded by 8."""
    longest = int(lengths.max()) if len(lengths) else 0
    words = window(data, np.uint64)
    last = len(words) - 1
    return Field([words[np.minimum(starts + position, last)] for position in range(0, max(longest, 1), WORD)], lengths)


def byte_ranges(array: pa.Array) -> tuple[Bytes, Int64s, Int64s]:
    """The data bytes of a binary or string array without nulls, padded by 8, with start and length of each row."""
    assert array.null_count == 0, "keys are never null"
    _, offsets_buffer, data_buffer = array.buffers()
    is_large = pa.types.is_large_binary(array.type) or pa.types.is_large_string(array.type)
    width = np.dtype(np.int64 if is_large else np.int32)
    if len(array) == 0 or offsets_buffer is None:
        return np.zeros(WORD, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64)
    offsets = np.frombuffer(offsets_buffer, width, len(array) + 1, array.offset * width.itemsize).astype(np.int64)
    n_bytes = int(offsets[-1] - offsets[0])
    data = np.empty(n_bytes + WORD, np.uint8)
    data[n_bytes:] = 0
    if n_bytes:
        data[:n_bytes] = np.frombuffer(data_buffer, np.uint8, n_bytes, int(offsets[0]))
    return data, offsets[:-1] - offsets[0], np.diff(offsets)


def window(data: Bytes, word: type[np.uint32] | type[np.uint64]) -> npt.NDArray[Any]:
    """Every little-endian word of the bytes, one per byte position (overlapping, unaligned): index it with start positions."""
    dtype = np.dtype(word).newbyteorder("<")
    return np.ndarray((len(data) - dtype.itemsize + 1,), dtype, buffer=data, strides=(1,))


# of a varint of n bytes, the marks in its first word that more bytes follow
_MORE = np.array([sum(0x80 << (8 * byte) for byte in range(min(max(n - 1, 0), WORD))) for n in range(11)], np.uint64)


def spread_septets(values: Words) -> Words:
    """The low 56 bits, seven to a byte."""
    low, high, by = (np.uint64(number) for number in (0x000000000FFFFFFF, 0x00FFFFFFF0000000, 4))
    values = (values & low) | ((values & high) << by)
    low, high, by = (np.uint64(number) for number in (0x00003FFF00003FFF, 0x0FFFC0000FFFC000, 2))
    values = (values & low) | ((values & high) << by)
    low, high, by = (np.uint64(number) for number in (0x007F007F007F007F, 0x3F803F803F803F80, 1))
    return (values & low) | ((values & high) << by)
