"""Replay: which keys of a changelog frame have lost their hash to another key, told from the changelog alone.

A key is homeless when, at its +I, its hash already belonged to a living key. Nothing else can be meant: had it been the same key,
the changelog would say -U and +U. From then on its changes are known by its encoded key.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage_engine.kv.key_index import Bools, Hashes, Int64s
from storage_engine.log.frame import INSERT, UPDATE_BEFORE


def settled_changes(
    types: npt.NDArray[np.uint8], keys: pa.Array, hashes: Hashes, offsets: Int64s, homeless: dict[bytes, int], homeless_hashes: Hashes
) -> dict[int, bytes]:
    """Row -> encoded key of the frame's homeless keys.

    Shapes: types, keys, hashes, offsets (n,): offsets say where the index has each hash before the frame, -1: nowhere.
    Holds: a frame changes each key at most once, but may change several keys of one hash.
    """
    is_insert: Bools = types == INSERT
    loses: Bools = is_insert & (offsets >= 0)
    inserted = np.flatnonzero(is_insert)
    if len(inserted) > 1:
        order = inserted[np.argsort(hashes[inserted], kind="stable")]
        loses[order[1:][hashes[order[1:]] == hashes[order[:-1]]]] = True
    out = {int(row): keys[int(row)].as_py() for row in np.flatnonzero(loses)}
    if len(homeless_hashes):
        for row in np.flatnonzero(~is_insert & (types != UPDATE_BEFORE) & np.isin(hashes, homeless_hashes)):
            key = keys[int(row)].as_py()
            if key in homeless:
                out[int(row)] = key
    return out
