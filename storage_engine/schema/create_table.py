"""Create table: the CREATE TABLE statement to a validated descriptor, and back to text.

Owner: schema/ddl.py hands over the reader after the words CREATE TABLE.
Holds: parse(render(d)) == d for every validated descriptor, up to the catalog's ids.
"""

from __future__ import annotations

import re
from dataclasses import replace

from storage_engine.errors import FlashlakeError
from storage_engine.schema.descriptor import Column, Computed, TableDescriptor
from storage_engine.schema.reader import Reader
from storage_engine.schema.statements import CreateTable
from storage_engine.schema.types import arrow_type
from storage_engine.schema.validate import canonical_type, validate
from storage_engine.schema.watermark import OPTIONS as WATERMARK_OPTIONS
from storage_engine.schema.watermark import parse_watermark, render_watermark

_PLAIN_NAME = re.compile(r"^[A-Za-z_]\w*$", re.ASCII)
_REFUSED_ELEMENTS = {
    "UNIQUE": ("UNIQUE is not supported", "Use PRIMARY KEY (...) NOT ENFORCED."),
    "FOREIGN": ("FOREIGN KEY is not supported", "Leave it out."),
    "INDEX": ("INDEX is not supported", "The bucket key gives prefix lookups."),
}


def parse_create_table(reader: Reader) -> CreateTable:
    """The statement after CREATE TABLE.

    Errors: StatementRefused with line and clause; InvalidOption for the WITH clause.
    """
    if_not_exists = reader.take_words("IF", "NOT", "EXISTS")
    name = reader.table_name()
    reader.statement = f"CREATE TABLE {name}"
    columns, computed, primary_key, watermark = _elements(reader)
    comment, partition_keys, options = "", (), {}
    seen: set[str] = set()
    while reader.peek().kind != "end":
        clause = reader.peek()
        if clause.upper in seen:
            raise reader.refusal(f"{clause.upper} is written twice", "Write it once.")
        seen.add(clause.upper)
        if reader.take_words("COMMENT"):
            comment = reader.string("COMMENT")
        elif reader.take_words("PARTITIONED", "BY"):
            partition_keys = reader.name_list("PARTITIONED BY")
        elif reader.take_words("WITH"):
            options = reader.options("WITH")
        else:
            raise reader.refusal(
                f"{clause} is not a clause of CREATE TABLE", "Clauses: COMMENT, PARTITIONED BY (column), WITH ('key' = 'value')."
            )
    if watermark and any(option in options for option in WATERMARK_OPTIONS):
        raise reader.refusal("the watermark is written twice, as a clause and as an option", "Keep WATERMARK FOR.")
    descriptor = TableDescriptor(name, tuple(columns), primary_key, partition_keys, options={**options, **watermark}, comment=comment)
    descriptor = replace(descriptor, computed=tuple(computed))
    return CreateTable(validate(descriptor, line=reader.line), if_not_exists, **reader.place)


def parse_column(reader: Reader) -> tuple[Column, bool]:
    """One column: name TYPE [NOT NULL | NULL] [COMMENT '...'] [PRIMARY KEY NOT ENFORCED]; True when it is the key."""
    name = reader.plain_name("a column's name")
    if reader.peek().upper == "AS":
        raise reader.refusal(f"column {name}: computed columns are declared by CREATE TABLE", "Create a view, or a new table.")
    sql_type = _type(reader, name)
    nullable, comment, is_key = True, "", False
    while True:
        if reader.take_words("NOT", "NULL"):
            nullable = False
        elif reader.take_words("NULL"):
            nullable = True
        elif reader.take_words("COMMENT"):
            comment = reader.string("COMMENT")
        elif reader.take_words("PRIMARY", "KEY"):
            is_key = True
            _not_enforced(reader)
        elif reader.peek().upper == "METADATA":
            raise reader.refusal(f"column {name}: metadata columns are not supported", "Query db.t$changelog for a row's place and time.")
        elif reader.peek().upper in ("DEFAULT", "AUTO_INCREMENT", "GENERATED", "CHECK"):
            remedy = "Name it in 'auto-increment.fields'." if reader.peek().upper == "AUTO_INCREMENT" else "Leave it out."
            raise reader.refusal(f"column {name}: {reader.peek()} is not supported", remedy)
        else:
            return Column(name, sql_type, nullable and not is_key, comment), is_key


def render_create_table(descriptor: TableDescriptor) -> str:
    """The CREATE TABLE statement of a descriptor, as SHOW CREATE TABLE prints it; it parses back to the same descriptor."""
    lines = [_render_column(column) for column in descriptor.shown_columns]
    if descriptor.primary_key:
        lines.append(f"PRIMARY KEY ({_names(descriptor.primary_key)}) NOT ENFORCED")
    options = dict(descriptor.options)
    if descriptor.watermark is not None:
        lines.append(render_watermark(descriptor, _name(descriptor.watermark.column)))
        options = {name: value for name, value in options.items() if name not in WATERMARK_OPTIONS}
    if descriptor.bucket_keys and descriptor.bucket_keys != descriptor.physical_primary_key:
        options["bucket.key"] = ",".join(descriptor.bucket_keys)
    if descriptor.n_buckets != 1:
        options["bucket.num"] = str(descriptor.n_buckets)
    database, _, table = descriptor.name.partition(".")
    text = f"CREATE TABLE {_name(database)}.{_name(table)} (\n  " + ",\n  ".join(lines) + "\n)"
    if descriptor.comment:
        text += f" COMMENT {_string(descriptor.comment)}"
    if descriptor.partition_keys:
        text += f"\nPARTITIONED BY ({_names(descriptor.partition_keys)})"
    if options:
        text += "\nWITH (\n  " + ",\n  ".join(f"{_string(key)} = {_string(value)}" for key, value in options.items()) + "\n)"
    return text


def _elements(reader: Reader) -> tuple[list[Column], list[Computed], tuple[str, ...], dict[str, str]]:
    """The columns, those that are computed, the primary key, and the watermark as options."""
    columns: list[Column] = []
    computed: list[Computed] = []
    primary_key: tuple[str, ...] = ()
    watermark: dict[str, str] = {}
    reader.expect("(", "the list of columns")
    while True:
        start = reader.peek()
        if reader.take_words("CONSTRAINT"):
            reader.plain_name("the constraint's name")
        if start.upper in _REFUSED_ELEMENTS and reader.peek(1).upper in ("FOR", "KEY", "INDEX", "") and not _is_column(reader):
            raise reader.refusal(*_REFUSED_ELEMENTS[start.upper])
        if start.upper == "WATERMARK" and reader.peek(1).upper == "FOR":
            if watermark:
                raise reader.refusal("WATERMARK is written twice", "A table has one event time.", start)
            reader.take_words("WATERMARK", "FOR")
            watermark, found = parse_watermark(reader), ()
        elif reader.peek().upper == "PRIMARY" and reader.peek(1).upper == "KEY":
            reader.take_words("PRIMARY", "KEY")
            found = reader.name_list("PRIMARY KEY")
            _not_enforced(reader)
        elif reader.peek(1).upper == "AS" and reader.peek().kind in ("word", "quoted"):
            computed.append(_computed(reader, len(columns)))
            found = ()
        else:
            column, is_key = parse_column(reader)
            columns.append(column)
            found = (column.name,) if is_key else ()
        if found and primary_key:
            raise reader.refusal("PRIMARY KEY is written twice", "Write one: PRIMARY KEY (a, b) NOT ENFORCED.", start)
        primary_key = primary_key or found
        if not reader.at(","):
            break
        reader.take()
    reader.expect(")", "the list of columns")
    return columns, computed, primary_key, watermark


def _computed(reader: Reader, place: int) -> Computed:
    """Name AS expression [COMMENT '...']"""
    name = reader.plain_name("a column's name")
    reader.expect_word("AS", "name AS expression")
    expression = reader.expression_to_end("COMMENT", ",", ")")
    return Computed(name, expression, place, reader.string("COMMENT") if reader.take_words("COMMENT") else "")


def _is_column(reader: Reader) -> bool:
    """True when the next two tokens read like a column of that name and its type."""
    try:
        arrow_type(reader.peek(1).text)
    except FlashlakeError:
        return False
    return True


def _not_enforced(reader: Reader) -> None:
    if not reader.take_words("NOT", "ENFORCED"):
        raise reader.refusal(
            "PRIMARY KEY without NOT ENFORCED", "Write PRIMARY KEY (...) NOT ENFORCED: a write replaces the row of its key."
        )


def _type(reader: Reader, column: str) -> str:
    start = reader.peek()
    if start.kind != "word":
        raise reader.refusal(f"column {column} has no type, found {start}", "Write its type: BIGINT, STRING, DECIMAL(12, 2), ...")
    text = reader.take().upper
    if text == "DOUBLE":
        reader.take_words("PRECISION")
    if reader.at("<"):
        raise reader.refusal(
            f"column {column}: type {text}<...> is not supported", "Tables hold flat columns: keep it as STRING or BYTES.", start
        )
    if reader.at("("):
        reader.take()
        text += "(" + ", ".join(reader.expressions_until(")")) + ")"
        reader.expect(")", f"type of column {column}")
    if text.startswith("TIMESTAMP") and reader.take_words("WITH", "LOCAL", "TIME", "ZONE"):
        text = text.replace("TIMESTAMP", "TIMESTAMP_LTZ", 1)
    elif text.startswith("TIME"):
        reader.take_words("WITHOUT", "TIME", "ZONE")
    try:
        return canonical_type(text)
    except FlashlakeError as error:
        raise reader.refusal(f"column {column}: {error.what}", error.next_step, start) from error


def _render_column(column: Column | Computed) -> str:
    comment = f" COMMENT {_string(column.comment)}" if column.comment else ""
    if isinstance(column, Computed):
        return f"{_name(column.name)} AS {column.expression}{comment}"
    return f"{_name(column.name)} {column.type}{'' if column.nullable else ' NOT NULL'}{comment}"


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(_name(name) for name in names)


def _name(name: str) -> str:
    return name if _PLAIN_NAME.match(name) and name.upper() not in _RESERVED else "`" + name.replace("`", "``") + "`"


def _string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_RESERVED = frozenset(
    """
    ALL ALTER AND AS BETWEEN BY CASE CAST COMMENT CONSTRAINT CREATE CROSS DATE DAY DELETE DESCRIBE DISTINCT DROP ELSE END EXISTS
    FALSE FOR FROM FULL FUNCTION GROUP HAVING HOUR IN INNER INSERT INTO IS JOIN KEY LEFT LIKE LIMIT MINUTE MONTH NOT NULL ON OR
    ORDER OUTER PARTITION PARTITIONED PRIMARY RIGHT SECOND SELECT SET SHOW SYSTEM TABLE THEN TIME TIMESTAMP TO TRUE UNION UNIQUE
    UPDATE USE USER VALUE VALUES VIEW WATERMARK WHEN WHERE WITH YEAR
    """.split()
)
