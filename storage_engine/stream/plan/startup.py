"""Startup: where a job begins to read a source: /*+ OPTIONS('scan.startup.mode' = ...) */ behind the table's name.

    full            every row (a primary-key table: its current rows, and every change from then on). A log of which rows have expired
                    cannot be read so, and is refused
    earliest        a log: every row that is still held; a primary-key table: as full
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
    """Where to begin: a moment, what is held of the log (earliest), or what comes from now on. A source without one is read as a whole."""

    moment: dt.datetime | None = None
    is_earliest: bool = False


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
        return Startup(is_earliest=True) if mode == "earliest" else None
    if table.has_primary_key:
        raise StatementRefused(
            f"'{MODE}' = '{mode}' on {table.name}: the changelog of a primary-key table takes back rows from before that were never read",
            where=where,
            next_step="Use full, or filter by a time column of the table.",
        )
    return Startup(None if written is None else _moment(written, where))


def starts_of(
    store: Store, startups: Sequence[tuple[str, Startup | None]], where: str, *, must_be_whole: bool = True
) -> dict[str, Offsets]:
    """Where each source begins, as offsets now; sources that begin at their beginning are left out.

    must_be_whole  a log that is read from its beginning must have it
    Errors: StatementRefused when a table is named twice with different starts, and for a log whose beginning has expired;
    OffsetOutOfRange for a time in the future.
    """
    wanted: dict[str, Startup | None] = {}
    held: dict[str, Offsets] = {}
    for table, written in startups:
        if table not in held:
            keyed = store.describe(table).has_primary_key
            held[table] = {bucket: n for bucket, n in store.table(table).offsets("earliest").items() if n and not keyed}
        startup = None if written is not None and written.is_earliest and not held[table] else written
        if wanted.setdefault(table, startup) != startup:
            raise StatementRefused(
                f"{table} is read twice, from different starts", where=where, next_step=f"Give each the same '{MODE}', or use two jobs."
            )
        if startup is None and held[table] and must_be_whole:
            raise _expired(store, table, held[table], where)
    starts: dict[str, Offsets] = {}
    for table, startup in wanted.items():
        if startup is not None and startup.is_earliest:
            starts[table] = held[table]
        elif startup is not None:
            starts[table] = store.table(table).offsets("latest" if startup.moment is None else startup.moment)
    return starts


def _expired(store: Store, table: str, earliest: Offsets, where: str) -> StatementRefused:
    bucket, offset = max(earliest.items(), key=lambda item: item[1])
    of_bucket = f" of bucket {bucket}" if len(earliest) > 1 else ""
    once = " What the lake holds besides, SET 'execution.runtime-mode' = 'batch' writes once." if store.describe(table).is_tiered else ""
    return StatementRefused(
        f"{sum(earliest.values()):,} rows of {table} have expired, its log begins at offset {offset:,}{of_bucket}: it is not whole",
        where=where,
        next_step=f"Write {table} /*+ OPTIONS('{MODE}' = 'earliest') */ to begin with the rows that are held.{once}",
    )


def _moment(text: str, where: str) -> dt.datetime:
    try:
        if text.strip().isdecimal():
            return _EPOCH + dt.timedelta(milliseconds=int(text))
        return dt.datetime.strptime(text.strip(), "%Y-%m-%d %H:%M:%S").replace(tzinfo=dt.UTC)
    except (ValueError, OverflowError) as error:
        raise StatementRefused(
            f"'{TIMESTAMP}' = '{text}' is no time", where=where, next_step="Write milliseconds since 1970, or 'yyyy-MM-dd HH:mm:ss' (UTC)."
        ) from error
