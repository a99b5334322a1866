"""Outlived: rows that left the store by `table.kv.ttl`, which writes no -D, and that the lake still has.

Of such a table the changelog alone does not tell what the lake should hold. What the store holds does: a key of the lake that is not
among its keys has outlived. Rows of partitions that were dropped in the store are history and no part of that.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from storage_engine.client.table import Table
from storage_engine.lake.columns import lake_schema, quoted, quoted_list, to_lake
from storage_engine.lake.delta import LakeTable
from storage_engine.lake.duck import connect_delta, scan_sql
from storage_engine.lake.mapping import in_lake
from storage_engine.schema.descriptor import Offsets


def outlived_keys(lake: LakeTable, table: Table, ends: Offsets, as_of: int) -> pa.Table:
    """Keys of the lake that the store does not have at the offsets `ends`, which the lake covers.

    Shapes: (n,) with the key columns under the lake's names.
    Cost:   where both have as many rows, two counts: the lake has every key of the store, so it has no other. Else, and while others
            write, all keys of both.
    """
    gone = _history(lake, ends)
    descriptor = in_lake(table.descriptor, lake.record.columns)
    keys, schema = descriptor.primary_key, lake_schema(descriptor)
    schema = pa.schema([schema.field(name).remove_metadata() for name in keys])
    if n_rows_differ(lake, table, ends) == 0:
        return schema.empty_table()
    of_store = dict(zip(keys, table.descriptor.primary_key, strict=True))

    def held() -> Iterator[pa.RecordBatch]:
        for batch in table.snapshot(list(of_store.values()), ends=ends, as_of=as_of):
            yield from to_lake(batch, schema, of_store).to_batches()

    query = f"SELECT {quoted_list(keys, 'l.')} FROM {scan_sql(lake.path, lake.delta_version)} AS l ANTI JOIN held AS h ON ("
    query += " AND ".join(f"h.{quoted(key)} = l.{quoted(key)}" for key in keys) + ")"
    if gone:
        names = ", ".join("'" + name.replace("'", "''") + "'" for name in gone)
        query += f" WHERE CAST(l.{quoted(descriptor.partition_keys[0])} AS VARCHAR) NOT IN ({names})"
    con = connect_delta()
    try:
        con.register("held", pa.RecordBatchReader.from_batches(schema, held()))
        return con.execute(query).to_arrow_table().cast(schema)
    finally:
        con.close()


def n_rows_differ(lake: LakeTable, table: Table, ends: Offsets) -> int | None:
    """How many rows more the lake has than the store at the offsets `ends`; None when the store has gone on from there."""
    if table.offsets() != ends:
        return None
    of_store = table.count()
    of_lake = lake.n_rows(in_lake(table.descriptor, lake.record.columns).partition_keys, _history(lake, ends))
    return of_lake - of_store if of_lake is not None and table.offsets() == ends else None


def _history(lake: LakeTable, ends: Offsets) -> tuple[str, ...]:
    """Partitions that only the lake has."""
    return tuple(sorted({*lake.record.detached} - {bucket.partition for bucket in ends}))
