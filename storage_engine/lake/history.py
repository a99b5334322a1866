"""Lake history: rows of tiered tables for who computes again what a job has read (stream/run/history.py): by offsets, or as SELECT does.

Holds: rows are read at a pinned Delta version of the tierer's; columns have the store's present names and types, metadata is a scan's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from storage_engine.client.store import Store
from storage_engine.client.table import METADATA_FIELDS
from storage_engine.lake.columns import BUCKET, OFFSET, TIMESTAMP, from_lake, quoted
from storage_engine.lake.duck import connect_delta
from storage_engine.lake.union import LakeSnapshot, find_snapshot, union_read
from storage_engine.schema.descriptor import TableBucket, TableDescriptor

_PLACE = METADATA_FIELDS[1:]


class LakeHistory:
    """One store's lake."""

    def __init__(self, store: Store, lake_root: str | Path) -> None:
        self._store = store
        self._root = Path(lake_root).absolute()

    def log_rows(self, table: str, columns: Sequence[str], ranges: Mapping[TableBucket, tuple[int, int]]) -> pa.Table:
        """Rows of a log by their offsets, those that are there, with the metadata of a scan, in no particular order."""
        descriptor = self._store.describe(table)
        snapshot = find_snapshot(self._store, self._root, descriptor)
        detached = () if snapshot is None else snapshot.detached
        wanted = {bucket: ends for bucket, ends in ranges.items() if bucket.partition not in detached}
        if snapshot is None or not wanted:
            return _schema(descriptor, columns).empty_table()
        listed = " OR ".join(_condition(descriptor, snapshot, bucket, *ends) for bucket, ends in wanted.items())
        return self._rows(descriptor, snapshot, columns, f" WHERE {listed}")

    def all_rows(self, table: str, columns: Sequence[str], at: int) -> pa.Table:
        """What SELECT shows of a table at a version; a log's rows with the metadata of a scan."""
        descriptor = self._store.describe(table)
        if descriptor.has_primary_key:
            with connect_delta() as con:
                return union_read(con, self._store, self._root, table, columns, at=at)
        handle = self._store.table(table)
        snapshot = find_snapshot(self._store, self._root, descriptor, at)
        stop = handle.offsets(at_version=at)
        covered = {} if snapshot is None else snapshot.offsets
        tail = handle.scan(
            columns, start={bucket: covered.get(bucket, 0) for bucket in stop}, stop=stop, metadata=True, as_of=at
        ).read_all()
        tail = tail.select([*columns, *(item.name for item in _PLACE)])
        if snapshot is None:
            return tail
        return pa.concat_tables([self._rows(descriptor, snapshot, columns, ""), tail.cast(_schema(descriptor, columns))])

    def _rows(self, descriptor: TableDescriptor, snapshot: LakeSnapshot, columns: Sequence[str], condition: str) -> pa.Table:
        """Columns that the lake does not have yet are null."""
        held = {column.name: snapshot.columns.get(column.field_id) for column in descriptor.columns}
        listed = [_column(name, held[name]) for name in columns]
        partition = f"CAST(l.{quoted(held[descriptor.partition_keys[0]] or '')} AS VARCHAR)" if descriptor.partition_keys else "''"
        place = (partition, f"l.{BUCKET}", f"l.{OFFSET}", f"l.{TIMESTAMP}")
        listed += [f"{given} AS {quoted(item.name)}" for given, item in zip(place, _PLACE, strict=True)]
        with connect_delta() as con:
            rows = con.execute(f"SELECT {', '.join(listed)} FROM {snapshot.scan_sql} AS l{condition}").to_arrow_table()
        wanted = _schema(descriptor, columns)
        return from_lake(rows, {item.name: item.type for item in wanted}).cast(wanted)


def _schema(descriptor: TableDescriptor, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([*(descriptor.arrow_schema.field(name) for name in columns), *_PLACE])


def _column(name: str, held_as: str | None) -> str:
    return f"NULL AS {quoted(name)}" if held_as is None else f"l.{quoted(held_as)} AS {quoted(name)}"


def _condition(descriptor: TableDescriptor, snapshot: LakeSnapshot, bucket: TableBucket, start: int, stop: int) -> str:
    text = f"l.{BUCKET} = {bucket.bucket} AND l.{OFFSET} >= {start} AND l.{OFFSET} < {stop}"
    if not descriptor.partition_keys:
        return f"({text})"
    held_as = snapshot.columns[descriptor.column(descriptor.partition_keys[0]).field_id]
    value = bucket.partition.replace("'", "''")
    return f"({text} AND CAST(l.{quoted(held_as)} AS VARCHAR) = '{value}')"
