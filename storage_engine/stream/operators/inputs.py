"""Inputs: which rows the next micro-batch reads, and reading them.

Holds: a micro-batch ends at a commit of the store (never between the rows of one), unless a single commit is larger than the
       bound; several sources of a job end at the same commit.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.client.store import Store
from storage_engine.client.table import Table
from storage_engine.errors import OffsetOutOfRange
from storage_engine.schema.descriptor import Offsets, TableBucket
from storage_engine.stream.functions.aggregates import WEIGHT
from storage_engine.stream.operators.compile import POSITION, SEQUENCE
from storage_engine.stream.plan.tree import Scan

_METADATA = ("_commit_timestamp", "_partition", "_bucket", "_log_offset")
TAKEN_BACK = pa.StringArray.from_buffers(2, pa.py_buffer(struct.pack("<3i", 0, 2, 4)), pa.py_buffer(b"-U-D"))
"""The change types of rows that are no more. Made of its buffers: pa.array() at import would load pandas."""


@dataclass(frozen=True)
class InputRange:
    """Rows [start, stop) of each source table. `version` is the commit it ends at, 0 when it ends inside one.

    as_of  the store's version when the offsets were read
    is_snapshot  the current rows of partitions of a primary-key table, at the version `as_of`, stand for their changes up to `stop`
    """

    start: Mapping[str, Offsets]
    stop: Mapping[str, Offsets]
    n_rows: int
    version: int
    as_of: int
    is_snapshot: bool = False


def rows_between(start: Mapping[str, Offsets], stop: Mapping[str, Offsets]) -> int:
    """How many rows lie between two sets of offsets; a bucket not in `start` counts from 0."""
    return sum(max(end - start.get(table, {}).get(bucket, 0), 0) for table, ends in stop.items() for bucket, end in ends.items())


def next_range(
    store: Store,
    tables: tuple[str, ...],
    start: Mapping[str, Offsets],
    after_version: int,
    n_rows_max: int,
    keyed: Collection[str] = (),
) -> InputRange:
    """The next rows to read: up to the newest commit, or as many whole commits as fit into n_rows_max.

    keyed  those of the tables that have a primary key: of a partition that nothing was read of, and whose changelog does not reach back
           to its beginning, the current rows come first. All of them at once, whatever n_rows_max says: the partition's rows move
           between its buckets when it is rescaled
    """
    as_of, stop = store.latest(tables)
    for table in keyed:
        unread = _unread(store, table, start.get(table, {}), stop[table])
        if unread:
            return InputRange(start, _advance(start, {table: unread}), sum(unread.values()), 0, as_of, is_snapshot=True)
    newest = as_of
    n_rows = rows_between(start, stop)
    if n_rows > n_rows_max:
        low, high = after_version, newest  # rows at low fit, rows at high do not
        while high - low > 1:
            middle = (low + high) // 2
            at_middle = _offsets_if_known(store, tables, middle)
            if rows_between(start, at_middle) <= n_rows_max:
                low = middle
            else:
                high = middle
        stop, newest = _offsets_if_known(store, tables, low), low
        n_rows = rows_between(start, stop)
        if n_rows == 0:
            stop, newest = _cut(start, _offsets_at(store, tables, high), n_rows_max), 0
            n_rows = rows_between(start, stop)
    return InputRange(start, _advance(start, stop), n_rows, newest, as_of)


def _unread(store: Store, table: str, start: Offsets, stop: Offsets) -> Offsets:
    """The ends of the partitions of which nothing was read yet, and whose first changes have expired."""
    read = {bucket.partition for bucket, offset in start.items() if offset}
    new = {bucket: end for bucket, end in stop.items() if end and bucket.partition not in read}
    if not new:
        return {}
    earliest = store.backend.offsets(table, "earliest", None)
    expired = {bucket.partition for bucket in new if earliest.get(bucket, 0)}
    return {bucket: end for bucket, end in new.items() if bucket.partition in expired}


def _offsets_at(store: Store, tables: tuple[str, ...], version: int) -> dict[str, Offsets]:
    return {table: store.backend.offsets(table, "latest", version) for table in tables}


def _offsets_if_known(store: Store, tables: tuple[str, ...], version: int) -> dict[str, Offsets]:
    """As _offsets_at; nothing for a version older than what the logs retain, whose rows nobody can read any more."""
    try:
        return _offsets_at(store, tables, version)
    except OffsetOutOfRange:
        return {}


def _cut(start: Mapping[str, Offsets], stop: Mapping[str, Offsets], n_rows_max: int) -> dict[str, Offsets]:
    """As many rows of one large commit as fit, bucket after bucket."""
    left = n_rows_max
    cut: dict[str, Offsets] = {}
    for table, ends in stop.items():
        cut[table] = {}
        for bucket, end in sorted(ends.items()):  # the order in which a scan gives the rows of one commit
            begin = start.get(table, {}).get(bucket, 0)
            taken = min(max(end - begin, 0), left)
            left -= taken
            if begin + taken > 0:
                cut[table][bucket] = begin + taken
    return cut


def _advance(start: Mapping[str, Offsets], stop: Mapping[str, Offsets]) -> dict[str, Offsets]:
    """Offsets after the range: never behind `start`, and buckets of dropped partitions stay recorded."""
    advanced: dict[str, Offsets] = {}
    for table in dict.fromkeys([*start, *stop]):
        before: Offsets = start.get(table, {})
        after: Offsets = dict(before)
        for bucket, end in stop.get(table, {}).items():
            if end > 0:
                after[bucket] = max(end, before.get(bucket, 0))
        advanced[table] = after
    return advanced


def read_scan(store: Store, scan: Scan, work: InputRange, *, positioned: bool = False) -> pa.Table:
    """The rows of one scan, with weight and sequence when they can be taken back; `positioned`: a log's with their places in it."""
    table = Table(store.backend, scan.table)
    start, stop = work.start.get(scan.table.name, {}), work.stop.get(scan.table.name, {})
    changed: dict[TableBucket, int] = {bucket: end for bucket, end in sorted(stop.items()) if end > start.get(bucket, 0)}
    begin = {bucket: start.get(bucket, 0) for bucket in changed}
    if work.is_snapshot and changed:
        rows = current_rows(table, scan.stored_columns, changed, work.as_of)
        return rows.append_column(SEQUENCE, pa.array(np.arange(rows.num_rows)))
    rows = table.scan(scan.stored_columns, start=begin, stop=changed, metadata=positioned, as_of=work.as_of).read_all()
    if not scan.is_retracting:
        return with_position(rows, scan.stored_columns) if positioned else rows
    # a scan comes in the order of the commits; offsets of two buckets, between which a rescale moved a key, say nothing of it
    return with_weight(rows, scan.stored_columns).append_column(SEQUENCE, pa.array(np.arange(rows.num_rows)))


def current_rows(table: Table, columns: list[str], buckets: Iterable[TableBucket], version: int) -> pa.Table:
    """The rows of the buckets' partitions at a version, each with WEIGHT 1: what all their changes up to it come to."""
    rows = table.read(columns, at=version, of_partitions=sorted({bucket.partition for bucket in buckets}))
    return rows.select(columns).append_column(WEIGHT, pa.array(np.ones(rows.num_rows, np.int8)))


def with_weight(rows: pa.Table, columns: list[str]) -> pa.Table:
    """Rows of a scanned changelog in these columns and WEIGHT: -1 where a row is taken back, else 1."""
    taken_back = pc.is_in(rows["_change_type"], TAKEN_BACK)
    weights = pc.if_else(taken_back, pa.scalar(-1, pa.int8()), pa.scalar(1, pa.int8()))
    return rows.select(columns).append_column(WEIGHT, weights)


def with_position(rows: pa.Table, columns: list[str]) -> pa.Table:
    """Scanned rows of a log with the columns POSITION instead of the scan's metadata."""
    named = rows.select([*columns, *_METADATA]).rename_columns([*columns, *POSITION])
    return named.set_column(len(columns), POSITION[0], named[POSITION[0]].cast(pa.int64()))
