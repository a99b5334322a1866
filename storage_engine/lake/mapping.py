"""Mapping: which column of a lake table holds which column of the store's table. Pure.

A lake column keeps its name for ever, because files and other readers' queries know it by that name; a column of the store is its field
id. So a renamed column stays under its first name in the lake, a dropped one stays there with its old values (null in rows written
since), and a new one whose name is taken gets its field id behind it: `note_7`. Each commit of the tierer records the mapping
(record.py); union reads answer in the store's names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from storage_engine.lake.columns import quoted
from storage_engine.schema.descriptor import TableDescriptor

LakeColumns = Mapping[int, str]
"""Field id -> the name of its column in the lake."""


def first_columns(descriptor: TableDescriptor) -> dict[int, str]:
    """The mapping of a table that comes into the lake: every column under the name it has."""
    return {column.field_id: column.name for column in descriptor.columns}


def with_new_columns(descriptor: TableDescriptor, held: LakeColumns, taken: Collection[str]) -> dict[int, str]:
    """The mapping with the columns that the lake lacks, each under a name that is not among those `taken`."""
    names = dict(held)
    for column in descriptor.columns:
        if column.field_id in names:
            continue
        name = column.name if column.name not in taken else f"{column.name}_{column.field_id}"
        while name in taken or name in names.values():
            name += "_"
        names[column.field_id] = name
    return names


def in_lake(descriptor: TableDescriptor, held: LakeColumns) -> TableDescriptor:
    """The table as the lake has it: the columns that both have, under the lake's names; keys likewise."""
    names = {column.name: held[column.field_id] for column in descriptor.columns if column.field_id in held}
    return replace(
        descriptor,
        columns=tuple(replace(column, name=names[column.name]) for column in descriptor.columns if column.name in names),
        primary_key=tuple(names[name] for name in descriptor.primary_key),
        partition_keys=tuple(names[name] for name in descriptor.partition_keys),
        bucket_keys=tuple(names[name] for name in descriptor.bucket_keys),
    )


def sources(descriptor: TableDescriptor, held: LakeColumns) -> dict[str, str | None]:
    """Lake column -> the store's column that fills it; None: it was dropped there and is null from now on."""
    living = {column.field_id: column.name for column in descriptor.columns}
    return {name: living.get(field_id) for field_id, name in held.items()}


def select_list(descriptor: TableDescriptor, held: LakeColumns, prefix: str = "") -> str:
    """SQL for the columns that both have, from the lake's names to the store's, in the store's order."""
    pairs = [(held[column.field_id], column.name) for column in descriptor.columns if column.field_id in held]
    return ", ".join(f"{prefix}{quoted(name)} AS {quoted(of_store)}" for name, of_store in pairs)
