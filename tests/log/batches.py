"""Batches of every Arrow type the log may carry, for property tests."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import strategies as st

COMPRESSIONS = ("none", "lz4", "zstd")

_SCALARS: list[tuple[pa.DataType, st.SearchStrategy]] = [
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.integers(-128, 127)),
    (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
    (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.string(), st.text(max_size=30)),
    (pa.large_string(), st.text(max_size=5)),
    (pa.binary(), st.binary(max_size=30)),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.decimal128(12, 2), st.decimals(-(10**9), 10**9, places=2)),
    (pa.date32(), st.dates()),
    (pa.time32("ms"), st.times().map(lambda value: value.replace(microsecond=0))),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("ms", tz="UTC"), st.integers(-(10**12), 10**12)),
    (pa.null(), st.none()),
]


def _nested(kind: tuple[pa.DataType, st.SearchStrategy]) -> st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy]]:
    value_type, values = kind
    values = st.none() | values
    return st.sampled_from(
        [
            (pa.list_(value_type), st.lists(values, max_size=3)),
            (pa.large_list(value_type), st.lists(values, max_size=3)),
            (pa.list_(value_type, 2), st.lists(values, min_size=2, max_size=2)),
            (pa.struct([("x", value_type), ("y", pa.string())]), st.fixed_dictionaries({"x": values, "y": st.text(max_size=4)})),
            (pa.map_(pa.string(), value_type), st.lists(st.tuples(st.text(max_size=4), values), max_size=2)),
        ]
    )


_kinds = st.recursive(st.sampled_from(_SCALARS), lambda kinds: kinds.flatmap(_nested), max_leaves=3)


@st.composite
def batches(draw: st.DrawFn, max_columns: int = 5, max_rows: int = 8) -> pa.RecordBatch:
    """A batch of 1 to `max_columns` columns of any types, with nulls; sometimes a slice of a longer one."""
    kinds = draw(st.lists(_kinds, min_size=1, max_size=max_columns))
    n_rows = draw(st.integers(0, max_rows))
    arrays = []
    for kind, values in kinds:
        arrays.append(pa.array(draw(st.lists(st.none() | values, min_size=n_rows, max_size=n_rows)), kind))
    batch = pa.record_batch(arrays, names=[f"c{i}" for i in range(len(arrays))])
    start = draw(st.integers(0, n_rows))
    return batch.slice(start) if draw(st.booleans()) else batch
