"""Fluss's key encoding and bucket choice, one value at a time: the naive form that the column-wise kernels must equal."""

from __future__ import annotations

import datetime as dt
import struct
from decimal import Context, Decimal

import pyarrow as pa

_M = 0xFFFFFFFF


def _rotl(x: int, r: int) -> int:
    return ((x << r) | (x >> (32 - r))) & _M


def _mix(h: int, k: int) -> int:
    return (_rotl(h ^ (_rotl(k * 0xCC9E2D51 & _M, 15) * 0x1B873593 & _M), 13) * 5 + 0xE6546B64) & _M


def murmur(key: bytes, seed: int = 42) -> int:
    h, n = seed & _M, len(key) & ~3
    for (block,) in struct.iter_unpack("<I", key[:n]):
        h = _mix(h, block)
    for byte in key[n:]:
        h = _mix(h, (byte - 256 if byte > 127 else byte) & _M)
    h ^= len(key)
    h ^= h >> 16
    h = h * 0x85EBCA6B & _M
    h ^= h >> 13
    h = h * 0xC2B2AE35 & _M
    return h ^ (h >> 16)


def second_round(h: int) -> int:
    g = murmur(struct.pack("<I", h & _M), 0)
    g = abs(g - (1 << 32) if g >> 31 else g)
    return 0 if g == 1 << 31 else g


def bucket(key: bytes, n_buckets: int) -> int:
    return second_round(murmur(key)) % n_buckets


def varint(value: int, bits: int) -> bytes:
    value &= (1 << bits) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def encode_value(value: object, kind: pa.DataType) -> bytes:
    match value:
        case bool():
            return bytes([value])
        case int() if kind.bit_width == 8:
            return struct.pack("<b", value)
        case int() if kind.bit_width == 16:
            return struct.pack("<h", value)
        case int():
            return varint(value, kind.bit_width)
        case float():
            return struct.pack("<f" if kind.bit_width == 32 else "<d", value)
        case str():
            return varint(len(value.encode()), 32) + value.encode()
        case bytes():
            return varint(len(value), 32) + value
        case Decimal():
            unscaled = int(value.scaleb(kind.scale, Context(prec=60)))
            if kind.precision <= 18:
                return varint(unscaled, 64)
            n_bytes = 1
            while not -(1 << (8 * n_bytes - 1)) <= unscaled < 1 << (8 * n_bytes - 1):
                n_bytes += 1
            return varint(n_bytes, 32) + unscaled.to_bytes(n_bytes, "big", signed=True)
        case dt.datetime():
            naive = value.replace(tzinfo=None)
            micros = (naive - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)  # noqa: DTZ001 - both without zone
            if kind.unit == "ms":
                return varint(micros // 1000, 64)
            return varint(micros // 1000, 64) + varint(micros % 1000 * 1000, 32)
        case dt.date():
            return varint((value - dt.date(1970, 1, 1)).days, 32)
        case dt.time():
            return varint(((value.hour * 60 + value.minute) * 60 + value.second) * 1000 + value.microsecond // 1000, 32)
    raise AssertionError(f"no encoding for {value!r}")


def encode_key(values: tuple, kinds: tuple[pa.DataType, ...]) -> bytes:
    return b"".join(encode_value(value, kind) for value, kind in zip(values, kinds, strict=True))
