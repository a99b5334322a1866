"""Verify: which tables SQL fills, and the proof of each: a batch over the recorded input gives the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from flashlake.config import Config
from flashlake.sql import open_engine
from storage_engine import Store
from storage_engine.errors import InvalidPartition

if TYPE_CHECKING:
    from query_engine.verify import VerifyReport

REPORT_SCHEMA = pa.schema(
    [
        ("table", pa.string()), ("job", pa.string()), ("version", pa.int64()), ("rows_compared", pa.int64()),
        ("rows_differing", pa.int64()), ("holds", pa.bool_()), ("rows_earlier", pa.int64()), ("rows_quarantined", pa.int64()),
        ("rows_repaired", pa.int64()), ("notes", pa.string()),
    ]
)  # fmt: skip


EXAMPLE_SCHEMA = pa.schema([(name, pa.string()) for name in ("table", "problem", "row", "batch", "stored")])


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
    repairs: bool = False,
    on_table: Callable[[str], None] = lambda _: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Prove the named tables (none: all derived ones): lines of REPORT_SCHEMA, and examples of rows that differ (EXAMPLE_SCHEMA).

    repairs  write what the batch says into the rows that differ, and prove again; rows_repaired says how many there were
    Errors: UnknownTable; UserError for a table that no SQL fills; StatementRefused for a table that cannot be repaired.
    """
    from query_engine.verify import repair, verify

    engine = open_engine(config, store)
    chosen = partition_range(partitions) if partitions else None
    lines: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    for table in tables or derived_tables(store):
        on_table(table)
        n_repaired = 0
        reports = verify(store, engine, table, partitions=chosen)
        examples += [example for report in reports for example in _examples(report)]
        if repairs and any(report.rows_differing or report.rows_earlier for report in reports):
            n_repaired = repair(store, engine, table, partitions=chosen)
            reports = verify(store, engine, table, partitions=chosen)
        lines += [as_line(report, n_repaired) for report in reports]
    return lines, examples


def as_line(report: VerifyReport, n_repaired: int = 0) -> dict[str, Any]:
    """A report as a row of REPORT_SCHEMA."""
    return {
        "table": report.table, "job": report.job, "version": report.version, "rows_compared": report.rows_compared,
        "rows_differing": report.rows_differing, "holds": report.holds, "rows_earlier": report.rows_earlier,
        "rows_quarantined": report.rows_quarantined, "rows_repaired": n_repaired, "notes": "; ".join(report.notes),
    }  # fmt: skip


def _examples(report: VerifyReport) -> list[dict[str, Any]]:
    """One line per example: the row's other columns as `column=value`, those of the batch and those stored side by side."""
    lines = []
    for row in report.sample:
        values = {name: value for name, value in row.items() if name != "_problem"}
        lines.append(
            {
                "table": report.table,
                "problem": row["_problem"],
                "row": ", ".join(f"{name}={value}" for name, value in values.items() if "|" not in name),
                "batch": _side(values, "|batch"),
                "stored": _side(values, "|stored"),
            }
        )
    return lines


def _side(values: Mapping[str, Any], suffix: str) -> str:
    return ", ".join(f"{name.removesuffix(suffix)}={value}" for name, value in values.items() if name.endswith(suffix))
