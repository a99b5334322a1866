"""Changelog: the rows that say how a bucket changed. Image FULL: +I, adjacent -U and +U, -D. Image WAL: the same without -U."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage_engine.kv.columns import contiguous
from storage_engine.kv.key_index import Bools, Int64s
from storage_engine.log.frame import DELETE, INSERT, UPDATE_AFTER, UPDATE_BEFORE


@dataclass(frozen=True)
class ChangePlan:
    """Changes to at most one row per key, in the order of the keys that asked for them.

    Shapes: rows (k,) in the table's schema, one chunk; change_types (k,) codes of log/frame.py; source (k,) position in the
    incoming rows of the key that each change belongs to. -U, where there is one, is followed by its +U. k = 0: nothing changes.
    """

    rows: pa.Table
    change_types: npt.NDArray[np.uint8]
    source: Int64s


def nothing(schema: pa.Schema) -> ChangePlan:
    """The plan that changes no row."""
    return ChangePlan(schema.empty_table(), np.empty(0, np.uint8), np.empty(0, np.int64))


def overwrites(schema: pa.Schema, incoming: pa.Table, inserts: Bools) -> ChangePlan:
    """Every incoming row as +U, whether its key is new or not: nobody has looked. Only the rows where `inserts` are +I.

    Shapes: incoming (n,) whole rows, inserts (n,).
    """
    rows = pa.Table.from_arrays([contiguous(incoming, name) for name in schema.names], schema=schema)
    return ChangePlan(rows, np.where(inserts, INSERT, UPDATE_AFTER).astype(np.uint8), np.arange(len(inserts)))


def without_old_rows(plan: ChangePlan) -> ChangePlan:
    """The plan in image WAL: no -U."""
    kept = np.flatnonzero(plan.change_types != UPDATE_BEFORE)
    if len(kept) == len(plan.change_types):
        return plan
    return ChangePlan(plan.rows.take(pa.array(kept)).combine_chunks(), plan.change_types[kept], plan.source[kept])


def change_rows(
    schema: pa.Schema, current: list[pa.Array], final: list[pa.Array], found: Bools, changed: Bools, gone: Bools | None = None
) -> ChangePlan:
    """+I for each key that is new, -U and +U for each that changed, -D for each found row that is gone; a new row that is gone is none.

    Shapes: final columns (n,), found and gone (n,); current columns (m,) and changed (m,) belong to the m found rows, in order.
    """
    n, m = len(found), len(changed)
    if gone is not None and not gone.any():
        gone = None
    if m == 0 and gone is None:
        rows = pa.Table.from_arrays(final, schema=schema)
        return ChangePlan(rows, np.full(n, INSERT, np.uint8), np.arange(n))
    width = np.where(found, 0, 1)
    found_at = np.flatnonzero(found)
    width[found_at] = 2 * changed
    if gone is not None:
        width[gone] = found[gone]
        changed = changed & ~gone[found_at]
    stop = np.cumsum(width)
    n_rows = int(stop[-1])
    if n_rows == 0:
        return nothing(schema)
    start = stop - width
    position = np.empty(n_rows, np.int64)  # in current followed by final
    types = np.empty(n_rows, np.uint8)
    new_at = np.flatnonzero(~found if gone is None else ~found & ~gone)
    position[start[new_at]] = m + new_at
    types[start[new_at]] = INSERT
    changed_at = found_at[changed]
    before = start[changed_at]
    position[before] = np.flatnonzero(changed)
    types[before] = UPDATE_BEFORE
    position[before + 1] = m + changed_at
    types[before + 1] = UPDATE_AFTER
    if gone is not None:
        removed = np.flatnonzero(gone[found_at])
        position[start[found_at[removed]]] = removed
        types[start[found_at[removed]]] = DELETE
    indices = pa.array(position)
    arrays = [pa.concat_arrays([old, new]).take(indices) for old, new in zip(current, final, strict=True)]
    return ChangePlan(pa.Table.from_arrays(arrays, schema=schema), types, np.repeat(np.arange(n), width))


def removal_rows(
    schema: pa.Schema, current: list[pa.Array], final: list[pa.Array], source: Int64s, removed: Bools, changed: Bools
) -> ChangePlan:
    """-D with the old row where `removed`, -U and +U where `changed`, nothing elsewhere. All shapes (m,), aligned to current."""
    m = len(removed)
    width = np.where(removed, 1, 2 * changed)
    stop = np.cumsum(width)
    if m == 0 or stop[-1] == 0:
        return nothing(schema)
    start = stop - width
    position = np.empty(int(stop[-1]), np.int64)
    types = np.empty(int(stop[-1]), np.uint8)
    removed_at, changed_at = np.flatnonzero(removed), np.flatnonzero(changed & ~removed)
    position[start[removed_at]] = removed_at
    types[start[removed_at]] = DELETE
    before = start[changed_at]
    position[before], types[before] = changed_at, UPDATE_BEFORE
    position[before + 1], types[before + 1] = m + changed_at, UPDATE_AFTER
    indices = pa.array(position)
    arrays = [
        pa.concat_arrays([old, new]).take(indices) if len(changed_at) else old.take(indices)  # no update: no position lies behind old
        for old, new in zip(current, final, strict=True)
    ]
    return ChangePlan(pa.Table.from_arrays(arrays, schema=schema), types, source[np.repeat(np.arange(m), width)])
