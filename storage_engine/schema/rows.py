"""Rows: whatever a caller hands over, checked against a table and brought to its Arrow types without loss.

Pure. Owner: the engine calls conform() on every write; nothing behind it checks types or nulls again.
Holds: the result has exactly the table's Arrow types, one chunk per column, columns in table order.
Never: changes a value: a cast that would lose something is refused, naming column and row.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.errors import SchemaMismatch, UserError
from storage_engine.schema.computed import why_not_written
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.validate import check_targets


def conform(descriptor: TableDescriptor, rows: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows to write, in the table's types.

    rows     pa.Table, RecordBatch, RecordBatchReader, dict of lists, list of dicts, or a pandas DataFrame
    columns  None: whole rows; a nullable column that is missing becomes null, and so does an auto-increment column.
             Otherwise the target columns of a partial write, the key among them: rows have exactly these.
    Shapes:  (n rows) -> (n rows, the columns in table order).
    Errors:  SchemaMismatch for a column that is unknown, missing, named twice or of another type, a value that does not fit,
             or a null in a key or NOT NULL column; it names the column and the first row (from 0).
    """
    if columns is None:
        names: tuple[str, ...] = descriptor.column_names
    else:
        names = check_targets(descriptor, columns)
    wanted = {column.name: column.arrow for column in descriptor.columns if column.name in names}
    where = f"table {descriptor.name}"
    table = as_table(rows, wanted, where=where)
    _check_names(table, descriptor, names, is_partial=columns is not None)
    auto = descriptor.auto_increment_column
    arrays: list[pa.ChunkedArray] = []
    for name, field in wanted.items():
        index = table.schema.get_field_index(name)
        if index < 0:
            _check_may_miss(descriptor, name)
            arrays.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
            continue
        column = table.column(index)
        if name == auto and column.null_count < len(column):
            raise SchemaMismatch(f"column {name} is filled by the store", where=where, next_step=f"Leave {name} out.")
        arrays.append(_fit(column, field, where, may_be_null=field.nullable or name == auto, is_key=name in descriptor.primary_key))
    return pa.Table.from_arrays(arrays, schema=pa.schema(list(wanted.values())))


def require_prefix_lookup(descriptor: TableDescriptor) -> None:
    """Errors: UserError for a table whose bucket key is not the beginning, and less than all, of its primary key."""
    if not descriptor.is_prefix_lookup_possible:
        raise UserError(
            f"{descriptor.name} has no prefix lookup: its bucket key is not a proper prefix of its primary key",
            where=descriptor.name,
            next_step="Use lookup() with the whole key, or create the table with a shorter 'bucket.key'.",
        )


def check_deleted_columns(descriptor: TableDescriptor, columns: Sequence[str] | None) -> None:
    """A partial delete leaves ids alone. Errors: SchemaMismatch."""
    if columns is not None and descriptor.auto_increment_column in columns:
        raise SchemaMismatch(
            f"column {descriptor.auto_increment_column} is filled by the store, once for each key",
            where=f"table {descriptor.name}",
            next_step="Leave it out, or delete whole rows.",
        )


def conform_keys(descriptor: TableDescriptor, keys: Any, names: Sequence[str] | None = None) -> pa.Table:
    """Keys for a delete, a lookup or (with `names`) a prefix lookup: exactly these columns, in this order, without nulls.

    keys     as for conform(); for a single key column also a list, an Arrow array or a pandas Series of values
    Errors:  SchemaMismatch, as conform().
    """
    wanted = tuple(names) if names is not None else descriptor.primary_key
    where = f"table {descriptor.name}"
    if not wanted:
        raise SchemaMismatch("there is no primary key", where=where, next_step="Only a table with a primary key has keys.")
    fields = {name: pa.field(name, descriptor.column(name).arrow.type, nullable=False) for name in wanted}
    if len(wanted) == 1 and _is_plain_column(keys):
        keys = {wanted[0]: keys}
    table = as_table(keys, fields, where=where)
    _check_names(table, descriptor, wanted, is_partial=True)
    arrays = [_fit(table.column(name), field, where, may_be_null=False, is_key=True) for name, field in fields.items()]
    return pa.Table.from_arrays(arrays, schema=pa.schema(list(fields.values())))


def as_table(rows: Any, fields: Mapping[str, pa.Field], *, where: str) -> pa.Table:
    """Rows as an Arrow table; Python values are read as the type of the field of their name. Types are not checked otherwise."""
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    if isinstance(rows, pa.RecordBatchReader):
        return rows.read_all()
    if isinstance(rows, Mapping):
        return _from_columns(rows, fields, where) if rows else _from_records([], fields, where)
    if hasattr(rows, "__arrow_c_stream__"):
        return _without_pandas_index(pa.table(rows))
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        return _from_records(rows, fields, where)
    known = "an Arrow table or batch, a dict of lists, a list of dicts, or a DataFrame"
    raise SchemaMismatch(f"rows are a {type(rows).__name__}", where=where, next_step=f"Hand over {known}.")


def _without_pandas_index(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in table.column_names if name.startswith("__index_level_")])


def _is_plain_column(keys: Any) -> bool:
    if isinstance(keys, pa.Array | pa.ChunkedArray):
        return True
    if isinstance(keys, Sequence) and not isinstance(keys, str | bytes):
        return not keys or not isinstance(keys[0], Mapping)
    return type(keys).__name__ in ("Series", "ndarray")


def _from_records(records: Sequence[Any], fields: Mapping[str, pa.Field], where: str) -> pa.Table:
    if not records:
        return pa.schema([field.with_nullable(nullable=True) for field in fields.values()]).empty_table()
    if all(isinstance(record, pa.RecordBatch) for record in records):
        return pa.Table.from_batches(records)
    for position, record in enumerate(records):
        if not isinstance(record, Mapping):
            what = f"row {position} (from 0) is a {type(record).__name__}"
            raise SchemaMismatch(what, where=where, next_step='Write each row as a dict: {"column": value}.')
    names = dict.fromkeys(name for record in records for name in record)
    return _from_columns({name: [record.get(name) for record in records] for name in names}, fields, where)


def _from_columns(columns: Mapping[str, Any], fields: Mapping[str, pa.Field], where: str) -> pa.Table:
    arrays: dict[str, pa.Array | pa.ChunkedArray] = {}
    n_rows: int | None = None
    for name, values in columns.items():
        field = fields.get(name)
        if isinstance(values, pa.Array | pa.ChunkedArray):
            arrays[name] = values
        else:
            arrays[name] = _from_values(name, values, field.type if field is not None else None, where)
        if n_rows is not None and len(arrays[name]) != n_rows:
            what = f"column {name} has {len(arrays[name])} values, others have {n_rows}"
            raise SchemaMismatch(what, where=where, next_step="Give every column one value per row.")
        n_rows = len(arrays[name])
    return pa.table(arrays)


class _LossyError(ValueError):
    """A Python value of which the column would keep a part only."""


def _exactly(values: Any, data_type: pa.DataType | None) -> pa.Array:
    """Python values as an array.

    Meaning: a float is rounded to a FLOAT's digits, as a literal is: Python has no other.
    Errors:  ArrowInvalid for a fraction in an integer column; _LossyError for what Arrow would cut off without a word: a float that is
             infinite as a FLOAT, digits of a time, the time of day in a DATE, a zone where the column has none.
    """
    if data_type is None:
        return pa.array(values)
    if pa.types.is_float32(data_type):
        array = pa.array(values, data_type)
        infinite = pc.is_inf(array)
        if pc.any(infinite).as_py() and not pc.is_inf(pa.array(values, pa.float64())).equals(infinite):
            raise _LossyError
        return array
    if pa.types.is_temporal(data_type):
        if isinstance(values, Sequence) and any(_is_cut(value, data_type) for value in values):
            raise _LossyError
        return pa.array(values, data_type)
    if not pa.types.is_integer(data_type):
        return pa.array(values, data_type)
    inferred = pa.array(values)
    is_number = pa.types.is_integer(inferred.type) or pa.types.is_floating(inferred.type)
    return inferred.cast(data_type) if is_number else pa.array(values, data_type)


def _is_cut(value: Any, data_type: pa.DataType) -> bool:
    """True for a datetime or time of which a column of this type would keep a part only."""
    if isinstance(value, dt.datetime):
        if pa.types.is_date(data_type):
            return (value.hour, value.minute, value.second, value.microsecond) > (0, 0, 0, 0)
        if pa.types.is_timestamp(data_type) and data_type.tz is None and value.tzinfo is not None:
            return True
    elif not isinstance(value, dt.time):
        return False
    is_to_ms = not pa.types.is_date(data_type) and data_type.unit == "ms"
    return (is_to_ms and value.microsecond % 1000 > 0) or getattr(value, "nanosecond", 0) > 0  # pandas' NaT has NaN in both


def _from_values(name: str, values: Any, data_type: pa.DataType | None, where: str) -> pa.Array:
    values = (
        values
        if hasattr(values, "dtype")
        else list(values)
        if isinstance(values, Sequence) and not isinstance(values, str | bytes)
        else values
    )
    try:
        if hasattr(values, "dtype"):
            return pa.array(values, from_pandas=True)
        return _exactly(values, data_type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError, ValueError, OverflowError) as error:
        row, value = _first_unreadable(values, data_type)
        at = where if row is None else f"{where}, row {row} (from 0)"
        if isinstance(error, _LossyError):
            what = f"column {name}: {_short(value)} does not fit {data_type} without loss"
            raise SchemaMismatch(what, where=at, next_step="Round it, or convert it to the column's zone, yourself.") from error
        what = f"column {name}: {_short(value)} is not a {data_type}" if row is not None else f"column {name}: {error}"
        raise SchemaMismatch(what, where=at, next_step=f"Give values of type {data_type}.") from error


def _first_unreadable(values: Any, data_type: pa.DataType | None) -> tuple[int | None, Any]:
    """The first value that Arrow does not take as this type; only after a failure, so a loop over values is fine."""
    if not isinstance(values, Sequence) or data_type is None:
        return None, None
    for row, value in enumerate(values):
        try:
            _exactly([value], data_type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError, ValueError, OverflowError):
            return row, value
    return None, None


def _check_names(table: pa.Table, descriptor: TableDescriptor, names: Sequence[str], *, is_partial: bool) -> None:
    where = f"table {descriptor.name}"
    seen: set[str] = set()
    for name in table.column_names:
        if name not in descriptor.column_names:
            what = why_not_written(descriptor, name) or f"unknown column {name}"
            raise SchemaMismatch(what, where=where, next_step=f"Columns are: {', '.join(descriptor.column_names)}.")
        if name in seen:
            raise SchemaMismatch(f"column {name} is given twice", where=where, next_step="Give each column once.")
        if name not in names:
            raise SchemaMismatch(f"column {name} is not expected here", where=where, next_step=f"Give only: {', '.join(names)}.")
        seen.add(name)
    for name in names:
        if is_partial and name not in seen:
            raise SchemaMismatch(f"column {name} is missing", where=where, next_step=f"Give all of: {', '.join(names)}.")


def _check_may_miss(descriptor: TableDescriptor, name: str) -> None:
    column = descriptor.column(name)
    if not column.nullable and name != descriptor.auto_increment_column:
        role = "is in the key" if name in descriptor.primary_key else "is NOT NULL"
        raise SchemaMismatch(
            f"column {name} is missing and {role}", where=f"table {descriptor.name}", next_step=f"Give {name} a value in every row."
        )


def _fit(column: pa.ChunkedArray, field: pa.Field, where: str, *, may_be_null: bool, is_key: bool) -> pa.ChunkedArray:
    if not may_be_null and column.null_count:
        row = pc.index(pc.is_null(column), pa.scalar(True)).as_py()  # noqa: FBT003 - a scalar, not a flag
        role = "a key column" if is_key else "NOT NULL"
        raise SchemaMismatch(
            f"column {field.name} is null, and is {role}", where=f"{where}, row {row} (from 0)", next_step="Give it a value in every row."
        )
    if column.type != field.type:
        column = _cast(column, field, where)
    if pa.types.is_string(field.type):
        _check_text(field.name, column, where)
    if column.num_chunks == 1:
        return column
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.ChunkedArray) else pa.chunked_array([combined])


def check_texts(rows: pa.Table, where: str) -> None:
    """Errors: SchemaMismatch naming the first text that is no UTF-8: an Arrow array made of buffers may hold anything."""
    for field, column in zip(rows.schema, rows.itercolumns(), strict=True):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            _check_text(field.name, column, where)


def _check_text(name: str, column: pa.ChunkedArray, where: str) -> None:
    if _is_text(column):
        return
    row = _first_failing(column, _is_text)
    raise SchemaMismatch(
        f"column {name} holds bytes that are no UTF-8 text",
        where=f"{where}, row {row} (from 0)",
        next_step="Decode them first, or declare the column BYTES.",
    )


def _is_text(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)  # some 10 ns for each text
    except pa.ArrowInvalid:
        return False
    return True


def _cast(column: pa.ChunkedArray, field: pa.Field, where: str) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        return _cast(column.cast(column.type.value_type), field, where) if column.type.value_type != field.type else column.cast(field.type)
    if not _is_same_family(column.type, field.type):
        what = f"column {field.name} is {column.type}, the table has {field.type}"
        raise SchemaMismatch(what, where=where, next_step=f"Cast it to {field.type} first.")
    result = _try_cast(column, field.type)
    if result is not None:
        return result
    row = _first_failing(column, lambda rows: _try_cast(rows, field.type) is not None)
    value = _short(column[row].as_py())
    what = f"column {field.name}: {value} does not fit {field.type} without loss"
    raise SchemaMismatch(what, where=f"{where}, row {row} (from 0)", next_step=f"Round or cast it to {field.type} yourself.")


def _try_cast(column: pa.ChunkedArray, data_type: pa.DataType) -> pa.ChunkedArray | None:
    """The column in another type, None when a value would change."""
    try:
        result = column.cast(data_type, safe=True)
        if pa.types.is_floating(data_type) and not pc.all(_equal_or_nan(result.cast(column.type), column)).as_py() and len(column):
            return None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return result


def _equal_or_nan(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    equal = pc.equal(left, right)
    return pc.or_(equal, pc.and_(pc.is_nan(left), pc.is_nan(right))) if pa.types.is_floating(left.type) else equal


def _first_failing(column: pa.ChunkedArray, holds: Callable[[pa.ChunkedArray], bool]) -> int:
    """The first row of a column that does not hold, by halving."""
    start, stop = 0, len(column)
    while stop - start > 1:
        middle = (start + stop) // 2
        if holds(column.slice(start, middle - start)):
            start = middle
        else:
            stop = middle
    return start


def _is_same_family(given: pa.DataType, wanted: pa.DataType) -> bool:
    """True when values of one type may be values of the other: numbers, texts, bytes, dates, instants of one kind."""
    t = pa.types
    if t.is_null(given):
        return True
    if t.is_integer(given):
        return t.is_integer(wanted) or t.is_floating(wanted) or t.is_decimal(wanted)
    if t.is_floating(given):
        return t.is_floating(wanted) or t.is_integer(wanted)
    if t.is_decimal(given):
        return t.is_decimal(wanted) or (t.is_integer(wanted) and given.scale == 0)
    if t.is_string(wanted):
        return t.is_large_string(given) or t.is_string_view(given)
    if t.is_binary(wanted):
        return t.is_large_binary(given) or t.is_binary_view(given) or t.is_fixed_size_binary(given)
    if t.is_date(wanted):
        return t.is_date(given)
    if t.is_time(wanted):
        return t.is_time(given)
    if t.is_timestamp(wanted):
        return t.is_timestamp(given) and (given.tz is None) == (wanted.tz is None)
    return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
