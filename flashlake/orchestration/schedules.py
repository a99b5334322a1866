"""Schedules: each cron expression named by `asset.schedule` seals, when it ticks, the day before.

Sealing a day materializes it for every table on that schedule in one run, in dependency order and one process.
Tables without days (materialized views) are on a schedule of their own: they are proved, and repaired, as a whole.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import date, timedelta

import dagster as dg

from flashlake.orchestration.factory import asset_key, day_partitions
from flashlake.orchestration.tables import TableDefinition

Group = tuple[str, dg.DailyPartitionsDefinition | None]


def seal_schedules(definitions: Iterable[TableDefinition], start: date) -> list[dg.ScheduleDefinition]:
    """One schedule, with its job, per cron expression and partitions."""
    groups: dict[Group, list[dg.AssetKey]] = defaultdict(list)
    for definition in definitions:
        if definition.is_derived and definition.policy.schedule is not None:
            groups[(definition.policy.schedule, day_partitions(definition.policy, start))].append(asset_key(definition.name))
    names = _names(groups)
    return [_schedule(names[group], *group, keys) for group, keys in groups.items()]


def _schedule(name: str, cron: str, partitions: dg.DailyPartitionsDefinition | None, keys: list[dg.AssetKey]) -> dg.ScheduleDefinition:
    job = dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(*keys),
        description=f"Recompute, compare, repair: {'one day of ' if partitions else ''}{len(keys)} tables.",
        executor_def=dg.in_process_executor,
        tags={"lane": "seal"},
    )

    @dg.schedule(
        name=f"{name}_schedule", job=job, cron_schedule=cron, execution_timezone="UTC", default_status=dg.DefaultScheduleStatus.RUNNING
    )
    def seal_yesterday(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        yesterday = (context.scheduled_execution_time - timedelta(days=1)).date().isoformat()
        if partitions is None:
            return dg.RunRequest(run_key=f"{name}:{context.scheduled_execution_time.isoformat()}")
        if not partitions.has_partition_key(yesterday):
            return dg.SkipReason(f"{yesterday} is before the first partition")
        return dg.RunRequest(run_key=f"{name}:{yesterday}", partition_key=yesterday)

    return seal_yesterday


def _names(groups: Iterable[Group]) -> dict[Group, str]:
    """seal_yesterday and prove_whole for the first cron expression of each sort; later ones carry the expression."""
    names: dict[Group, str] = {}
    for cron, partitions in groups:
        base = "seal_yesterday" if partitions else "prove_whole"
        name = base if base not in names.values() else f"{base}_{re.sub(r'[^0-9A-Za-z]+', '_', cron.replace('*', 'x')).strip('_')}"
        names[(cron, partitions)] = name if name not in names.values() else f"{name}_{len(names)}"
    return names
