"""LakeTable: the one writer of a tiered Delta table. Every commit of it names the offsets that the table then covers.

Owner: the tierer holds one LakeTable per table; nothing else writes data there. Compaction by others is welcome.
Holds: a write starts from the recorded offsets it was planned on, or it does not happen: before each write the log is
       read up to its end, and the commit itself fails if anything came between (no commit retries in delta-rs).
Holds: a commit is on disk (files, log entry and directories synced) before the write returns.
Never: reads the store, decides what to write (tiering.py) or when (schedule.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, Schema, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from storage_engine.errors import LakeChanged, ProgressConflict, WriteFailed
from storage_engine.lake.columns import lake_schema, quoted, to_lake
from storage_engine.lake.mapping import first_columns, in_lake, sources, with_new_columns
from storage_engine.lake.netting import NetChanges
from storage_engine.lake.record import LAKE_ID, LakeRecord, LogEntry, entries_back, read_entry
from storage_engine.schema.descriptor import Offsets, TableDescriptor
from storage_engine.schema.partitions import partition_texts

_WRITER = WriterProperties(compression="ZSTD", compression_level=1)
_CONFIGURATION = {
    "delta.targetFileSize": str(64 << 20),  # a keyed merge rewrites whole files
    "delta.logRetentionDuration": "interval 7 days",  # at a commit per second 30 days would be 2.6 million files
}
_OP = "__op"
_OP_UPSERT, _OP_DELETE = 1, 0
_KEY_LITERALS_MAX = 1000


@dataclass(frozen=True)
class Target:
    """What a table covers after a write: see LakeRecord for the fields."""

    version: int
    offsets: Offsets
    epoch: int
    detached: tuple[str, ...] = ()

    def record(self, base: LakeRecord, kind: str) -> LakeRecord:
        return replace(base, version=self.version, offsets=self.offsets, epoch=self.epoch, detached=self.detached, kind=kind)


@dataclass(frozen=True)
class CompactionResult:
    """What a compaction did: files and bytes it read, and files it wrote."""

    n_files_removed: int
    n_files_added: int


class LakeTable:
    """A tiered Delta table, opened for writing."""

    def __init__(self, path: Path, table: DeltaTable, record: LakeRecord) -> None:
        self.path = path
        self._table = table
        self._record = record
        self._seen = table.version()

    # open

    @classmethod
    def create(cls, path: Path, descriptor: TableDescriptor, lake_id: str, epoch: int) -> LakeTable:
        """Make an empty table with the descriptor's columns, recording that it covers nothing."""
        record = LakeRecord(lake_id, 0, {}, epoch, "create", first_columns(descriptor))
        path.parent.mkdir(parents=True, exist_ok=True)
        table = DeltaTable.create(
            str(path),
            lake_schema(descriptor),
            mode="error",
            partition_by=list(descriptor.partition_keys),
            name=descriptor.name,
            description=descriptor.comment or None,
            configuration={**_CONFIGURATION, LAKE_ID: lake_id},
            commit_properties=record.commit_properties(),
            raise_if_key_not_exists=False,
        )
        sync_commit(path, 0, ())
        return cls(path, table, replace(record, delta_version=0))

    @classmethod
    def exists(cls, path: Path) -> bool:
        return (path / "_delta_log").is_dir() and DeltaTable.is_deltatable(str(path))

    @classmethod
    def open(cls, path: Path, lake_id: str, *, undo_epoch: int | None = None) -> LakeTable:
        """Open the table of that lake id.

        undo_epoch  of a tierer that was told to undo what others did: rows are set back to the newest record, as a new
                    version (RESTORE); what is undone stays readable under its own version until vacuum
        Errors: LakeChanged when it is another table, when its log holds no record, or when someone changed rows after the
                record and `undo_epoch` is not given.
        """
        table = DeltaTable(str(path))
        found = table.metadata().configuration.get(LAKE_ID)
        if found != lake_id:
            raise LakeChanged(
                f"the Delta table belongs to {f'lake id {found}' if found else 'nobody we know'}, the store expects lake id {lake_id}",
                where=str(path),
                next_step="Move that directory away, or give this store another lake root; tiering then starts afresh.",
            )
        if undo_epoch is not None:
            _undo(path, table, undo_epoch)
        return cls(path, table, last_record(path, table.version()))

    # state

    @property
    def record(self) -> LakeRecord:
        """The newest record seen: what the table covers."""
        return self._record

    @property
    def delta_version(self) -> int:
        return self._table.version()

    @property
    def column_names(self) -> list[str]:
        return [item.name for item in self._table.schema().fields]

    def n_rows(self, partition_keys: Sequence[str], without: Collection[str]) -> int | None:
        """Rows by the files' statistics, those of the partitions `without` left out; None when a file has none."""
        files = pa.table(self._table.get_add_actions(flatten=True))
        if files.num_rows and without:
            of_file = partition_texts(files[f"partition.{partition_keys[0]}"].combine_chunks())
            files = files.filter(pc.invert(pc.is_in(of_file, pa.array(sorted(without), pa.string()))))
        counts = files["num_records"] if "num_records" in files.column_names else pa.nulls(files.num_rows, pa.int64())
        return None if counts.null_count else pc.sum(counts).as_py() or 0

    def refresh(self) -> LakeRecord:
        """Read the log to its end; the newest record.

        Errors: LakeChanged when somebody else changed rows.
        """
        with _storage_errors(self.path):
            self._table.update_incremental()
        for number in range(self._seen + 1, self._table.version() + 1):
            entry = read_entry(self.path, number)
            if entry is None or (entry.record is None and entry.changes_data):
                raise _changed_by(self.path, number, "a commit we cannot read" if entry is None else entry.written_by, self._record)
            if entry.record is not None:
                self._record = entry.record
        self._seen = self._table.version()
        return self._record

    # writes

    def append(self, base: LakeRecord, to: Target, rows: Callable[[], pa.RecordBatchReader]) -> LakeRecord:
        """Append rows (in the lake's columns) and record that the table now covers `to`.

        base  the record that the rows were planned from
        rows  opens the reader: it may be called again when somebody compacted the table at the same moment
        Errors: ProgressConflict when the table covers something else than `base`; LakeChanged; WriteFailed.
        """

        def write(record: LakeRecord) -> None:
            write_deltalake(self._table, rows(), mode="append", writer_properties=_WRITER, commit_properties=record.commit_properties())

        return self._commit(base, to.record(base, "append"), write)

    def merge(self, base: LakeRecord, to: Target, descriptor: TableDescriptor, net: NetChanges) -> LakeRecord:
        """Apply net changes by primary key and record that the table now covers `to`.

        Only partitions, and the range of the first key column, that hold updated or deleted rows are scanned: both are
        literals in the merge condition. When every change is a new key this is an append; keys of a detached partition
        are never taken for new, because the lake may hold rows of it that the changelog no longer describes.
        Errors: as append.
        """
        schema = self.write_schema(descriptor)
        net = net.doubting_inserts(to.detached)
        if net.updates.num_rows + net.deletes.num_rows == 0:
            inserts = self.to_lake(net.inserts, descriptor)
            return self.append(base, to, inserts.to_reader)
        upserts, deletes = self.to_lake(net.upserts, descriptor), self.to_lake(net.deletes, descriptor)
        source = pa.concat_tables(
            [
                upserts.append_column(_OP, pa.repeat(pa.scalar(_OP_UPSERT, pa.int8()), upserts.num_rows)),
                deletes.append_column(_OP, pa.repeat(pa.scalar(_OP_DELETE, pa.int8()), deletes.num_rows)),
            ]
        )
        existing = self.to_lake(pa.concat_tables([net.updates, net.deletes]), descriptor)
        predicate = merge_predicate(in_lake(descriptor, self._record.columns), existing)
        assignments = {quoted(name): f"s.{quoted(name)}" for name in schema.names}

        def write(record: LakeRecord) -> None:
            (
                self._table.merge(
                    source,
                    predicate,
                    source_alias="s",
                    target_alias="t",
                    writer_properties=_WRITER,
                    max_spill_size=2 << 30,
                    commit_properties=record.commit_properties(),
                )
                .when_matched_delete(f"s.{quoted(_OP)} = {_OP_DELETE}")
                .when_matched_update(assignments, f"s.{quoted(_OP)} = {_OP_UPSERT}")
                .when_not_matched_insert(assignments, f"s.{quoted(_OP)} = {_OP_UPSERT}")
                .execute()
            )

        return self._commit(base, to.record(base, "merge"), write)

    def replace(self, base: LakeRecord, to: Target, rows: Callable[[], pa.RecordBatchReader], kept: Collection[object] = ()) -> LakeRecord:
        """Put rows in the place of all that the table has, and record that it now covers `to`.

        kept    values of the partition column whose rows stay
        rows    as of append(). Older Delta versions stay readable until vacuum. Errors: as append.
        """
        predicate = None
        if kept:
            column = self._table.metadata().partition_columns[0]
            predicate = f"{quoted(column)} NOT IN ({', '.join(map(_literal, kept))})"

        def write(record: LakeRecord) -> None:
            write_deltalake(
                self._table,
                rows(),
                mode="overwrite",
                predicate=predicate,
                writer_properties=_WRITER,
                commit_properties=record.commit_properties(),
            )

        return self._commit(base, to.record(base, "replace"), write)

    def remove(self, base: LakeRecord, to: Target, descriptor: TableDescriptor, keys: pa.Table) -> LakeRecord:
        """Remove rows by key and record that the table covers `to`.

        Shapes: keys (n,) with the key columns under the lake's names, n at least 1. Errors: as append.
        """
        predicate = merge_predicate(in_lake(descriptor, self._record.columns), keys)

        def write(record: LakeRecord) -> None:
            merger = self._table.merge(
                keys,
                predicate,
                source_alias="s",
                target_alias="t",
                writer_properties=_WRITER,
                max_spill_size=2 << 30,
                commit_properties=record.commit_properties(),
            )
            merger.when_matched_delete().execute()

        return self._commit(base, to.record(base, "remove"), write)

    def note(self, base: LakeRecord, to: Target) -> LakeRecord:
        """Record something about the table without changing a row."""

        def write(record: LakeRecord) -> None:
            empty = self._table.schema().to_arrow()
            nothing = pa.RecordBatchReader.from_batches(pa.schema(empty), [])
            write_deltalake(self._table, nothing, mode="append", commit_properties=record.commit_properties())

        return self._commit(base, to.record(base, "note"), write)

    def add_columns(self, descriptor: TableDescriptor) -> bool:
        """Add the columns that the descriptor has and the table lacks (as nullable); True when there were any.

        Errors: LakeChanged when a column has another type than the lake holds: it was widened while the table was not tiered.
        """
        held = self._record.columns
        columns = with_new_columns(descriptor, held, self.column_names)
        wanted = lake_schema(in_lake(descriptor, columns))
        fields = {item.name: item for item in Schema.from_arrow(wanted).fields}
        for item in self._table.schema().fields:
            if item.name in fields and fields[item.name].type != item.type:
                raise LakeChanged(
                    f"column {item.name} is {item.type} in the lake, and its type was changed while the table was not tiered",
                    where=str(self.path),
                    next_step="Move it away, then `python -m storage_engine.lake --forget TABLE`: the table is tiered afresh.",
                )
        missing = [fields[name] for field_id, name in columns.items() if field_id not in held]
        if not missing:
            return False

        def write(record: LakeRecord) -> None:
            self._table.alter.add_columns(missing, commit_properties=record.commit_properties())

        self._commit(self._record, replace(self._record, kind="columns", columns=columns), write)
        return True

    def compact(self, target_bytes: int) -> CompactionResult:
        """Join files smaller than `target_bytes`; no row changes (dataChange = false), the record is carried along."""
        base = self.refresh()
        metrics = {}
        with _storage_errors(self.path), contextlib.suppress(CommitFailedError):  # somebody else compacts: nothing lost
            metrics = self._table.optimize.compact(
                target_size=target_bytes, writer_properties=_WRITER, commit_properties=replace(base, kind="compact").commit_properties()
            )
            self._sync_after(self._seen)
        self.refresh()
        return CompactionResult(int(metrics.get("numFilesRemoved", 0)), int(metrics.get("numFilesAdded", 0)))

    def vacuum(self, retention_hours: int) -> list[str]:
        """Delete files that no version younger than `retention_hours` uses, and what killed writers left behind; their paths."""
        removed = self._table.vacuum(
            retention_hours=retention_hours,
            dry_run=False,
            enforce_retention_duration=False,
            full=True,
            commit_properties=replace(self.refresh(), kind="vacuum").commit_properties(),
        )
        self.refresh()
        return removed

    # helpers

    def _commit(self, base: LakeRecord, record: LakeRecord, write: Callable[[LakeRecord], None]) -> LakeRecord:
        """Compare, write, compare: the three steps that make a write happen once."""
        for attempt in range(3):
            current = self.refresh()
            self._require(base, current, record.epoch)
            before = self._seen
            try:
                with _storage_errors(self.path):
                    write(record)
            except CommitFailedError as error:
                self.refresh()  # names who it was, when they changed rows
                if attempt == 2:
                    raise WriteFailed(
                        "other commits came between each time",
                        where=str(self.path),
                        next_step="Stop other maintenance of this table, or wait.",
                    ) from error
                continue
            self._sync_after(before)
            written = self.refresh()
            assert (written.version, written.kind) == (record.version, record.kind), "delta-rs reported success without a commit"
            return written
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _require(self, base: LakeRecord, current: LakeRecord, epoch: int) -> None:
        recorded = self._table.transaction_version(current.app)
        if recorded != current.version:
            raise LakeChanged(
                f"the app transaction says store version {recorded}, the newest record says {current.version}",
                where=str(self.path),
                next_step="Restore the table's log from a copy, or move the table away and tier afresh.",
            )
        if current.epoch > epoch or (current.version, current.offsets) != (base.version, base.offsets):
            raise ProgressConflict(
                f"the lake is at store version {current.version} (epoch {current.epoch}), the plan began at {base.version} (epoch {epoch})",
                where=str(self.path),
                next_step="Run one tiering worker per store; this one stops.",
            )

    def _sync_after(self, before: int) -> None:
        self._table.update_incremental()
        for number in range(before + 1, self._table.version() + 1):
            entry = read_entry(self.path, number)
            if entry is not None:
                sync_commit(self.path, number, entry.added)

    def write_schema(self, descriptor: TableDescriptor) -> pa.Schema:
        """The Arrow schema that append() expects of its rows, in the table's own order: columns added later come last."""
        wanted = lake_schema(in_lake(descriptor, self._record.columns))
        held = pa.schema(self._table.schema().to_arrow())
        fields = [wanted.field(name) if name in wanted.names else held.field(name) for name in self.column_names]
        return pa.schema([item.remove_metadata() for item in fields])

    def to_lake(self, rows: pa.Table | pa.RecordBatch, descriptor: TableDescriptor) -> pa.Table:
        """Rows of a scan with metadata, as append() expects them."""
        return to_lake(rows, self.write_schema(descriptor), sources(descriptor, self._record.columns))


def last_record(path: Path, delta_version: int) -> LakeRecord:
    """The newest record at or below a Delta version.

    Errors: LakeChanged when rows were changed by somebody else after it, or when there is none.
    """
    record, foreign = _newest(path, delta_version)
    if foreign is not None:
        raise _changed_by(path, foreign.delta_version, foreign.written_by, record)
    return record


def _newest(path: Path, delta_version: int) -> tuple[LakeRecord, LogEntry | None]:
    """The newest record, and the first commit after it in which somebody else changed rows."""
    foreign = None
    for entry in entries_back(path, delta_version):
        if entry.record is not None:
            return entry.record, foreign
        foreign = entry if entry.changes_data else foreign
    raise LakeChanged(
        "the Delta log holds no record of the tierer",
        where=str(path),
        next_step="Move the table away; tiering then starts afresh from the store.",
    )


def _undo(path: Path, table: DeltaTable, epoch: int) -> None:
    record, foreign = _newest(path, table.version())
    if foreign is not None:
        table.restore(record.delta_version, commit_properties=replace(record, epoch=epoch, kind="restore").commit_properties())
        table.update_incremental()


def _changed_by(path: Path, delta_version: int, who: str, record: LakeRecord) -> LakeChanged:
    return LakeChanged(
        f"rows were changed in Delta version {delta_version} ({who}); the tierer's last version is {record.delta_version}",
        where=str(path),
        next_step="Set it back to that version with `python -m storage_engine.lake --undo TABLE`, or move it away.",
    )


def merge_predicate(descriptor: TableDescriptor, existing: pa.Table) -> str:
    """The merge condition for changes of rows that exist: equal keys, and literals that let Delta skip files.

    Shapes: existing (n,) lake rows that were updated or deleted, n at least 1.
    """
    terms = []
    for name in descriptor.partition_keys:
        values = pc.unique(existing[name]).to_pylist()
        if len(values) <= _KEY_LITERALS_MAX:
            terms.append(f"t.{quoted(name)} IN ({', '.join(_literal(value) for value in sorted(values))})")
    first = descriptor.physical_primary_key[0] if descriptor.physical_primary_key else None
    if first is not None and pa.types.is_integer(existing.schema.field(first).type):
        bounds = pc.min_max(existing[first]).as_py()
        terms.append(f"t.{quoted(first)} >= {bounds['min']} AND t.{quoted(first)} <= {bounds['max']}")
    terms.extend(f"t.{quoted(name)} = s.{quoted(name)}" for name in descriptor.primary_key)
    return " AND ".join(terms)


def _literal(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("'", "''")
    return f"'{text}'"


def sync_commit(path: Path, delta_version: int, added: tuple[str, ...]) -> None:
    """Make a commit survive power loss: its files, then its log entry, then the directories that name them."""
    files = [path / unquote(name) for name in added]
    entry = path / "_delta_log" / f"{delta_version:020d}.json"
    folders = {file.parent for file in files} | {entry.parent, path}
    for target in [*files, entry, *sorted(folders)]:
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """What delta-rs raises, as WriteFailed: disk full and the like. A commit that lost a race stays CommitFailedError."""
    try:
        yield
    except (OSError, DeltaError) as error:
        if isinstance(error, CommitFailedError) and "os error" not in str(error):
            raise
        raise WriteFailed(
            f"the lake refused the write: {error}",
            where=str(path),
            next_step="Free space or fix permissions; nothing of it is visible, and tiering goes on where it stopped.",
        ) from error
