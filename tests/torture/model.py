"""The plain model of a whole store: dicts and lists, one row at a time. What the engine must answer, whatever happened to the disk.

Rows of primary-key tables follow tests/kv/model.py (one naive table per partition); this adds what lies around it: buckets and their logs,
partitions, several tables in one transaction, progress, idempotent writers, catalog changes, versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from storage_engine import Progress, TableBucket, TableDescriptor, WriteId
from storage_engine.engine.routing import bucket_of_rows
from storage_engine.schema.descriptor import Column
from tests.kv.model import NaiveTable, Row, comparable, table

Change = tuple[str, Row]

_LOG = (Column("id", "BIGINT"), Column("note", "STRING"))
_DAYS = (Column("id", "BIGINT", nullable=False), Column("ds", "STRING", nullable=False), Column("a", "BIGINT"), Column("s", "STRING"))
_WAL = {"table.changelog.image": "wal"}


def _pk(engine: str, name: str, n_buckets: int = 2, **options: str) -> TableDescriptor:
    return replace(table(engine, **options), name=f"t.{name}", n_buckets=n_buckets)


KINDS: dict[str, TableDescriptor] = {
    "t.log": TableDescriptor("t.log", _LOG, n_buckets=2),
    "t.parts": TableDescriptor(
        "t.parts", (*_LOG, Column("ds", "STRING")), partition_keys=("ds",), bucket_keys=("id",), n_buckets=2,
        options={"table.log.arrow.compression.type": "ZSTD"},
    ),
    "t.last": _pk("last_row", "last"),
    "t.last_wal": _pk("last_row", "last_wal", **_WAL),
    "t.first": _pk("first_row", "first"),
    "t.versioned": _pk("versioned", "versioned"),
    "t.totals": _pk("aggregation", "totals"),
    "t.totals_allow": _pk("aggregation", "totals_allow", 1, **{"table.delete.behavior": "allow"}),
    "t.ids": _pk("auto_increment", "ids"),
    "t.days": TableDescriptor("t.days", _DAYS, primary_key=("id", "ds"), partition_keys=("ds",), bucket_keys=("id",), n_buckets=2),
}  # fmt: skip
"""The tables a workload may create."""


class Refused(Exception):
    """The store must refuse this operation, by this name."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


@dataclass
class Op:
    """Rows for one table, as plain values; `targets` are the columns of a partial update or delete."""

    table: str
    kind: str
    rows: list[Row]
    targets: list[str] | None = None


@dataclass
class ModelTable:
    """A table: per bucket its log of (change type, row), and per partition its rows by key."""

    descriptor: TableDescriptor
    logs: dict[TableBucket, list[Change]] = field(default_factory=dict)
    partitions: dict[str, NaiveTable | None] = field(default_factory=dict)
    last_id: int = 0

    @property
    def rows(self) -> list[Row]:
        return [row for naive in self.partitions.values() if naive is not None for row in naive.rows.values()]

    def copy(self) -> ModelTable:
        partitions = {name: None if naive is None else _copied(naive) for name, naive in self.partitions.items()}
        return ModelTable(self.descriptor, {bucket: list(log) for bucket, log in self.logs.items()}, partitions, self.last_id)

    def log(self, bucket: TableBucket) -> list[Change]:
        return self.logs.setdefault(bucket, [])


@dataclass
class Model:
    """A store as it must be after the commits applied so far."""

    version: int = 0
    tables: dict[str, ModelTable] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    writers: dict[str, tuple[int, int]] = field(default_factory=dict)
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)

    def copy(self) -> Model:
        """A model that changes on its own. Rows are never changed in place, so that they can be shared."""
        tables = {name: model.copy() for name, model in self.tables.items()}
        return Model(self.version, tables, dict(self.progress), dict(self.writers), dict(self.objects))

    # commits

    def commit(self, ops: Sequence[Op], progress: Sequence[Progress] = (), write_id: WriteId | None = None) -> None:
        """Apply one transaction. A repeated write, and one that changes nothing, leaves everything as it is."""
        if write_id is not None and write_id.sequence <= self.writers.get(write_id.writer, (-1, 0))[0]:
            return
        for item in progress:
            recorded = self.progress.get(item.owner)
            if item.expected is not None and _plain(item.expected) != _plain(recorded.offsets if recorded else {}):
                raise Refused("ProgressConflict")
        changed = [self._apply(op) for op in ops]
        kept = {item.owner: {name: self._live(name, by_bucket) for name, by_bucket in item.offsets.items()} for item in progress}
        if not (any(changed) or progress):
            return
        for item in progress:
            self.progress[item.owner] = Progress(item.owner, kept[item.owner], None, item.detail)
        self.version += 1
        if write_id is not None:
            self.writers[write_id.writer] = (write_id.sequence, self.version)

    def _live(self, name: str, offsets: Mapping[TableBucket, int]) -> dict[TableBucket, int]:
        """The offsets that are recorded: those of partitions, and of a table, that are there after the transaction."""
        model = self.tables.get(name)
        if model is None:
            return {}
        is_partitioned = bool(model.descriptor.partition_keys)
        return {bucket: n for bucket, n in offsets.items() if not is_partitioned or bucket.partition in model.partitions}

    def _apply(self, op: Op) -> bool:
        model = self.tables[op.table]
        changed = False
        for bucket, rows in self._split(model.descriptor, op.rows):
            if op.kind == "append":
                model.partitions.setdefault(bucket.partition, None)
                model.log(bucket).extend(("+A", _whole(model.descriptor, row)) for row in rows)
                changed = True
                continue
            naive = model.partitions.get(bucket.partition) or NaiveTable(model.descriptor)
            naive.descriptor, naive.last_id = model.descriptor, model.last_id
            if op.kind == "upsert" and op.targets is None:
                rows = [_whole(model.descriptor, row) for row in rows]
            net = naive.upsert(rows, op.targets) if op.kind == "upsert" else naive.delete(rows, op.targets)
            if net:  # a delete that finds nothing makes no partition
                model.partitions[bucket.partition] = naive
            model.last_id = naive.last_id
            model.log(bucket).extend(change for changes in net.values() for change in changes)
            changed = changed or bool(net)
        return changed

    def _split(self, descriptor: TableDescriptor, rows: list[Row]) -> list[tuple[TableBucket, list[Row]]]:
        """Rows by bucket: partitions in the order they first appear, then buckets; rows in their order."""
        if not rows:
            return []
        names = descriptor.bucket_keys or descriptor.column_names[:1]
        keys = pa.table({name: pa.array([row[name] for row in rows], descriptor.column(name).arrow.type) for name in names})
        numbers = bucket_of_rows(descriptor, keys, descriptor.n_buckets, self.version + 1).tolist()
        partition_of = [row[descriptor.partition_keys[0]] if descriptor.partition_keys else "" for row in rows]
        order = {partition: at for at, partition in enumerate(dict.fromkeys(partition_of))}
        groups: dict[tuple[int, int], list[Row]] = {}
        for row, partition, number in zip(rows, partition_of, numbers, strict=True):
            groups.setdefault((order[partition], number), []).append(row)
        known = list(order)
        return [(TableBucket(known[at], number), groups[at, number]) for at, number in sorted(groups)]

    def insert_missing(self, name: str, keys: list[Row]) -> None:
        """An insert-if-not-exists lookup."""
        model = self.tables[name]
        names = list(model.descriptor.primary_key)
        missing = [row for row in keys if tuple(row[n] for n in model.descriptor.physical_primary_key) not in self._keys(model, row)]
        distinct = list({tuple(row[n] for n in names): row for row in missing}.values())
        if distinct:
            self.commit([Op(name, "upsert", distinct, names)])

    @staticmethod
    def _keys(model: ModelTable, row: Row) -> Mapping[Any, Row]:
        partition = row[model.descriptor.partition_keys[0]] if model.descriptor.partition_keys else ""
        naive = model.partitions.get(partition)
        return naive.rows if naive else {}

    # the catalog

    def create_table(self, descriptor: TableDescriptor) -> None:
        if descriptor.name in self.tables:
            raise Refused("AlreadyExists")
        self.tables[descriptor.name] = ModelTable(descriptor)
        self.version += 1

    def drop_table(self, name: str) -> None:
        if name not in self.tables:
            raise Refused("UnknownTable")
        del self.tables[name]
        self._forget_progress(name, None)
        self.version += 1

    def drop_partition(self, name: str, partition: str) -> None:
        model = self.tables[name]
        if partition not in model.partitions:
            raise Refused("InvalidPartition")
        del model.partitions[partition]
        model.logs = {bucket: log for bucket, log in model.logs.items() if bucket.partition != partition}
        self._forget_progress(name, partition)
        self.version += 1

    def add_column(self, name: str, column: Column) -> None:
        """Rows that exist have no value for it."""
        model = self.tables[name]
        model.descriptor = replace(model.descriptor, columns=(*model.descriptor.columns, column))
        for naive in model.partitions.values():
            if naive is not None:
                naive.rows = {key: {**row, column.name: None} for key, row in naive.rows.items()}
        self.version += 1

    def put_object(self, name: str, value: Mapping[str, Any] | None) -> None:
        if value is None:
            self.objects.pop(name, None)
        else:
            self.objects[name] = dict(value)
        self.version += 1

    def _forget_progress(self, name: str, partition: str | None) -> None:
        for owner, item in self.progress.items():
            offsets = {t: dict(by_bucket) for t, by_bucket in item.offsets.items()}
            if name in offsets and partition is None:
                del offsets[name]
            elif name in offsets:
                offsets[name] = {bucket: n for bucket, n in offsets[name].items() if bucket.partition != partition}
            self.progress[owner] = Progress(owner, offsets, None, item.detail)


def _copied(naive: NaiveTable) -> NaiveTable:
    other = NaiveTable(naive.descriptor)
    other.rows, other.last_id = dict(naive.rows), naive.last_id
    return other


def _plain(offsets: Mapping[str, Mapping[TableBucket, int]]) -> dict[str, dict[TableBucket, int]]:
    """Without what is zero: not begun, and not there, are the same."""
    return {t: kept for t, by_bucket in offsets.items() if (kept := {b: n for b, n in by_bucket.items() if n})}


def _whole(descriptor: TableDescriptor, row: Row) -> Row:
    return {name: row.get(name) for name in descriptor.column_names}


def same(descriptor: TableDescriptor, row: Row) -> Row:
    """A row in the form in which two equal rows compare equal; columns added later are null."""
    return comparable(_whole(descriptor, row))
