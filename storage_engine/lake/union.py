"""Union read: one answer from the lake up to its recorded offsets and the store's log after them.

Holds: the answer is the table at one version of the store, whatever the tierer does meanwhile or wherever it was killed:
       a Delta version is chosen first and pinned; the offsets recorded in it say where the tail begins; the tail ends at
       the offsets of the chosen store version.
Holds: of a primary-key table, a lake row whose key the tail changed or removed is hidden by an anti-join.
Holds: where the changelog does not say all that became of the lake's rows (`table.kv.ttl`; a log that begins behind the lake), the
       store answers, which has every current row; of the lake only partitions that the store has dropped are read then.
Never: opens a Delta table for writing; looks past the recorded version, so rows that others added are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from storage_engine.api import Progress
from storage_engine.client.store import Store
from storage_engine.client.table import Table
from storage_engine.errors import PartitionChanged, SchemaMismatch, StatementRefused, UserError
from storage_engine.lake.columns import SYSTEM_FIELDS, from_lake, lake_type, quoted, quoted_list
from storage_engine.lake.duck import load_delta, scan_sql
from storage_engine.lake.lane import OWNER_PREFIX, table_path
from storage_engine.lake.mapping import LakeColumns, select_list
from storage_engine.lake.netting import net_changes
from storage_engine.lake.planning import begin_of
from storage_engine.lake.record import LakeRecord, entries_back, read_entry
from storage_engine.schema.descriptor import Offsets, TableDescriptor
from storage_engine.schema.predicate import matching_partitions
from storage_engine.schema.pushdown import pushable
from storage_engine.schema.row_ttl import may_outlive

ATTEMPTS = 5
"""A partition dropped while its union is read makes it begin anew, so many times in a row."""
_HIDDEN = "hidden"
_TAIL = "tail"


@dataclass(frozen=True)
class LakeSnapshot:
    """A pinned version of a tiered table's lake side.

    version   store version that the Delta version equals
    offsets   next offset per bucket: the tail begins there
    detached  partitions whose rows in the lake the changelog no longer describes (dropped in the store)
    columns   field id of a column of the store -> its column in the lake at that version
    is_newest no later version of the lake covers more
    """

    path: Path
    delta_version: int
    version: int
    offsets: Offsets
    detached: tuple[str, ...]
    columns: LakeColumns
    is_newest: bool = True

    @property
    def scan_sql(self) -> str:
        """A DuckDB table function call that reads exactly this version."""
        return scan_sql(self.path, self.delta_version)

    def select_sql(self, descriptor: TableDescriptor) -> str:
        """A query for the lake's side alone: the store's columns under their present names, then the system columns."""
        system = quoted_list([item.name for item in SYSTEM_FIELDS], "l.")
        return f"SELECT {select_list(descriptor, self.columns, 'l.')}, {system} FROM {self.scan_sql} AS l"


@dataclass(frozen=True)
class Union:
    """A union read, prepared: the tail is in memory, the lake is read when the query runs.

    version   store version of the answer
    snapshot  the lake side, None when the lake has nothing of this table yet
    tail      rows to add; columns as asked for, TIMESTAMPs in microseconds like the lake's
    hidden    keys of lake rows that are not valid any more (primary-key tables), None: all are valid
    history   the tail is all that the store has: of the lake only these partitions are read, which were dropped in the store
    """

    descriptor: TableDescriptor
    version: int
    columns: tuple[str, ...]
    snapshot: LakeSnapshot | None
    tail: pa.Table
    hidden: pa.Table | None
    history: tuple[str, ...] = ()

    def sql(self, tail: str, hidden: str) -> str:
        """The query over the lake and two registered Arrow tables; filters of an outer query are pushed into both sides."""
        if self.snapshot is None:
            return f"SELECT {quoted_list(self.columns)} FROM {quoted(tail)}"
        held = self.snapshot.columns
        in_lake = {column.name: held[column.field_id] for column in self.descriptor.columns if column.field_id in held}
        lake = ", ".join(self._lake_column(name, in_lake[name]) for name in self.columns if name in in_lake) or "NULL AS __none"
        query = f"SELECT {lake} FROM {self.snapshot.scan_sql} AS l"
        if self.hidden is not None:
            same = " AND ".join(f"h.{quoted(key)} = l.{quoted(in_lake[key])}" for key in self.descriptor.primary_key)
            query += f" ANTI JOIN {quoted(hidden)} AS h ON ({same})"
        if self.history:
            names = ", ".join("'" + name.replace("'", "''") + "'" for name in self.history)
            query += f" WHERE CAST(l.{quoted(in_lake[self.descriptor.partition_keys[0]])} AS VARCHAR) IN ({names})"
        if self.tail.num_rows == 0 and all(name in in_lake for name in self.columns):
            return query
        both = f"{query} UNION ALL BY NAME SELECT {quoted_list(self.columns)} FROM {quoted(tail)}"
        return f"SELECT {quoted_list(self.columns)} FROM ({both})"

    def _lake_column(self, name: str, held_as: str) -> str:
        if pa.types.is_time(self.descriptor.arrow_schema.field(name).type):
            return f"CAST(TIME '00:00:00' + to_milliseconds(l.{quoted(held_as)}) AS TIME) AS {quoted(name)}"
        return f"l.{quoted(held_as)} AS {quoted(name)}"

    def register(self, con: duckdb.DuckDBPyConnection, name: str) -> None:
        """Make the answer a temporary view `name` of a connection that has the Delta extension."""
        tail, hidden = f"{name}${_TAIL}", f"{name}${_HIDDEN}"
        con.register(tail, self.tail)
        if self.hidden is not None:
            con.register(hidden, self.hidden)
        con.execute(f"CREATE OR REPLACE TEMPORARY VIEW {quoted(name)} AS {self.sql(tail, hidden)}")


def union_read(
    con: duckdb.DuckDBPyConnection,
    store: Store,
    lake_root: str | Path,
    table: str,
    columns: Sequence[str] | None = None,
    where: str | None = None,
    at: int | None = None,
) -> pa.Table:
    """Rows of a tiered table: all rows of a log table, the current rows of a primary-key table.

    where  an SQL condition over the table's columns
    at     a version of the store; None: the newest
    Shapes: rows in no particular order, columns as asked for, in the store's types.
    Errors: SchemaMismatch for an unknown column; OffsetOutOfRange when neither lake nor log has what `at` needs.
    """
    wanted = list(columns) if columns is not None else None
    union = open_union(store, lake_root, table, _with_columns_of(store.describe(table), wanted, where), where=where, at=at)
    load_delta(con)
    view = f"union_read_{abs(hash((table, at)))}"
    cursor = con.cursor()
    try:
        union.register(cursor, view)
        names = wanted if wanted is not None else list(union.columns)
        condition = f" WHERE {where}" if where else ""
        rows = cursor.execute(f"SELECT {quoted_list(names)} FROM {quoted(view)}{condition}").to_arrow_table()
    finally:
        cursor.close()
    return from_lake(rows, {item.name: item.type for item in union.descriptor.arrow_schema})


def lake_read(
    con: duckdb.DuckDBPyConnection,
    store: Store,
    lake_root: str | Path,
    table: str,
    columns: Sequence[str] | None = None,
    where: str | None = None,
    at: int | None = None,
) -> pa.Table:
    """The lake's side of a tiered table alone, what `db.t$lake` shows: its rows as of the last tiering, in the store's types.

    Errors: UserError when the lake has nothing of the table (yet); SchemaMismatch for an unknown column.
    """
    descriptor = store.describe(table)
    snapshot = find_snapshot(store, lake_root, descriptor, at)
    if snapshot is None:
        raise UserError(f"{table} has nothing in the lake yet", where=table, next_step="Tier it: 'table.datalake.enabled'.")
    held = tuple(column.name for column in descriptor.columns if column.field_id in snapshot.columns)
    names = list(columns) if columns is not None else list(held)
    unknown = [name for name in names if name not in held]
    if unknown:
        raise SchemaMismatch(f"{table} has no column {unknown[0]} in the lake", where="columns", next_step="Leave it out, or tier.")
    tail = descriptor.arrow_schema.empty_table()
    whole = Union(descriptor, snapshot.version, held, snapshot, tail, None)
    load_delta(con)
    condition = f" WHERE {where}" if where else ""
    rows = con.execute(f"SELECT {quoted_list(names)} FROM ({whole.sql('', '')}){condition}").to_arrow_table()
    return from_lake(rows, {item.name: item.type for item in descriptor.arrow_schema})


def open_union(
    store: Store,
    lake_root: str | Path,
    table: str,
    columns: Sequence[str] | None = None,
    *,
    where: str | None = None,
    at: int | None = None,
) -> Union:
    """Prepare a union read. The tail is read here, pruned to `columns` and to what `where` allows: partitions, and frames by statistics.

    `where` only prunes: the caller still filters. Errors: as union_read.
    Meaning: of a changelog whole frames are left out, never single changes. A frame tells the old and the new row of a key together, so
             that the last frame kept of a key says what it is now, or leaves a row that `where` does not keep either. Without old rows
             (image WAL) that does not hold, and nothing is left out.
    """
    for attempt in range(ATTEMPTS):
        try:
            return _open_union(store, lake_root, table, columns, where=where, at=at)
        except PartitionChanged:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returned or raised")


def _open_union(
    store: Store, lake_root: str | Path, table: str, columns: Sequence[str] | None, *, where: str | None, at: int | None
) -> Union:
    handle = store.table(table)
    descriptor = handle.descriptor
    names = tuple(columns) if columns is not None else descriptor.column_names
    for name in names:
        if name not in descriptor.column_names:
            raise SchemaMismatch(
                f"{table} has no column {name}", where="columns", next_step=f"Its columns are {', '.join(descriptor.column_names)}."
            )
    as_of, before = store.version(), _progress(store, descriptor) if descriptor.partition_keys else None
    snapshot = find_snapshot(store, lake_root, descriptor, at)
    version = store.version() if at is None else at  # after the snapshot: never older than it
    start, stop = _tail_range(handle, snapshot, version, where)
    pushed = pushable(where, descriptor.arrow_schema)
    if not descriptor.has_primary_key:
        tail = handle.scan(names, pushed, start, stop, as_of=as_of).read_all()
        _require_no_drop(store, descriptor, before)
        return Union(descriptor, version, names, snapshot, _in_lake_units(tail), None)
    if snapshot is None or may_outlive(descriptor) or _is_behind(handle, start):
        rows = _in_lake_units(handle.read(names, pushed, at=version))
        history = () if snapshot is None else tuple(sorted({*snapshot.detached} - {*handle.partitions()}))
        _require_no_drop(store, descriptor, before)
        return Union(descriptor, version, names, snapshot if history else None, rows, None, history)
    needed = [*names, *(key for key in descriptor.primary_key if key not in names)]
    skip_by = None if descriptor.is_wal else pushed
    changes = handle.scan(needed, start=start, stop=stop, metadata=True, skip_by=skip_by, as_of=as_of).read_all()
    net = net_changes(changes, descriptor.primary_key)
    _require_no_drop(store, descriptor, before)
    net = net.doubting_inserts(snapshot.detached)
    changed = pa.concat_tables([net.updates, net.deletes]).select(list(descriptor.primary_key))
    hidden = _in_lake_units(changed) if changed.num_rows else None
    return Union(descriptor, version, names, snapshot, _in_lake_units(net.upserts.select(list(names))), hidden)


def find_snapshot(store: Store, lake_root: str | Path, descriptor: TableDescriptor, at: int | None = None) -> LakeSnapshot | None:
    """The newest Delta version that is not newer than store version `at`; None when the lake has none.

    The store's progress says which lake table belongs to it, and where in the Delta log to look; it may lag behind the
    log (the tierer was killed in between), so commits after it are read too.
    """
    progress = _progress(store, descriptor)
    if progress is None or (int(progress.detail["lake_version"]) < 0 and not _has_log(lake_root, descriptor)):
        return None
    path = table_path(Path(lake_root).absolute(), descriptor.name)
    newest = max(int(progress.detail["lake_version"]), 0)
    while (path / "_delta_log" / f"{newest + 1:020d}.json").exists():
        newest += 1
    record = _record_at(path, newest, progress.detail["lake_id"], at)
    if record is None or not record.offsets:
        return None
    live = {bucket.partition for bucket in (_progress(store, descriptor) or progress).offsets.get(descriptor.name, {})}
    offsets = {bucket: offset for bucket, offset in record.offsets.items() if bucket.partition in live}
    gone = {bucket.partition for bucket in record.offsets} - live
    detached = tuple(sorted({*record.detached, *gone}))
    is_newest = at is None or record == _record_at(path, newest, progress.detail["lake_id"], None)
    return LakeSnapshot(path, record.delta_version, record.version, offsets, detached, record.columns, is_newest)


def _record_at(path: Path, delta_version: int, lake_id: str, at: int | None) -> LakeRecord | None:
    for entry in entries_back(path, delta_version):
        record = entry.record
        if record is not None and record.lake_id == lake_id and (at is None or record.version <= at):
            return record
    return None


def _progress(store: Store, descriptor: TableDescriptor) -> Progress | None:
    owner = OWNER_PREFIX + descriptor.name
    progress = store.progress(owner).get(owner)
    return progress if progress is not None and progress.detail.get("table_id") == descriptor.table_id else None


def _require_no_drop(store: Store, descriptor: TableDescriptor, before: Progress | None) -> None:
    """Errors: PartitionChanged when a partition that the tierer had covered before was dropped since: its offsets are forgotten."""
    if before is None:
        return
    after = _progress(store, descriptor)
    now = after.offsets.get(descriptor.name, {}) if after else {}
    for bucket, offset in before.offsets.get(descriptor.name, {}).items():
        if now.get(bucket, -1) < offset:
            what = f"partition {bucket.partition} of {descriptor.name} was dropped while it was read"
            raise PartitionChanged(what, where=descriptor.name, next_step="Read again.")


def _has_log(lake_root: str | Path, descriptor: TableDescriptor) -> bool:
    return read_entry(table_path(Path(lake_root).absolute(), descriptor.name), 0) is not None


def _tail_range(table: Table, snapshot: LakeSnapshot | None, version: int, where: str | None) -> tuple[Offsets, Offsets]:
    """Where the tail begins and ends. Without a lake it begins at what the log still holds, else exactly where the lake ends; of a log
    from which rows expired while it was not tiered, at what it still holds.
    """
    stop = table.offsets(at_version=version)
    partitions = _partitions_of(where, table.descriptor, [bucket.partition for bucket in stop])
    stop = {bucket: offset for bucket, offset in stop.items() if bucket.partition in partitions}
    covered = {} if snapshot is None else snapshot.offsets
    if snapshot is None or (snapshot.is_newest and not table.descriptor.has_primary_key):
        covered = begin_of(covered, table.offsets("earliest"))
    return {bucket: covered.get(bucket, 0) for bucket in stop}, stop


def _is_behind(table: Table, start: Offsets) -> bool:
    """Whether the log begins behind `start`: rows expired while the table was not tiered."""
    earliest = table.offsets("earliest")
    return any(offset < earliest.get(bucket, 0) for bucket, offset in start.items())


def _partitions_of(where: str | None, descriptor: TableDescriptor, names: list[str]) -> set[str]:
    """Partitions that can hold rows for `where`; all of them when the condition is more than the store's predicates know."""
    if not where or not descriptor.partition_keys:
        return set(names)
    try:
        return set(matching_partitions(where, descriptor.arrow_schema, descriptor.partition_keys[0], sorted(set(names))))
    except StatementRefused:
        return set(names)


def _in_lake_units(rows: pa.Table) -> pa.Table:
    """TIMESTAMPs in microseconds, everything else as it is, the change type dropped."""
    if "_change_type" in rows.column_names:
        rows = rows.drop_columns(["_change_type"])
    schema = pa.schema([item if pa.types.is_time(item.type) else item.with_type(lake_type(item.type)) for item in rows.schema])
    return rows.cast(schema)


def _with_columns_of(descriptor: TableDescriptor, columns: list[str] | None, where: str | None) -> list[str] | None:
    if columns is None or not where:
        return columns
    from sqlglot import exp, parse_one

    used = {column.name for column in parse_one(where, dialect="duckdb").find_all(exp.Column)}
    return columns + [name for name in descriptor.column_names if name in used and name not in columns]
