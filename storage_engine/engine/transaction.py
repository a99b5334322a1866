"""Transaction: from operations to frames. Plans one commit against the state; nothing is visible before the log has it.

Owner: engine/core.py, which holds the writer's lock from begin to commit() or void().
Data goes one way: rows -> conform -> route -> (merge) -> frame; rows encoded by a client -> check -> frame.
Holds: an operation sees the rows of the operations before it in the same transaction; void() leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from storage_engine.api import EncodedAppend, OpKind, Progress, WriteOp
from storage_engine.engine import partitions, progress
from storage_engine.engine.buckets import Bucket, Buckets, Staged
from storage_engine.engine.encoded_rows import checked_batch
from storage_engine.engine.routing import key_arrays, split
from storage_engine.engine.rows import adapt
from storage_engine.engine.state import CommitRecord, StoreState, TableState
from storage_engine.errors import InvalidOption, SchemaMismatch, UserError, unknown_table
from storage_engine.kv import AutoIncrement, KvBucket, KvChange
from storage_engine.log.frame import EncodedFrame, encode_message, frame_of_message
from storage_engine.log.frame_index import BucketId
from storage_engine.log.statistics import encode_statistics
from storage_engine.schema.auto_partition import AutoPartition, rule_of
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.keys import encode_keys
from storage_engine.schema.rows import conform, conform_keys

FRAME_ROWS_MAX = 65_536


@dataclass
class Transaction:
    """One commit being planned. `frames` and `staged` grow with each operation, in the same order."""

    state: StoreState
    buckets: Buckets
    record: CommitRecord
    counters: dict[int, AutoIncrement]
    partitions_max: int
    frames: list[EncodedFrame] = field(default_factory=list)
    staged: list[tuple[Bucket, Staged]] = field(default_factory=list)
    changed: list[tuple[Bucket, KvBucket]] = field(default_factory=list)
    _new_partitions: dict[tuple[int, str], int] = field(default_factory=dict)
    _progress: list[Progress] = field(default_factory=list)

    def add_progress(self, wanted: Progress) -> None:
        """Move an owner's offsets. Errors: ProgressConflict when they are not what the owner expects."""
        progress.advanced(self.state, wanted, self.record.timestamp_ms)
        self._progress.append(wanted)

    def add(self, op: WriteOp | EncodedAppend) -> None:
        """Plan one operation. Errors: UnknownTable, SchemaMismatch, InvalidPartition, UserError; the transaction is then void."""
        table = self.state.tables.get(op.table)
        if table is None:
            raise unknown_table(op.table, self.state.tables)
        descriptor = table.descriptor
        if isinstance(op, EncodedAppend):
            self._append_encoded(table, op)
            return
        if (op.kind == "append") == descriptor.has_primary_key:
            verb = "upsert or delete" if descriptor.has_primary_key else "append"
            kind = "primary-key" if descriptor.has_primary_key else "log"
            raise UserError(f"{op.kind} does not fit {op.table}, a {kind} table", where=op.table, next_step=f"Use {verb}.")
        columns = op.columns
        for column in {*op.rows.column_names, *(columns or ())}.difference(descriptor.column_names):
            if (gone := table.schemas.gone(column)) is not None:
                raise gone
        rows = conform_keys(descriptor, op.rows) if op.kind == "delete" else conform(descriptor, op.rows, columns)
        rule = rule_of(descriptor)
        keys = encoded_once(table, rows) if op.kind == "upsert" else None
        for name, part, at in split(descriptor, rows, self.record.version, table.bucket_counts, keys):
            if self._is_left_out(table, rule, op.kind, name.partition, part.num_rows):
                continue
            bucket_id = BucketId(descriptor.table_id, self._partition_id(table, name.partition), name.bucket)
            bucket = self.buckets.get_or_create(bucket_id, name.partition)
            if op.kind == "append":
                for begin in range(0, part.num_rows, FRAME_ROWS_MAX):
                    self._stage(table, bucket, part.slice(begin, FRAME_ROWS_MAX), None)
            else:
                self._change(table, bucket, op, part, columns, keys if keys is None or at is None else keys.take(pa.array(at)))

    def _append_encoded(self, table: TableState, op: EncodedAppend) -> None:
        """Rows that a client has encoded: in the columns that the table had when the client last looked."""
        descriptor = table.descriptor
        if descriptor.has_primary_key:
            what = f"append does not fit {op.table}, a primary-key table"
            raise UserError(what, where=op.table, next_step="Use upsert or delete.")
        if op.schema_id not in table.schemas.stored:
            what = f"{op.table} never had a schema {op.schema_id}"
            raise SchemaMismatch(what, where=op.table, next_step="Open the table again.")
        schema = table.schemas.arrow_schema(op.schema_id)
        rule = rule_of(descriptor)
        for frame in op.frames:
            n_buckets = table.n_buckets_of(frame.partition)
            if not -1 <= frame.bucket < (op.n_buckets or n_buckets):
                what = f"{op.table} has no bucket {frame.bucket}"
                raise SchemaMismatch(what, where=op.table, next_step="Open the table again.")
            batch = checked_batch(descriptor, schema, frame, FRAME_ROWS_MAX, op.n_buckets or n_buckets)
            if self._is_left_out(table, rule, "append", frame.partition, batch.num_rows):
                continue
            if frame.bucket >= 0 and op.n_buckets not in (0, n_buckets):  # the table was rescaled since the caller looked
                rows = pa.Table.from_batches([adapt(batch, descriptor.arrow_schema)])
                for name, part, _ in split(descriptor, rows, self.record.version, table.bucket_counts):
                    bucket_id = BucketId(descriptor.table_id, self._partition_id(table, name.partition), name.bucket)
                    self._stage(table, self.buckets.get_or_create(bucket_id, name.partition), part, None)
                continue
            number = self.record.version % n_buckets if frame.bucket < 0 else frame.bucket
            bucket_id = BucketId(descriptor.table_id, self._partition_id(table, frame.partition), number)
            bucket = self.buckets.get_or_create(bucket_id, frame.partition)
            self._stage_message(table, bucket, batch, frame.message, None, op.schema_id)

    def _change(
        self, table: TableState, bucket: Bucket, op: WriteOp, part: pa.Table, columns: tuple[str, ...] | None, keys: pa.Array | None
    ) -> None:
        kv = self.buckets.kv_of(bucket)
        match op.kind:
            case "upsert":
                change = kv.upsert(part, columns, keys=keys)
            case "retract":
                change = kv.retract(part, columns)
            case _:
                change = kv.delete(part, columns)
        if change.n_rows == 0:
            return
        base_offset = bucket.next_offset
        kv.stage(change, base_offset)
        self.changed.append((bucket, kv))
        self._stage(table, bucket, pa.Table.from_batches([change.batch]), change.change_types)

    def stage_move(self, table: TableState, bucket: Bucket, change: KvChange) -> None:
        """Plan rows that leave or enter a bucket because the table is rescaled: internal frames, unseen by readers of the changelog."""
        kv = self.buckets.kv_of(bucket)
        kv.stage(change, bucket.next_offset)
        self.changed.append((bucket, kv))
        for begin in range(0, change.n_rows, FRAME_ROWS_MAX):
            types = change.change_types[begin : begin + FRAME_ROWS_MAX]
            self._stage(table, bucket, change.rows.slice(begin, FRAME_ROWS_MAX), types, is_internal=True)

    def _stage(
        self, table: TableState, bucket: Bucket, rows: pa.Table, change_types: np.ndarray | None, *, is_internal: bool = False
    ) -> None:
        batch = one_batch(rows)
        message = encode_message(batch, *compression_of(table.descriptor))
        self._stage_message(table, bucket, batch, message, change_types, table.descriptor.schema_id, is_internal=is_internal)

    def _stage_message(
        self,
        table: TableState,
        bucket: Bucket,
        batch: pa.RecordBatch,
        message: pa.Buffer,
        change_types: np.ndarray | None,
        schema_id: int,
        *,
        is_internal: bool = False,
    ) -> None:
        base_offset = bucket.next_offset
        counted = [pair for pair in table.descriptor.statistics_columns if pair[0] in batch.schema.names]
        frame = frame_of_message(
            message,
            batch.num_rows,
            table_id=table.descriptor.table_id,
            partition_id=bucket.id.partition_id,
            bucket=bucket.id.bucket,
            schema_id=schema_id,
            base_offset=base_offset,
            timestamp_ms=self.record.timestamp_ms,
            change_types=change_types,
            statistics=encode_statistics(batch, counted) if counted else None,
            is_internal=is_internal,
        )
        staged = Staged(base_offset, batch, change_types)
        bucket.staged.append(staged)
        self.frames.append(frame)
        self.staged.append((bucket, staged))

    def _is_left_out(self, table: TableState, rule: AutoPartition | None, kind: OpKind, partition: str, n_rows: int) -> bool:
        """True for rows that are late and counted, and for deletes in a partition that does not exist."""
        descriptor = table.descriptor
        if rule is not None and partitions.is_late(table, rule, partition, self.record.timestamp_ms):
            self.record.late_rows[descriptor.table_id] = self.record.late_rows.get(descriptor.table_id, 0) + n_rows
            return True
        is_new = partition not in table.partitions and (descriptor.table_id, partition) not in self._new_partitions
        return kind == "delete" and bool(descriptor.partition_keys) and is_new

    def _partition_id(self, table: TableState, partition: str) -> int:
        if not table.descriptor.partition_keys:
            return 0
        known = table.partitions.get(partition)
        if known is not None:
            return known
        key = (table.descriptor.table_id, partition)
        if key not in self._new_partitions:
            partitions.check_dynamic(table.descriptor, partition)
            n_new = sum(table_id == key[0] for table_id, _ in self._new_partitions)
            partitions.check_room(table, len(table.partitions) + n_new, self.partitions_max)
            self._new_partitions[key] = self.state.next_partition_id + len(self._new_partitions)
        return self._new_partitions[key]

    def finish(self) -> None:
        """Complete the record: the partitions that got rows, progress, which may be in them, and what was taken from counters."""
        filled = {frame.header.partition_id for frame in self.frames}
        created = {key: partition_id for key, partition_id in self._new_partitions.items() if partition_id in filled}
        self.record.partitions += [(*key, partition_id) for key, partition_id in created.items()]
        for (table_id, _), partition_id in self._new_partitions.items():
            if partition_id not in filled:  # a delete that found nothing
                self.buckets.drop(table_id=table_id, partition_id=partition_id)
        now_ms = self.record.timestamp_ms
        self.record.progress = [progress.advanced(self.state, wanted, now_ms, created) for wanted in self._progress]
        for table_id, ids in self.counters.items():
            if ids.last_id != self._table(table_id).last_id:
                self.record.counters[table_id] = ids.last_id

    def commit(self) -> None:
        """The log has the frames and the frame indexes know them: indexes follow, staging ends."""
        for bucket, kv in self.changed:
            self.buckets.commit(bucket, kv)
        for ids in self.counters.values():
            ids.commit()
        for bucket, _ in self.staged:
            bucket.staged.clear()

    def void(self) -> None:
        """Take back everything: staged rows are forgotten, indexes and counters are as before."""
        for _, kv in self.changed:
            kv.rollback()
        for ids in self.counters.values():
            ids.rollback()
        for bucket, _ in self.staged:
            bucket.staged.clear()
        for (table_id, _), partition_id in self._new_partitions.items():
            self.buckets.drop(table_id=table_id, partition_id=partition_id)

    def _table(self, table_id: int) -> TableState:
        table = self.state.by_id(table_id)
        assert table is not None, f"table {table_id} is not in the catalog"
        return table


def encoded_once(table: TableState, rows: pa.Table) -> pa.Array | None:
    """The encoded keys of rows where they serve twice: to choose the bucket and, in it, as the primary key.

    None: a bucket hashes its keys faster by itself (those of one column), or there is one.
    """
    names = table.descriptor.physical_primary_key
    is_routed = table.n_buckets_max > 1 and table.descriptor.bucket_keys == names
    return encode_keys(key_arrays(rows, names)) if is_routed and len(names) > 1 else None


def one_batch(rows: pa.Table) -> pa.RecordBatch:
    """The rows as one record batch."""
    batches = rows.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)


def compression_of(descriptor: TableDescriptor) -> tuple[str, int | None]:
    """Codec of a table's frames when they are written: as the table says, else lz4 for logs and none for changelogs.

    A changelog is read by row for lookups and merges: uncompressed frames decode from the mapped file without a copy.
    """
    option = descriptor.options.get("table.log.arrow.compression.type")
    if option is None:
        return ("none", None) if descriptor.has_primary_key else ("lz4", None)
    name = option.lower()
    if name == "zstd":
        return "zstd", int(descriptor.options.get("table.log.arrow.compression.zstd.level", "3"))
    if name in ("lz4_frame", "lz4"):
        return "lz4", None
    if name == "none":
        return "none", None
    raise InvalidOption(f"compression {option} is unknown", where=descriptor.name, next_step="Use ZSTD, LZ4_FRAME or NONE.")
