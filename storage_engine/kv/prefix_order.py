"""Prefix order: the order in which a prefix lookup answers its rows: by prefix, then by the bytes of the key. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.kv.key_index import Int64s
from storage_engine.schema.integer_keys import integer_ranks
from storage_engine.schema.keys import encode_keys


def prefix_order(position: Int64s, rest: Sequence[pa.Array]) -> Int64s | None:
    """The order of rows by the position of their prefix, then by encoded key; None: they are in it.

    Shapes: position (m,); the key's columns behind the prefix (m,) -> (m,). Rows of one prefix are of equal bytes before these.
    """
    ranks = integer_ranks(rest[0]) if len(rest) == 1 else None
    if ranks is None:
        by = pa.table({"p": position, "k": encode_keys(rest)})
        return pc.sort_indices(by, sort_keys=[("p", "ascending"), ("k", "ascending")]).to_numpy()
    step = np.diff(position)
    if ((step > 0) | ((step == 0) & (ranks[1:] >= ranks[:-1]))).all():
        return None
    return np.lexsort((ranks, position))
