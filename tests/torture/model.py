"""The plain model of a whole store: dicts and lists, one row at a time. What the engine must answer, whatever happened to the disk.

Rows of primary-key tables follow tests/kv/model.py (one naive table per partition); this adds what lies around it: buckets and their logs,
partitions, several tables in one transaction, progress, idempotent writers, catalog changes, versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from storage_engine import Progress, TableBucket, TableDescriptor, WriteId
from storage_engine.engine.routing import bucket_of_rows
from storage_engine.schema.descriptor import Column
from tests.kv.model import Key, NaiveTable, Row, comparable, table

Change = tuple[str, Row]
RowKey = tuple[str, Key]

_LOG = (Column("id", "BIGINT"), Column("note", "STRING"))
_DAYS = (Column("id", "BIGINT", nullable=False), Column("ds", "STRING", nullable=False), Column("a", "BIGINT"), Column("s", "STRING"))
_WAL = {"table.changelog.image": "wal"}
DAY_MS = 24 * 3600 * 1000
LOG_TTL_MS = 7 * DAY_MS
MOVED = ("moved", {})
"""What a log holds where a row has left or entered a bucket because the table was rescaled: an offset that no reader sees."""
KEPT_DAYS = 2
ROW_TTL_MS = 8 * DAY_MS
_BY_DAY = {
    "table.auto-partition.enabled": "true", "table.auto-partition.time-unit": "day", "table.auto-partition.time-zone": "UTC",
    "table.auto-partition.num-retention": str(KEPT_DAYS), "table.auto-partition.late-rows": "drop",
    "table.auto-partition.num-precreate": "0",
}  # fmt: skip


def _pk(engine: str, name: str, n_buckets: int = 2, **options: str) -> TableDescriptor:
    return replace(table(engine, **options), name=f"t.{name}", n_buckets=n_buckets)


KINDS: dict[str, TableDescriptor] = {
    "t.log": TableDescriptor("t.log", _LOG, n_buckets=2),
    "t.parts": TableDescriptor(
        "t.parts", (*_LOG, Column("ds", "STRING")), partition_keys=("ds",), bucket_keys=("id",), n_buckets=2,
        options={"table.log.arrow.compression.type": "ZSTD"},
    ),
    "t.late": TableDescriptor(
        "t.late", (*_LOG, Column("ds", "STRING")), partition_keys=("ds",), bucket_keys=("id",), n_buckets=2, options=_BY_DAY
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


def kind_of(name: str, row_ttl: str = "") -> TableDescriptor:
    """A table that a workload creates. row_ttl: "": its rows live for ever; else a column that holds their time, or "written"."""
    descriptor = KINDS[name]
    if not row_ttl:
        return descriptor
    by = {} if row_ttl == "written" else {"table.kv.ttl.time-column": row_ttl}
    return replace(descriptor, options={**descriptor.options, "table.kv.ttl": f"{ROW_TTL_MS // DAY_MS}d", **by})


class Refused(Exception):
    """The store must refuse this operation, by this name."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


@dataclass
class Op:
    """Rows for one table, as plain values; `targets` are the columns of a partial update or delete.

    encoded  an append goes as a client sends it: "now", in the columns of now, or "before", in those the table had when it was made
    """

    table: str
    kind: str
    rows: list[Row]
    targets: list[str] | None = None
    encoded: str = ""


@dataclass
class ModelTable:
    """A table: per bucket its log of (change type, row), and per partition its rows by key.

    stamps    per bucket, of each entry of its log: the version that committed it, and when, at the latest (ms)
    counts    buckets of the partitions whose rows have not moved yet to as many as the table has
    n_late    rows left out because their day is past keeping
    written   when the row of a key was last written (ms); outlived: rows that cleaning has let go because of `table.kv.ttl`, by key;
              unsure: those of them that a failing disk may bring back. A key: (partition, key in it)
    """

    descriptor: TableDescriptor
    logs: dict[TableBucket, list[Change]] = field(default_factory=dict)
    partitions: dict[str, NaiveTable | None] = field(default_factory=dict)
    last_id: int = 0
    stamps: dict[TableBucket, list[tuple[int, int]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    n_late: int = 0
    written: dict[RowKey, int] = field(default_factory=dict)
    outlived: dict[RowKey, Row] = field(default_factory=dict)
    unsure: set[RowKey] = field(default_factory=set)

    @property
    def rows(self) -> list[Row]:
        return [row for naive in self.partitions.values() if naive is not None for row in naive.rows.values()]

    def copy(self) -> ModelTable:
        partitions = {name: None if naive is None else _copied(naive) for name, naive in self.partitions.items()}
        logs = {bucket: list(log) for bucket, log in self.logs.items()}
        stamps = {bucket: list(log) for bucket, log in self.stamps.items()}
        return ModelTable(
            self.descriptor, logs, partitions, self.last_id, stamps, dict(self.counts), self.n_late,
            dict(self.written), dict(self.outlived), set(self.unsure),
        )  # fmt: skip

    def n_buckets_of(self, partition: str) -> int:
        return self.counts.get(partition, self.descriptor.n_buckets)

    def stamp(self, version: int, now_ms: int) -> None:
        """What the logs have got since the last call was committed by now, in this version."""
        for bucket, log in self.logs.items():
            stamps = self.stamps.setdefault(bucket, [])
            for kind, row in log[len(stamps) :]:
                if kind in ("+I", "+U"):
                    self.written[self.key_of(row)] = now_ms
            stamps += [(version, now_ms)] * (len(log) - len(stamps))

    def key_of(self, row: Row) -> RowKey:
        names = self.descriptor.partition_keys
        return row[names[0]] if names else "", tuple(row[name] for name in self.descriptor.physical_primary_key)

    def has_outlived(self, row: Row, written_ms: int, now_ms: int) -> bool:
        """Whether cleaning may let a row go because of `table.kv.ttl`: its time is long enough ago, and so is the end of its log."""
        options = self.descriptor.options
        column = options.get("table.kv.ttl.time-column")
        if "table.kv.ttl" not in options:
            return False
        if column is None:
            return written_ms < now_ms - ROW_TTL_MS
        return row[column] is not None and row[column].timestamp() * 1000 < now_ms - ROW_TTL_MS and written_ms < now_ms - LOG_TTL_MS

    def follow(self, found: Mapping[RowKey, Row], now_ms: int, *, is_lenient: bool) -> tuple[list[RowKey], list[RowKey]]:
        """Let rows go that have outlived their time and are not found; take those back that a failing disk brought back.

        is_lenient  any row that went may be back
        The keys that went though it was not their time, and those that came back though they were gone.
        """
        wrong: tuple[list[RowKey], list[RowKey]] = ([], [])
        for partition, naive in self.partitions.items():
            for key in [key for key in naive.rows if (partition, key) not in found] if naive else []:
                if self.has_outlived(naive.rows[key], self.written[partition, key], now_ms):
                    self.outlived[partition, key] = naive.rows.pop(key)
                    self.unsure.add((partition, key))
                else:
                    wrong[0].append((partition, key))
        for at in found:
            naive = self.partitions.get(at[0])
            if at not in self.outlived or (naive and at[1] in naive.rows):
                continue
            if naive and (is_lenient or at in self.unsure):
                naive.rows[at[1]] = self.outlived.pop(at)
            else:
                wrong[1].append(at)
        return wrong

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
    used: dict[str, int] = field(default_factory=dict)
    """The greatest sequence of a writer, of commits that changed nothing too: the store may have forgotten those or not."""
    now_ms: int = 0

    def copy(self) -> Model:
        """A model that changes on its own. Rows are never changed in place, so that they can be shared."""
        tables = {name: model.copy() for name, model in self.tables.items()}
        return Model(self.version, tables, dict(self.progress), dict(self.writers), dict(self.objects), dict(self.used), self.now_ms)

    # commits

    def commit(self, ops: Sequence[Op], progress: Sequence[Progress] = (), write_id: WriteId | None = None) -> None:
        """Apply one transaction. A repeated write, and one that changes nothing, leaves everything as it is."""
        if write_id is not None:
            if write_id.sequence <= self.writers.get(write_id.writer, (-1, 0))[0]:
                return
            self.used[write_id.writer] = max(write_id.sequence, self.used.get(write_id.writer, 0))
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
        self._advance()
        if write_id is not None:
            self.writers[write_id.writer] = (write_id.sequence, self.version)

    def _advance(self) -> None:
        self.version += 1
        for model in self.tables.values():
            model.stamp(self.version, self.now_ms)

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
        for bucket, rows in self._split(model, op.rows):
            if self._is_late(model, bucket.partition):
                model.n_late += len(rows)
                changed = True
            elif op.kind == "append":
                model.partitions.setdefault(bucket.partition, None)
                model.log(bucket).extend(("+A", _whole(model.descriptor, row)) for row in rows)
                changed = True
            else:
                changed = self._change(model, bucket, rows, op) or changed
        return changed

    def _is_late(self, model: ModelTable, partition: str) -> bool:
        if "table.auto-partition.enabled" not in model.descriptor.options:
            return False
        day = datetime.strptime(partition, "%Y%m%d").replace(tzinfo=UTC)
        return day.timestamp() * 1000 // DAY_MS < self.now_ms // DAY_MS - KEPT_DAYS

    def _change(self, model: ModelTable, bucket: TableBucket, rows: list[Row], op: Op) -> bool:
        naive = model.partitions.get(bucket.partition) or NaiveTable(model.descriptor)
        naive.descriptor, naive.last_id = model.descriptor, model.last_id
        if op.kind == "upsert" and op.targets is None:
            rows = [_whole(model.descriptor, row) for row in rows]
        net = naive.upsert(rows, op.targets) if op.kind == "upsert" else naive.delete(rows, op.targets)
        if net:  # a delete that finds nothing makes no partition
            model.partitions[bucket.partition] = naive
        model.last_id = naive.last_id
        model.log(bucket).extend(change for changes in net.values() for change in changes)
        return bool(net)

    def _split(self, model: ModelTable, rows: list[Row]) -> list[tuple[TableBucket, list[Row]]]:
        """Rows by bucket: partitions in the order they first appear, then buckets; rows in their order."""
        if not rows:
            return []
        descriptor = model.descriptor
        names = descriptor.bucket_keys or descriptor.column_names[:1]
        keys = pa.table({name: pa.array([row[name] for row in rows], descriptor.column(name).arrow.type) for name in names})
        counts = {descriptor.n_buckets, *model.counts.values()}
        numbers = {n: bucket_of_rows(descriptor, keys, n, self.version + 1).tolist() for n in counts}
        partition_of = [row[descriptor.partition_keys[0]] if descriptor.partition_keys else "" for row in rows]
        order = {partition: at for at, partition in enumerate(dict.fromkeys(partition_of))}
        groups: dict[tuple[int, int], list[Row]] = {}
        for at, (row, partition) in enumerate(zip(rows, partition_of, strict=True)):
            number = numbers[model.n_buckets_of(partition)][at]
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

    def add_partition(self, name: str, partition: str) -> None:
        model = self.tables[name]
        if partition in model.partitions:
            raise Refused("AlreadyExists")
        model.partitions[partition] = None
        self.version += 1

    def rescale(self, name: str, n_buckets: int) -> list[Model]:
        """Another number of buckets: one commit for the table, then one for each partition of a primary-key table. The model after each."""
        model = self.tables[name]
        stages = []
        if n_buckets != model.descriptor.n_buckets:
            if model.descriptor.has_primary_key:
                names = list(model.partitions) if model.descriptor.partition_keys else [""]
                counts = {partition: model.n_buckets_of(partition) for partition in names}
                model.counts = {partition: n for partition, n in counts.items() if n != n_buckets}
            model.descriptor = replace(model.descriptor, n_buckets=n_buckets)
            self._advance()
            stages.append(self.copy())
        while model.counts:
            partition = min(model.counts)
            self._move(model, partition)
            del model.counts[partition]
            self._advance()
            stages.append(self.copy())
        return stages

    def _move(self, model: ModelTable, partition: str) -> None:
        naive = model.partitions.get(partition)
        rows = list(naive.rows.values()) if naive else []
        if not rows:
            return
        descriptor = model.descriptor
        keys = pa.table({n: pa.array([row[n] for row in rows], descriptor.column(n).arrow.type) for n in descriptor.bucket_keys})
        ways = [bucket_of_rows(descriptor, keys, n).tolist() for n in (model.counts[partition], descriptor.n_buckets)]
        for way in zip(*ways, strict=True):
            if way[0] != way[1]:
                for number in way:
                    model.log(TableBucket(partition, number)).append(MOVED)

    def drop_partition(self, name: str, partition: str) -> None:
        model = self.tables[name]
        if partition not in model.partitions:
            raise Refused("InvalidPartition")
        del model.partitions[partition]
        model.logs = {bucket: log for bucket, log in model.logs.items() if bucket.partition != partition}
        model.stamps = {bucket: stamps for bucket, stamps in model.stamps.items() if bucket.partition != partition}
        for rows in (model.written, model.outlived):
            for at in [at for at in rows if at[0] == partition]:
                del rows[at]
        model.counts.pop(partition, None)
        self._forget_progress(name, partition)
        self.version += 1

    def add_column(self, name: str, column: Column) -> None:
        """Rows that exist have no value for it."""
        model = self.tables[name]
        model.descriptor = replace(model.descriptor, columns=(*model.descriptor.columns, column))
        for naive in model.partitions.values():
            if naive is not None:
                naive.rows = {key: {**row, column.name: None} for key, row in naive.rows.items()}
        model.outlived = {key: {**row, column.name: None} for key, row in model.outlived.items()}
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
