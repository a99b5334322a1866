"""Policies: what the `asset.*` options of a table mean for Dagster. Decisions only: options in, values out.

    asset.partitions   day(COLUMN): one Dagster partition per value of the day column (yyyy-MM-dd)
    asset.start        first day of the partitions, yyyy-MM-dd (default: the start given to load_definitions)
    asset.owner        team:NAME or an e-mail address; several are separated by commas
    asset.group        group in the graph (default: the layer, which is the folder)
    asset.schedule     cron expression (UTC): when the day before is sealed; a table without days: when it is proved as a whole
    asset.freshness    duration: older than this is a failure, half of it is a warning
    asset.backfill     single_run (default), or multi_run(N): at most N partitions per run
    asset.kinds        further kinds shown on the asset, separated by commas

Holds: an unknown `asset.*` key or a value out of range raises InvalidOption, naming table, key and remedy.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from storage_engine.errors import InvalidOption

KEYS = (
    "asset.partitions",
    "asset.start",
    "asset.owner",
    "asset.group",
    "asset.schedule",
    "asset.freshness",
    "asset.backfill",
    "asset.kinds",
)
_DAY = re.compile(r"^day\(\s*(\w+)\s*\)$")
_MULTI = re.compile(r"^multi_run\(\s*(\d+)\s*\)$")
_DURATION = re.compile(r"^(\d+)\s*(s|min|m|h|d)$")
_CRON = re.compile(r"^\S+( \S+){4}$")
_OWNER = re.compile(r"^(team:[\w-]+|[^@\s]+@[^@\s]+\.[^@\s]+)$")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class AssetPolicy:
    """What Dagster needs and SQL cannot say.

    day_column         the column whose values are the partition keys; None: not partitioned
    start              first partition, None: the project's start
    partitions_per_run None: one run for the whole range of a backfill, else the most partitions one run takes
    """

    owners: tuple[str, ...]
    day_column: str | None = None
    start: date | None = None
    group: str | None = None
    schedule: str | None = None
    freshness: timedelta | None = None
    partitions_per_run: int | None = None
    kinds: tuple[str, ...] = ()


def asset_policy(table: str, options: Mapping[str, str], columns: tuple[str, ...] | None) -> AssetPolicy:
    """Read the `asset.*` options of a table.

    columns  the table's columns, to check the partition column; None: not known.
    Errors:  InvalidOption.

    >>> asset_policy("dws.t", {"asset.partitions": "day(ds)", "asset.owner": "team:trading"}, ("id", "ds")).day_column
    'ds'
    """
    mine = {key: value.strip() for key, value in options.items() if key.startswith("asset.")}
    for key in mine:
        if key not in KEYS:
            alike = difflib.get_close_matches(key, KEYS, n=1)
            raise _refused(
                table, key, "is not an option of an asset", f"Did you mean {alike[0]}?" if alike else f"Use one of {', '.join(KEYS)}."
            )
    day_column = _day_column(table, mine.get("asset.partitions"), columns)
    return AssetPolicy(
        owners=_owners(table, mine.get("asset.owner")),
        day_column=day_column,
        start=_start(table, mine.get("asset.start")),
        group=mine.get("asset.group"),
        schedule=_schedule(table, mine.get("asset.schedule")),
        freshness=_duration(table, "asset.freshness", mine.get("asset.freshness")),
        partitions_per_run=_partitions_per_run(table, mine.get("asset.backfill")),
        kinds=tuple(kind.strip() for kind in mine.get("asset.kinds", "").split(",") if kind.strip()),
    )


def _day_column(table: str, text: str | None, columns: tuple[str, ...] | None) -> str | None:
    if text is None:
        return None
    match = _DAY.match(text)
    if match is None:
        raise _refused(
            table, "asset.partitions", f"is {text!r}", "Write day(COLUMN); minutes and hours are columns of the table, not partitions."
        )
    column = match.group(1)
    if columns is not None and column not in columns:
        raise _refused(
            table, "asset.partitions", f"names the column {column}, which the table does not have", f"Its columns are {', '.join(columns)}."
        )
    return column


def _owners(table: str, text: str | None) -> tuple[str, ...]:
    owners = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    for owner in owners:
        if not _OWNER.match(owner):
            raise _refused(table, "asset.owner", f"is {owner!r}", "Write team:NAME or an e-mail address.")
    return owners


def _start(table: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise _refused(table, "asset.start", f"is {text!r}", "Write a day as yyyy-MM-dd.") from error


def _schedule(table: str, text: str | None) -> str | None:
    if text is None:
        return None
    if not _CRON.match(text):
        raise _refused(table, "asset.schedule", f"is {text!r}", "Write five cron fields, for example 0 2 * * *.")
    return text


def _duration(table: str, key: str, text: str | None) -> timedelta | None:
    if text is None:
        return None
    match = _DURATION.match(text)
    if match is None or int(match.group(1)) == 0:
        raise _refused(table, key, f"is {text!r}", "Write a number and a unit: 30s, 10min, 6h, 1d.")
    return timedelta(seconds=int(match.group(1)) * _SECONDS[match.group(2)])


def _partitions_per_run(table: str, text: str | None) -> int | None:
    if text is None or text == "single_run":
        return None
    match = _MULTI.match(text)
    if match is None or int(match.group(1)) == 0:
        raise _refused(table, "asset.backfill", f"is {text!r}", "Write single_run, or multi_run(N) with N at least 1.")
    return int(match.group(1))


def _refused(table: str, key: str, what: str, remedy: str) -> InvalidOption:
    return InvalidOption(f"option {key} {what}", where=f"table {table}", next_step=remedy)
