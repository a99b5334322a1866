"""Watermark: the WATERMARK clause of CREATE TABLE, its rules, and its text.

WATERMARK FOR ts AS ts - INTERVAL '5' SECOND lives in the options `watermark.column` and `watermark.delay`: so descriptors written before
there were any stay readable, and renaming, dropping and altering columns follow the rules of all options that name a column.
Source: Flink 2.2, CREATE TABLE: the time attribute is a column of TIMESTAMP(p) with p at most 3.
"""

from __future__ import annotations

import re
from typing import Final

from storage_engine.errors import InvalidOption, StatementRefused
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.reader import Reader

COLUMN: Final = "watermark.column"
DELAY: Final = "watermark.delay"
LATE_ROWS: Final = "watermark.late-rows"
IDLE_AFTER: Final = "watermark.idle-after"
OPTIONS: Final = (COLUMN, DELAY)
_UNIT_MS: Final = {"SECOND": 1000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000}
_NUMBER: Final = re.compile(r"^\d{1,12}(\.\d{1,3})?$")
_FORM: Final = "Write WATERMARK FOR ts AS ts - INTERVAL '5' SECOND (or MINUTE, HOUR, DAY), or AS ts."


def parse_watermark(reader: Reader) -> dict[str, str]:
    """The clause after the words WATERMARK FOR, as options. Errors: StatementRefused for another expression than column - INTERVAL."""
    column = reader.plain_name("the column of WATERMARK FOR")
    reader.expect_word("AS", "WATERMARK FOR column AS column - INTERVAL '5' SECOND")
    start = reader.peek()
    again = reader.plain_name("the column of WATERMARK FOR ... AS")
    if again != column:
        raise reader.refusal(f"WATERMARK FOR {column} AS {again}: the watermark follows its own column", _FORM, start)
    delay_ms = 0
    if reader.at("-"):
        reader.take()
        delay_ms = _interval_ms(reader)
    if not reader.at(",") and not reader.at(")"):
        raise reader.refusal(f"WATERMARK FOR {column}: {reader.peek()} is not understood", _FORM)
    return {COLUMN: column, DELAY: f"{delay_ms}ms"}


def render_watermark(descriptor: TableDescriptor, quoted: str) -> str:
    """The clause of a table that has one; `quoted` is the column's name as SQL writes it."""
    assert descriptor.watermark is not None, "only a table with a watermark has the clause"
    delay_ms = descriptor.watermark.delay_ms
    if not delay_ms:
        return f"WATERMARK FOR {quoted} AS {quoted}"
    unit, ms = next((unit, ms) for unit, ms in reversed(_UNIT_MS.items()) if delay_ms % ms == 0 or unit == "SECOND")
    number = f"{delay_ms // ms}" + (f".{delay_ms % ms:03d}" if delay_ms % ms else "")
    return f"WATERMARK FOR {quoted} AS {quoted} - INTERVAL '{number}' {unit}"


def check_watermark(descriptor: TableDescriptor, where: str) -> None:
    """Errors: StatementRefused for a column that cannot be an event's time, InvalidOption for options that lack their watermark."""
    column = descriptor.options.get(COLUMN)
    if column is None:
        for name in (DELAY, LATE_ROWS, IDLE_AFTER):
            if name in descriptor.options:
                raise InvalidOption(f"{name} goes with WATERMARK FOR, and the table has none", where=where, next_step=_FORM)
        return
    if any(item.name == column for item in descriptor.computed):
        raise StatementRefused(
            f"WATERMARK FOR {column}: the column is computed, and a watermark follows what the log stores",
            where=where,
            next_step="Store the time as a TIMESTAMP(3) column.",
        )
    if column not in descriptor.column_names:
        raise StatementRefused(
            f"WATERMARK FOR {column}: there is no such column", where=where, next_step=f"Columns are {', '.join(descriptor.column_names)}."
        )
    written = descriptor.column(column).type
    if re.fullmatch(r"TIMESTAMP\([0-3]\)", written) is None:
        raise StatementRefused(
            f"WATERMARK FOR {column}: the column is {written}",
            where=where,
            next_step="An event's time is a TIMESTAMP(3): watermarks count milliseconds.",
        )
    if descriptor.has_primary_key:
        raise StatementRefused(
            f"WATERMARK FOR {column} on a table with a primary key: its rows can be taken back, so no window over them is ever final",
            where=where,
            next_step="Leave WATERMARK out (windows over the table are kept up to date without), or leave PRIMARY KEY out.",
        )


def _interval_ms(reader: Reader) -> int:
    start = reader.peek()
    reader.expect_word("INTERVAL", "INTERVAL '5' SECOND")
    number = reader.string("INTERVAL").strip()
    unit = reader.take()
    if _NUMBER.match(number) is None or unit.upper not in _UNIT_MS:
        raise reader.refusal(f"INTERVAL '{number}' {unit} is no length of time here", _FORM, start)
    whole, _, thousandths = number.partition(".")
    ms = int(whole) * _UNIT_MS[unit.upper]
    if thousandths and unit.upper != "SECOND":
        raise reader.refusal(f"INTERVAL '{number}' {unit}: only seconds have a fraction", _FORM, start)
    return ms + int(thousandths.ljust(3, "0") or 0)
