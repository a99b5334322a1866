"""Randoms: numbers that depend on a seed, a purpose and a position, and on nothing else.

So any part of a series can be made alone, in any batch size, and is the same. The mix is splitmix64's finaliser
(Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), over 64-bit wrapping integers.
"""

from __future__ import annotations

import hashlib

import numpy as np

U64 = np.ndarray
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_LOW = np.uint64(0xFFFFFFFF)


def key_of(seed: int, purpose: str) -> np.uint64:
    """A 64-bit key for one purpose under one seed."""
    return np.uint64(int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little"))


def mixed(key: np.uint64, index: U64) -> U64:
    """64 random bits per position. Shapes: index (n,) uint64 -> (n,) uint64."""
    z = index * _GAMMA
    z += key
    z ^= z >> np.uint64(30)
    z *= _M1
    z ^= z >> np.uint64(27)
    z *= _M2
    z ^= z >> np.uint64(31)
    return z


def high_unit(bits: U64) -> np.ndarray:
    """The upper 32 bits as numbers in [0, 1)."""
    return (bits >> np.uint64(32)).astype(np.float64) * 2.0**-32


def low_below(bits: U64, n: int) -> np.ndarray:
    """The lower 32 bits as ordinals in [0, n); n below 2**32. int64."""
    return (((bits & _LOW) * np.uint64(n)) >> np.uint64(32)).astype(np.int64)


def high_above(bits: U64, share: float) -> np.ndarray:
    """True for the given share of positions, decided by the upper 32 bits."""
    return (bits >> np.uint64(32)) < np.uint64(round(share * 2**32))


def exponential_ms(bits: U64, mean_ms: float, max_ms: float) -> np.ndarray:
    """Delays in milliseconds, at least 1, with the given mean before they are cut at `max_ms`; from the lower 32 bits."""
    unit = ((bits & _LOW).astype(np.float64) + 0.5) * 2.0**-32
    return np.minimum(-np.log(unit) * mean_ms, max_ms).astype(np.int64) + 1
