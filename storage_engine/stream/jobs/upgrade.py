"""Upgrade: a job's statement is replaced by another under the same name.

    keep-position  goes on from the recorded offsets, with the state it has. Allowed when the state is what the new statement would have
                   kept: the same sources, the same stateful operators over the same inputs. What was written before stays as it is
    replay, latest, timestamp
                   begin anew, from the beginning, from now on, or from a moment. State tables are new ones; what the job had written
                   leaves a primary-key table in the same commit that sets the offsets back; a log keeps its rows

A submission stores the definition with the next epoch. The first runner that meets it commits the switch (adopt): rows cleared, offsets
set, and the epoch in the progress, all at once. So whoever crashes when, a job's rows, offsets and statement belong together; a runner
of the earlier statement is told by the epoch and stops.
Holds: `eras` in the progress say where each earlier definition whose rows are still there stopped: the proof begins there (batch.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import Progress, WriteOp
from storage_engine.client.store import Store
from storage_engine.errors import RetriableError, StatementRefused
from storage_engine.schema.descriptor import Offsets, TableBucket
from storage_engine.stream.jobs.held import BEGUN, InputGone, dropped, expired, forgotten_input, gaps_of
from storage_engine.stream.jobs.job import JobDescriptor
from storage_engine.stream.jobs.options import UPGRADE_OPTION, UPGRADE_TIMESTAMP_OPTION
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.plan.startup import MODE, TIMESTAMP, parse_startup, starts_of
from storage_engine.stream.plan.tree import Calc, Expand, LookupJoin, Scan, Union, Unnest, Windows, walk
from storage_engine.stream.planning.explain import describe

CHOICES = (
    f"SET '{UPGRADE_OPTION}' = 'keep-position' goes on from where the job is, with the state it has; 'replay' begins anew with all "
    f"input, 'latest' with what comes from now on, 'timestamp' at '{UPGRADE_TIMESTAMP_OPTION}' (all three take the job's rows out of a "
    "primary-key table first). Or name the new job with SET 'pipeline.name' = '...'."
)
_STATELESS = Scan | Calc | LookupJoin | Union | Expand | Windows | Unnest


@dataclass(frozen=True)
class Era:
    """An earlier definition whose rows are still in the sink, and where it stopped."""

    epoch: int
    stop: Mapping[str, Offsets]


def upgraded(
    store: Store, known: JobDescriptor, job: JobDescriptor, plan: JobPlan, before: JobPlan, settings: Mapping[str, str]
) -> JobDescriptor:
    """The definition to store: `job` as the next epoch of `known`. `plan`: of the new text; `before`: of the old one as it runs.

    Errors: StatementRefused when the choice does not fit, with the choices that there are.
    """
    choice = settings[UPGRADE_OPTION].lower()
    recorded = store.progress(job.owner).get(job.owner)
    is_pending = epoch_of(recorded) != known.epoch
    ran = known.earlier if is_pending else (*known.earlier, replace(known, earlier=()))
    if choice == "keep-position":
        if is_pending and known.start == "fresh":
            raise StatementRefused(
                f"no worker has begun the last upgrade of job {job.name} yet: it has no position of its own",
                where=f"job {job.name}",
                next_step=f"Wait for a worker, or SET '{UPGRADE_OPTION}' = 'replay'.",
            )
        reason = why_not_kept(before, plan)
        if reason:
            raise StatementRefused(f"job {job.name} cannot keep its position: {reason}", where=f"job {job.name}", next_step=CHOICES)
        return replace(job, epoch=known.epoch + 1, state_epoch=known.state_epoch, start="keep-position", starts=known.starts, earlier=ran)
    check_fresh(job, plan, choice)
    if choice == "replay":
        _check_dropped(plan, forgotten_input(store, known, recorded), f"job {job.name}")
    starts = _starts(store, job, plan, choice, settings)
    earlier = () if plan.sink.has_primary_key else ran
    return replace(job, epoch=known.epoch + 1, state_epoch=known.epoch + 1, start="fresh", starts=starts, earlier=earlier)


def why_not_kept(before: JobPlan, after: JobPlan) -> str:
    """Why the state of one plan is not what the other would have kept; "" when it is."""
    if before.sink.name != after.sink.name:
        return f"it wrote {before.sink.name}, the new statement writes {after.sink.name}"
    gone, new = set(before.source_tables) - set(after.source_tables), set(after.source_tables) - set(before.source_tables)
    if gone or new:
        return "its sources change: " + ", ".join([*(f"{name} is no longer read" for name in sorted(gone)), *sorted(new)])
    if _tables(before) != _tables(after):
        return "its state tables have another layout"
    if _operators(before) != _operators(after):
        return "what its state counts changes: an aggregate, join or rank, or what goes into it, is another one"
    if not after.sink.has_primary_key and (_operators(after) or after.timed_scans):
        return f"{after.sink.name} is a log, in which rows of the old and the new statement cannot be told apart"
    return ""


def _tables(plan: JobPlan) -> list[Any]:
    kept = [(p.mode, p.table.name, p.columns) for p in plan.placements.values()]
    return [*kept, *((table.name, [(c.name, c.type) for c in table.columns], table.primary_key) for table in plan.state_tables)]


def _operators(plan: JobPlan) -> list[list[str]]:
    return [describe(node) for node in walk(plan.root) if not isinstance(node, _STATELESS)]


def check_fresh(job: JobDescriptor, plan: JobPlan, choice: str) -> None:
    """Errors: StatementRefused where what the job has written cannot leave the sink."""
    sink = plan.sink
    where, next_step = f"job {job.name}", "Write to another table, or keep the position."
    if not sink.has_primary_key:
        if choice == "replay":
            raise StatementRefused(f"{sink.name} is a log: replaying would write its rows a second time", where=where, next_step=next_step)
        return
    if sink.merge_engine != "last_row":
        raise StatementRefused(
            f"{sink.name} has the merge engine {sink.merge_engine}: what job {job.name} has written cannot be taken out of it",
            where=where,
            next_step=next_step,
        )
    if sink.options.get("table.delete.behavior", "allow").lower() != "allow":
        raise StatementRefused(f"{sink.name} takes no deletes ('table.delete.behavior')", where=where, next_step=next_step)


def _check_dropped(plan: JobPlan, forgotten: Mapping[str, Mapping[str, int]], where: str) -> None:
    """Errors: StatementRefused when a replay would lose what came of a partition that is gone, and nobody said that it may."""
    for table, startup in plan.startups:
        if table in forgotten and not (startup is not None and startup.is_earliest):
            raise StatementRefused(
                f"{dropped(table, forgotten[table])}: a replay would take out what came of them, and could not bring it back",
                where=where,
                next_step=f"Write {table} /*+ OPTIONS('{MODE}' = 'earliest') */ if the result may hold only what the source holds now.",
            )


def _check_held(store: Store, job: JobDescriptor, plan: JobPlan) -> None:
    """Errors: InputGone when a log has lost, since the submission, rows that the job is to begin with."""
    for name in plan.source_tables:
        table = store.table(name)
        if not table.descriptor.has_primary_key and (gaps := gaps_of(table, job.starts.get(name, {}), table.offsets())):
            raise InputGone(
                f"{expired(name, gaps)} since the job was submitted: it cannot begin anew, and what it had written stays",
                where=f"job {job.name}",
                next_step="Submit it again, with another beginning.",
            )


def _starts(store: Store, job: JobDescriptor, plan: JobPlan, choice: str, settings: Mapping[str, str]) -> dict[str, Offsets]:
    where = f"job {job.name}"
    if choice == "replay":
        return starts_of(store, plan.startups, where)
    hints = {MODE: choice}
    if choice == "timestamp":
        if UPGRADE_TIMESTAMP_OPTION not in settings:
            raise StatementRefused(
                f"'{UPGRADE_OPTION}' = 'timestamp' needs a moment", where=where,
                next_step=f"SET '{UPGRADE_TIMESTAMP_OPTION}' = milliseconds since 1970, or 'yyyy-MM-dd HH:mm:ss' (UTC).",
            )  # fmt: skip
        hints[TIMESTAMP] = settings[UPGRADE_TIMESTAMP_OPTION]
    return starts_of(store, [(name, parse_startup(hints, store.describe(name), where)) for name in plan.source_tables], where)


# the switch


def epoch_of(recorded: Progress | None) -> int:
    """The epoch of the definition that a job's progress belongs to."""
    return int(recorded.detail.get("epoch", 0)) if recorded else 0


def eras_of(recorded: Progress | None) -> list[Era]:
    """Where the earlier definitions stopped, oldest first."""
    listed = recorded.detail.get("eras", []) if recorded else []
    return [Era(int(item["epoch"]), _offsets_from_json(item["stop"])) for item in listed]


def adopt(store: Store, job: JobDescriptor, plan: JobPlan) -> Progress | None:
    """The job's progress under this definition, which is committed first when the recorded one belongs to an earlier one.

    Errors: StaleDefinition when a later one is recorded.
    """
    recorded = store.progress(job.owner).get(job.owner)
    reached = epoch_of(recorded)
    if reached > job.epoch:
        raise StaleDefinition(f"job {job.name} was upgraded", where=f"job {job.name}", next_step="Its present definition is run instead.")
    if reached == job.epoch:
        return recorded
    if job.start == "fresh":
        _check_held(store, job, plan)
    offsets: Mapping[str, Offsets] = recorded.offsets if recorded else {}
    detail = dict(recorded.detail) if recorded else {}
    eras = detail.get("eras", [])
    if any(earlier.epoch == reached for earlier in job.earlier):
        eras = [*eras, {"epoch": reached, "stop": _offsets_to_json(offsets)}]
    if job.start == "fresh" and plan.sink.has_primary_key:
        eras = []
    if job.start == "fresh":
        detail = {BEGUN: store.version()} if plan.sink.has_primary_key else {}
    detail |= {"epoch": job.epoch, "eras": eras}
    ops = cleared(store, plan) if job.start == "fresh" and plan.sink.has_primary_key else []
    target = offsets if job.start == "keep-position" else job.starts
    switched = Progress(job.owner, target, offsets, detail)
    store.commit(ops, [switched])
    return switched


class StaleDefinition(RetriableError):
    """A runner's definition of its job is not the newest one."""


def cleared(store: Store, plan: JobPlan) -> list[WriteOp]:
    """What takes the rows of a job out of its sink: whole rows, or its columns where it writes only some."""
    sink = plan.sink
    keys = list(sink.primary_key)
    values = list(plan.value_columns) if plan.is_partial else []
    rows = store.table(sink.name).read([*keys, *values])
    if values:
        written: pa.Array | pa.ChunkedArray = pc.is_valid(rows[values[0]])
        for name in values[1:]:
            written = pc.or_(written, pc.is_valid(rows[name]))
        rows = rows.filter(written)
    return [WriteOp(sink.name, "delete", rows.select(keys), tuple(values) or None)] if rows.num_rows else []


def _offsets_to_json(offsets: Mapping[str, Offsets]) -> dict[str, dict[str, int]]:
    return {table: {str(bucket): n for bucket, n in by_bucket.items()} for table, by_bucket in offsets.items()}


def _offsets_from_json(value: Mapping[str, Mapping[str, int]]) -> dict[str, dict[TableBucket, int]]:
    return {table: {TableBucket.parse(text): n for text, n in by_bucket.items()} for table, by_bucket in value.items()}


__all__ = ["CHOICES", "Era", "StaleDefinition", "adopt", "check_fresh", "cleared", "epoch_of", "eras_of", "upgraded", "why_not_kept"]
