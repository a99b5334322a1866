"""Schedules: each cron expression named by `asset.schedule` seals, when it ticks, the day before.

Sealing a day materializes it for every table on that schedule in one run, in dependency order and one process.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import date, timedelta

import dagster as dg

from flashlake.orchestration.factory import asset_key, day_partitions
from flashlake.orchestration.tables import TableDefinition


def seal_schedules(definitions: Iterable[TableDefinition], start: date) -> list[dg.ScheduleDefinition]:
    """One schedule, with its job, per cron expression and partitions."""
    groups: dict[tuple[str, dg.DailyPartitionsDefinition], list[dg.AssetKey]] = defaultdict(list)
    for definition in definitions:
        partitions = day_partitions(definition.policy, start)
        if definition.is_derived and definition.policy.schedule is not None and partitions is not None:
            groups[(definition.policy.schedule, partitions)].append(asset_key(definition.name))
    names = _names(cron for cron, _ in groups)
    return [_schedule(name, cron, partitions, keys) for name, ((cron, partitions), keys) in zip(names, groups.items(), strict=True)]


def _schedule(name: str, cron: str, partitions: dg.DailyPartitionsDefinition, keys: list[dg.AssetKey]) -> dg.ScheduleDefinition:
    job = dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(*keys),
        description=f"Seal one day of {len(keys)} tables: recompute, compare, repair.",
        executor_def=dg.in_process_executor,
        tags={"lane": "seal"},
    )

    @dg.schedule(
        name=f"{name}_schedule", job=job, cron_schedule=cron, execution_timezone="UTC", default_status=dg.DefaultScheduleStatus.RUNNING
    )
    def seal_yesterday(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        yesterday = (context.scheduled_execution_time - timedelta(days=1)).date().isoformat()
        if not partitions.has_partition_key(yesterday):
            return dg.SkipReason(f"{yesterday} is before the first partition")
        return dg.RunRequest(run_key=f"{name}:{yesterday}", partition_key=yesterday)

    return seal_yesterday


def _names(crons: Iterable[str]) -> list[str]:
    """seal_daily for the first, then names made of the cron expression."""
    names: list[str] = []
    for cron in crons:
        name = "seal_yesterday" if not names else "seal_" + re.sub(r"\W+", "_", cron.replace("*", "x")).strip("_")
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names
