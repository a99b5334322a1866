"""SqlType: the types of expressions, and Flink's rules for what an operation on them yields.

Holds: a column's declared type and an expression's type are the same thing; `arrow_type(str(t))` carries it.
Source: Flink 2.2 LogicalTypeMerging (decimal precision and scale), LogicalTypeCasts (implicit casts).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from storage_engine.errors import StatementRefused

DECIMAL_PRECISION_MAX = 38
_INTEGERS = ("TINYINT", "SMALLINT", "INT", "BIGINT")
_INTEGER_DIGITS = {"TINYINT": 3, "SMALLINT": 5, "INT": 10, "BIGINT": 20}
_APPROXIMATE = ("FLOAT", "DOUBLE")
_SYNONYMS = {
    "INTEGER": "INT",
    "NUMERIC": "DECIMAL",
    "DEC": "DECIMAL",
    "BOOL": "BOOLEAN",
    "TEXT": "STRING",
    "VARCHAR": "STRING",
    "CHAR": "STRING",
    "VARBINARY": "BYTES",
    "BINARY": "BYTES",
    "REAL": "FLOAT",
    "DATETIME": "TIMESTAMP",
    "TIMESTAMPTZ": "TIMESTAMP_LTZ",
    "TIMESTAMPLTZ": "TIMESTAMP_LTZ",
    "TIMESTAMPNTZ": "TIMESTAMP",
    "BLOB": "BYTES",
}
_DUCKDB = {"STRING": "TEXT", "BYTES": "BLOB", "INT": "INT", "TIMESTAMP_LTZ": "TIMESTAMPTZ", "NULL": "INT", "PROCTIME": "TIMESTAMP_MS"}
_TEXT = re.compile(r"^([A-Za-z_]+)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?$")


@dataclass(frozen=True)
class SqlType:
    """One type. `precision` and `scale` of DECIMAL; `precision` of TIMESTAMP, TIMESTAMP_LTZ (fraction digits).

    Lengths of CHAR and VARCHAR are not kept: all text is STRING. NULL is the type of a bare NULL, UNKNOWN of what only DuckDB knows,
    PROCTIME of a column that is a processing time: no value of the statement, only the time of windows and lookup joins.
    """

    name: str
    precision: int | None = None
    scale: int | None = None
    parts: tuple[tuple[str, SqlType], ...] = ()
    """What a nested type is made of: ARRAY its element, MAP key and value, ROW its named fields. Such a value is in no table."""

    def __str__(self) -> str:
        if self.name == "ROW":
            return f"ROW<{', '.join(f'`{label}` {of}' for label, of in self.parts)}>"
        if self.parts:
            return f"{self.name}<{', '.join(str(of) for _, of in self.parts)}>"
        if self.name == "DECIMAL":
            return f"DECIMAL({self.precision}, {self.scale})"
        if self.name in ("TIMESTAMP", "TIMESTAMP_LTZ"):
            return f"{self.name}({self.precision})"
        return self.name

    @property
    def is_integer(self) -> bool:
        return self.name in _INTEGERS

    @property
    def is_approximate(self) -> bool:
        return self.name in _APPROXIMATE

    @property
    def is_exact(self) -> bool:
        return self.is_integer or self.name == "DECIMAL"

    @property
    def is_numeric(self) -> bool:
        return self.is_exact or self.is_approximate

    @property
    def is_timestamp(self) -> bool:
        return self.name in ("TIMESTAMP", "TIMESTAMP_LTZ")

    @property
    def is_known(self) -> bool:
        return self.name not in ("UNKNOWN", "NULL")

    @property
    def duckdb(self) -> str:
        """The type's name in DuckDB."""
        if self.name == "ARRAY":
            return f"{self.parts[0][1].duckdb}[]"
        if self.name == "MAP":
            return f"MAP({', '.join(of.duckdb for _, of in self.parts)})"
        if self.name == "ROW":
            listed = ", ".join('"' + label + '" ' + of.duckdb for label, of in self.parts)
            return f"STRUCT({listed})"
        if self.name == "DECIMAL":
            return str(self)
        if self.name == "TIMESTAMP":
            return "TIMESTAMP_MS" if (self.precision or 0) <= 3 else "TIMESTAMP"
        return _DUCKDB.get(self.name, self.name)

    def as_decimal(self) -> SqlType:
        """An exact numeric type as the DECIMAL that holds all its values."""
        return decimal(_INTEGER_DIGITS[self.name], 0) if self.is_integer else self


def decimal(precision: int, scale: int) -> SqlType:
    """DECIMAL(precision, scale), cut to 38 digits as Flink cuts: integer digits first, but six fraction digits stay."""
    if precision > DECIMAL_PRECISION_MAX:
        whole = precision - scale
        scale = max(DECIMAL_PRECISION_MAX - whole, min(scale, 6))
        precision = DECIMAL_PRECISION_MAX
    return SqlType("DECIMAL", precision, scale)


def array_of(element: SqlType) -> SqlType:
    return SqlType("ARRAY", parts=(("", element),))


def map_of(key: SqlType, value: SqlType) -> SqlType:
    return SqlType("MAP", parts=(("", key), ("", value)))


def row_of(fields: list[tuple[str, SqlType]]) -> SqlType:
    """ROW of named fields, in order."""
    return SqlType("ROW", parts=tuple(fields))


BOOLEAN, INT, BIGINT, FLOAT, DOUBLE = SqlType("BOOLEAN"), SqlType("INT"), SqlType("BIGINT"), SqlType("FLOAT"), SqlType("DOUBLE")
STRING, BYTES, DATE, TIME = SqlType("STRING"), SqlType("BYTES"), SqlType("DATE"), SqlType("TIME")
TIMESTAMP3, TIMESTAMP6, TIMESTAMP_LTZ3 = SqlType("TIMESTAMP", 3), SqlType("TIMESTAMP", 6), SqlType("TIMESTAMP_LTZ", 3)
INTERVAL, NULL, UNKNOWN, PROCTIME = SqlType("INTERVAL"), SqlType("NULL"), SqlType("UNKNOWN"), SqlType("PROCTIME")


def parse_type(text: str) -> SqlType:
    """The type of a declared column, or of the target of a CAST.

    >>> str(parse_type("DECIMAL(12,2)")), str(parse_type("VARCHAR(20)")), str(parse_type("TIMESTAMP(3)"))
    ('DECIMAL(12, 2)', 'STRING', 'TIMESTAMP(3)')
    """
    match = _TEXT.match(text.strip())
    if match is None:
        return UNKNOWN
    name = match.group(1).upper()
    name = _SYNONYMS.get(name, name)
    first = int(match.group(2)) if match.group(2) else None
    if name == "DECIMAL":
        return SqlType("DECIMAL", first or 10, int(match.group(3) or 0))
    if name in ("TIMESTAMP", "TIMESTAMP_LTZ"):
        return SqlType(name, 6 if first is None else first)
    if name in (*_INTEGERS, *_APPROXIMATE, "BOOLEAN", "STRING", "BYTES", "DATE", "TIME"):
        return SqlType(name)
    return UNKNOWN


def arithmetic(operator: str, left: SqlType, right: SqlType) -> SqlType:
    """The type of left operator right for + - * / %, as Flink has it. UNKNOWN when an operand is not numeric."""
    if left == NULL:
        left = right
    if right == NULL:
        right = left
    if not (left.is_numeric and right.is_numeric):
        return UNKNOWN
    if left.is_approximate or right.is_approximate:
        return DOUBLE if DOUBLE in (left, right) or not (left.is_approximate and right.is_approximate) else FLOAT
    if left.is_integer and right.is_integer:
        if operator == "%":
            return right
        return left if _INTEGERS.index(left.name) >= _INTEGERS.index(right.name) else right
    a, b = left.as_decimal(), right.as_decimal()
    p1, s1, p2, s2 = a.precision or 0, a.scale or 0, b.precision or 0, b.scale or 0
    if operator in "+-":
        scale = max(s1, s2)
        return decimal(max(p1 - s1, p2 - s2) + scale + 1, scale)
    if operator == "*":
        return decimal(p1 + p2 + 1, s1 + s2)
    if operator == "/":
        scale = max(6, s1 + p2 + 1)
        return decimal(p1 - s1 + s2 + scale, scale)
    return decimal(min(p1 - s1, p2 - s2) + max(s1, s2), max(s1, s2))


def common_type(types: list[SqlType]) -> SqlType:
    """The least type that holds the values of all: of the branches of CASE, COALESCE, IN. UNKNOWN when there is none.

    >>> str(common_type([INT, parse_type("DECIMAL(3,1)")])), str(common_type([INT, BIGINT]))
    ('DECIMAL(11, 1)', 'BIGINT')
    """
    known = [item for item in types if item != NULL]
    if not known:
        return NULL
    result = known[0]
    for item in known[1:]:
        result = _common_of_two(result, item)
    return result


def _common_of_two(left: SqlType, right: SqlType) -> SqlType:
    if left == right:
        return left
    if left.is_integer and right.is_integer:
        return left if _INTEGERS.index(left.name) >= _INTEGERS.index(right.name) else right
    if left.is_exact and right.is_exact:
        a, b = left.as_decimal(), right.as_decimal()
        scale = max(a.scale or 0, b.scale or 0)
        whole = max((a.precision or 0) - (a.scale or 0), (b.precision or 0) - (b.scale or 0))
        return decimal(whole + scale, scale)
    if left.is_numeric and right.is_numeric:
        return DOUBLE
    if left.is_timestamp and right.name == left.name:
        return left if (left.precision or 0) >= (right.precision or 0) else right
    if {left.name, right.name} == {"DATE", "TIMESTAMP"}:
        return left if left.is_timestamp else right
    return UNKNOWN


def is_storable_as(value: SqlType, column: SqlType) -> bool:
    """True when a value may go into a column without a CAST in the statement: Flink's implicit casts.

    A DECIMAL may go into a narrower DECIMAL; a value that does not fit is an error when it comes.
    """
    if value in (column, NULL, UNKNOWN):
        return True
    if value.is_integer and column.is_integer:
        return _INTEGERS.index(value.name) <= _INTEGERS.index(column.name)
    if value.is_integer and column.name in ("DECIMAL", "FLOAT", "DOUBLE"):
        return True
    if value.name == "DECIMAL":
        return column.name in ("DECIMAL", "FLOAT", "DOUBLE")
    if value.name == "FLOAT":
        return column.name == "DOUBLE"
    if value.is_timestamp:
        return value.name == column.name
    return False


def refuse_type(what: str, where: str, hint: str) -> StatementRefused:
    """The refusal for operands that do not fit."""
    return StatementRefused(what, where=where, next_step=hint)
