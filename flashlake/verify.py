"""Verify: which tables SQL fills, and the proof of each: a batch over the recorded input gives the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Any

import pyarrow as pa

from flashlake.config import Config
from flashlake.sql import open_engine
from storage_engine import Store
from storage_engine.errors import InvalidPartition

REPORT_SCHEMA = pa.schema(
    [
        ("table", pa.string()), ("job", pa.string()), ("version", pa.int64()), ("rows_compared", pa.int64()),
        ("rows_differing", pa.int64()), ("holds", pa.bool_()), ("notes", pa.string()),
    ]
)  # fmt: skip


def derived_tables(store: Store) -> list[str]:
    """Tables that stream jobs and materialized views fill, each once."""
    sinks = [str(job["sink"]) for job in store.objects("job").values() if "sink" in job]
    return sorted({*sinks, *store.objects("materialized_view")})


def partition_range(text: str) -> list[str]:
    """Days from A to B, both included; anything else names one partition.

    >>> partition_range("2017-01-30..2017-02-01")
    ['2017-01-30', '2017-01-31', '2017-02-01']
    """
    first, dots, last = text.partition("..")
    if not dots:
        return [text]
    try:
        start, stop = date.fromisoformat(first), date.fromisoformat(last)
    except ValueError:
        raise InvalidPartition(
            "a range needs days at both ends", where=f"--partitions {text}", next_step="Write 2017-01-01..2017-01-07."
        ) from None
    if stop < start:
        raise InvalidPartition(f"{last} is before {first}", where=f"--partitions {text}", next_step="Write the earlier day first.")
    return [(start + timedelta(days=number)).isoformat() for number in range((stop - start).days + 1)]


def verify_tables(
    config: Config,
    store: Store,
    tables: Sequence[str] = (),
    partitions: str | None = None,
    *,
    on_table: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Prove the named tables (none: all derived ones), as lines of REPORT_SCHEMA.

    Errors: UnknownTable; UserError for a table that no SQL fills.
    """
    from query_engine.verify import verify

    engine = open_engine(config, store)
    chosen = partition_range(partitions) if partitions else None
    lines: list[dict[str, Any]] = []
    for table in tables or derived_tables(store):
        on_table(table)
        found = verify(store, engine, table, partitions=chosen)
        lines += [as_line(report) for report in (found if isinstance(found, (list, tuple)) else [found])]
    return lines


def as_line(report: Any) -> dict[str, Any]:
    return {
        "table": report.table, "job": report.job, "version": report.version, "rows_compared": report.rows_compared,
        "rows_differing": report.rows_differing, "holds": report.rows_differing == 0,
        "notes": "; ".join(str(note) for note in report.notes),
    }  # fmt: skip
