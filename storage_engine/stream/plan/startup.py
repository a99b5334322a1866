"""Startup: where a job begins to read a source: /*+ OPTIONS('scan.startup.mode' = ...) */ behind the table's name.

    full, earliest  every row (a primary-key table: its current rows, and every change from then on)
    latest          rows that are committed after the job was submitted
    timestamp       rows committed at or after 'scan.startup.timestamp': milliseconds since 1970, or 'yyyy-MM-dd HH:mm:ss' in UTC
Holds: the offsets are fixed when the job is submitted and stay with it, so that a recomputation begins where the job began.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storage_engine.client.store import Store
from storage_engine.errors import StatementRefused
from storage_engine.schema.descriptor import Offsets, TableDescriptor

MODE, TIMESTAMP = "scan.startup.mode", "scan.startup.timestamp"
STARTUP_HINTS = frozenset({MODE, TIMESTAMP})
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Startup:
    """Where to begin: "latest", or a moment. A source without one is read from its beginning."""

    moment: dt.datetime | None = None


def parse_startup(hints: Mapping[str, str], table: TableDescriptor, where: str) -> Startup | None:
    """What the hints of a table say; None: from the beginning.

    Errors: StatementRefused for a mode or time that is not understood, and for a changelog read from its middle.
    """
    mode = hints.get(MODE, "full").strip().lower()
    written = hints.get(TIMESTAMP)
    if mode not in ("full", "earliest", "latest", "timestamp"):
        raise StatementRefused(f"'{MODE}' = '{mode}'", where=where, next_step="Use full, earliest, latest or timestamp.")
    if (mode == "timestamp") != (written is not None):
        raise StatementRefused(
            f"'{TIMESTAMP}' goes with '{MODE}' = 'timestamp', and nothing else does", where=where, next_step="Write both, or neither."
        )
    if mode in ("full", "earliest"):
        return None
    if table.has_primary_key:
        raise StatementRefused(
            f"'{MODE}' = '{mode}' on {table.name}: the changelog of a primary-key table takes back rows from before that were never read",
            where=where,
            next_step="Use full, or filter by a time column of the table.",
        )
    return Startup(None if written is None else _moment(written, where))


def starts_of(store: Store, startups: Sequence[tuple[str, Startup | None]], where: str) -> dict[str, Offsets]:
    """Where each source begins, as offsets now; sources that begin at their beginning are left out.

    Errors: StatementRefused when a table is named twice with different starts; OffsetOutOfRange for a time in the future.
    """
    wanted: dict[str, Startup | None] = {}
    for table, startup in startups:
        if wanted.setdefault(table, startup) != startup:
            raise StatementRefused(
                f"{table} is read twice, from different starts", where=where, next_step=f"Give each the same '{MODE}', or use two jobs."
            )
    starts: dict[str, Offsets] = {}
    for table, startup in wanted.items():
        if startup is not None:
            starts[table] = store.table(table).offsets("latest" if startup.moment is None else startup.moment)
    return starts


def _moment(text: str, where: str) -> dt.datetime:
    try:
        if text.strip().isdecimal():
            return _EPOCH + dt.timedelta(milliseconds=int(text))
        return dt.datetime.strptime(text.strip(), "%Y-%m-%d %H:%M:%S").replace(tzinfo=dt.UTC)
    except (ValueError, OverflowError) as error:
        raise StatementRefused(
            f"'{TIMESTAMP}' = '{text}' is no time", where=where, next_step="Write milliseconds since 1970, or 'yyyy-MM-dd HH:mm:ss' (UTC)."
        ) from error
