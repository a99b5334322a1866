"""Job plan: a statement that can run: the tree of operators, its sink, and where each operator keeps what it keeps."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from storage_engine.schema.descriptor import Offsets, TableDescriptor
from storage_engine.stream.functions.python_functions import FunctionDefinition
from storage_engine.stream.operators.arrangement import Arrangement
from storage_engine.stream.plan.placement import Placement
from storage_engine.stream.plan.startup import Startup
from storage_engine.stream.plan.tree import (
    PROCESSING_TIME,
    Aggregate,
    InTime,
    Node,
    Session,
    Sided,
    Union,
    ViewDefinition,
    is_positioned,
    lookups,
    scans,
    walk,
)
from storage_engine.stream.plan.tree_time import Emission


@dataclass(frozen=True)
class JobPlan:
    """A statement that can run.

    root        what runs: operators whose fields are the sink's target columns, by name
    targets     the sink's columns that the job writes, in the order of root's fields
    placements    id of an Aggregate -> where it keeps its state
    arrangements  id of a KeptSide -> the table that its rows are kept in
    """

    root: Node
    sink: TableDescriptor
    targets: tuple[str, ...]
    placements: Mapping[int, Placement] = field(default_factory=dict)
    drops_nulls: bool = False
    notices: tuple[str, ...] = ()
    views: Mapping[str, ViewDefinition] = field(default_factory=dict)
    arrangements: Mapping[int, Arrangement] = field(default_factory=dict)
    functions: Mapping[str, FunctionDefinition] = field(default_factory=dict)
    """The users' functions that the statement calls."""
    starts: Mapping[str, Offsets] = field(default_factory=dict)
    """Where sources begin that are not read from their beginning (startup.py)."""
    meant: Node | None = None
    """The statement as a tree, without what is shared and counted by pane: what a recomputation runs; None: `root` is it."""

    @property
    def recomputed(self) -> JobPlan:
        """The plan of the statement as it is meant."""
        return self if self.meant is None else replace(self, root=self.meant, meant=None)

    @property
    def source_tables(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(scan.table.name for scan in scans(self.root)))

    @property
    def startups(self) -> list[tuple[str, Startup | None]]:
        return [(scan.table.name, scan.startup) for scan in scans(self.root)]

    @property
    def lookup_tables(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(join.table.name for join in lookups(self.root)))

    @property
    def state_tables(self) -> tuple[TableDescriptor, ...]:
        """Tables of the job's own that must exist before it runs."""
        tables: list[TableDescriptor] = []
        for placement in self.placements.values():
            tables.extend([placement.table] if placement.mode == "table" else [])
            tables.extend(state.table for state in placement.distinct)
        return (*tables, *(arrangement.table for arrangement in self.arrangements.values()))

    @functools.cached_property
    def positioned_scans(self) -> frozenset[int]:
        """Ids of the scans of logs whose rows are kept, ranked, or brought together, by their places or their times in the log."""
        if self.is_ordered_union:
            return frozenset(scan.id for scan in scans(self.root))
        sides = [side for node in walk(self.root) if isinstance(node, Sided) for side in node.sides]
        by_arrival = {scan.id for scan in scans(self.root) if PROCESSING_TIME in scan.columns}
        return self.timed_scans | by_arrival | {scan.id for side in sides if is_positioned(side.node) for scan in scans(side.node)}

    @functools.cached_property
    def is_last_row(self) -> bool:
        """True when appended rows meet by key and one of them stays as it is."""
        if not self.sink.has_primary_key or self.root.is_retracting or self.sink.merge_engine == "aggregation":
            return False
        key = self.root.unique_key
        return key is None or not set(key) <= set(self.sink.primary_key)

    @functools.cached_property
    def is_ordered_union(self) -> bool:
        """True when rows of several logs meet by key: they are written in the order they arrived, not branch by branch."""
        return self.is_last_row and any(isinstance(node, Union) for node in walk(self.root))

    @functools.cached_property
    def timed_scans(self) -> frozenset[int]:
        """Ids of the scans whose watermark decides when a result is sent."""
        return frozenset(scan.id for item in self.emissions if not item.by_commit for scan in item.scans)

    @property
    def emissions(self) -> list[Emission]:
        found = [node.emission for node in walk(self.root) if isinstance(node, Aggregate | Session | InTime) and node.emission is not None]
        return found + [Emission((scan,), None) for scan in scans(self.root) if scan.marks]

    @property
    def late_tables(self) -> tuple[str, ...]:
        """Tables that late rows are written to, as their source's options say."""
        return tuple(dict.fromkeys(name for item in self.emissions for name in item.late_tables if name is not None))

    @property
    def kept_columns(self) -> tuple[str, ...]:
        """Columns of the sink that hold this job's state: nobody else may write them."""
        return tuple(name for placement in self.placements.values() if placement.mode == "sink" for _, name in placement.columns)

    @property
    def value_columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.targets if name not in self.sink.primary_key)

    @property
    def not_null_columns(self) -> tuple[str, ...]:
        """Target columns in which a null is an error, or the row is dropped."""
        return tuple(name for name in self.targets if name in self.sink.primary_key or not self.sink.column(name).nullable)

    @property
    def is_partial(self) -> bool:
        return self.sink.has_primary_key and set(self.targets) != set(self.sink.column_names)
