"""Evolve: what ALTER TABLE makes of a descriptor, and which changes of columns are possible. Pure.

Owner: the session and deploy make the wanted descriptor with these functions; the catalog (engine/catalog.py) checks any descriptor
       that it is handed with check_evolution(), so the rules hold for every caller.
Holds: a column is its field id. Its name and its type may change, its id does not; a new column has id -1 until the catalog gives it
       one that was never used before. A descriptor made here keeps the schema id it came from: the catalog compares it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.errors import InvalidOption, SchemaMismatch, StatementRefused
from storage_engine.schema.computed import check_kept, without_columns
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.schema.options import (
    AGGREGATE_FUNCTIONS,
    KNOWN_OPTIONS,
    SINGLE_COLUMN_OPTIONS,
    check_alterable,
    split_columns,
)
from storage_engine.schema.types import arrow_type
from storage_engine.schema.validate import canonical_type, validate

_INTEGERS = ("TINYINT", "SMALLINT", "INT", "BIGINT")
_TEXTS = {"CHAR": "STRING", "VARCHAR": "STRING", "BINARY": "BYTES", "VARBINARY": "BYTES"}
_PARAMETRIC = re.compile(r"^([A-Z_]+)(?:\((\d+)(?:, (\d+))?\))?$")
_PARTITION_CALL = re.compile(r"\(\s*([^()]+?)\s*\)")


# what is asked for


def add_columns(descriptor: TableDescriptor, columns: Sequence[Column], *, line: int | None = None) -> TableDescriptor:
    """The descriptor with nullable columns added at its end.

    Errors: StatementRefused for a name that exists, a column that is NOT NULL, or a type a table cannot have.
    """
    for column in columns:
        _require_nullable(column, _where(descriptor, line))
    added = tuple(replace(column, field_id=-1) for column in columns)
    return validate(replace(descriptor, columns=descriptor.columns + added), line=line)


def rename_column(descriptor: TableDescriptor, old: str, new: str, *, line: int | None = None) -> TableDescriptor:
    """The descriptor with a column under another name; keys and options that name it follow.

    Errors: StatementRefused for a name that is not there, is taken, or stands in an option of the orchestration.
    """
    where = _where(descriptor, line)
    _require_columns(descriptor, [old], where)
    if new in descriptor.column_names:
        raise StatementRefused(f"there is a column {new} already", where=where, next_step="Choose another name, or drop that one first.")
    _refuse_orchestrated(descriptor, old, where)
    check_kept(descriptor, descriptor, [old], where)

    def follow(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(new if name == old else name for name in names)

    columns = tuple(replace(column, name=new) if column.name == old else column for column in descriptor.columns)
    renamed = replace(
        descriptor,
        columns=columns,
        primary_key=follow(descriptor.primary_key),
        partition_keys=follow(descriptor.partition_keys),
        bucket_keys=follow(descriptor.bucket_keys),
        options=options_renamed(descriptor.options, {old: new}),
    )
    return validate(renamed, line=line)


def drop_columns(descriptor: TableDescriptor, names: Sequence[str], *, line: int | None = None) -> TableDescriptor:
    """The descriptor without some columns and without the options of their aggregate functions.

    Errors: StatementRefused for a column that is not there, is in a key, or is named by an option.
    """
    where = _where(descriptor, line)
    _require_columns(descriptor, names, where)
    for name in names:
        _refuse_drop(descriptor, name, where)
        _refuse_orchestrated(descriptor, name, where)
    columns = tuple(column for column in descriptor.columns if column.name not in names)
    options = dict(descriptor.options)
    for key, value in descriptor.options.items():
        if any(_field_option_of(key, name) is not None for name in names):
            del options[key]
        elif key == "table.statistics.columns":
            options[key] = ",".join(name for name in split_columns(value) if name not in names)
            if not options[key]:
                del options[key]
    computed = without_columns(descriptor.computed, list(descriptor.column_names), names)
    check_kept(descriptor, replace(descriptor, computed=computed), names, where)
    return validate(replace(descriptor, columns=columns, options=options, computed=computed), line=line)


def modify_columns(descriptor: TableDescriptor, columns: Sequence[Column], *, line: int | None = None) -> TableDescriptor:
    """The descriptor with columns of another type, nullability or comment (without COMMENT the old one stays).

    Errors: StatementRefused for a column that is not there, a type that is no widening, or NOT NULL where nulls were allowed.
    """
    where = _where(descriptor, line)
    _require_columns(descriptor, [column.name for column in columns], where)
    wanted = {column.name: column for column in columns}

    def modified(column: Column) -> Column:
        to = wanted.get(column.name)
        return column if to is None else replace(column, type=to.type, nullable=to.nullable, comment=to.comment or column.comment)

    changed = validate(replace(descriptor, columns=tuple(modified(column) for column in descriptor.columns)), line=line)
    check_evolution(descriptor, changed, line=line)
    return changed


def set_options(descriptor: TableDescriptor, changes: Mapping[str, str], *, line: int | None = None) -> TableDescriptor:
    """The descriptor with options changed by ALTER TABLE ... SET; 'bucket.num' is the number of buckets it shall have.

    Errors: InvalidOption for an option that is unknown, out of range, or fixed at creation.
    """
    checked = check_alterable(changes, where=_where(descriptor, line), column_names=descriptor.column_names)
    n_buckets = int(checked.pop("bucket.num", descriptor.n_buckets))
    return validate(replace(descriptor, options={**descriptor.options, **checked}, n_buckets=n_buckets), line=line)


# what is possible


def check_evolution(current: TableDescriptor, wanted: TableDescriptor, *, line: int | None = None) -> None:
    """Errors: StatementRefused, InvalidOption when the table cannot become `wanted` (a valid descriptor) without rewriting its rows."""
    where = _where(current, line)
    known = {column.field_id: column for column in current.columns}
    kept = [column for column in wanted.columns if column.field_id >= 0]
    ids = [column.field_id for column in kept]
    if wanted.columns[: len(kept)] != tuple(kept) or ids != [i for i in known if i in set(ids)]:
        raise StatementRefused("columns would change places", where=where, next_step="Only add columns at the end.")
    for column in wanted.columns[len(kept) :]:
        _require_nullable(column, where)
    for column in current.columns:
        if column.field_id not in ids:
            _refuse_drop(current, column.name, where)
    renamed = {known[column.field_id].name: column.name for column in kept if known[column.field_id].name != column.name}
    now = {column.field_id: column for column in kept}
    changed = [
        item.name for item in current.columns if (to := now.get(item.field_id)) is None or (to.name, to.type) != (item.name, item.type)
    ]
    check_kept(current, wanted, changed, where)
    for column in kept:
        _check_retyped(current, known[column.field_id], column, where)
    if current.watermark is not None and current.n_buckets != wanted.n_buckets:
        raise StatementRefused(
            f"{current.name} has a WATERMARK, and a new bucket would have no event time: windows that were emitted would take rows again",
            where=where,
            next_step="Create a table with as many buckets, and copy.",
        )
    for role in ("primary_key", "partition_keys", "bucket_keys"):
        follows = tuple(renamed.get(name, name) for name in getattr(current, role))
        if getattr(wanted, role) != follows:
            raise StatementRefused(f"{role} of {current.name} cannot change", where=where, next_step="Create a new table and copy.")
    _check_options(current, wanted, options_renamed(current.options, renamed), where)


def is_widening(old: str, new: str) -> bool:
    """True when every value of one SQL type is a value of the other.

    >>> is_widening("INT", "BIGINT"), is_widening("DECIMAL(10, 2)", "DECIMAL(12, 2)"), is_widening("BIGINT", "INT")
    (True, True, False)
    """
    old, new = canonical_type(old), canonical_type(new)
    if old == new or (old, new) == ("FLOAT", "DOUBLE"):
        return True
    if old in _INTEGERS and new in _INTEGERS:
        return _INTEGERS.index(old) < _INTEGERS.index(new)
    (old_base, old_first, old_second), (new_base, new_first, new_second) = _parts(old), _parts(new)
    if old_base in _TEXTS:
        if new == _TEXTS[old_base]:
            return True
        is_longer = new_first is not None and new_first >= (old_first or 1)
        becomes_fixed = old_base.startswith("VAR") and not new_base.startswith("VAR")
        return _TEXTS.get(new_base) == _TEXTS[old_base] and is_longer and not becomes_fixed
    if old_base != new_base or old_base not in ("DECIMAL", "TIMESTAMP", "TIMESTAMP_LTZ", "TIME"):
        return False
    return (old_first or 0) <= (new_first or 0) and old_second == new_second


def fitted(values: pa.Array, wanted: pa.DataType, *, where: str) -> pa.Array:
    """Values of a column in the type it has for the reader: wider than they were stored, or, where the reader still knows an older
    and narrower type, the same values in that one.

    Errors: SchemaMismatch when a value does not fit.
    """
    if values.type == wanted:
        return values
    try:
        result = pc.cast(values, wanted)
        if not pa.types.is_floating(wanted) or wanted.bit_width >= values.type.bit_width or _same(values, pc.cast(result, values.type)):
            return result
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    raise SchemaMismatch(
        f"a value of type {values.type} does not fit {wanted}",
        where=where,
        next_step="The column's type was changed: open the table again to read it in its present type.",
    )


def options_renamed(options: Mapping[str, str], renamed: Mapping[str, str]) -> dict[str, str]:
    """Options whose names or values name a column, with the columns' new names; the order is kept."""
    out: dict[str, str] = {}
    for key, value in options.items():
        option = KNOWN_OPTIONS.get(key)
        follows = next((f"fields.{new}.{rest}" for old, new in renamed.items() if (rest := _field_option_of(key, old)) is not None), key)
        if option is not None and option.kind == "columns":
            value = ",".join(renamed.get(name, name) for name in split_columns(value))
        elif key in SINGLE_COLUMN_OPTIONS:
            value = renamed.get(value, value)
        out[follows] = value
    return out


def _field_option_of(key: str, column: str) -> str | None:
    """What follows the column's name in an option `fields.<column>....`; None when the option is not about that column."""
    rest = key.removeprefix(f"fields.{column}.")
    return rest if rest != key and (rest == "agg" or rest.split(".")[0] in (*AGGREGATE_FUNCTIONS, "string_agg")) else None


def _check_retyped(current: TableDescriptor, old: Column, new: Column, where: str) -> None:
    if old.nullable and not new.nullable:
        raise StatementRefused(f"column {old.name} may hold nulls", where=where, next_step="Leave out NOT NULL.")
    if old.type == new.type:
        return
    if not is_widening(old.type, new.type):
        raise StatementRefused(
            f"column {old.name} is {old.type} and cannot become {new.type}",
            where=where,
            next_step="A type can only be widened: TINYINT < SMALLINT < INT < BIGINT, FLOAT < DOUBLE, DECIMAL to more digits of the same "
            "scale, CHAR and VARCHAR to longer ones or STRING, TIMESTAMP to more digits. Else add a column and fill it.",
        )
    before, after = arrow_type(old.type), arrow_type(new.type)
    roles = {"primary key": current.primary_key, "bucket key": current.bucket_keys, "partition column": current.partition_keys}
    role = next((role for role, names in roles.items() if old.name in names), None)
    if before != after and role is not None:
        raise StatementRefused(
            f"column {old.name} is in the {role}, and {new.type} would send its rows elsewhere",
            where=where,
            next_step="Create a new table and copy.",
        )
    if current.is_tiered and before != after and not pa.types.is_timestamp(before):  # the lake keeps microseconds anyway
        raise StatementRefused(
            f"column {old.name} is {old.type} in the lake, whose files are not rewritten",
            where=where,
            next_step=f"Add a column of type {new.type} and fill it, or create a new table and copy.",
        )


def _refuse_drop(descriptor: TableDescriptor, name: str, where: str) -> None:
    roles = {
        "in the primary key": descriptor.primary_key,
        "in the bucket key": descriptor.bucket_keys,
        "the partition column": descriptor.partition_keys,
        "the version column": (descriptor.version_column,),
        "the auto-increment column": (descriptor.auto_increment_column,),
    }
    for role, names in roles.items():
        if name in names:
            raise StatementRefused(f"column {name} is {role} and cannot be dropped", where=where, next_step="Create a new table and copy.")
    for key, value in descriptor.options.items():
        option = KNOWN_OPTIONS.get(key)
        is_list = option is not None and option.kind == "columns" and key != "table.statistics.columns"
        if (is_list and name in split_columns(value)) or (key in SINGLE_COLUMN_OPTIONS and name == value):
            raise StatementRefused(f"column {name} is named by '{key}'", where=where, next_step="Create a new table and copy.")


def _refuse_orchestrated(descriptor: TableDescriptor, name: str, where: str) -> None:
    partitions = descriptor.options.get("asset.partitions", "")
    if name in _PARTITION_CALL.findall(partitions):
        raise StatementRefused(
            f"column {name} is named by 'asset.partitions' = '{partitions}'",
            where=where,
            next_step="ALTER TABLE ... SET ('asset.partitions' = '...') to another column first.",
        )


def _check_options(current: TableDescriptor, wanted: TableDescriptor, before: Mapping[str, str], where: str) -> None:
    """Only what ALTER TABLE ... SET may change has changed; options of dropped columns are gone."""
    names = wanted.column_names
    changed = {key: value for key, value in wanted.options.items() if before.get(key) != value and key != "table.statistics.columns"}
    check_alterable(changed, where=where, column_names=names)
    dropped = [column.name for column in current.columns if column.field_id not in {item.field_id for item in wanted.columns}]
    for key in before:
        of_dropped = key == "table.statistics.columns" or any(_field_option_of(key, name) is not None for name in dropped)
        if key not in wanted.options and not of_dropped and not key.startswith("asset."):
            raise InvalidOption(f"{key} cannot be taken back", where=where, next_step="Set it to another value.")


def _require_nullable(column: Column, where: str) -> None:
    if not column.nullable:
        raise StatementRefused(
            f"new column {column.name} must be nullable",
            where=where,
            next_step="Rows stored before it have no value: leave out NOT NULL.",
        )


def _require_columns(descriptor: TableDescriptor, names: Sequence[str], where: str) -> None:
    for position, name in enumerate(names):
        if any(item.name == name for item in descriptor.computed):
            what = f"column {name} is computed: it stays as the table was created with it"
            raise StatementRefused(what, where=where, next_step="Create a view, or a new table.")
        if name not in descriptor.column_names:
            known = ", ".join(descriptor.column_names)
            raise StatementRefused(f"there is no column {name}", where=where, next_step=f"Columns are: {known}.")
        if name in names[:position]:
            raise StatementRefused(f"column {name} is named twice", where=where, next_step="Name each column once.")


def _same(left: pa.Array, right: pa.Array) -> bool:
    equal = pc.or_(pc.equal(left, right), pc.and_(pc.is_nan(left), pc.is_nan(right)))
    return pc.all(equal, min_count=0).as_py() is not False


def _parts(sql_type: str) -> tuple[str, int | None, int | None]:
    match = _PARAMETRIC.match(sql_type)
    assert match is not None, f"{sql_type} is not in its one spelling"
    base, first, second = match.groups()
    return base, None if first is None else int(first), None if second is None else int(second)


def _where(descriptor: TableDescriptor, line: int | None) -> str:
    return f"table {descriptor.name}" + (f", line {line}" if line is not None else "")
