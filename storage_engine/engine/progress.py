"""Progress: whether an owner's offsets may move as asked, and what is then recorded. Pure.

Holds: what is recorded speaks of partitions that exist: offsets of a dropped partition are left out, and offsets that were read from an
       earlier partition (or table) of the same name are refused, so that they never pass over rows of the later one.
       A commit under an old generation of its consumer group is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from storage_engine.api import CONSUMER_PREFIX, WORKERS_PREFIX, Progress
from storage_engine.engine.state import StoreState, TableState
from storage_engine.errors import ProgressConflict
from storage_engine.schema.descriptor import Offsets

GENERATION = "generation"
MEMBERS = "members"
COMMITTED_MS = "committed_ms"
"""Names in the detail of a consumer's progress. Members are those of the generation; the time is that of its newest commit."""


def advanced(state: StoreState, wanted: Progress, now_ms: int, created: Collection[tuple[int, str]] = ()) -> Progress:
    """What the store records for `wanted`; `created`: (table id, name) of partitions that the same commit makes.

    Errors: ProgressConflict.
    """
    recorded = state.progress.get(wanted.owner)
    before: Mapping[str, Offsets] = recorded.offsets if recorded else {}
    detail_before: Mapping[str, Any] = recorded.detail if recorded else {}
    if wanted.generation is not None and wanted.generation != generation_of(recorded):
        raise _conflict(wanted.owner, "its consumer group has a new generation: members came or went, or it was reset")
    if wanted.expected is not None and not _agrees(before, wanted):
        raise _conflict(wanted.owner, "another process runs it, this one is stale, or a partition was dropped")
    offsets = {table: _checked(state, table, by_bucket, wanted, created) for table, by_bucket in wanted.offsets.items()}
    if wanted.merges:
        offsets = {**before, **{table: {**before.get(table, {}), **by_bucket} for table, by_bucket in offsets.items()}}
    detail = wanted.detail
    if wanted.owner.startswith((CONSUMER_PREFIX, WORKERS_PREFIX)):
        detail = {**detail_before, **detail, COMMITTED_MS: now_ms}
    return Progress(wanted.owner, offsets, None, detail)


def generation_of(recorded: Progress | None) -> int:
    """The generation of a consumer group; 0 before it had members."""
    return int(recorded.detail.get(GENERATION, 0)) if recorded else 0


def _agrees(before: Mapping[str, Offsets], wanted: Progress) -> bool:
    assert wanted.expected is not None, "asked only when something is expected"
    if not wanted.merges:
        return _without_zeros(before) == _without_zeros(wanted.expected)
    named = ((before.get(table, {}).get(b, 0), offset) for table, by_bucket in wanted.expected.items() for b, offset in by_bucket.items())
    return all(recorded == expected for recorded, expected in named)


def _checked(state: StoreState, name: str, offsets: Offsets, wanted: Progress, created: Collection[tuple[int, str]]) -> Offsets:
    table = state.tables.get(name)
    if table is None:
        return {}
    as_of = state.version if wanted.as_of is None else wanted.as_of
    if state.born_tables.get(table.descriptor.table_id, 0) > as_of and any(offsets.values()):
        raise _conflict(wanted.owner, f"{name} was dropped and created again since it was read")
    if not table.descriptor.partition_keys:
        return dict(offsets)
    new = {partition for table_id, partition in created if table_id == table.descriptor.table_id}
    kept = {bucket: offset for bucket, offset in offsets.items() if bucket.partition in table.partitions or bucket.partition in new}
    for partition in {bucket.partition for bucket, offset in kept.items() if offset and bucket.partition not in new}:
        if born(state, table, partition) > as_of:
            raise _conflict(wanted.owner, f"partition {partition} of {name} was dropped and created again since it was read")
    return kept


def born(state: StoreState, table: TableState, partition: str) -> int:
    """The version that created a live partition; 0 when that was before versions were kept."""
    return state.born_partitions.get(table.partitions[partition], 0)


def _conflict(owner: str, why: str) -> ProgressConflict:
    return ProgressConflict(f"{owner} has moved: {why}", where=owner, next_step="Read its progress again and continue from there.")


def _without_zeros(offsets: Mapping[str, Offsets]) -> dict[str, Offsets]:
    return {table: kept for table, by_bucket in offsets.items() if (kept := {b: n for b, n in by_bucket.items() if n})}
