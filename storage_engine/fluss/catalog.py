"""Catalog: tables of the cluster, made, listed and dropped. Runs on the loop thread.

Holds: a table is handed out only when every bucket of it answers.
"""

from __future__ import annotations

import asyncio
from typing import Any

import fluss

from storage_engine.errors import AlreadyExists, InvalidPartition, StoreUnavailable, UnknownTable
from storage_engine.fluss.mapping import definition_of, descriptor_of, path_of
from storage_engine.fluss.session import FlussSession
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.partitions import check_partition_name, partition_values_of

RECREATE_S = 1.0
LEADERS_S = 8.0
ATTEMPTS = 3


async def create_table(
    session: FlussSession, descriptor: TableDescriptor, wait_s: float, backend: str, *, if_not_exists: bool
) -> TableDescriptor:
    """Make a table, and its database if there is none. Errors: AlreadyExists; UnsupportedByBackend; what validate() refuses."""
    definition = definition_of(descriptor, backend=backend)
    admin = await session.admin()
    path = fluss.TablePath(definition.database, definition.table)
    await asyncio.sleep(wait_s)
    await admin.create_database(definition.database, ignore_if_exists=True)
    if await admin.table_exists(path):
        if if_not_exists:
            return (await session.table(descriptor.name)).descriptor
        raise AlreadyExists(
            f"table {descriptor.name} exists", where="catalog", next_step="Write CREATE TABLE IF NOT EXISTS, or drop it first."
        )
    schema = fluss.Schema(definition.schema, primary_keys=definition.primary_key or None, auto_increment_column=definition.auto_increment)
    # pyfluss wants these left out, not None
    optional: dict[str, Any] = {
        "bucket_keys": definition.bucket_keys,
        "partition_keys": definition.partition_keys,
        "comment": definition.comment,
    }
    described = fluss.TableDescriptor(
        schema,
        bucket_count=definition.n_buckets,
        properties=definition.properties,
        custom_properties=definition.custom_properties,
        **{name: value for name, value in optional.items() if value},
    )
    for attempt in range(ATTEMPTS):
        await (await session.admin()).create_table(path, described, ignore_if_exists=False)
        table = await session.table(descriptor.name)
        try:
            await session.await_leaders(table, [] if definition.partition_keys else None, LEADERS_S)
            break
        except StoreUnavailable:
            # The coordinator sometimes misses that a table was made, and no bucket of it gets a leader (docs/fluss.md). Nobody can have
            # written to it: make it again.
            if attempt == ATTEMPTS - 1 or await session.has_leader(table):
                raise
            await (await session.admin()).drop_table(path)
            await asyncio.sleep(RECREATE_S)
    return (await session.table(descriptor.name)).descriptor


async def drop_table(session: FlussSession, name: str) -> None:
    """Errors: UnknownTable."""
    table = await session.table(name)
    await (await session.admin()).drop_table(table.path)


async def create_partition(session: FlussSession, name: str, partition: str, timeout_s: float, *, if_not_exists: bool) -> None:
    """Errors: UnknownTable; AlreadyExists; InvalidPartition for a name that can never hold a row."""
    table = await session.table(name)
    descriptor = table.descriptor
    if not descriptor.partition_keys:
        raise InvalidPartition(f"{name} has no partitions", where=name, next_step="Partition it when it is created.")
    check_partition_name(partition, where=name)
    partition_values_of([partition], descriptor.column(descriptor.partition_keys[0]).arrow.type)
    if partition in await session.partitions(table):
        if if_not_exists:
            return
        raise AlreadyExists(f"{name} has a partition {partition}", where=name, next_step="Write ADD IF NOT EXISTS PARTITION.")
    await (await session.admin()).create_partition(table.path, {descriptor.partition_keys[0]: partition}, ignore_if_exists=if_not_exists)
    await session.await_leaders(table, [partition], timeout_s)


async def drop_partition(session: FlussSession, name: str, partition: str) -> None:
    """Errors: UnknownTable; InvalidPartition naming those that are there."""
    table = await session.table(name)
    known = await session.partitions(table)
    if partition not in known:
        raise InvalidPartition(f"{name} has no partition {partition!r}", where=name, next_step=f"Its partitions are {sorted(known)[:20]}.")
    await (await session.admin()).drop_partition(table.path, {table.descriptor.partition_keys[0]: partition})


async def tables(session: FlussSession) -> list[TableDescriptor]:
    """Every table of every database; one that is dropped meanwhile is left out."""
    admin = await session.admin()
    databases = await admin.list_databases()
    listed = await asyncio.gather(*(admin.list_tables(database) for database in databases), return_exceptions=True)
    names = [f"{database}.{table}" for database, found in zip(databases, listed, strict=True) if isinstance(found, list) for table in found]
    described = await asyncio.gather(*(_described(admin, name) for name in names))
    return [descriptor for descriptor in described if descriptor is not None]


async def _described(admin: fluss.FlussAdmin, name: str) -> TableDescriptor | None:
    try:
        return descriptor_of(name, await admin.get_table_info(fluss.TablePath(*path_of(name))))
    except (UnknownTable, fluss.FlussError):
        return None
