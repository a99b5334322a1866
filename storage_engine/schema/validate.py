"""Validate: the rules a table descriptor must hold, and its normal form.

Owner: parse_statements and Backend.create_table call validate(); nothing else decides whether a table is legal.
Holds: a validated descriptor is a fixed point: validate(validate(d)) == validate(d).
       bucket.num and bucket.key live in the fields n_buckets and bucket_keys, not in options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from storage_engine.errors import FlashlakeError, InvalidOption, SchemaMismatch, StatementRefused
from storage_engine.schema.auto_partition import check_auto_partition
from storage_engine.schema.computed import check_computed, why_not_written
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.schema.options import AGGREGATE_FUNCTIONS, check_options, parse_int, split_columns
from storage_engine.schema.row_ttl import check_row_ttl
from storage_engine.schema.types import arrow_type, has_order
from storage_engine.schema.watermark import check_watermark

N_BUCKETS_MAX = 4096
WHOLE_ROW_ENGINES = ("first_row", "versioned")
"""Engines that choose between two whole rows: no partial writes, no deletes."""
PRODUCT_DIGITS_MAX = 37
RESERVED_COLUMNS = frozenset({"_change_type", "_log_offset", "_commit_timestamp", "_partition", "_bucket", "_found"})
_TABLE_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_-]*\.[A-Za-z0-9_][A-Za-z0-9_$-]*$")
_NAME_CHARS_MAX = 200
_LENGTH_ZERO = re.compile(r"^\s*(VAR)?(CHAR|BINARY)\s*\(\s*0+\s*\)\s*$", re.IGNORECASE)


def validate(descriptor: TableDescriptor, *, line: int | None = None) -> TableDescriptor:
    """The descriptor in normal form: options checked, keys resolved, key columns NOT NULL.

    Field ids are given where no column has one; in a table that exists, those of new columns are the catalog's to give.

    Errors: StatementRefused for a table that cannot be, InvalidOption for an option that cannot be; both name the table (and `line`).
    """
    where = f"table {descriptor.name}" + (f", line {line}" if line is not None else "")
    _check_name(descriptor.name, where)
    _check_columns(descriptor.columns, where)
    options = check_options(descriptor.options, where=where, column_names=descriptor.column_names)
    check_computed(descriptor, where)
    _check_key_columns(descriptor, where)
    bucket_keys = _resolve_bucket_keys(descriptor, options, where)
    n_buckets = _resolve_n_buckets(descriptor, options, where)
    if options.get("table.merge-engine") == "last_row":
        del options["table.merge-engine"]
    options.pop("bucket.key", None)
    options.pop("bucket.num", None)
    is_new = all(column.field_id < 0 for column in descriptor.columns)
    columns = tuple(
        replace(
            column,
            type=canonical_type(column.type),
            nullable=column.nullable and column.name not in descriptor.primary_key,
            field_id=index if is_new else column.field_id,
        )
        for index, column in enumerate(descriptor.columns)
    )
    result = replace(descriptor, columns=columns, bucket_keys=bucket_keys, n_buckets=n_buckets, options=options)
    _check_engine(result, where)
    _check_auto_increment(result, where)
    _check_partition_options(result, where)
    check_auto_partition(result, where)
    _check_statistics(result, where)
    check_row_ttl(result, where)
    check_computed(result, where)
    check_watermark(result, where)
    return result


def check_targets(descriptor: TableDescriptor, columns: Sequence[str]) -> tuple[str, ...]:
    """The target columns of a partial update or delete, in table order.

    Errors: SchemaMismatch when the table has no primary key, a target is unknown or named twice, a key column is missing,
            or a column left out is NOT NULL.
    """
    where = f"table {descriptor.name}"
    if not descriptor.has_primary_key:
        raise SchemaMismatch("a partial write needs a primary key", where=where, next_step="Append whole rows.")
    seen: set[str] = set()
    for name in columns:
        if name not in descriptor.column_names:
            what = why_not_written(descriptor, name) or f"unknown column {name}"
            raise SchemaMismatch(what, where=where, next_step=f"Columns are: {', '.join(descriptor.column_names)}.")
        if name in seen:
            raise SchemaMismatch(f"column {name} is named twice", where=where, next_step="Name each target column once.")
        seen.add(name)
    left_out = [name for name in descriptor.column_names if name not in seen]
    if left_out and descriptor.merge_engine in WHOLE_ROW_ENGINES:
        raise SchemaMismatch(
            f"a table of the {descriptor.merge_engine} engine takes no partial update: {left_out[0]} is not written",
            where=where,
            next_step="Write whole rows.",
        )
    for name in descriptor.primary_key:
        if name not in seen:
            raise SchemaMismatch(
                f"key column {name} is not among the target columns",
                where=where,
                next_step=f"Name the whole key: {', '.join(descriptor.primary_key)}.",
            )
    for column in descriptor.columns:
        if column.name not in seen and not column.nullable and column.name != descriptor.auto_increment_column:
            raise SchemaMismatch(
                f"column {column.name} is NOT NULL and not written",
                where=where,
                next_step="Write it too, or declare it nullable: a partial write of a new key leaves it null.",
            )
    return tuple(name for name in descriptor.column_names if name in seen)


def partition_of(descriptor: TableDescriptor, written: Mapping[str, str], *, line: int | None = None) -> str:
    """The partition that PARTITION (column = 'value') names. Errors: StatementRefused for another column than the partition's."""
    where = f"table {descriptor.name}" + (f", line {line}" if line is not None else "")
    if not descriptor.partition_keys:
        raise StatementRefused(f"{descriptor.name} has no partitions", where=where, next_step="Partition it when it is created.")
    if tuple(written) != descriptor.partition_keys:
        key = descriptor.partition_keys[0]
        raise StatementRefused(f"PARTITION ({', '.join(written)}) does not name one", where=where, next_step=f"Write ({key} = 'value').")
    return written[descriptor.partition_keys[0]]


def canonical_type(sql_type: str) -> str:
    """One spelling per type, as SHOW CREATE TABLE prints it.

    >>> canonical_type("decimal(12,2)"), canonical_type("integer"), canonical_type("timestamp")
    ('DECIMAL(12, 2)', 'INT', 'TIMESTAMP(6)')
    """
    arrow_type(sql_type)
    match = re.match(r"^\s*([A-Za-z_]+)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?\s*$", sql_type)
    assert match is not None, f"arrow_type accepted {sql_type!r}"
    base, first, second = match.group(1).upper(), match.group(2), match.group(3)
    base = {"INTEGER": "INT", "NUMERIC": "DECIMAL"}.get(base, base)
    if base == "DECIMAL":
        return f"DECIMAL({first or 10}, {second or 0})"
    if base in ("TIMESTAMP", "TIMESTAMP_LTZ"):
        return f"{base}({first or 6})"
    return base if first is None else f"{base}({first})"


def _check_name(name: str, where: str) -> None:
    if _TABLE_NAME.match(name) is None or len(name) > _NAME_CHARS_MAX:
        raise StatementRefused(
            f"{name!r} cannot name a table",
            where=where,
            next_step="Write database.table with letters, digits, _ and -, at most 200 characters.",
        )


def _check_columns(columns: Sequence[Column], where: str) -> None:
    if not columns:
        raise StatementRefused("a table needs a column", where=where, next_step="Declare at least one column.")
    seen: dict[str, str] = {}
    for column in columns:
        alike = seen.get(column.name.lower())
        if alike == column.name:
            raise StatementRefused(f"column {column.name} is declared twice", where=where, next_step="Rename or remove one of them.")
        if alike is not None:
            raise StatementRefused(
                f"column {column.name} differs from column {alike} only in case",
                where=where,
                next_step="Choose another name: Delta and DuckDB compare names without case.",
            )
        if column.name != column.name.strip():
            raise StatementRefused(
                f"column name {column.name!r} begins or ends with white space",
                where=where,
                next_step="Leave it out: options such as 'bucket.key' list names separated by commas and spaces.",
            )
        if column.name.startswith("__") or column.name.lower() in RESERVED_COLUMNS or not column.name:
            raise StatementRefused(
                f"column name {column.name!r} is reserved",
                where=where,
                next_step="Names that begin with __ and " + ", ".join(sorted(RESERVED_COLUMNS)) + " belong to the store.",
            )
        try:
            arrow_type(column.type)
        except FlashlakeError as error:
            raise StatementRefused(f"column {column.name}: {error.what}", where=where, next_step=error.next_step) from error
        if column.field_id < 0 and _LENGTH_ZERO.search(column.type):
            raise StatementRefused(
                f"column {column.name}: {column.type} holds nothing", where=where, next_step="Give a length of at least 1."
            )
        seen[column.name.lower()] = column.name


def _check_key_columns(descriptor: TableDescriptor, where: str) -> None:
    for role, names in (("PRIMARY KEY", descriptor.primary_key), ("PARTITIONED BY", descriptor.partition_keys)):
        for position, name in enumerate(names):
            if name not in descriptor.column_names:
                raise StatementRefused(
                    f"{role} names no column: {name}", where=where, next_step=f"Columns are: {', '.join(descriptor.column_names)}."
                )
            if name in names[:position]:
                raise StatementRefused(f"{role} names {name} twice", where=where, next_step="Name each column once.")
    if len(descriptor.partition_keys) > 1:
        raise StatementRefused(
            "PARTITIONED BY has more than one column",
            where=where,
            next_step="Partition by one column; put the others into the key or the bucket key.",
        )
    for name in descriptor.partition_keys:
        column = descriptor.column(name)
        if not can_name_partition(arrow_type(column.type)):
            raise StatementRefused(
                f"PARTITIONED BY {name}: a {column.type} cannot name a partition",
                where=where,
                next_step="Partition by a STRING, an integer or a DATE column.",
            )
        if descriptor.primary_key and name not in descriptor.primary_key:
            raise StatementRefused(
                f"partition column {name} is not in the primary key",
                where=where,
                next_step=f"Add it: PRIMARY KEY ({', '.join((*descriptor.primary_key, name))}).",
            )
    if descriptor.primary_key and not descriptor.physical_primary_key:
        raise StatementRefused(
            "the primary key is only the partition column",
            where=where,
            next_step="Add a column to the key: each partition would hold one row.",
        )


def can_name_partition(data_type: pa.DataType) -> bool:
    """True for types whose values have one plain text: strings, integers, dates."""
    return pa.types.is_string(data_type) or pa.types.is_integer(data_type) or pa.types.is_date32(data_type)


def _resolve_bucket_keys(descriptor: TableDescriptor, options: dict[str, str], where: str) -> tuple[str, ...]:
    written = split_columns(options["bucket.key"]) if "bucket.key" in options else ()
    if written and descriptor.bucket_keys and written != descriptor.bucket_keys:
        raise InvalidOption(
            f"bucket.key = {options['bucket.key']!r} contradicts the descriptor's {descriptor.bucket_keys}",
            where=where,
            next_step="Say it in one place.",
        )
    names = written or descriptor.bucket_keys
    if "bucket.key" in options and not written:
        raise InvalidOption("bucket.key is empty", where=where, next_step="Name columns, or leave the option out.")
    allowed = (
        descriptor.physical_primary_key
        if descriptor.has_primary_key
        else tuple(n for n in descriptor.column_names if n not in descriptor.partition_keys)
    )
    for position, name in enumerate(names):
        if name not in descriptor.column_names:
            raise InvalidOption(
                f"bucket.key names no column: {name}", where=where, next_step=f"Columns are: {', '.join(descriptor.column_names)}."
            )
        if name in names[:position]:
            raise InvalidOption(f"bucket.key names {name} twice", where=where, next_step="Name each column once.")
        if name not in allowed:
            why = "is not in the primary key" if name not in descriptor.partition_keys else "is the partition column"
            raise InvalidOption(f"bucket.key column {name} {why}", where=where, next_step=f"Choose from: {', '.join(allowed)}.")
    return names or (descriptor.physical_primary_key if descriptor.has_primary_key else ())


def _resolve_n_buckets(descriptor: TableDescriptor, options: dict[str, str], where: str) -> int:
    written = options.get("bucket.num")
    if written is not None and descriptor.n_buckets not in (1, int(written)):
        raise InvalidOption(
            f"bucket.num = {written!r} contradicts the descriptor's {descriptor.n_buckets}", where=where, next_step="Say it in one place."
        )
    return parse_int(written or str(descriptor.n_buckets), name="bucket.num", where=where, low=1, high=N_BUCKETS_MAX)


def _check_engine(descriptor: TableDescriptor, where: str) -> None:
    for name in ("table.merge-engine", "table.delete.behavior", "table.changelog.image"):
        if name in descriptor.options and not descriptor.has_primary_key:
            raise InvalidOption(
                f"{name} needs a primary key", where=where, next_step="Add PRIMARY KEY (...) NOT ENFORCED, or leave the option out."
            )
    _check_deletes_and_image(descriptor, where)
    _check_version_column(descriptor, where)
    _check_zero_column(descriptor, where)
    for column in descriptor.columns:
        _check_function(descriptor, column, where)


def _check_deletes_and_image(descriptor: TableDescriptor, where: str) -> None:
    engine = descriptor.merge_engine
    if engine in WHOLE_ROW_ENGINES and descriptor.options.get("table.delete.behavior") == "allow":
        raise InvalidOption(
            f"'table.delete.behavior' = 'allow' does not go with the {engine} engine",
            where=where,
            next_step="Write 'ignore' (the default) or 'disable': a deleted row would come back with any row that arrives late.",
        )
    if engine == "aggregation" and descriptor.is_wal:
        raise InvalidOption(
            "'table.changelog.image' = 'wal' does not go with the aggregation engine",
            where=where,
            next_step="Leave the option out: who reads a total needs the old one, to take it back.",
        )


def _check_zero_column(descriptor: TableDescriptor, where: str) -> None:
    option, name = "table.delete.on-zero", descriptor.zero_column
    if name is None:
        return
    fitting = [
        column.name
        for column in descriptor.columns
        if descriptor.merge_engine == "aggregation"
        and column.name not in descriptor.primary_key
        and descriptor.aggregate_function(column.name) in ("sum", "count")
        and pa.types.is_integer(column.arrow.type)
    ]
    if name not in fitting:
        raise InvalidOption(
            f"{option} = {name!r} names no column that counts",
            where=where,
            next_step=f"Name an integer column with function sum or count: {', '.join(fitting) or 'there is none'}.",
        )


def _check_version_column(descriptor: TableDescriptor, where: str) -> None:
    option, name = "table.merge-engine.versioned.ver-column", descriptor.version_column
    if descriptor.merge_engine != "versioned":
        if name is not None:
            raise InvalidOption(
                f"{option} has no effect without the versioned engine", where=where, next_step="Add 'table.merge-engine' = 'versioned'."
            )
        return
    fitting = [column.name for column in descriptor.columns if _can_be_version(column.arrow.type)]
    if name is None:
        raise InvalidOption(
            f"the versioned engine needs {option}", where=where, next_step=f"Name one of: {', '.join(fitting) or 'a BIGINT column'}."
        )
    if name not in descriptor.column_names:
        raise InvalidOption(f"{option} names no column: {name!r}", where=where, next_step=f"Name one of: {', '.join(fitting)}.")
    if name not in fitting:
        raise InvalidOption(
            f"{option}: {name} is a {descriptor.column(name).type}",
            where=where,
            next_step="A version is an INT, BIGINT, TIMESTAMP or TIMESTAMP_LTZ.",
        )


def _can_be_version(data_type: pa.DataType) -> bool:
    return pa.types.is_int32(data_type) or pa.types.is_int64(data_type) or pa.types.is_timestamp(data_type)


def _check_function(descriptor: TableDescriptor, column: Column, where: str) -> None:
    name = f"fields.{column.name}.agg"
    function = descriptor.options.get(name)
    delimiter = f"fields.{column.name}.listagg.delimiter"
    if delimiter in descriptor.options and function != "listagg":
        raise InvalidOption(f"{delimiter} has no effect without listagg", where=where, next_step=f"Add '{name}' = 'listagg'.")
    if function is not None:
        if descriptor.merge_engine != "aggregation":
            raise InvalidOption(
                f"{name} has no effect without the aggregation engine", where=where, next_step="Add 'table.merge-engine' = 'aggregation'."
            )
        if column.name in descriptor.primary_key:
            raise InvalidOption(f"{name}: a key column is not aggregated", where=where, next_step="Leave the option out.")
        if not aggregate_fits(function, arrow_type(column.type)):
            fitting = [f for f in AGGREGATE_FUNCTIONS if aggregate_fits(f, arrow_type(column.type))]
            raise InvalidOption(
                f"{name} = {function!r} does not fit type {column.type}", where=where, next_step=f"Choose from: {', '.join(fitting)}."
            )


def aggregate_fits(function: str, data_type: pa.DataType) -> bool:
    """True when a column of this type can carry this aggregate function.

    A product of two DECIMALs is exact in twice their digits, of which 76 exist: it takes 37 and fewer.
    """
    is_number = pa.types.is_integer(data_type) or pa.types.is_floating(data_type) or pa.types.is_decimal(data_type)
    match function:
        case "sum":
            return is_number
        case "product":
            return is_number and not (pa.types.is_decimal(data_type) and data_type.precision > PRODUCT_DIGITS_MAX)
        case "count":
            return pa.types.is_int32(data_type) or pa.types.is_int64(data_type)
        case "max" | "min":
            return is_number or pa.types.is_string(data_type) or pa.types.is_temporal(data_type)
        case "listagg":
            return pa.types.is_string(data_type)
        case "bool_and" | "bool_or":
            return pa.types.is_boolean(data_type)
        case "rbm32" | "rbm64":
            return pa.types.is_binary(data_type)
        case _:
            return True


def _check_statistics(descriptor: TableDescriptor, where: str) -> None:
    option = "table.statistics.columns"
    fitting = [column.name for column in descriptor.columns if has_order(column.arrow.type)]
    for name in split_columns(descriptor.options.get(option, "")):
        if name != "*" and name not in fitting:
            why = "names no column" if name not in descriptor.column_names else f"is a {descriptor.column(name).type} and has no order"
            raise InvalidOption(f"{option}: {name} {why}", where=where, next_step=f"Write * or some of: {', '.join(fitting)}.")
        if name == "*" and descriptor.options[option] != "*":
            raise InvalidOption(f"{option}: * stands beside other names", where=where, next_step="Write '*' alone.")


def _check_auto_increment(descriptor: TableDescriptor, where: str) -> None:
    names = split_columns(descriptor.options.get("auto-increment.fields", ""))
    if "auto-increment.fields" not in descriptor.options:
        if "table.auto-increment.cache-size" in descriptor.options:
            raise InvalidOption(
                "table.auto-increment.cache-size needs auto-increment.fields", where=where, next_step="Name the column, or leave it out."
            )
        return
    if len(names) != 1 or names[0] not in descriptor.column_names:
        what = f"auto-increment.fields = {descriptor.options['auto-increment.fields']!r} does not name one column"
        raise InvalidOption(what, where=where, next_step=f"Name one of: {', '.join(descriptor.column_names)}.")
    column = descriptor.column(names[0])
    if not descriptor.has_primary_key:
        raise InvalidOption("auto-increment.fields needs a primary key", where=where, next_step="Add PRIMARY KEY (...) NOT ENFORCED.")
    if column.name in descriptor.primary_key:
        raise InvalidOption(
            f"auto-increment column {column.name} is in the primary key", where=where, next_step="Take a column outside the key."
        )
    if not (pa.types.is_int32(column.arrow.type) or pa.types.is_int64(column.arrow.type)):
        raise InvalidOption(f"auto-increment column {column.name} is a {column.type}", where=where, next_step="Declare it INT or BIGINT.")
    if descriptor.merge_engine != "last_row":
        raise InvalidOption(
            f"auto-increment.fields does not go with the {descriptor.merge_engine} engine",
            where=where,
            next_step="Use the default merge engine.",
        )


def _check_partition_options(descriptor: TableDescriptor, where: str) -> None:
    name = "client.writer.dynamic-create-partition.enabled"
    if name in descriptor.options and not descriptor.partition_keys:
        raise InvalidOption(f"{name} needs a partitioned table", where=where, next_step="Add PARTITIONED BY (column), or leave it out.")
