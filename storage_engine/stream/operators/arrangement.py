"""Arrangement: how the rows of a KeptSide lie in a state table of the job: found by key, told apart by an identity.

    g0, g1, ... [, g_nulls]   the fields the rows are asked by, as a primary key can hold them (placement.key_columns)
    i0, i1, ...               what tells rows of one key apart: the input's unique key; a row's place in its log; else a digest of the
                              whole row, and then equal rows are one with a count
    n                         the count, only with a digest
    f0, f1, ...               the fields that are not there already

Decides only: tables and SQL. keyed.py runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sqlglot import exp

from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.stream.dialect.render import column, sql
from storage_engine.stream.dialect.sqltypes import BIGINT, INT, STRING
from storage_engine.stream.functions.aggregates import WEIGHT
from storage_engine.stream.operators.compile import POSITION, quoted, relation
from storage_engine.stream.plan.placement import NULL_MASK, as_key, key_columns
from storage_engine.stream.plan.tree import Field, KeptSide, is_positioned

COUNT = "n"
_POSITION_FIELDS = tuple(Field(name, kind, nullable=False) for name, kind in zip(POSITION, (BIGINT, STRING, INT, BIGINT), strict=True))
Identity = Literal["key", "position", "digest"]


@dataclass(frozen=True)
class Arrangement:
    """The state table of one KeptSide.

    keys      column of the table -> expression over the side's fields
    identity  column of the table -> expression over the side's fields (and POSITION)
    columns   column of the table -> field (or POSITION column) that it holds
    """

    side: KeptSide
    kind: Identity
    table: TableDescriptor
    keys: tuple[tuple[str, exp.Expr], ...]
    identity: tuple[tuple[str, str], ...]
    columns: tuple[tuple[str, str], ...]

    @property
    def names(self) -> list[str]:
        """The side's fields, and POSITION where rows have one."""
        return [name for _, name in self.columns]

    def changes(self) -> str:
        """The micro-batch's net changes of the side: its fields and WEIGHT."""
        listed = ", ".join(quoted(name) for name in self.names)
        carried = POSITION if self.kind == "position" else ()
        body = relation(self.side.node, carried=carried)
        if not self.side.keeps_nulls:
            body = f"SELECT * FROM ({body}) WHERE {' AND '.join(f'{quoted(name)} IS NOT NULL' for name in self.side.on)}"
        if not self.side.node.is_retracting and self.kind == "position":
            return f"SELECT {listed}, CAST(1 AS BIGINT) AS {quoted(WEIGHT)} FROM ({body})"
        weight = f"sum({quoted(WEIGHT)})" if self.side.node.is_retracting else "count(*)"
        return f"SELECT {listed}, CAST({weight} AS BIGINT) AS {quoted(WEIGHT)} FROM ({body}) GROUP BY {listed} HAVING {weight} <> 0"

    def state_rows(self, changes: str) -> str:
        """The rows of `changes` as the table holds them, with WEIGHT; only the last state of each identity (a +1 beats a -1)."""
        listed = [f"{sql(tree)} AS {quoted(name)}" for name, tree in self.keys]
        listed += [f"{text} AS {quoted(name)}" for name, text in self.identity]
        listed += [f"{quoted(field)} AS {quoted(name)}" for name, field in self.columns if name not in self.table.primary_key]
        body = f"SELECT {', '.join(listed)}, {quoted(WEIGHT)} FROM {changes}"
        if self.kind in ("digest", "position"):  # a row of a log comes once
            return body
        by = ", ".join(quoted(name) for name in self.table.primary_key)
        return f"SELECT * FROM ({body}) QUALIFY row_number() OVER (PARTITION BY {by} ORDER BY {quoted(WEIGHT)} DESC) = 1"

    def asked(self, touched: str, names: tuple[str, ...]) -> str:
        """The distinct keys to look up, from a relation whose columns `names` are the values of the side's fields `on`."""
        renamed = ", ".join(f"{quoted(name)} AS {quoted(field)}" for name, field in zip(names, self.side.on, strict=True)) or "1 AS __one"
        listed = ", ".join(f"{sql(tree)} AS {quoted(name)}" for name, tree in self.keys)
        return f"SELECT DISTINCT {listed} FROM (SELECT {renamed} FROM {touched})"

    @property
    def is_prefix(self) -> bool:
        return len(self.keys) < len(self.table.primary_key)


def arrange(side: KeptSide, prefix: str, n_buckets: int) -> Arrangement:
    """The state table `prefix` for a side."""
    fields = {item.name: item for item in side.node.fields}
    keys = key_columns(tuple(replace(fields[name], nullable=fields[name].nullable and side.keeps_nulls) for name in side.on))
    unique = side.node.unique_key
    position = is_positioned(side.node)
    identity: list[tuple[str, str]] = []
    kinds: list[str] = []
    kind: Identity = "digest"
    if unique is not None and all(not fields[name].nullable for name in unique):
        kind = "key"
        for name in unique:
            if name not in side.on:
                identity.append((f"i{len(identity)}", sql(as_key(column(name), fields[name].type))))
                kinds.append(str(fields[name].type))
    elif position:
        kind = "position"
        identity = [(f"i{i}", quoted(name)) for i, name in enumerate(POSITION)]
        kinds = [str(item.type) for item in _POSITION_FIELDS]
    else:
        identity = [("i0", _digest(tuple(fields.values())))]
        kinds = ["STRING"]
    held = [*fields.values(), *(_POSITION_FIELDS if kind == "position" else ())]
    there = {name: f"g{i}" for i, name in enumerate(side.on) if not (fields[name].nullable and side.keeps_nulls)}
    there |= {item.name: name for item in held for name, text in identity if text == sql(as_key(column(item.name), item.type))}
    columns = tuple((there.get(item.name, f"f{i}"), item.name) for i, item in enumerate(held))
    declared = {f"g{i}": str(fields[name].type) for i, name in enumerate(side.on)} | {NULL_MASK: "INT"}
    described = [Column(name, declared.get(name, "INT"), nullable=False) for name, _ in keys]
    described += [Column(name, kind_of, nullable=False) for (name, _), kind_of in zip(identity, kinds, strict=True)]
    described += [Column(COUNT, "BIGINT")] if kind == "digest" else []
    described += [Column(name, str(item.type)) for (name, _), item in zip(columns, held, strict=True) if item.name not in there]
    names = tuple(name for name, _ in keys)
    table = TableDescriptor(
        prefix, tuple(described), (*names, *(name for name, _ in identity)), (), names, n_buckets, {},
        comment="Rows that a stream job keeps; written by the job only",
    )  # fmt: skip
    return Arrangement(side, kind, table, keys, tuple(identity), columns)


def _digest(fields: tuple[Field, ...]) -> str:
    """A digest of the whole row: each value with its length, so that no two rows are written alike."""
    values = [f"CAST({sql(as_key(column(item.name), item.type))} AS VARCHAR)" for item in fields]
    parts = [f"COALESCE(CONCAT(LENGTH({value}), ':', {value}), '-')" for value in values]
    return f"md5(CONCAT({', '.join(parts)}))"
