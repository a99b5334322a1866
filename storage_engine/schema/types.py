"""Types: the SQL types of a table and the Arrow types that carry them.

Source: Flink / Fluss type names; TIMESTAMP(p) without zone, TIMESTAMP_LTZ(p) is an instant (UTC).
"""

from __future__ import annotations

import re

import pyarrow as pa

from storage_engine.errors import StatementRefused

_FIXED: dict[str, pa.DataType] = {
    "BOOLEAN": pa.bool_(),
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INT": pa.int32(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "DATE": pa.date32(),
    "TIME": pa.time32("ms"),
}
_PARAMETRIC = re.compile(
    r"^(CHAR|VARCHAR|BINARY|VARBINARY|DECIMAL|NUMERIC|TIME|TIMESTAMP|TIMESTAMP_LTZ)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?$"
)


def arrow_type(sql_type: str) -> pa.DataType:
    """The Arrow type of a SQL type.

    Errors: StatementRefused for a type that a table cannot have.

    >>> arrow_type("DECIMAL(12, 2)"), arrow_type("TIMESTAMP(3)")
    (Decimal128Type(decimal128(12, 2)), TimestampType(timestamp[ms]))
    """
    name = " ".join(sql_type.split()).upper()
    if name in _FIXED:
        return _FIXED[name]
    match = _PARAMETRIC.match(name)
    if match is None:
        known = ", ".join(sorted(_FIXED)) + ", CHAR(n), VARCHAR(n), DECIMAL(p, s), TIMESTAMP(p), TIMESTAMP_LTZ(p)"
        raise StatementRefused(f"type {sql_type} is not supported", where="column type", next_step=f"Use one of: {known}.")
    base, first, second = match.group(1), match.group(2), match.group(3)
    if second is not None and base not in ("DECIMAL", "NUMERIC"):
        raise StatementRefused(f"type {sql_type}: {base} has one parameter", where="column type", next_step=f"Write {base}({first}).")
    if base in ("CHAR", "VARCHAR"):
        return pa.string()
    if base in ("BINARY", "VARBINARY"):
        return pa.binary()
    if base in ("DECIMAL", "NUMERIC"):
        return _decimal_type(sql_type, int(first or 10), int(second or 0))
    if base == "TIME":
        if int(first or 0) > 3:
            raise StatementRefused(f"type {sql_type}: times are kept to the millisecond", where="column type", next_step="Write TIME(3).")
        return pa.time32("ms")
    precision = int(first) if first is not None else 6
    if precision > 6:
        raise StatementRefused(f"type {sql_type}: instants are kept to the microsecond", where="column type", next_step=f"Write {base}(6).")
    return pa.timestamp("ms" if precision <= 3 else "us", tz="UTC" if base == "TIMESTAMP_LTZ" else None)


def has_order(data_type: pa.DataType) -> bool:
    """True for types with a least and a greatest value: all but bytes and nested types."""
    return not (pa.types.is_binary(data_type) or pa.types.is_nested(data_type))


def _decimal_type(sql_type: str, precision: int, scale: int) -> pa.DataType:
    if not (1 <= precision <= 38 and scale <= precision):
        remedy = "Precision is 1 to 38, scale at most the precision: DECIMAL(12, 2)."
        raise StatementRefused(f"type {sql_type} is out of range", where="column type", next_step=remedy)
    return pa.decimal128(precision, scale)
