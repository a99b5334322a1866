"""Journal: from commits to sealed days. Decisions only: no store, no clock, no Dagster.

A day of a table is open while rows arrive. It is sealed when the day is over and no row has arrived for `quiet_ms`;
a late row opens it again, and it is sealed once more. A table without days is sealed whenever it is quiet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from storage_engine.api import CommitInfo


@dataclass(frozen=True)
class OpenDay:
    """Rows of one table and day that no event has reported yet: changelog rows count each."""

    n_rows: int
    first_version: int
    last_version: int
    last_ms: int


@dataclass(frozen=True)
class JournalCursor:
    """How far the journal was read, and which days are open. Survives as JSON in the sensor's cursor."""

    version: int = 0
    open_days: Mapping[tuple[str, str], OpenDay] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "open_days", dict(self.open_days or {}))

    def to_json(self) -> str:
        days = [
            [table, day, value.n_rows, value.first_version, value.last_version, value.last_ms]
            for (table, day), value in sorted(self.open_days.items())
        ]
        return json.dumps({"version": self.version, "open": days}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | None) -> JournalCursor:
        if not text:
            return cls()
        value = json.loads(text)
        return cls(value["version"], {(table, day): OpenDay(*numbers) for table, day, *numbers in value["open"]})


@dataclass(frozen=True)
class SealedDay:
    """A day (or, with day "", a whole table) to report."""

    table: str
    day: str
    rows: OpenDay


def follow(cursor: JournalCursor, commits: Iterable[CommitInfo], tables: Iterable[str]) -> JournalCursor:
    """The cursor after these commits; rows of other tables are not looked at."""
    known = set(tables)
    days = dict(cursor.open_days)
    version = cursor.version
    for commit in commits:
        version = max(version, commit.version)
        for table, ranges in commit.ranges.items():
            if table not in known:
                continue
            for bucket, (start, stop) in ranges.items():
                key = (table, bucket.partition)
                before = days.get(key, OpenDay(0, commit.version, commit.version, commit.timestamp_ms))
                days[key] = replace(before, n_rows=before.n_rows + stop - start, last_version=commit.version, last_ms=commit.timestamp_ms)
    return JournalCursor(version, days)


def seal(cursor: JournalCursor, now_ms: int, today: str, quiet_ms: int, n_max: int) -> tuple[list[SealedDay], JournalCursor]:
    """Days to report now (at most `n_max`, oldest first), and the cursor without them.

    today  the current day as yyyy-MM-dd: it and later days stay open.
    """
    ripe = [
        SealedDay(table, day, rows)
        for (table, day), rows in sorted(cursor.open_days.items(), key=lambda item: (item[0][1], item[0][0]))
        if day < today and now_ms - rows.last_ms >= quiet_ms
    ][:n_max]
    reported = {(sealed.table, sealed.day) for sealed in ripe}
    return ripe, JournalCursor(cursor.version, {key: rows for key, rows in cursor.open_days.items() if key not in reported})
