"""Bucketing: the bucket of a key, as Fluss chooses it for tables without a lake format. Column-wise; no loop over rows.

Pure. Source: FlussBucketingFunction.java, MurmurHashUtils.java: h = murmur3_32(key, seed 42) in the Flink form (each byte beyond
the last whole 4-byte block is sign-extended and mixed as a block of its own), then |murmur3_32(h as 4 bytes, seed 0)| modulo the
number of buckets, where the smallest int counts as 0.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage_engine.schema.words import byte_ranges, window

_SEED = 42
_U32 = 0xFFFFFFFF
_C1, _C2, _C3 = np.uint32(0xCC9E2D51), np.uint32(0x1B873593), np.uint32(0xE6546B64)


def bucket_ids(keys: pa.BinaryArray | pa.LargeBinaryArray, n_buckets: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    r"""The bucket of each encoded bucket key (keys.encode_keys).

    Shapes: keys (n,), no nulls -> (n,) in [0, n_buckets); n_buckets is one number, or one per key (n,).
    Cost:   one pass per 4 bytes of the longest key, over the rows that are that long.

    >>> bucket_ids(pa.array([b"\x00\x0a", b"\x00\x0a\x0a\x0a"]), 7).tolist()
    [1, 2]
    """
    assert np.min(n_buckets, initial=1) >= 1, f"n_buckets is {n_buckets}"
    if isinstance(n_buckets, int) and n_buckets == 1:
        return np.zeros(len(keys), np.int32)
    hashes = _finish(_mix(np.zeros(len(keys), np.uint32), murmur(keys)), np.uint32(4)).view(np.int32).astype(np.int64)
    np.abs(hashes, out=hashes)
    hashes[hashes == 2**31] = 0
    return (hashes % n_buckets).astype(np.int32)


def bucket_of_key(key: bytes, n_buckets: int) -> int:
    r"""As bucket_ids(), for one key in plain Python: an array of one row costs more.

    >>> bucket_of_key(b"\x00\x0a\x0a\x0a", 7)
    2
    """
    if n_buckets == 1:
        return 0
    n_whole = len(key) & ~3
    blocks = [int.from_bytes(key[at : at + 4], "little") for at in range(0, n_whole, 4)]
    blocks += [byte - 256 if byte > 127 else byte for byte in key[n_whole:]]
    value = _finish_one(_mix_one(0, _finish_one(functools.reduce(_mix_one, blocks, _SEED), len(key))), 4)
    signed = abs(value - (1 << 32) if value >> 31 else value)
    return 0 if signed == 1 << 31 else signed % n_buckets


def _mix_one(running: int, block: int) -> int:
    block = block * 0xCC9E2D51 & _U32
    block = (block << 15 | block >> 17) * 0x1B873593 & _U32
    running ^= block
    return ((running << 13 | running >> 19) * 5 + 0xE6546B64) & _U32


def _finish_one(value: int, length: int) -> int:
    value ^= length
    value = (value ^ value >> 16) * 0x85EBCA6B & _U32
    value = (value ^ value >> 13) * 0xC2B2AE35 & _U32
    return value ^ value >> 16


def murmur(keys: pa.BinaryArray | pa.LargeBinaryArray, seed: int = _SEED) -> npt.NDArray[np.uint32]:
    """Flink's murmur3_32 of each key: whole little-endian blocks, then up to three tail bytes as signed blocks."""
    data, starts, lengths = byte_ranges(keys)
    n = len(starts)
    hashes = np.full(n, seed & 0xFFFFFFFF, np.uint32)
    if n == 0:
        return hashes
    shortest, longest = int(lengths.min()), int(lengths.max())
    words = window(data, np.uint32)
    for block in range(shortest >> 2):
        hashes = _mix(hashes, words[starts + 4 * block])
    for block in range(shortest >> 2, longest >> 2):
        rows = np.flatnonzero(lengths >= 4 * (block + 1))
        hashes[rows] = _mix(hashes[rows], words[starts[rows] + 4 * block])
    n_tail = lengths & 3
    tails = starts + (lengths - n_tail)
    signed = data.view(np.int8)
    for position in range(int(n_tail.max())):
        rows = np.flatnonzero(n_tail > position)
        if len(rows) == n:
            hashes = _mix(hashes, signed[tails + position].astype(np.int32).view(np.uint32))
        else:
            hashes[rows] = _mix(hashes[rows], signed[tails[rows] + position].astype(np.int32).view(np.uint32))
    return _finish(hashes, lengths.astype(np.uint32))


def _rotated(values: npt.NDArray[np.uint32], by: int) -> npt.NDArray[np.uint32]:
    return (values << np.uint32(by)) | (values >> np.uint32(32 - by))


def _mix(hashes: npt.NDArray[np.uint32], block: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return _rotated(hashes ^ (_rotated(block * _C1, 15) * _C2), 13) * np.uint32(5) + _C3


def _finish(hashes: npt.NDArray[np.uint32], length: npt.NDArray[np.uint32] | np.uint32) -> npt.NDArray[np.uint32]:
    hashes = hashes ^ length
    hashes ^= hashes >> np.uint32(16)
    hashes *= np.uint32(0x85EBCA6B)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0xC2B2AE35)
    hashes ^= hashes >> np.uint32(16)
    return hashes
