"""Partitions: values of the partition column to partition names, and back.

Pure. A name is what directories, Dagster and Fluss show: at most 200 characters of ASCII letters, digits, _ and -,
not empty, not beginning with "__".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.errors import InvalidPartition, SchemaMismatch

NAME_CHARS_MAX = 200
_NAME = re.compile(rf"^(?!__)[A-Za-z0-9_-]{{1,{NAME_CHARS_MAX}}}$", re.ASCII)
_RULE = f"A partition is named by 1 to {NAME_CHARS_MAX} letters, digits, _ or -, and does not begin with __."


def partition_names(values: pa.Array | pa.ChunkedArray, *, table: str = "") -> pa.StringArray:
    """The partition name of each row.

    Shapes: values (n,) of a string, integer or date type -> (n,); a date reads 2017-01-31.
    Errors: InvalidPartition naming the first value that cannot be a name, its row, and the table where it is given.

    >>> partition_names(pa.array([20170131, 20170201])).to_pylist()
    ['20170131', '20170201']
    """
    encoded = encode_partitions(values, table=table)
    return encoded.dictionary.take(encoded.indices)


def encode_partitions(values: pa.Array | pa.ChunkedArray, *, table: str = "") -> pa.DictionaryArray:
    """As partition_names, with each distinct name once: indices (n,) int32 into the dictionary of names."""
    at = f"table {table}, row" if table else "row"
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
        values = values if isinstance(values, pa.Array) else pa.concat_arrays(values.chunks)
    if pa.types.is_null(values.type) or values.null_count:
        row = pc.index(pc.is_null(values), pa.scalar(True)).as_py()  # noqa: FBT003 - a scalar, not a flag
        raise InvalidPartition("null cannot name a partition", where=f"{at} {row} (from 0)", next_step="Give the partition column a value.")
    encoded = values if isinstance(values, pa.DictionaryArray) else pc.dictionary_encode(values)
    names = partition_texts(encoded.dictionary)
    for code, name in enumerate(names.to_pylist()):  # one step per distinct partition, not per row
        if _NAME.match(name) is None or name.endswith("\n"):
            row = pc.index(encoded.indices, pa.scalar(code, encoded.indices.type)).as_py()
            raise InvalidPartition(f"{name[:80]!r} cannot name a partition", where=f"{at} {row} (from 0)", next_step=_RULE)
    return pa.DictionaryArray.from_arrays(encoded.indices, names)


def partition_texts(values: pa.Array) -> pa.StringArray:
    """Values as names, without the check of the names."""
    kind = values.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind) or pa.types.is_date32(kind)):
        raise SchemaMismatch(
            f"a {kind} cannot name a partition", where="partition column", next_step="Use STRING, an integer type or DATE."
        )
    return values.cast(pa.string())


def check_partition_name(name: str, *, where: str = "partition") -> str:
    """The name itself; InvalidPartition when it cannot be one."""
    if _NAME.match(name) is None or name.endswith("\n"):
        raise InvalidPartition(f"{name[:80]!r} cannot name a partition", where=where, next_step=_RULE)
    return name


def partition_values_of(names: Sequence[str], data_type: pa.DataType) -> pa.Array:
    """The column values that partition names stand for: the inverse of partition_names.

    Errors: InvalidPartition naming the first name that is not a value of the type.

    >>> partition_values_of(["2017-01-31"], pa.date32()).to_pylist()
    [datetime.date(2017, 1, 31)]
    """
    texts = pa.array(list(names), pa.string())
    try:
        values = texts.cast(data_type)
        if partition_texts(values).equals(texts):
            return values
    except pa.ArrowInvalid:
        pass
    for name in names:
        try:
            matches = partition_texts(pa.array([name]).cast(data_type))[0].as_py() == name
        except pa.ArrowInvalid:
            matches = False
        if not matches:
            raise InvalidPartition(f"{name!r} is not a {data_type}", where="partition", next_step="Write it as the partition is listed.")
    return values
