"""Descriptor: what a table is. Values only; immutable, comparable, and JSON both ways.

Owner: the catalog (engine/catalog.py) holds the current descriptor of each table.
Holds: column order is the order of the declared columns; `field_id` never changes and is never reused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from storage_engine.schema.options import option_value
from storage_engine.schema.types import arrow_type, has_order


class Watermark(NamedTuple):
    """WATERMARK FOR column AS column - delay: of two rows of a bucket the later one is at most `delay_ms` older.

    idle_after_ms  a bucket so far behind the table's newest row holds nothing back; None: every bucket does
    """

    column: str
    delay_ms: int
    idle_after_ms: int | None = None


class TableBucket(NamedTuple):
    """A bucket of a partition. `partition` is the partition's name, "" for a table without partitions."""

    partition: str
    bucket: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.bucket}"

    @classmethod
    def parse(cls, text: str) -> TableBucket:
        partition, _, bucket = text.rpartition("/")
        return cls(partition, int(bucket))


Offsets = dict[TableBucket, int]
"""Next offset per bucket: everything below it is covered."""


@dataclass(frozen=True)
class Column:
    """One column. `type` is the SQL type as printed, for example DECIMAL(12, 2)."""

    name: str
    type: str
    nullable: bool = True
    comment: str = ""
    field_id: int = -1

    @property
    def arrow(self) -> pa.Field:
        return pa.field(self.name, arrow_type(self.type), self.nullable)


@dataclass(frozen=True)
class Computed:
    """A column that is not stored: a reader computes the expression from the row. `place`: how many stored columns stand before it."""

    name: str
    expression: str
    place: int
    comment: str = ""


@dataclass(frozen=True)
class TableDescriptor:
    """A table: columns, keys, buckets and options.

    name           "database.table"
    primary_key    column names in declared order; empty for a log table
    partition_keys one column name, or empty
    bucket_keys    columns that route a row to a bucket; empty: a batch goes to one bucket after another
    n_buckets      buckets per partition, at least 1
    options        the WITH clause as written (strings), checked against schema/options.py
    table_id       assigned by the catalog, never reused; schema_id grows with each change of columns
    computed       columns that only readers see; none of them is among `columns`
    """

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()
    partition_keys: tuple[str, ...] = ()
    bucket_keys: tuple[str, ...] = ()
    n_buckets: int = 1
    options: Mapping[str, str] = field(default_factory=dict)
    comment: str = ""
    table_id: int = -1
    schema_id: int = 0
    computed: tuple[Computed, ...] = ()

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        return pa.schema([column.arrow for column in self.columns])

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def shown_columns(self) -> tuple[Column | Computed, ...]:
        """All columns as they were declared, stored and computed ones."""
        shown: list[Column | Computed] = []
        for place in range(len(self.columns) + 1):
            shown += [item for item in self.computed if item.place == place]
            shown += self.columns[place : place + 1]
        return tuple(shown)

    @property
    def has_primary_key(self) -> bool:
        return bool(self.primary_key)

    @cached_property
    def physical_primary_key(self) -> tuple[str, ...]:
        """The primary key without the partition columns: what identifies a row inside a partition."""
        return tuple(name for name in self.primary_key if name not in self.partition_keys)

    @cached_property
    def key_schema(self) -> pa.Schema:
        """The primary key's columns as a conformed key has them: without nulls."""
        return pa.schema([pa.field(name, self.column(name).arrow.type, nullable=False) for name in self.primary_key])

    @cached_property
    def answer_schema(self) -> pa.Schema:
        """What a lookup answers: the columns, null where there is no row, and `_found`."""
        fields = [pa.field(column.name, column.arrow.type) for column in self.columns]
        return pa.schema([*fields, pa.field("_found", pa.bool_())])

    @property
    def is_prefix_lookup_possible(self) -> bool:
        """True when the bucket key is a proper prefix of the physical primary key."""
        physical = self.physical_primary_key
        n = len(self.bucket_keys)
        return 0 < n < len(physical) and physical[:n] == self.bucket_keys

    @property
    def merge_engine(self) -> str:
        """The merge engine: "last_row" (default), "first_row", "versioned" or "aggregation"."""
        return self.options.get("table.merge-engine", "last_row")

    @property
    def version_column(self) -> str | None:
        """The column by which the versioned engine chooses between two rows of a key."""
        return self.options.get("table.merge-engine.versioned.ver-column")

    @property
    def zero_column(self) -> str | None:
        """The column of an aggregation table whose 0 means that the row is gone: 'table.delete.on-zero'."""
        return self.options.get("table.delete.on-zero")

    @property
    def is_wal(self) -> bool:
        """True when the changelog has no -U: 'table.changelog.image' = 'wal'."""
        return self.options.get("table.changelog.image") == "wal"

    @property
    def auto_increment_column(self) -> str | None:
        return self.options.get("auto-increment.fields")

    @cached_property
    def watermark(self) -> Watermark | None:
        """The event time of the table's rows; None for a table without WATERMARK."""
        column = self.options.get("watermark.column")
        if column is None:
            return None
        return Watermark(column, option_value(self.options, "watermark.delay") or 0, option_value(self.options, "watermark.idle-after"))

    @cached_property
    def statistics_columns(self) -> tuple[tuple[str, int], ...]:
        """Name and field id of the columns whose least and greatest value each frame carries: `table.statistics.columns`."""
        written = self.options.get("table.statistics.columns", "")
        named = {name.strip() for name in written.split(",")}
        return tuple(
            (column.name, column.field_id)
            for column in self.columns
            if column.name in named or (written == "*" and has_order(column.arrow.type))
        )

    @property
    def is_tiered(self) -> bool:
        return self.options.get("table.datalake.enabled", "false") == "true"

    def column(self, name: str) -> Column:
        """The column of that name; KeyError if there is none."""
        for candidate in self.columns:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    def aggregate_function(self, column: str) -> str:
        """The function of a column in an aggregation table: `fields.<column>.agg`, else last_value_ignore_nulls."""
        return self.options.get(f"fields.{column}.agg", "last_value_ignore_nulls")

    def aggregate_parameter(self, column: str, parameter: str, default: str) -> str:
        """A parameter of the column's function: `fields.<column>.<function>.<parameter>`."""
        return self.options.get(f"fields.{column}.{self.aggregate_function(column)}.{parameter}", default)

    def with_options(self, **changes: Any) -> TableDescriptor:
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in _FIELDS}
        if not self.computed:  # as descriptors were written before there were any
            del plain["computed"]
        else:
            plain["computed"] = tuple(dict(vars(item)) for item in self.computed)
        return {**plain, "columns": tuple(dict(vars(column)) for column in self.columns), "options": dict(self.options)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TableDescriptor:
        known = dict(value)
        known["columns"] = tuple(Column(**column) for column in known["columns"])
        known["computed"] = tuple(Computed(**item) for item in known.get("computed", ()))
        for name in ("primary_key", "partition_keys", "bucket_keys"):
            known[name] = tuple(known[name])
        return cls(**known)


_FIELDS = tuple(each.name for each in fields(TableDescriptor))
