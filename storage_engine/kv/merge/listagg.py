"""Listagg: texts joined by a delimiter in the order in which they came. Null is no text; the empty text is one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.kv.key_index import Int64s


def joined(stored: pa.Array, incoming: pa.Array, delimiter: str) -> pa.Array:
    """Row by row the stored text, the delimiter and the incoming text. Shapes: (n,), (n,) -> (n,)."""
    both = pc.binary_join_element_wise(stored, incoming, delimiter)
    return pc.coalesce(both, stored, incoming)


def joined_groups(values: pa.Array, group: Int64s, n_groups: int, delimiter: str) -> pa.Array:
    """The texts of each group, joined in row order. Shapes: values (n,), group (n,) in 0..n_groups -> (n_groups,)."""
    valid = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    order = valid[np.argsort(group[valid], kind="stable")]
    count = np.bincount(group[order], minlength=n_groups)
    offsets = pa.array(np.r_[0, np.cumsum(count)].astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, values.take(pa.array(order)), mask=pa.array(count == 0))
    return pc.binary_join(lists, delimiter)
