"""Partitions: which may be created and written, and the task that makes them in advance and drops those past keeping.

Owner: engine/embedded.py adds the task; transactions ask before they create a partition or write to one.
Holds: a row is never accepted for a partition that retention has passed: its write is refused, or it is left out and counted.
       What the task changes in a table is one commit. The clock decides, and nothing but it: a task that ran twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from storage_engine.engine.state import TableState
from storage_engine.errors import FlashlakeError, InvalidPartition, TooManyPartitions
from storage_engine.schema.auto_partition import AutoPartition, rule_of
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.partitions import check_partition_name, partition_values_of

PARTITIONS_MAX = 1000
"""Partitions of one table, unless the store is opened with another bound (Fluss: max.partition.num)."""
INTERVAL_MS = 60_000
DYNAMIC = "client.writer.dynamic-create-partition.enabled"


class PartitionPlan(NamedTuple):
    """Names to create, and to drop, in one table."""

    create: list[str]
    drop: list[str]


def plan_partitions(table: TableState, now_ms: int, partitions_max: int) -> PartitionPlan:
    """What auto partition changes in a table at an instant. Errors: TooManyPartitions."""
    rule = rule_of(table.descriptor)
    if rule is None:
        return PartitionPlan([], [])
    drop = rule.expired(table.partitions, now_ms)
    create = [name for name in rule.wanted(now_ms) if name not in table.partitions]
    if create:
        check_room(table, len(table.partitions) - len(drop) + len(create) - 1, partitions_max)
    return PartitionPlan(create, drop)


def is_late(table: TableState, rule: AutoPartition, partition: str, now_ms: int) -> bool:
    """True when rows of the partition are to be left out.

    Errors: InvalidPartition for a name that is no period, and for a period past keeping where its rows are refused.
    """
    name = table.descriptor.name
    try:
        is_expired = rule.is_expired(partition, now_ms)
    except InvalidPartition as error:
        raise InvalidPartition(error.what, where=f"table {name}", next_step=error.next_step) from error
    if is_expired and not rule.drops_late:
        raise InvalidPartition(
            f"partition {partition} of {name} is past keeping: {rule.n_retention} partitions before the present {rule.unit} are kept",
            where=f"table {name}",
            next_step="Keep more ('table.auto-partition.num-retention'), or drop such rows ('table.auto-partition.late-rows' = 'drop').",
        )
    return is_expired


def check_new(table: TableState, partition: str, now_ms: int) -> str:
    """The name of a partition that ALTER TABLE adds. Errors: InvalidPartition for what can never hold a row."""
    descriptor = table.descriptor
    where = f"table {descriptor.name}"
    if not descriptor.partition_keys:
        raise InvalidPartition(f"{descriptor.name} has no partitions", where=where, next_step="Partition it when it is created.")
    check_partition_name(partition, where=where)
    partition_values_of([partition], descriptor.column(descriptor.partition_keys[0]).arrow.type)
    rule = rule_of(descriptor)
    if rule is not None and is_late(table, rule, partition, now_ms):
        raise InvalidPartition(f"partition {partition} of {descriptor.name} is past keeping", where=where, next_step="Add a later one.")
    return partition


def check_dynamic(descriptor: TableDescriptor, partition: str) -> None:
    """Errors: InvalidPartition when rows do not create partitions of this table."""
    if descriptor.options.get(DYNAMIC) == "false":
        key = descriptor.partition_keys[0]
        raise InvalidPartition(
            f"{descriptor.name} has no partition {partition!r}, and rows do not create one ('{DYNAMIC}' = 'false')",
            where=f"table {descriptor.name}",
            next_step=f"ALTER TABLE {descriptor.name} ADD PARTITION ({key} = '{partition}').",
        )


def check_room(table: TableState, n_partitions: int, partitions_max: int) -> None:
    """Errors: TooManyPartitions when a table of `n_partitions` may not have one more."""
    if n_partitions >= partitions_max:
        raise TooManyPartitions(
            f"{table.descriptor.name} has {len(table.partitions)} partitions, {partitions_max} are allowed",
            where=f"table {table.descriptor.name}",
            next_step="Drop old ones, partition more coarsely, or open the store with a larger partitions_max.",
        )


class PartitionKeeper:
    """The maintenance task: creates partitions in advance and drops those past keeping, table by table."""

    name = "auto-partition"
    interval_ms = INTERVAL_MS

    def __init__(self, tables: Callable[[], Iterable[TableState]], keep: Callable[[str, int], None]) -> None:
        """`keep(table, now_ms)` plans and commits under the writer's lock."""
        self._tables = tables
        self._keep = keep

    def run(self, now_ms: int) -> None:
        failure: FlashlakeError | None = None
        for table in self._tables():
            if rule_of(table.descriptor) is None:
                continue
            try:
                self._keep(table.descriptor.name, now_ms)
            except FlashlakeError as error:  # the other tables are kept all the same
                failure = failure or error
        if failure is not None:
            raise failure
