"""Sensors: the journal sensor reports what the stream has sealed, exactly once by its cursor.

It starts no run: a day filled by the stream becomes a Dagster partition with a materialization of its own.
"""

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime

import dagster as dg

from flashlake.orchestration.factory import asset_key, day_partitions
from flashlake.orchestration.journal import JournalCursor, SealedDay, follow, seal
from flashlake.orchestration.tables import TableDefinition
from flashlake.orchestration.warehouse import RESOURCE_KEY, Warehouse
from storage_engine.errors import RetriableError

COMMITS_PER_READ = 2000
SECONDS_PER_TICK = 20.0
EVENTS_PER_TICK = 400


def journal_sensor(
    definitions: Iterable[TableDefinition], start: date, *, interval_s: int = 10, quiet_s: float = 15.0
) -> dg.SensorDefinition:
    """A sensor that follows the store's commit journal.

    interval_s  seconds between ticks; quiet_s: seconds without new rows after which an ended day is sealed.
    """
    # In the order of the definitions: what is read is reported before what reads it, so that nothing looks out of step.
    partitions: Mapping[str, dg.DailyPartitionsDefinition | None] = {
        definition.name: day_partitions(definition.policy, start) for definition in definitions
    }

    @dg.sensor(
        name="journal",
        description="Follows the store's commit journal and reports sealed days as materializations.",
        minimum_interval_seconds=interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={RESOURCE_KEY},
    )
    def journal(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        warehouse: Warehouse = getattr(context.resources, RESOURCE_KEY)
        before = JournalCursor.from_json(context.cursor)
        try:
            if warehouse.version() < before.version:  # another store: the old one was removed
                context.log.warning(
                    f"the store is younger than version {before.version}, where the journal was left; reading it from its start"
                )
                before = JournalCursor()
            cursor = _read(warehouse, before, partitions)
        except RetriableError as error:
            return dg.SkipReason(str(error))
        now = datetime.now(UTC)
        sealed, cursor = seal(cursor, int(now.timestamp() * 1000), now.date().isoformat(), int(quiet_s * 1000), EVENTS_PER_TICK)
        order = list(partitions)
        sealed.sort(key=lambda day: (day.day, order.index(day.table)))
        events = [event for day in sealed if (event := _event(day, partitions[day.table])) is not None]
        skip = None if events else f"version {cursor.version}; {len(cursor.open_days)} days open, none sealed"
        return dg.SensorResult(asset_events=events, cursor=cursor.to_json(), skip_reason=skip)

    return journal


def _read(warehouse: Warehouse, cursor: JournalCursor, tables: Iterable[str]) -> JournalCursor:
    deadline = time.monotonic() + SECONDS_PER_TICK
    while time.monotonic() < deadline:
        commits = warehouse.commits(cursor.version, COMMITS_PER_READ)
        if not commits:
            break
        cursor = follow(cursor, commits, tables)
    return cursor


def _event(sealed: SealedDay, partitions: dg.DailyPartitionsDefinition | None) -> dg.AssetMaterialization | None:
    """None for a day outside the asset's partitions: it is data, but not a partition of this asset."""
    if partitions is not None and not (_is_day(sealed.day) and partitions.has_partition_key(sealed.day)):
        return None
    return dg.AssetMaterialization(
        asset_key=asset_key(sealed.table),
        partition=sealed.day if partitions is not None else None,
        description="Sealed by the stream",
        metadata={
            "log_rows": sealed.rows.n_rows,
            "first_version": sealed.rows.first_version,
            "store_version": sealed.rows.last_version,
            "last_commit": dg.MetadataValue.timestamp(sealed.rows.last_ms / 1000),
            "filled_by": "stream",
        },
    )


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
