"""Lookups: rows by key and by prefix. Runs on the loop thread.

Holds: keys are asked in rounds of exactly LOOKUPS_AT_ONCE, the last one filled up with its own first key. The client sends a round at
       once when that many are queued, and waits 100 ms otherwise, which Python cannot change.
       One lookuper answers one call after another, so a round uses as many lookupers as it has keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from storage_engine.errors import SchemaMismatch
from storage_engine.fluss.session import LOOKUPS_AT_ONCE, OpenTable
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.rows import conform_keys, require_prefix_lookup


def selected(descriptor: TableDescriptor, columns: Sequence[str] | None) -> list[pa.Field]:
    """The fields asked for. Errors: SchemaMismatch naming an unknown column."""
    names = list(descriptor.column_names) if columns is None else list(columns)
    unknown = [name for name in names if name not in descriptor.column_names]
    if unknown:
        what = f"{descriptor.name} has no column {unknown[0]}"
        raise SchemaMismatch(what, where="columns", next_step=f"Its columns are {', '.join(descriptor.column_names)}.")
    return [descriptor.arrow_schema.field(name) for name in names]


async def lookup(table: OpenTable, keys: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """One row per key in the order of the keys, with `_found`."""
    checked = conform_keys(table.descriptor, keys)
    fields = selected(table.descriptor, columns)
    rows = await _rounds(table, (), _tuples(checked))
    found = [row is not None for row in rows]
    arrays = [pa.array([None if row is None else row[item.name] for row in rows], item.type) for item in fields]
    schema = pa.schema([pa.field(item.name, item.type) for item in fields] + [pa.field("_found", pa.bool_())])
    return pa.Table.from_arrays([*arrays, pa.array(found, pa.bool_())], schema=schema)


async def prefix_lookup(table: OpenTable, prefixes: pa.Table, columns: Sequence[str] | None, limit: int | None) -> pa.Table:
    """Rows of each prefix in the order of the prefixes, at most `limit` each (cut here: the client reads them all)."""
    descriptor = table.descriptor
    require_prefix_lookup(descriptor)
    names = (*descriptor.partition_keys, *descriptor.bucket_keys)
    fields = selected(descriptor, columns)
    checked = conform_keys(descriptor, prefixes.select(list(names)) if set(names) <= set(prefixes.column_names) else prefixes, names)
    answers = await _rounds(table, names, _tuples(checked))
    rows = [row for answer in answers for row in answer[:limit]]
    return pa.Table.from_arrays([pa.array([row[item.name] for row in rows], item.type) for item in fields], schema=pa.schema(fields))


def _tuples(keys: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in keys.columns), strict=True))


async def _rounds(table: OpenTable, by: tuple[str, ...], keys: list[tuple[Any, ...]]) -> list[Any]:
    answers: list[Any] = []
    async with table.lookup_turn:
        lookupers = _lookupers(table, by) if keys else []
        for begin in range(0, len(keys), LOOKUPS_AT_ONCE):
            mine = keys[begin : begin + LOOKUPS_AT_ONCE]
            filled = mine + [mine[0]] * (LOOKUPS_AT_ONCE - len(mine))
            asked = [lookuper.lookup(key) for lookuper, key in zip(lookupers, filled, strict=True)]
            answers += (await asyncio.gather(*asked))[: len(mine)]
    return answers


def _lookupers(table: OpenTable, by: tuple[str, ...]) -> list[Any]:
    if by not in table.lookupers:
        builder = table.handle.new_lookup()
        table.lookupers[by] = [(builder.lookup_by(list(by)) if by else builder).create_lookuper() for _ in range(LOOKUPS_AT_ONCE)]
    return table.lookupers[by]
