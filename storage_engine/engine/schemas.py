"""Schemas: how the frames of a table read, whichever of its schemas they were written under. A column is its field id.

Owner: TableState holds the present one; a change of columns makes a new value, so that a read under way goes on with the one it began with.
Holds: a frame's columns are renamed by id, columns it lacks are null, dropped ones are not read, narrower ones are widened. What a
       frame holds is never rewritten for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from storage_engine.engine.rows import adapt
from storage_engine.errors import SchemaMismatch
from storage_engine.log.frame import decode_batch
from storage_engine.log.pruning import MessagePruner, pruner_of
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.types import arrow_type


class StoredColumn(NamedTuple):
    """A column as frames of one schema hold it: its id, its SQL type and the name it had."""

    field_id: int
    type: str
    name: str


class FrameColumns(NamedTuple):
    """What a fetch answers of the frames of one schema: present names, stored SQL types, and what cuts messages down (None: nothing)."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    pruner: MessagePruner | None


@dataclass(frozen=True)
class Schemas:
    """The present descriptor of a table and, per schema id, the columns that frames of it hold, in their order."""

    descriptor: TableDescriptor
    stored: Mapping[int, tuple[StoredColumn, ...]]
    _arrow: dict[int, pa.Schema] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, descriptor: TableDescriptor) -> Schemas:
        """The schemas of a new table."""
        return cls(descriptor, {descriptor.schema_id: _columns_of(descriptor)})

    def after(self, descriptor: TableDescriptor) -> Schemas:
        """The schemas after an ALTER TABLE that made `descriptor`."""
        return Schemas(descriptor, {**self.stored, descriptor.schema_id: _columns_of(descriptor)})

    @property
    def next_field_id(self) -> int:
        """An id that no column of the table has ever had."""
        return 1 + max(column.field_id for columns in self.stored.values() for column in columns)

    # frames

    def arrow_schema(self, schema_id: int) -> pa.Schema:
        """What messages of a schema decode with: present names, stored types. Dropped columns have names that no column can have."""
        found = self._arrow.get(schema_id)
        if found is None:
            living = {column.field_id: column for column in self.descriptor.columns}
            fields = []
            for stored in self.stored[schema_id]:
                column = living.get(stored.field_id)
                name, nullable = (f"__dropped_{stored.field_id}", True) if column is None else (column.name, column.nullable)
                fields.append(pa.field(name, arrow_type(stored.type), nullable))
            found = self._arrow[schema_id] = pa.schema(fields)
        return found

    def decode(self, message: pa.Buffer, schema_id: int) -> pa.RecordBatch:
        """The rows of a stored message of any schema of the table, in its present columns. Errors: DamagedFrame."""
        return adapt(decode_batch(message, self.arrow_schema(schema_id)), self.descriptor.arrow_schema)

    def frame_columns(self, schema_id: int, columns: Sequence[str] | None) -> FrameColumns:
        """What frames of a schema answer of `columns` (None: all present ones). A frame that has none of them keeps one, for its rows."""
        schema = self.arrow_schema(schema_id)
        wanted = set(self.descriptor.column_names if columns is None else columns)
        keep = [i for i, name in enumerate(schema.names) if name in wanted] or [0]
        names = tuple(schema.names[i] for i in keep)
        types = tuple(self.stored[schema_id][i].type for i in keep)
        return FrameColumns(names, types, None if len(keep) == len(schema) else pruner_of(schema, tuple(keep)))

    # names

    def require(self, columns: Sequence[str]) -> None:
        """Errors: SchemaMismatch for the first name that is no present column; it says when the column was renamed or dropped."""
        known = self.descriptor.column_names
        for name in columns:
            if name not in known:
                raise self.gone(name) or SchemaMismatch(
                    f"{self.descriptor.name} has no column {name}", where="columns", next_step=f"Its columns are {', '.join(known)}."
                )

    def gone(self, name: str) -> SchemaMismatch | None:
        """The error for a column that the table had under this name; None when it has or had none."""
        if name in self.descriptor.column_names:
            return None
        for schema_id in sorted(self.stored, reverse=True):
            former = next((column for column in self.stored[schema_id] if column.name == name), None)
            if former is not None:
                now = next((column.name for column in self.descriptor.columns if column.field_id == former.field_id), None)
                became = f"renamed to {now}" if now is not None else "dropped"
                return SchemaMismatch(
                    f"column {name} of {self.descriptor.name} was {became}",
                    where=f"table {self.descriptor.name}",
                    next_step="Open the table again to see its present columns.",
                )
        return None

    # checkpoint

    def to_json(self) -> list[Any]:
        return [[schema_id, [list(column) for column in columns]] for schema_id, columns in self.stored.items()]

    @classmethod
    def from_json(cls, descriptor: TableDescriptor, value: Sequence[Any]) -> Schemas:
        """The inverse of to_json. A number instead of columns is how many of the first columns a schema had, from before they
        could be renamed, dropped or retyped.
        """
        columns = _columns_of(descriptor)
        stored = {
            int(schema_id): columns[:of] if isinstance(of, int) else tuple(StoredColumn(*column) for column in of)
            for schema_id, of in value
        }
        return cls(descriptor, stored)


def _columns_of(descriptor: TableDescriptor) -> tuple[StoredColumn, ...]:
    return tuple(StoredColumn(column.field_id, column.type, column.name) for column in descriptor.columns)
