"""Functions: bitmaps in DuckDB, as vectorised functions over RoaringFormatSpec bytes (32 bit).

    rb_build(UINTEGER[]) -> BLOB     rb_or_all(BLOB[]) -> BLOB          rb_cardinality(BLOB) -> BIGINT
    rb_or / rb_and / rb_andnot(BLOB, BLOB) -> BLOB                      rb_contains(BLOB, BIGINT) -> BOOLEAN
    rb_or_all_cardinality(BLOB[]) -> BIGINT, rb_cardinality(rb_or_all(...)) without the bytes in between

DuckDB has no aggregate functions in Python: an aggregate over bitmaps is a scalar function over list(...), one call per group.
Errors: StatementRefused for bytes that are not a bitmap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from pyroaring import BitMap

from storage_engine.errors import SchemaMismatch


def register_functions(con: duckdb.DuckDBPyConnection) -> None:
    """Register the bitmap functions and the time zone. Call once per connection: cursors of it inherit global settings only."""
    con.execute("SET GLOBAL TimeZone = 'UTC'")
    for name, function, parameters, result in _FUNCTIONS:
        register: Any = con.create_function  # its stub knows no type names
        register(name, function, parameters, result, type="arrow", null_handling="special")


def open_connection(*, n_threads: int = 1, memory_limit: str | None = None, spill_dir: str | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the functions registered. Joins run as written, so rows keep the order of the left side."""
    config: dict[str, str | int] = {"threads": n_threads}
    if memory_limit is not None:
        config["memory_limit"] = memory_limit
    con = duckdb.connect(config=config)  # type: ignore[arg-type]
    if spill_dir is not None:
        con.execute(f"SET temp_directory = '{spill_dir}'")
    con.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
    con.execute("SET enable_progress_bar = false")
    register_functions(con)
    return con


def _one(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def read_bitmap(data: bytes | memoryview) -> BitMap:
    """A bitmap from its bytes. Errors: SchemaMismatch when they are not RoaringFormatSpec."""
    try:
        return BitMap.deserialize(data)  # type: ignore[arg-type]  # its stub knows bytes alone
    except ValueError as error:
        raise SchemaMismatch(
            "bytes are not a 32-bit Roaring bitmap", where="bitmap function", next_step="Store BITMAP_TO_BYTES(...) only."
        ) from error


def _build(lists: pa.Array) -> pa.Array:
    lists = _one(lists)
    offsets = lists.offsets.to_numpy()
    values = _one(lists.values)
    if values.null_count:  # list() keeps nulls; a bitmap holds none
        return pa.array(
            [None if item is None else BitMap([v for v in item if v is not None]).serialize() for item in lists.to_pylist()], pa.binary()
        )
    members = values.to_numpy(zero_copy_only=False).astype(np.uint32, copy=False)
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    built = [BitMap(np.sort(members[offsets[i] : offsets[i + 1]])).serialize() if valid[i] else None for i in range(len(lists))]
    return pa.array(built, pa.binary())


def _unions(lists: pa.Array) -> Iterator[BitMap | None]:
    """The union of each list's bitmaps, read where they lie; None for a list that is NULL or holds NULL alone."""
    for item in _one(lists):
        found = [memoryview(one.as_buffer()).cast("B") for one in item.values or () if one.is_valid]
        yield BitMap.union(*map(read_bitmap, found)) if found else None


def _or_all(lists: pa.Array) -> pa.Array:
    return pa.array([None if union is None else union.serialize() for union in _unions(lists)], pa.binary())


def _or_all_cardinality(lists: pa.Array) -> pa.Array:
    return pa.array([None if union is None else len(union) for union in _unions(lists)], pa.int64())


def _cardinality(bitmaps: pa.Array) -> pa.Array:
    return pa.array([None if data is None else len(read_bitmap(data)) for data in _one(bitmaps).to_pylist()], pa.int64())


def _binary(operation: Callable[[BitMap, BitMap], BitMap]) -> Callable[[pa.Array, pa.Array], pa.Array]:
    def apply(left: pa.Array, right: pa.Array) -> pa.Array:
        pairs = zip(_one(left).to_pylist(), _one(right).to_pylist(), strict=True)
        made = [None if a is None or b is None else operation(read_bitmap(a), read_bitmap(b)).serialize() for a, b in pairs]
        return pa.array(made, pa.binary())

    return apply


def _contains(bitmaps: pa.Array, members: pa.Array) -> pa.Array:
    pairs = zip(_one(bitmaps).to_pylist(), _one(members).to_pylist(), strict=True)
    return pa.array([None if data is None or member is None else member in read_bitmap(data) for data, member in pairs], pa.bool_())


_BLOB = "BLOB"
_FUNCTIONS: list[tuple[str, Callable[..., pa.Array], list[str], str]] = [
    ("rb_build", _build, ["UINTEGER[]"], _BLOB),
    ("rb_or_all", _or_all, ["BLOB[]"], _BLOB),
    ("rb_or_all_cardinality", _or_all_cardinality, ["BLOB[]"], "BIGINT"),
    ("rb_cardinality", _cardinality, [_BLOB], "BIGINT"),
    ("rb_or", _binary(lambda a, b: a | b), [_BLOB, _BLOB], _BLOB),
    ("rb_and", _binary(lambda a, b: a & b), [_BLOB, _BLOB], _BLOB),
    ("rb_andnot", _binary(lambda a, b: a - b), [_BLOB, _BLOB], _BLOB),
    ("rb_contains", _contains, [_BLOB, "BIGINT"], "BOOLEAN"),
]
