"""Aggregation: one function per column merges the stored value with the incoming one.

Null is no value to any function but last_value, which takes it. first_value keeps a stored null
only until a value comes: as in Fluss, a column nobody has written yet cannot be told from one written as null.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.errors import SchemaMismatch
from storage_engine.kv.merge.bitmaps import WIDTHS, checked_bitmaps, unite
from storage_engine.kv.merge.listagg import joined
from storage_engine.kv.merge.product import multiplied


def merge_column(function: str, stored: pa.Array, incoming: pa.Array, where: str, delimiter: str = ",") -> pa.Array:
    """The merged column, in the type of `stored`.

    Shapes: (n,), (n,) -> (n,); a row that is not stored yet is null in `stored`. `incoming` is what batch.combine made of a batch:
            a sum may come in a wider type, a count as numbers of rows.
    Errors: SchemaMismatch when a sum, count or product leaves the column's type, or a value is no bitmap; `where` names table and column.
    """
    if function == "listagg":
        return joined(stored, incoming, delimiter)
    if function in WIDTHS:
        return unite(stored, incoming, where, WIDTHS[function])
    return _FUNCTIONS[function](stored, incoming, where)


def first_column(function: str, incoming: pa.Array, data_type: pa.DataType, where: str) -> pa.Array:
    """What merge_column gives where nothing is stored yet, in less time. Errors: as there."""
    match function:
        case "rbm32" | "rbm64":
            return checked_bitmaps(incoming, where, WIDTHS[function])
        case "sum" | "count":
            return narrowed(incoming, data_type, where)
        case "product":
            return multiplied(pa.nulls(len(incoming), data_type), incoming, where)
        case _:
            return incoming


def narrowed(column: pa.Array, data_type: pa.DataType, where: str) -> pa.Array:
    """A sum in its column's type. Errors: SchemaMismatch when a value does not fit."""
    try:
        return column.cast(data_type)
    except pa.ArrowInvalid as error:
        raise overflow(data_type, where) from error


def _sum(stored: pa.Array, incoming: pa.Array, where: str) -> pa.Array:
    data_type = stored.type
    wide = wider(data_type, incoming.type)
    left, right = stored.cast(wide), incoming.cast(wide)
    try:
        total = pc.add_checked(left, right)
    except pa.ArrowInvalid as error:
        raise overflow(data_type, where) from error
    if total.null_count:
        total = pc.coalesce(total, left.cast(total.type), right.cast(total.type))
    return narrowed(total, data_type, where)


def wider(stored: pa.DataType, incoming: pa.DataType) -> pa.DataType:
    """A type in which both can be added: sums of many decimals, and of integers that came as decimals, go through 256 bits."""
    if (pa.types.is_decimal(incoming) and incoming != stored) or (pa.types.is_decimal(stored) and stored.precision == 38):
        return pa.decimal256(_SUM_DIGITS, incoming.scale)
    return incoming


def _larger(stored: pa.Array, incoming: pa.Array, _where: str) -> pa.Array:
    return _pick(pc.max_element_wise, stored, incoming)


def _smaller(stored: pa.Array, incoming: pa.Array, _where: str) -> pa.Array:
    return _pick(pc.min_element_wise, stored, incoming)


def _pick(choose: Callable[[pa.Array, pa.Array], pa.Array], stored: pa.Array, incoming: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(stored.type):  # no kernel for instants with a zone; their order is that of the numbers
        return choose(stored.view(pa.int64()), incoming.view(pa.int64())).view(stored.type)
    return choose(stored, incoming).cast(stored.type)


def _last(_stored: pa.Array, incoming: pa.Array, _where: str) -> pa.Array:
    return incoming


def _last_not_null(stored: pa.Array, incoming: pa.Array, _where: str) -> pa.Array:
    return pc.coalesce(incoming, stored) if incoming.null_count else incoming


def _first(stored: pa.Array, incoming: pa.Array, _where: str) -> pa.Array:
    return pc.coalesce(stored, incoming) if stored.null_count else stored


def _all_true(stored: pa.Array, incoming: pa.Array, _where: str) -> pa.Array:
    return pc.coalesce(pc.and_(stored, incoming), stored, incoming)


def _any_true(stored: pa.Array, incoming: pa.Array, _where: str) -> pa.Array:
    return pc.coalesce(pc.or_(stored, incoming), stored, incoming)


def overflow(data_type: pa.DataType, where: str) -> SchemaMismatch:
    """The refusal of a sum that leaves its column's type."""
    return SchemaMismatch(f"a sum does not fit {data_type}", where=where, next_step="Declare the column wider in a new table.")


_SUM_DIGITS = 60  # 38 digits of a column, and room for more rows than a batch can have

_FUNCTIONS: dict[str, Callable[[pa.Array, pa.Array, str], pa.Array]] = {
    "sum": _sum,
    "count": _sum,
    "product": multiplied,
    "max": _larger,
    "min": _smaller,
    "last_value": _last,
    "last_value_ignore_nulls": _last_not_null,
    "first_value": _first,
    "first_value_ignore_nulls": _first,
    "bool_and": _all_true,
    "bool_or": _any_true,
}
