"""Load: a folder of .sql files becomes Dagster definitions: assets, checks, the daily seal, the journal sensor."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import dagster as dg

from flashlake.orchestration.factory import asset_of
from flashlake.orchestration.schedules import seal_schedules
from flashlake.orchestration.sensors import journal_sensor
from flashlake.orchestration.tables import TableDefinition, read_project


def load_definitions(
    folder: Path | str, *, start: date | str, journal_interval_s: int = 10, journal_quiet_s: float = 15.0
) -> dg.Definitions:
    """Everything the .sql files below `folder` mean for Dagster. The caller adds the resource "warehouse".

    start               first day of partitioned tables that name none
    journal_interval_s  seconds between two looks into the commit journal
    journal_quiet_s     seconds without new rows after which an ended day is reported as sealed
    Errors: StatementRefused, InvalidOption, with file and line.
    """
    first = date.fromisoformat(start) if isinstance(start, str) else start
    tables = read_project(Path(folder))
    schemas = column_types(tables)
    assets = [asset_of(table, schemas, first) for table in tables]
    return dg.Definitions(
        assets=assets,
        schedules=seal_schedules(tables, first),
        sensors=[journal_sensor(tables, first, interval_s=journal_interval_s, quiet_s=journal_quiet_s)],
    )


def column_types(tables: list[TableDefinition]) -> dict[str, dict[str, str]]:
    """Table -> column -> SQL type, as the definitions say; the columns of a materialized view have none before it exists."""
    return {
        table.name: {column.name: column.type for column in table.descriptor.columns} for table in tables if table.descriptor is not None
    }
