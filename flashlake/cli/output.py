"""Output: results as a table, as CSV or as JSON on standard output; words and progress on standard error."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

TABLE_ROWS_MAX = 1_000
"""A table for people shows this many rows; csv and json have them all."""


def say(text: str) -> None:
    """One line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def progress_bars() -> Progress:
    """Progress bars on standard error; where that is no terminal, nothing is drawn."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def write_rows(rows: pa.Table, form: str, *, title: str | None = None, thousands: bool = False, out: TextIO | None = None) -> None:
    """Write a result: "table" for people, "csv" with a header, "json" as one list of objects. `thousands`: 1,000 in the table."""
    stream: TextIO = sys.stdout if out is None else out
    if form == "csv":
        stream.write(csv_text(rows))
    elif form == "json":
        json.dump(rows.to_pylist(), stream, default=_json_value, ensure_ascii=False, indent=1)
        stream.write("\n")
    else:
        _write_table(rows, title, stream, thousands=thousands)


def csv_text(rows: pa.Table) -> str:
    r"""The rows as CSV with a header; quotes only where they are needed. Bytes are hexadecimal, null is empty, decimals keep their digits.

    >>> csv_text(pa.table({"a": [1, None], "b": ["x", "y, z"]}))
    'a,b\n1,x\n,"y, z"\n'
    """
    import duckdb

    names = _unique(rows.column_names)
    columns = ", ".join(
        f'lower(hex("{name}"))' if pa.types.is_binary(field.type) else f'"{name}"' for name, field in zip(names, rows.schema, strict=True)
    )
    with tempfile.TemporaryDirectory(prefix="flashlake-csv-") as scratch, duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("result", rows.rename_columns(names))
        connection.execute(f"COPY (SELECT {columns} FROM result) TO '{scratch}/rows.csv' (FORMAT csv, HEADER false)")
        body = (Path(scratch) / "rows.csv").read_text()
    return ",".join(_quoted(name) for name in rows.column_names) + "\n" + body


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\n\r') else text


def _unique(names: list[str]) -> list[str]:
    return [f"c{position}" for position in range(len(names))]


def _json_value(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)


def _write_table(rows: pa.Table, title: str | None, out: TextIO, *, thousands: bool) -> None:
    shown = RichTable(title=title, title_justify="left", header_style="bold")
    for item in rows.schema:
        is_number = pa.types.is_integer(item.type) or pa.types.is_floating(item.type) or pa.types.is_decimal(item.type)
        shown.add_column(Text(item.name), justify="right" if is_number else "left", overflow="fold")
    for row in rows.slice(0, TABLE_ROWS_MAX).to_pylist():
        shown.add_row(*(Text(_cell(row[name], thousands=thousands)) for name in rows.column_names))
    console = Console(file=out) if out.isatty() else Console(file=out, width=max(200, 24 * rows.num_columns))
    console.print(shown)
    if rows.num_rows > TABLE_ROWS_MAX:
        say(f"... {rows.num_rows - TABLE_ROWS_MAX:,} more rows; --format csv or json writes them all")


def _cell(value: Any, *, thousands: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 16 else f"{value[:16].hex()}... ({len(value)} bytes)"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if thousands and isinstance(value, int) else str(value)
