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
_PARAMETRIC = re.compile(r"^(CHAR|VARCHAR|BINARY|VARBINARY|DECIMAL|NUMERIC|TIME|TIMESTAMP|TIMESTAMP_LTZ)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?$")


def arrow_type(sql_type: str) -> pa.DataType:
    """The Arrow type of a SQL type.

    Errors: StatementRefused for a type that a table cannot have.

    >>> arrow_type("DECIMAL(12, 2)"), arrow_type("TIMESTAMP(3)")
    (Decimal128Type(decimal128(12, 2)), TimestampType(timestamp[ms]))
    """
    name = sql_type.strip().upper()
    if name in _FIXED:
        return _FIXED[name]
    match = _PARAMETRIC.match(name)
    if match is None:
        raise StatementRefused(f"type {sql_type} is not supported", where="column type", next_step="Use one of: " + ", ".join(sorted(_FIXED)) + ", CHAR(n), VARCHAR(n), DECIMAL(p, s), TIMESTAMP(p), TIMESTAMP_LTZ(p).")
    base, first, second = match.group(1), match.group(2), match.group(3)
    if base in ("CHAR", "VARCHAR"):
        return pa.string()
    if base in ("BINARY", "VARBINARY"):
        return pa.binary()
    if base in ("DECIMAL", "NUMERIC"):
        return pa.decimal128(int(first or 10), int(second or 0))
    if base == "TIME":
        return pa.time32("ms")
    unit = "ms" if first is not None and int(first) <= 3 else "us"
    return pa.timestamp(unit, tz="UTC" if base == "TIMESTAMP_LTZ" else None)
