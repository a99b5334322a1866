"""A naive primary-key table, row by row on Python dicts: what the vectorised bucket is held against."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from pyroaring import BitMap, BitMap64

from storage_engine.kv import KvChange
from storage_engine.log.frame import CHANGE_TYPE_NAMES
from storage_engine.schema.descriptor import Column, TableDescriptor

Row = dict[str, Any]
Key = tuple[Any, ...]


class RowLog:
    """The changelog of one bucket in memory: appends changes, serves rows by offset, forgets what is cut off."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.frames: list[tuple[int, np.ndarray, pa.Table]] = []
        self.end_offset = 0

    def append(self, change: KvChange) -> int:
        base = self.end_offset
        if change.n_rows:
            assert change.batch.schema == self.schema
            self.frames.append((base, change.change_types, change.rows))
        self.end_offset = base + change.n_rows
        return base

    def cut(self, end_offset: int) -> None:
        self.frames = [frame for frame in self.frames if frame[0] < end_offset]
        self.end_offset = end_offset

    def fetch(self, offsets: np.ndarray, columns: list[str] | None = None, /) -> pa.Table:
        assert len(offsets)
        assert offsets.min() >= 0
        assert offsets.max() < self.end_offset
        rows = pa.concat_tables([rows for _, _, rows in self.frames]).take(pa.array(offsets))
        return rows if columns is None else rows.select(columns)


class NaiveTable:
    """Current rows by key. Each write applies its rows one after the other and answers the net changes, one entry per key."""

    def __init__(self, descriptor: TableDescriptor) -> None:
        self.descriptor = descriptor
        self.rows: dict[Key, Row] = {}
        self.last_id = 0

    def key_of(self, row: Row) -> Key:
        return tuple(row[name] for name in self.descriptor.physical_primary_key)

    def upsert(self, rows: list[Row], targets: list[str] | None) -> dict[Key, list[tuple[str, Row]]]:
        before = dict(self.rows)
        touched = []
        for row in rows:
            touched.append(self.key_of(row))
            self._upsert_row(row, targets)
        self._drop_zeros(touched)
        whole = targets is None or set(targets) == set(self.descriptor.column_names)
        is_plain = self.descriptor.merge_engine == "last_row" and self.descriptor.auto_increment_column is None
        if whole and is_plain and self.descriptor.is_wal:
            return {key: [("+U", self.rows[key])] for key in touched}
        return self._net(before, touched)

    def retract(self, rows: list[Row]) -> dict[Key, list[tuple[str, Row]]]:
        before, touched = dict(self.rows), []
        for row in rows:
            key = self.key_of(row)
            touched.append(key)
            new = dict(self.rows.get(key) or {name: row[name] if name in ("k1", "k2") else None for name in row})
            for name, value in row.items():
                if name not in self.descriptor.primary_key and value is not None:
                    new[name] = (new[name] or 0) - (1 if self.descriptor.aggregate_function(name) == "count" else value)
            self.rows[key] = new
        self._drop_zeros(touched)
        return self._net(before, touched)

    def _drop_zeros(self, touched: list[Key]) -> None:
        zero = self.descriptor.zero_column
        for key in touched:
            if zero is not None and key in self.rows and self.rows[key][zero] == 0:
                del self.rows[key]

    def delete(self, rows: list[Row], targets: list[str] | None) -> dict[Key, list[tuple[str, Row]]]:
        before = dict(self.rows)
        touched = []
        for row in rows:
            key = self.key_of(row)
            touched.append(key)
            self._delete_row(key, targets)
        return self._net(before, touched)

    def _upsert_row(self, row: Row, targets: list[str] | None) -> None:
        descriptor, key = self.descriptor, self.key_of(row)
        old = self.rows.get(key)
        if old is not None and not self._replaces(row, old):
            return
        new: Row = {}
        for column in descriptor.columns:
            name = column.name
            stored = None if old is None else old[name]
            if name in descriptor.primary_key:
                new[name] = row[name]
            elif name == descriptor.auto_increment_column:
                if old is None:
                    self.last_id += 1
                    stored = self.last_id
                new[name] = stored
            elif targets is not None and name not in targets:
                new[name] = stored
            elif descriptor.merge_engine != "aggregation":
                new[name] = row[name]
            else:
                delimiter = descriptor.options.get(f"fields.{name}.listagg.delimiter", ",")
                new[name] = merge(descriptor.aggregate_function(name), stored, row[name], delimiter)
        self.rows[key] = new

    def _replaces(self, row: Row, old: Row) -> bool:
        """Under an engine that keeps whole rows: the new one comes instead of the old one."""
        if self.descriptor.merge_engine == "first_row":
            return False
        if self.descriptor.merge_engine == "versioned":
            new_version, old_version = row[self.descriptor.version_column], old[self.descriptor.version_column]
            return new_version is not None and (old_version is None or new_version >= old_version)
        return True

    def _delete_row(self, key: Key, targets: list[str] | None) -> None:
        descriptor = self.descriptor
        if descriptor.merge_engine != "last_row" and descriptor.options.get("table.delete.behavior") != "allow":
            return
        row = self.rows.get(key)
        if row is None:
            return
        others = [
            name for name in descriptor.column_names if name not in descriptor.primary_key and targets is not None and name not in targets
        ]
        if all(row[name] is None for name in others):
            del self.rows[key]
        else:
            self.rows[key] = {name: value if name in others or name in descriptor.primary_key else None for name, value in row.items()}

    def _net(self, before: dict[Key, Row], touched: list[Key]) -> dict[Key, list[tuple[str, Row]]]:
        changes: dict[Key, list[tuple[str, Row]]] = {}
        for key in dict.fromkeys(touched):
            old, new = before.get(key), self.rows.get(key)
            if old is None and new is not None:
                changes[key] = [("+I", new)]
            elif old is not None and new is None:
                changes[key] = [("-D", old)]
            elif old is not None and new is not None and comparable(old) != comparable(new):
                changes[key] = [("+U", new)] if self.descriptor.is_wal else [("-U", old), ("+U", new)]
        return changes


def merge(function: str, stored: Any, incoming: Any, delimiter: str = ",") -> Any:  # noqa: C901 - one case per function
    if function == "last_value":
        return incoming
    if function == "count":
        return stored if incoming is None else (stored or 0) + 1
    if incoming is None:
        return stored
    if stored is None:
        return incoming
    match function:
        case "sum":
            return stored + incoming
        case "product":
            if isinstance(stored, Decimal):
                return (stored * incoming).quantize(incoming, ROUND_HALF_UP)
            return stored * incoming
        case "listagg":
            return stored + delimiter + incoming
        case "bool_and":
            return stored and incoming
        case "bool_or":
            return stored or incoming
        case "rbm64":
            return (BitMap64.deserialize(stored) | BitMap64.deserialize(incoming)).serialize()
        case "max":
            return max(stored, incoming)
        case "min":
            return min(stored, incoming)
        case "last_value_ignore_nulls":
            return incoming
        case "first_value" | "first_value_ignore_nulls":
            return stored
        case "rbm32":
            return (BitMap.deserialize(stored) | BitMap.deserialize(incoming)).serialize()
    raise AssertionError(function)


def comparable(row: Row) -> Row:
    """Bitmaps by their members: one set has several encodings, all of them right."""
    members = {"rb": BitMap.deserialize, "rb64": BitMap64.deserialize}
    return {name: frozenset(members[name](value)) if name in members and value is not None else value for name, value in row.items()}


def changes_of(change: KvChange, key_names: tuple[str, ...], *, is_wal: bool = False) -> dict[Key, list[tuple[str, Row]]]:
    """The changes by key, in their order."""
    out: dict[Key, list[tuple[str, Row]]] = {}
    names = [CHANGE_TYPE_NAMES[code] for code in change.change_types]
    for at, (name, row) in enumerate(zip(names, change.rows.to_pylist(), strict=True)):
        key = tuple(row[part] for part in key_names)
        if name == "+U" and not is_wal:
            assert names[at - 1] == "-U", "a +U follows its -U"
        out.setdefault(key, []).append((name, comparable(row)))
    return out


def bitmap(*members: int) -> bytes:
    return BitMap(members).serialize()


def bitmap64(*members: int) -> bytes:
    return BitMap64(members).serialize()


def table(engine: str, **options: str) -> TableDescriptor:
    """The tables of these tests: a two-column key with a prefix, and one column per kind of value."""
    columns = [Column("k1", "INT", nullable=False), Column("k2", "STRING", nullable=False)]
    if engine in ("last_row", "first_row", "versioned"):
        if engine == "versioned":
            options = {"table.merge-engine.versioned.ver-column": "a", **options}
        if engine != "last_row":
            options = {"table.merge-engine": engine, **options}
        columns += [
            Column("a", "BIGINT"),
            Column("s", "STRING"),
            Column("d", "DECIMAL(12, 2)"),
            Column("f", "DOUBLE"),
            Column("b", "BOOLEAN"),
            Column("at", "TIMESTAMP_LTZ(3)"),
            Column("n", "INT"),
        ]
    elif engine == "auto_increment":
        columns += [Column("uid", "INT"), Column("a", "BIGINT")]
        options = {**options, "auto-increment.fields": "uid"}
    else:
        functions = {
            "total": ("BIGINT", "sum"), "money": ("DECIMAL(12, 2)", "sum"), "small": ("INT", "sum"), "ratio": ("DOUBLE", "sum"),
            "high": ("BIGINT", "max"), "late": ("TIMESTAMP_LTZ(3)", "max"), "low": ("STRING", "min"), "day": ("DATE", "min"),
            "last": ("STRING", "last_value"), "last_set": ("BIGINT", "last_value_ignore_nulls"),
            "first": ("STRING", "first_value"), "first_set": ("BIGINT", "first_value_ignore_nulls"), "rb": ("BYTES", "rbm32"),
            "rb64": ("BYTES", "rbm64"), "factor": ("BIGINT", "product"), "scale": ("DECIMAL(18, 2)", "product"),
            "gain": ("DOUBLE", "product"), "seen": ("BIGINT", "count"), "times": ("INT", "count"), "texts": ("STRING", "listagg"),
            "paths": ("STRING", "listagg"), "every": ("BOOLEAN", "bool_and"), "some": ("BOOLEAN", "bool_or"),
        }  # fmt: skip
        columns += [Column(name, sql_type) for name, (sql_type, _) in functions.items()]
        options = {**options, "fields.paths.listagg.delimiter": " / "}
        options = {**options, "table.merge-engine": "aggregation", **{f"fields.{name}.agg": f for name, (_, f) in functions.items()}}
    return TableDescriptor("t.t", tuple(columns), primary_key=("k1", "k2"), bucket_keys=("k1",), options=options)


def money(cents: int) -> Decimal:
    return Decimal(cents).scaleb(-2)
