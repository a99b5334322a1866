"""Bitmaps: rbm32 and rbm64 columns, Roaring bitmaps of 32 and 64 bit in the portable formats (RoaringFormatSpec).

The only place of the store that walks over rows: each step holds bitmaps, whose merge costs more than the step.
Holds: a bitmap that gains no member keeps its bytes, so that a merge which changes nothing changes no byte.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from pyroaring import BitMap, BitMap64

from storage_engine.errors import SchemaMismatch
from storage_engine.kv.key_index import Int64s

Width = Literal[32, 64]

WIDTHS: Final[dict[str, Width]] = {"rbm32": 32, "rbm64": 64}
"""Bits of a member, by aggregate function."""


def checked_bitmaps(values: pa.Array, where: str, width: Width = 32) -> pa.Array:
    """The same values. Errors: SchemaMismatch naming the first row that is no bitmap."""
    for row, value in enumerate(values.to_pylist()):
        if value is not None:
            _bitmap(value, row, where, width)
    return values


def unite(stored: pa.Array, incoming: pa.Array, where: str, width: Width = 32) -> pa.Array:
    """Row by row the union of two bitmaps; null counts as nothing. Shapes: (n,), (n,) -> (n,).

    Errors: SchemaMismatch naming the incoming row that is no bitmap.
    """
    out: list[bytes | None] = []
    for row, (old, new) in enumerate(zip(stored.to_pylist(), incoming.to_pylist(), strict=True)):
        if new is None:
            out.append(old)
        elif old is None:
            _bitmap(new, row, where, width)
            out.append(new)
        else:
            held = _CLASSES[width].deserialize(old)
            before = len(held)
            held |= _bitmap(new, row, where, width)
            out.append(old if len(held) == before else _bytes_of(held))
    return pa.array(out, incoming.type)


def unite_groups(values: pa.Array, group: Int64s, n_groups: int, where: str, width: Width = 32) -> pa.Array:
    """The union of the bitmaps of each group. Shapes: values (n,), group (n,) in 0..n_groups -> (n_groups,).

    A group of one bitmap keeps its bytes; a group of nulls is null.
    """
    valid = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    order = valid[np.argsort(group[valid], kind="stable")]
    out: list[bytes | None] = [None] * n_groups
    if len(order) == 0:
        return pa.array(out, values.type)
    data = values.take(pa.array(order)).to_pylist()
    bounds = [0, *(np.flatnonzero(np.diff(group[order])) + 1).tolist(), len(order)]
    for start, stop in pairwise(bounds):
        members = [_bitmap(data[at], int(order[at]), where, width) for at in range(start, stop)]
        out[int(group[order[start]])] = data[start] if len(members) == 1 else _bytes_of(_CLASSES[width].union(*members))
    return pa.array(out, values.type)


_CLASSES: Final = {32: BitMap, 64: BitMap64}


def _bytes_of(bitmap: BitMap | BitMap64) -> bytes:
    bitmap.run_optimize()
    return bitmap.serialize()


def _bitmap(value: bytes, row: int, where: str, width: Width) -> BitMap | BitMap64:
    try:
        return _CLASSES[width].deserialize(value)
    except (ValueError, IndexError) as error:
        raise SchemaMismatch(
            f"row {row} is not a {width}-bit Roaring bitmap in the portable format",
            where=where,
            next_step="Build it with bitmap_build_agg or pyroaring." if width == 32 else "Build it with pyroaring.BitMap64.",
        ) from error
