"""Reads: answers from state and buckets. The caller holds the readers' lock while a plan is made; rows are fetched by the plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import CommitInfo, FetchedFrame
from storage_engine.engine.buckets import Bucket, Buckets
from storage_engine.engine.offset_of import offset_at
from storage_engine.engine.routing import bucket_of_rows, key_arrays, split
from storage_engine.engine.schemas import FrameColumns, Schemas
from storage_engine.engine.skip_frames import FetchCounts, FetchStep
from storage_engine.engine.state import LogStart, StoreState, TableState
from storage_engine.errors import OffsetOutOfRange, SchemaMismatch, UserError
from storage_engine.kv.batch import group_keys
from storage_engine.kv.single import encode_key
from storage_engine.log.commit_log import CommitLog
from storage_engine.log.frame import FLAG_ORIGINS, decode_batch
from storage_engine.log.frame_index import BucketId
from storage_engine.log.log_file import FrameMoved
from storage_engine.log.stored_frame import StoredFrame
from storage_engine.schema.descriptor import TableBucket, TableDescriptor
from storage_engine.schema.keys import encode_keys
from storage_engine.schema.rows import conform_keys, require_prefix_lookup

_ONE_FOUND = pa.Array.from_buffers(pa.bool_(), 1, [None, pa.py_buffer(b"\x01")])  # pa.array() at import would load pandas


Replan = Callable[[FetchStep], "list[FetchStep]"]
"""The frames that answer now for the offsets of a step whose frame was moved."""


def plan_fetch(
    buckets: Buckets, table: TableState, ranges: Mapping[TableBucket, tuple[int, int]], columns: Sequence[str] | None
) -> list[FetchStep]:
    """The frames that hold `ranges`, in the order they were committed.

    Errors: OffsetOutOfRange for offsets before the earliest or after the end of a bucket; SchemaMismatch for a column that is not there.
    """
    _columns(table.schemas, columns)
    steps: list[FetchStep] = []
    by_name = {bucket.name: bucket for bucket in buckets.of_table(table)}
    for name, (start, stop) in ranges.items():
        bucket = by_name.get(name)
        low, high = (bucket.frames.start_offset, bucket.frames.end_offset) if bucket else (0, 0)
        if start < low or stop > high:
            since = buckets.log_start(bucket) if bucket and start < low else None
            what = f"offsets {start} to {stop} are asked for, the log holds {low} to {high}"
            raise OffsetOutOfRange(
                what if since is None else what + _expired(start, since),
                where=f"{table.descriptor.name}, bucket {name}",
                next_step="Start at the earliest offset, or read older rows from the lake.",
            )
        if bucket is not None:
            steps += _steps(bucket, start, stop)
    steps.sort(key=lambda step: step.version)  # stable: the frames of a bucket stay in the order of their offsets
    return steps


def _steps(bucket: Bucket, start: int, stop: int) -> list[FetchStep]:
    return [
        FetchStep(bucket.name, bucket.id, entry.location, entry.base_offset, entry.end_offset, entry.version)
        for entry in bucket.frames.find(start, stop)
    ]


def plan_again(buckets: Buckets, table: TableState, step: FetchStep) -> list[FetchStep]:
    """The frames that answer now for the offsets of a step whose frame was moved.

    Errors: OffsetOutOfRange when the rows have expired, or their table or partition was dropped, since the step was planned.
    """
    bucket = buckets.get(step.bucket_id)
    if bucket is None:
        raise OffsetOutOfRange(
            f"bucket {step.bucket} was dropped while it was read", where=table.descriptor.name, next_step="Plan the scan again."
        )
    if step.base_offset < bucket.frames.start_offset:
        since = buckets.log_start(bucket)
        raise OffsetOutOfRange(
            f"offset {step.base_offset} expired while it was read" + ("" if since is None else _expired(step.base_offset, since)),
            where=f"{table.descriptor.name}, bucket {step.bucket}",
            next_step="Start at the earliest offset, or read older rows from the lake.",
        )
    return _steps(bucket, step.base_offset, step.end_offset)


def _expired(start: int, since: LogStart) -> str:
    when = datetime.fromtimestamp(since.expired_ms / 1000, UTC).isoformat(timespec="seconds")
    return f": {since.offset - start:,} of these rows have expired, the last of them at {when}"


def fetch(
    log: CommitLog, schemas: Schemas, steps: Iterable[FetchStep], columns: Sequence[str] | None, replan: Replan, counts: FetchCounts
) -> Iterator[FetchedFrame]:
    """The stored frames, pruned to `columns`: buffers are picked out of the stored message, never decoded.

    Frames that only moved rows between buckets are left out. A frame that cleaning has moved meanwhile is read where its rows are now,
    cut to what it answered for.
    """
    answers: dict[int, FrameColumns] = {}
    for step, start, stop, stored in _stored(log, steps, replan):
        counts.read(step.location.length)
        if (start, stop) != (step.base_offset, step.end_offset):
            stored = _cut(schemas, stored, start - step.base_offset, stop - step.base_offset)
        header = stored.header
        if header.is_internal:
            continue
        if header.schema_id not in answers:
            answers[header.schema_id] = schemas.frame_columns(header.schema_id, columns)
        names, types, pruner = answers[header.schema_id]
        parts = [stored.message] if pruner is None else pruner.prune_to_buffers(stored.message)
        yield FetchedFrame(
            bucket=step.bucket,
            base_offset=header.base_offset,
            n_rows=header.n_rows,
            timestamp_ms=header.timestamp_ms,
            schema_id=header.schema_id,
            columns=names,
            types=types,
            change_types=None if stored.change_types is None else bytes(stored.change_types),
            parts=tuple(parts),
            timestamps=None if stored.origins is None else tuple(map(tuple, stored.origins[["row_end", "timestamp_ms"]].tolist())),
        )


def _stored(log: CommitLog, steps: Iterable[FetchStep], replan: Replan) -> Iterator[tuple[FetchStep, int, int, StoredFrame]]:
    """Each step's frame as it lies now, with the offsets that are wanted of it."""
    for planned in steps:
        waiting = deque([(planned, planned.base_offset, planned.end_offset)])
        while waiting:
            step, start, stop = waiting.popleft()
            try:
                stored = log.read(step.location)
            except FrameMoved:
                waiting.extendleft((new, max(start, new.base_offset), min(stop, new.end_offset)) for new in reversed(replan(step)))
                continue
            yield step, start, stop, stored


def _cut(schemas: Schemas, stored: StoredFrame, first: int, last: int) -> StoredFrame:
    """Rows [first, last) of a dense frame, as a frame. The only place where a fetch decodes: its frame was re-packed under the reader."""
    header = stored.header
    batch = decode_batch(stored.message, schemas.arrow_schema(header.schema_id)).slice(first, last - first)
    origins = stored.origins
    if origins is not None:
        origins = origins[np.searchsorted(origins["row_end"], first, side="right") :].copy()
        origins["row_end"] = np.minimum(origins["row_end"] - first, last - first)
        origins = origins[: int(np.searchsorted(origins["row_end"], last - first)) + 1]
    types = None if stored.change_types is None else stored.change_types[first:last]
    moved = header._replace(base_offset=header.base_offset + first, n_rows=last - first)
    return StoredFrame(moved, types, batch.serialize(), None, origins)


def lookup(buckets: Buckets, table: TableState, keys: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """One row per key, in the order of the keys, with `_found`; rows not found are null."""
    descriptor = table.descriptor
    names = _columns(table.schemas, columns)
    checked = _keys(table.schemas, keys, descriptor.primary_key, "lookup")
    if checked.num_rows == 1 and not descriptor.partition_keys and (one := _lookup_one(buckets, table, checked, names)) is not None:
        return one
    pieces: list[pa.Table] = []
    positions: list[np.ndarray] = []
    found_mask = np.zeros(checked.num_rows, np.bool_)
    for name, part, at in split(descriptor, checked, 0, table.bucket_counts):
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
    number, n_buckets = 0, table.n_buckets_of("")
    if n_buckets > 1:
        number = int(bucket_of_rows(descriptor, keys, n_buckets)[0])
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
    checked = _keys(table.schemas, keys, table.descriptor.primary_key, "lookup")
    missing = checked.filter(pc.invert(found["_found"])).combine_chunks()
    groups = group_keys(encode_keys(key_arrays(missing, table.descriptor.primary_key)))
    return missing if groups is None else missing.take(pa.array(groups.first))


def prefix_lookup(
    buckets: Buckets, table: TableState, prefixes: pa.Table, columns: Sequence[str] | None, limit: int | None, rows_max: int | None = None
) -> pa.Table:
    """Rows whose key begins with the given bucket key, in the order of the prefixes, at most `limit` each.

    Errors: ResultTooLarge when that is more than `rows_max`, before the rows are read.
    """
    return prefix_rows(buckets, table, prefixes, columns, limit, rows_max)[0]


def prefix_rows(
    buckets: Buckets, table: TableState, prefixes: pa.Table, columns: Sequence[str] | None, limit: int | None, rows_max: int | None
) -> tuple[pa.Table, np.ndarray]:
    """As prefix_lookup(), and of each row which prefix it has, ascending. Shapes: prefixes (n,) -> rows (m,), positions (m,)."""
    descriptor = table.descriptor
    require_prefix_lookup(descriptor)
    needed = tuple(name for name in descriptor.primary_key if name in descriptor.partition_keys or name in descriptor.bucket_keys)
    checked = _keys(table.schemas, prefixes, needed, "prefix lookup")
    names = _columns(table.schemas, columns)
    pieces: list[pa.Table] = []
    order: list[np.ndarray] = []
    for name, part, at in split(descriptor, checked, 0, table.bucket_counts):
        bucket = _bucket(buckets, table, name)
        if bucket is None:
            continue
        rows, prefix_of_row = buckets.kv_of(bucket).prefix_get(part, limit, rows_max)
        rows_max = None if rows_max is None else rows_max - rows.num_rows
        if at is None:  # one bucket has them all, in their order
            return (rows if names == rows.column_names else rows.select(names)), prefix_of_row
        pieces.append(rows.select(names))
        order.append(at[prefix_of_row])
    if not pieces:
        return pa.schema([descriptor.arrow_schema.field(name) for name in names]).empty_table(), np.empty(0, np.int64)
    stacked, position = pa.concat_tables(pieces), np.concatenate(order)
    by_prefix = np.argsort(position, kind="stable")
    return stacked.take(pa.array(by_prefix)), position[by_prefix]


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
        bound = end if at_version is None else offset_at(buckets, table, bucket, at_version)
        if limit is not None and limit <= 0:
            break
        kv = buckets.kv_of(bucket) if bound == end else buckets.kv_until(bucket, bound)
        offsets = kv.current_offsets()
        if limit is not None:
            offsets = offsets[max(0, len(offsets) - limit) :]
            limit -= len(offsets)
        steps.append((bucket, offsets))
    return steps


def read(buckets: Buckets, schemas: Schemas, steps: list[tuple[Bucket, np.ndarray]], columns: Sequence[str] | None) -> pa.Table:
    """The rows that plan_read found, in the columns that the table had when it was planned."""
    names = _columns(schemas, columns)
    pieces = [buckets.rows_at(bucket, offsets, names, schemas) for bucket, offsets in steps]
    if not pieces:
        return pa.schema([schemas.descriptor.arrow_schema.field(name) for name in names]).empty_table()
    return pa.concat_tables(pieces)


def count(buckets: Buckets, table: TableState) -> int:
    """Rows now: of a log by its offsets, of a primary-key table by its key indexes. Cost: an index that is not there is replayed."""
    if not table.descriptor.has_primary_key:
        return sum(bucket.frames.end_offset - bucket.frames.start_offset for bucket in buckets.of_table(table))
    return sum(buckets.kv_of(bucket).n_keys for bucket in buckets.of_table(table))


def commits(state: StoreState, buckets: Buckets, after: int, limit: int) -> list[CommitInfo]:
    """Commits with rows, after a version, oldest first; their offset ranges come from the frame indexes.

    A commit that only moved rows between buckets is none of them.
    """
    ranges: dict[int, dict[str, dict[TableBucket, tuple[int, int]]]] = {}
    stamps: dict[int, int] = {}
    everything = [(name, bucket, bucket.frames.entries) for name, table in state.tables.items() for bucket in buckets.of_table(table)]
    moves = {name: table.moves for name, table in state.tables.items() if table.moves and table.moves[-1] > after}
    news = []
    for name, bucket, entries in everything:
        if len(entries) == 0 or entries["version"].max() <= after:
            continue  # most buckets, when somebody follows the journal
        is_new = (entries["version"] > after) & (entries["base_offset"] >= bucket.frames.start_offset)
        parts = _as_committed(bucket, entries[is_new], after, limit)
        news.append((name, bucket, parts[~np.isin(parts["version"], moves[name])] if name in moves else parts))
    versions = np.unique(np.concatenate([np.empty(0, np.int64), *(parts["version"] for _, _, parts in news)]))[:limit]
    if len(versions) == 0:
        return []
    for name, bucket, parts in news:
        for base_offset, end_offset, version, timestamp_ms in parts[parts["version"] <= versions[-1]].tolist():
            by_bucket = ranges.setdefault(version, {}).setdefault(name, {})
            first, last = by_bucket.get(bucket.name, (base_offset, base_offset))
            by_bucket[bucket.name] = (min(first, base_offset), max(last, end_offset))
            stamps[version] = timestamp_ms
    return [CommitInfo(version, stamps[version], ranges[version]) for version in sorted(ranges)]


_COMMITTED = np.dtype([("base_offset", np.int64), ("end_offset", np.int64), ("version", np.int64), ("timestamp_ms", np.int64)])


def _as_committed(bucket: Bucket, entries: np.ndarray, after: int, limit: int) -> np.ndarray:
    """The offset ranges of the first `limit` commits after a version, also of those that were re-packed into one frame."""
    if not (entries["flags"] & FLAG_ORIGINS).any():
        return entries[list(_COMMITTED.names or ())]
    parts = [np.empty(0, _COMMITTED)]
    n_versions = 0
    for entry in entries:
        origins = bucket.frames.origins(entry)
        part = np.empty(len(origins), _COMMITTED)
        part["end_offset"] = entry["base_offset"] + origins["row_end"]
        part["base_offset"] = np.r_[entry["base_offset"], part["end_offset"][:-1]]
        part["version"], part["timestamp_ms"] = origins["version"], origins["timestamp_ms"]
        parts.append(part[part["version"] > after])
        n_versions += len(np.unique(parts[-1]["version"]))
        if n_versions > limit:
            break
    return np.concatenate(parts)


def _bucket(buckets: Buckets, table: TableState, name: TableBucket) -> Bucket | None:
    partition_id = table.partitions.get(name.partition) if table.descriptor.partition_keys else 0
    return None if partition_id is None else buckets.get(BucketId(table.descriptor.table_id, partition_id, name.bucket))


def _columns(schemas: Schemas, columns: Sequence[str] | None) -> list[str]:
    """Errors: SchemaMismatch for a name that is no column (any more)."""
    if columns is None:
        return list(schemas.descriptor.column_names)
    schemas.require(columns)
    return list(columns)


def _keys(schemas: Schemas, keys: pa.Table, needed: tuple[str, ...], what: str) -> pa.Table:
    descriptor = schemas.descriptor
    if not descriptor.has_primary_key:
        problem = f"{descriptor.name} is a log table and has no {what}"
        raise UserError(problem, where=descriptor.name, next_step="Use scan() to read its log.")
    if needed == descriptor.primary_key and keys.schema.equals(descriptor.key_schema) and not any(c.null_count for c in keys.columns):
        return keys
    lacking = [name for name in needed if name not in keys.column_names]
    if lacking:
        for name in keys.column_names:
            if (gone := schemas.gone(name)) is not None:
                raise gone
        raise SchemaMismatch(
            f"{what} in {descriptor.name} lacks key column {lacking[0]}", where=descriptor.name, next_step=f"Give {', '.join(needed)}."
        )
    return conform_keys(descriptor, keys.select(list(needed)), needed)
