"""Reads: answers from state and buckets. The caller holds the readers' lock while a plan is made; rows are fetched by the plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import CommitInfo, FetchedFrame
from storage_engine.engine.buckets import Bucket, Buckets
from storage_engine.engine.routing import bucket_of_rows, key_arrays, split
from storage_engine.engine.skip_frames import FetchCounts, FetchStep
from storage_engine.engine.state import StoreState, TableState
from storage_engine.errors import OffsetOutOfRange, SchemaMismatch, UserError
from storage_engine.kv.batch import group_keys
from storage_engine.kv.single import encode_key
from storage_engine.log.commit_log import CommitLog
from storage_engine.log.frame_index import BucketId
from storage_engine.log.pruning import MessagePruner, pruner_of
from storage_engine.schema.descriptor import TableBucket, TableDescriptor
from storage_engine.schema.keys import encode_keys
from storage_engine.schema.rows import conform_keys

_ONE_FOUND = pa.array([True])


def plan_fetch(buckets: Buckets, table: TableState, ranges: Mapping[TableBucket, tuple[int, int]]) -> list[FetchStep]:
    """The frames that hold `ranges`, in the order they were committed.

    Errors: OffsetOutOfRange for offsets before the earliest or after the end of a bucket.
    """
    steps: list[FetchStep] = []
    by_name = {bucket.name: bucket for bucket in buckets.of_table(table)}
    for name, (start, stop) in ranges.items():
        bucket = by_name.get(name)
        low, high = (bucket.frames.start_offset, bucket.frames.end_offset) if bucket else (0, 0)
        if start < low or stop > high:
            raise OffsetOutOfRange(
                f"offsets {start} to {stop} are asked for, the log holds {low} to {high}",
                where=f"{table.descriptor.name}, bucket {name}",
                next_step="Start at the earliest offset, or read older rows from the lake.",
            )
        if bucket is not None:
            steps.extend(FetchStep(name, entry.location) for entry in bucket.frames.find(start, stop))
    steps.sort(key=lambda step: step.location.position)
    return steps


def fetch(
    log: CommitLog, table: TableState, steps: Iterable[FetchStep], columns: Sequence[str] | None, counts: FetchCounts
) -> Iterator[FetchedFrame]:
    """The stored frames, pruned to `columns`: buffers are picked out of the stored message, never decoded."""
    pruners: dict[int, tuple[tuple[str, ...], MessagePruner | None]] = {}
    for step in steps:
        stored = log.read(step.location)
        counts.read(step.location.length)
        header = stored.header
        if header.schema_id not in pruners:
            pruners[header.schema_id] = _pruner(table, header.schema_id, columns)
        names, pruner = pruners[header.schema_id]
        message = stored.message if pruner is None else pruner.prune(stored.message)
        yield FetchedFrame(
            bucket=step.bucket,
            base_offset=header.base_offset,
            n_rows=header.n_rows,
            timestamp_ms=header.timestamp_ms,
            schema_id=header.schema_id,
            columns=names,
            change_types=None if stored.change_types is None else bytes(stored.change_types),
            message=message,
        )


def _pruner(table: TableState, schema_id: int, columns: Sequence[str] | None) -> tuple[tuple[str, ...], MessagePruner | None]:
    """The columns that frames of a schema answer with, and what cuts their messages down to them; None: as stored."""
    names = table.columns_of(schema_id)
    wanted = None if columns is None else set(columns)
    if wanted is None or wanted.issuperset(names):
        return names, None
    keep = [i for i, name in enumerate(names) if name in wanted] or [0]
    return tuple(names[i] for i in keep), pruner_of(Buckets.stored_schema(table, schema_id), tuple(keep))


def lookup(buckets: Buckets, table: TableState, keys: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """One row per key, in the order of the keys, with `_found`; rows not found are null."""
    descriptor = table.descriptor
    names = _columns(descriptor, columns)
    checked = _keys(descriptor, keys, descriptor.primary_key, "lookup")
    if checked.num_rows == 1 and not descriptor.partition_keys and (one := _lookup_one(buckets, table, checked, names)) is not None:
        return one
    pieces: list[pa.Table] = []
    positions: list[np.ndarray] = []
    found_mask = np.zeros(checked.num_rows, np.bool_)
    for name, part, at in split(descriptor, checked, 0):
        rows_of = np.arange(checked.num_rows) if at is None else at
        bucket = _bucket(buckets, table, name)
        if bucket is None:
            continue
        rows, found = _get(buckets, bucket, part)
        found_mask[rows_of[found]] = True
        positions.append(rows_of[found])
        pieces.append(rows.select(names) if found.all() else rows.filter(pa.array(found)).select(names))
    if len(pieces) == 1 and found_mask.all() and len(rows_of) == checked.num_rows and at is None:
        answer = [*pieces[0].columns, pa.chunked_array([pa.array(found_mask)])]
        return pa.Table.from_arrays(answer, schema=_answer_schema(descriptor, names))
    schema = pa.schema([pa.field(name, descriptor.arrow_schema.field(name).type) for name in names])
    stacked = pa.concat_tables([piece.cast(schema) for piece in pieces]).combine_chunks() if pieces else schema.empty_table()
    index = np.zeros(checked.num_rows, np.int64)
    if pieces:
        index[np.concatenate(positions)] = np.arange(stacked.num_rows)
    aligned = stacked.take(pa.array(index, mask=~found_mask)) if checked.num_rows else stacked
    return aligned.append_column("_found", pa.array(found_mask))


def _get(buckets: Buckets, bucket: Bucket, keys: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """What KvBucket.get() answers; without its steps for keys not there when all are there."""
    kv = buckets.kv_of(bucket)
    wanted = key_arrays(keys, kv.descriptor.physical_primary_key)
    offsets = kv.find(wanted)
    if offsets is not None and offsets.min() >= 0:
        rows = buckets.rows_at(bucket, offsets)
        if all(rows.column(name).chunk(0).equals(array) for name, array in zip(kv.descriptor.physical_primary_key, wanted, strict=True)):
            return rows, np.ones(len(offsets), np.bool_)
    return kv.get(keys)


def _lookup_one(buckets: Buckets, table: TableState, keys: pa.Table, names: list[str]) -> pa.Table | None:
    """The same answer for one key by the shortest way; None when there is none (rare types, shared hashes, a key not there)."""
    descriptor = table.descriptor
    scalars = [column[0] for column in keys.columns]
    key = encode_key([scalar.as_py() for scalar in scalars], descriptor.key_schema.types)
    if key is None or descriptor.primary_key != descriptor.physical_primary_key:
        return None
    number = 0
    if descriptor.n_buckets > 1:
        number = int(bucket_of_rows(descriptor, keys, 0)[0])
    bucket = _bucket(buckets, table, TableBucket("", number))
    offset = None if bucket is None else buckets.kv_of(bucket).find_one(key)
    if bucket is None or offset is None or offset < 0:
        return None
    row = buckets.row_at(bucket, offset)
    if row is None or any(not row.column(name)[0].equals(scalar) for name, scalar in zip(keys.column_names, scalars, strict=True)):
        return None
    schema = _answer_schema(descriptor, names)
    columns = row.columns if names == row.schema.names else [row.column(name) for name in names]
    return pa.Table.from_arrays([*columns, _ONE_FOUND], schema=schema)


def _answer_schema(descriptor: TableDescriptor, names: list[str]) -> pa.Schema:
    whole = descriptor.answer_schema
    if tuple(names) == descriptor.column_names:
        return whole
    return pa.schema([whole.field(name) for name in (*names, "_found")])


def missing_keys(table: TableState, keys: pa.Table, found: pa.Table) -> pa.Table:
    """The distinct keys that have no row, in the order in which they were asked for: their ids follow it."""
    checked = _keys(table.descriptor, keys, table.descriptor.primary_key, "lookup")
    missing = checked.filter(pc.invert(found["_found"])).combine_chunks()
    groups = group_keys(encode_keys(key_arrays(missing, table.descriptor.primary_key)))
    return missing if groups is None else missing.take(pa.array(groups.first))


def prefix_lookup(
    buckets: Buckets, table: TableState, prefixes: pa.Table, columns: Sequence[str] | None, limit: int | None, rows_max: int | None = None
) -> pa.Table:
    """Rows whose key begins with the given bucket key, in the order of the prefixes, at most `limit` each.

    Errors: ResultTooLarge when that is more than `rows_max`, before the rows are read.
    """
    descriptor = table.descriptor
    if not descriptor.is_prefix_lookup_possible:
        raise UserError(
            f"{descriptor.name} has no prefix lookup: its bucket key is not a proper prefix of its primary key",
            where=descriptor.name,
            next_step="Use lookup() with the whole key, or create the table with a shorter 'bucket.key'.",
        )
    needed = tuple(name for name in descriptor.primary_key if name in descriptor.partition_keys or name in descriptor.bucket_keys)
    checked = _keys(descriptor, prefixes, needed, "prefix lookup")
    names = _columns(descriptor, columns)
    pieces: list[pa.Table] = []
    order: list[np.ndarray] = []
    for name, part, at in split(descriptor, checked, 0):
        bucket = _bucket(buckets, table, name)
        if bucket is None:
            continue
        rows, prefix_of_row = buckets.kv_of(bucket).prefix_get(part, limit, rows_max)
        rows_max = None if rows_max is None else rows_max - rows.num_rows
        pieces.append(rows.select(names))
        order.append(prefix_of_row if at is None else at[prefix_of_row])
    if not pieces:
        return pa.schema([descriptor.arrow_schema.field(name) for name in names]).empty_table()
    stacked = pa.concat_tables(pieces)
    return stacked.take(pa.array(np.argsort(np.concatenate(order), kind="stable")))


def plan_read(
    buckets: Buckets, table: TableState, partitions: Sequence[str] | None, at_version: int | None, limit: int | None = None
) -> list[tuple[Bucket, np.ndarray]]:
    """Where the current rows are, per bucket, or the rows at an older version (found by replaying the changelog).

    limit  of each bucket the rows written last, until there are so many: they share the fewest frames
    """
    wanted = None if partitions is None else set(partitions)
    steps: list[tuple[Bucket, np.ndarray]] = []
    for bucket in buckets.of_table(table):
        if wanted is not None and bucket.name.partition not in wanted:
            continue
        end = bucket.frames.end_offset
        bound = end if at_version is None else bucket.frames.offset_at_version(at_version)
        if limit is not None and limit <= 0:
            break
        kv = buckets.kv_of(bucket) if bound == end else buckets.kv_until(bucket, bound)
        offsets = kv.current_offsets()
        if limit is not None:
            offsets = offsets[max(0, len(offsets) - limit) :]
            limit -= len(offsets)
        steps.append((bucket, offsets))
    return steps


def read(buckets: Buckets, table: TableState, steps: list[tuple[Bucket, np.ndarray]], columns: Sequence[str] | None) -> pa.Table:
    """The rows that plan_read found."""
    names = _columns(table.descriptor, columns)
    pieces = [buckets.rows_at(bucket, offsets, names) for bucket, offsets in steps]
    if not pieces:
        return pa.schema([table.descriptor.arrow_schema.field(name) for name in names]).empty_table()
    return pa.concat_tables(pieces)


def count(buckets: Buckets, table: TableState) -> int:
    if not table.descriptor.has_primary_key:
        return sum(bucket.frames.end_offset - bucket.frames.start_offset for bucket in buckets.of_table(table))
    return sum(buckets.kv_of(bucket).n_keys for bucket in buckets.of_table(table))


def commits(state: StoreState, buckets: Buckets, after: int, limit: int) -> list[CommitInfo]:
    """Commits with rows, after a version, oldest first; their offset ranges come from the frame indexes."""
    ranges: dict[int, dict[str, dict[TableBucket, tuple[int, int]]]] = {}
    stamps: dict[int, int] = {}
    everything = [(name, bucket, bucket.frames.entries) for name, table in state.tables.items() for bucket in buckets.of_table(table)]
    news = [(name, bucket, entries[np.searchsorted(entries["version"], after, side="right") :]) for name, bucket, entries in everything]
    versions = np.unique(np.concatenate([np.empty(0, np.int64), *(entries["version"] for _, _, entries in news)]))[:limit]
    if len(versions) == 0:
        return []
    for name, bucket, entries in news:
        n = int(np.searchsorted(entries["version"], versions[-1], side="right"))
        if n:
            for entry in bucket.frames.find(int(entries["base_offset"][0]), int(entries["end_offset"][n - 1])):
                by_bucket = ranges.setdefault(entry.version, {}).setdefault(name, {})
                first, last = by_bucket.get(bucket.name, (entry.base_offset, entry.base_offset))
                by_bucket[bucket.name] = (min(first, entry.base_offset), max(last, entry.end_offset))
                stamps[entry.version] = entry.timestamp_ms
    return [CommitInfo(version, stamps[version], ranges[version]) for version in sorted(ranges)]


def _bucket(buckets: Buckets, table: TableState, name: TableBucket) -> Bucket | None:
    partition_id = table.partitions.get(name.partition) if table.descriptor.partition_keys else 0
    return None if partition_id is None else buckets.get(BucketId(table.descriptor.table_id, partition_id, name.bucket))


def _columns(descriptor: TableDescriptor, columns: Sequence[str] | None) -> list[str]:
    known = descriptor.column_names
    if columns is None:
        return list(known)
    for name in columns:
        if name not in known:
            what = f"{descriptor.name} has no column {name}"
            raise SchemaMismatch(what, where="columns", next_step=f"Its columns are {', '.join(known)}.")
    return list(columns)


def _keys(descriptor: TableDescriptor, keys: pa.Table, needed: tuple[str, ...], what: str) -> pa.Table:
    if not descriptor.has_primary_key:
        problem = f"{descriptor.name} is a log table and has no {what}"
        raise UserError(problem, where=descriptor.name, next_step="Use scan() to read its log.")
    if needed == descriptor.primary_key and keys.schema.equals(descriptor.key_schema) and not any(c.null_count for c in keys.columns):
        return keys
    lacking = [name for name in needed if name not in keys.column_names]
    if lacking:
        raise SchemaMismatch(
            f"{what} in {descriptor.name} lacks key column {lacking[0]}", where=descriptor.name, next_step=f"Give {', '.join(needed)}."
        )
    return conform_keys(descriptor, keys.select(list(needed)), needed)
