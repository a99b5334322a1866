"""Mapping: a table's descriptor as Fluss keeps it, and back. Pure.

Format: the descriptor travels as JSON in the custom property `flashlake.descriptor`, beside what Fluss itself understands, so that a
        table made here comes back as it was written. A table made by others is read from its columns, keys and properties.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from storage_engine.errors import UserError
from storage_engine.fluss.features import refused
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.schema.validate import validate

DESCRIPTOR_PROPERTY = "flashlake.descriptor"
LATE_ROWS = "table.auto-partition.late-rows"
_STRUCTURAL = ("bucket.num", "bucket.key", "auto-increment.fields")
_ENUMS = (
    "table.delete.behavior", "table.changelog.image", "table.log.format", "table.kv.format", "table.log.arrow.compression.type",
    "table.auto-partition.time-unit", "table.merge-engine",
)  # fmt: skip


@dataclass(frozen=True)
class FlussDefinition:
    """What pyfluss needs to make a table."""

    database: str
    table: str
    schema: pa.Schema
    primary_key: list[str]
    auto_increment: str | None
    partition_keys: list[str]
    bucket_keys: list[str]
    n_buckets: int
    comment: str
    properties: dict[str, str]
    custom_properties: dict[str, str]


def path_of(name: str) -> tuple[str, str]:
    """Database and table of a name.

    >>> path_of("shop.orders")
    ('shop', 'orders')
    """
    database, dot, table = name.partition(".")
    if not dot or not database or not table:
        raise UserError(f"{name!r} is not database.table", where="table name", next_step="Write the database's name, a dot, the table's.")
    return database, table


def definition_of(descriptor: TableDescriptor, *, backend: str) -> FlussDefinition:
    """The table for Fluss. Errors: UnsupportedByBackend for aggregation, statistics and tiering; what validate() refuses."""
    checked = validate(descriptor)
    if checked.merge_engine == "aggregation" or any(name.startswith("fields.") for name in checked.options):
        raise refused("aggregation", backend=backend)
    if checked.computed:
        raise refused("computed_columns", backend=backend)
    if checked.options.get(LATE_ROWS) == "drop":
        raise refused("late_rows", backend=backend)
    if any(name.startswith("table.datalake.") and value != "false" for name, value in checked.options.items()):
        raise refused("tiering", backend=backend)
    if checked.options.get("table.statistics.columns"):
        raise refused("statistics", backend=backend)
    database, table = path_of(checked.name)
    columns = tuple(replace(column, field_id=i) for i, column in enumerate(checked.columns))
    stored = replace(checked, columns=columns, table_id=-1, schema_id=0)
    custom = {name: value for name, value in checked.options.items() if name.startswith(("asset.", "client."))}
    custom[DESCRIPTOR_PROPERTY] = json.dumps(stored.to_json(), separators=(",", ":"))
    return FlussDefinition(
        database,
        table,
        checked.arrow_schema,
        list(checked.primary_key),
        checked.auto_increment_column,
        list(checked.partition_keys),
        list(checked.bucket_keys),
        checked.n_buckets,
        checked.comment,
        properties_of(checked.options),
        custom,
    )


def properties_of(options: Mapping[str, str]) -> dict[str, str]:
    """The options that Fluss itself reads, its enums in capitals.

    >>> properties_of({"bucket.num": "2", "asset.owner": "me", "table.changelog.image": "full"})
    {'table.changelog.image': 'FULL'}
    """
    kept = {}
    for name, value in options.items():
        if name in _STRUCTURAL or name == LATE_ROWS or name.startswith(("asset.", "client.", "fields.", "table.datalake.", "watermark.")):
            continue
        kept[name] = value.upper() if name in _ENUMS else value
    return kept


def descriptor_of(name: str, info: Any) -> TableDescriptor:
    """The descriptor of a table that exists; `info` is a fluss.TableInfo (or has its members)."""
    written = info.get_custom_properties().get(DESCRIPTOR_PROPERTY)
    if written is not None:
        return replace(TableDescriptor.from_json(json.loads(written)), name=name, table_id=info.table_id, schema_id=info.schema_id)
    schema = info.get_schema()
    columns = []
    for position, (column, written_type) in enumerate(schema.get_columns()):
        kind = written_type.upper()
        is_nullable = not kind.endswith(" NOT NULL")
        columns.append(Column(column, kind.removesuffix(" NOT NULL"), is_nullable, field_id=position))
    options = {**info.get_custom_properties(), **info.get_properties()}
    auto = schema.get_auto_increment_columns()
    if auto:
        options["auto-increment.fields"] = auto[0]
    return TableDescriptor(
        name,
        tuple(columns),
        tuple(info.get_primary_keys()),
        tuple(info.get_partition_keys()),
        tuple(info.get_bucket_keys()),
        info.num_buckets,
        options,
        info.comment or "",
        info.table_id,
        info.schema_id,
    )
