"""Replay: from stored changelog frames to what they leave in a bucket's index.

Frames are taken in runs of many rows, because a small batch costs as much as a large one. A run is followed by its net effect,
unless two keys of it may share a hash: then frame by frame.

A key is homeless when, at its +I, its hash already belonged to a living key. Nothing else can be meant: had it been the same key,
the changelog would say +U. From then on its changes are known by its encoded key.
A +U may be the first row of a key: that of a blind write in image WAL, and where the rows before it have outlived their time to live
(compaction leaves them out; a -D then comes where no key lives). A key that finds its hash taken still begins with +I.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage_engine.kv.columns import key_columns
from storage_engine.kv.key_index import Bools, Hashes, Int64s
from storage_engine.kv.key_table import ascending
from storage_engine.log.frame import DELETE, INSERT, UPDATE_AFTER, UPDATE_BEFORE
from storage_engine.schema.keys import encode_keys

ChangeTypes = npt.NDArray[np.uint8]

RUN_ROWS = 65_536


class Run(NamedTuple):
    """Consecutive frames as one: (n,) change types, offsets, rows and encoded keys; `frames` are their row ranges."""

    types: ChangeTypes
    offsets: Int64s
    rows: pa.Table
    keys: pa.Array
    frames: list[tuple[int, int]]


class Net(NamedTuple):
    """Rows of a run whose key is there after it, rows whose key is gone after it, one row per hash; and rows where a key begins."""

    live: Int64s
    gone: Int64s
    begun: Int64s


def runs_of_frames(frames: Iterable[tuple[int | Int64s, ChangeTypes | None, pa.Table]], key_names: Sequence[str]) -> Iterator[Run]:
    """Frames (base_offset, or the offsets of a sparse one; change types; rows) joined to runs of about RUN_ROWS rows."""
    held: list[tuple[int | Int64s, ChangeTypes, pa.Table]] = []
    n_held = 0
    for base_offset, change_types, rows in frames:
        assert change_types is not None, "a changelog frame has no change types"
        held.append((base_offset, np.asarray(change_types, np.uint8), rows))
        n_held += rows.num_rows
        if n_held >= RUN_ROWS:
            yield _run(held, key_names)
            held, n_held = [], 0
    if held:
        yield _run(held, key_names)


def net_changes(types: ChangeTypes, hashes: Hashes, stored: Int64s, homeless_hashes: Hashes) -> Net | None:
    """What a run leaves, or None when keys may share a hash and it has to be followed frame by frame.

    Shapes: types, hashes, stored (n,): `stored` says where the index has each hash before the run, -1: nowhere.
    Holds: per hash, +I comes where no key lives. Two living keys of one hash would break that.
    """
    if len(homeless_hashes) and np.isin(hashes, homeless_hashes).any():
        return None
    rows = np.flatnonzero(types != UPDATE_BEFORE)
    rows = rows[ascending(hashes[rows])]
    kinds, own = types[rows], hashes[rows]
    if len(rows) == 0:
        return Net(rows, rows, rows)
    is_first = np.r_[True, own[1:] != own[:-1]]
    lived_before = np.where(is_first, stored[rows] >= 0, np.r_[False, kinds[:-1] != DELETE])
    if (lived_before & (kinds == INSERT)).any():
        return None
    is_last = np.r_[is_first[1:], True]
    return Net(rows[is_last & (kinds != DELETE)], rows[is_last & (kinds == DELETE)], np.sort(rows[~lived_before & (kinds != DELETE)]))


def homeless_rows(
    types: ChangeTypes, keys: pa.Array, hashes: Hashes, stored: Int64s, homeless: dict[bytes, int], homeless_hashes: Hashes
) -> dict[int, bytes]:
    """Row -> encoded key of one frame's homeless keys.

    Shapes: as in net_changes, of one frame. A frame changes each key at most once, but may change several keys of one hash.
    """
    is_insert: Bools = types == INSERT
    loses: Bools = is_insert & (stored >= 0)
    takes = (types == UPDATE_AFTER) & (stored < 0)  # blind first rows take a hash; updates of homeless keys do not
    for row in np.flatnonzero(takes & np.isin(hashes, homeless_hashes)):
        takes[row] = keys[int(row)].as_py() not in homeless
    live = np.flatnonzero(is_insert | takes)
    if len(live) > 1:
        order = live[np.argsort(hashes[live], kind="stable")]
        repeats = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
        loses[repeats[is_insert[repeats]]] = True
    out = {int(row): keys[int(row)].as_py() for row in np.flatnonzero(loses)}
    if len(homeless_hashes):
        for row in np.flatnonzero(~is_insert & (types != UPDATE_BEFORE) & np.isin(hashes, homeless_hashes)):
            key = keys[int(row)].as_py()
            if key in homeless:
                out[int(row)] = key
    return out


def _run(held: list[tuple[int | Int64s, ChangeTypes, pa.Table]], key_names: Sequence[str]) -> Run:
    rows = held[0][2] if len(held) == 1 else pa.concat_tables([part for _, _, part in held])
    stops = np.cumsum([part.num_rows for _, _, part in held])
    starts = np.r_[0, stops[:-1]]
    bases = np.array([0 if isinstance(base, np.ndarray) else base for base, _, _ in held])
    lengths = stops - starts
    offsets = np.repeat(bases - starts, lengths) + np.arange(stops[-1])
    for (base, _, _), start, stop in zip(held, starts.tolist(), stops.tolist(), strict=True):
        if isinstance(base, np.ndarray):
            offsets[start:stop] = base
    types = np.concatenate([codes for _, codes, _ in held])
    keys = encode_keys(key_columns(rows, key_names))
    return Run(types, offsets, rows, keys, list(zip(starts.tolist(), stops.tolist(), strict=True)))
