"""Scope: the columns that a SELECT's expressions can name, and those that JOIN ... USING and NATURAL JOIN make one of two.

A merged column has no table: by its bare name it is the left one's value, the right one's of a RIGHT JOIN, and of a FULL JOIN the one that
is there. `SELECT *` has it once, before all others; alias.column and alias.* are still the table's own.
Source: Calcite's SqlValidatorImpl (Permute, expandCommonColumn), which is Flink's.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from sqlglot import exp

from storage_engine.errors import StatementRefused
from storage_engine.stream.dialect.render import cast, column, render
from storage_engine.stream.dialect.sqltypes import PROCTIME, SqlType, common_type
from storage_engine.stream.dialect.syntax import text_of
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.plan.tree import Field, is_hidden


@dataclass(frozen=True)
class Merged:
    """A column of two: `left` and `right` are the places of columns in the scope, or merged ones themselves."""

    name: str
    left: int | Merged
    right: int | Merged
    side: str
    made: Field | None = None
    """The field that holds its value, where one does."""


@dataclass(frozen=True)
class _Joined:
    """A join with merged columns: which columns of the scope are its right side's."""

    start: int
    stop: int
    merged: tuple[Merged, ...]


@dataclass
class Scope:
    """The columns that a SELECT's expressions can name: (alias, column) -> field."""

    where: str
    columns: list[tuple[str, str, Field]] = field(default_factory=list)
    _joined: list[_Joined] = field(default_factory=list)

    def add(self, alias: str, names: Sequence[str], fields: Sequence[Field]) -> None:
        if any(alias == known for known, _, _ in self.columns):
            raise StatementRefused(f"alias {alias} is used twice in FROM", where=self.where, next_step="Give each table its own alias.")
        self.columns.extend((alias, name, item) for name, item in zip(names, fields, strict=True))

    def rename(self, alias: str, names: Sequence[str]) -> None:
        """Give the columns of an alias other names, in their order. Errors: StatementRefused for another number of names."""
        theirs = [i for i, (known, name, _) in enumerate(self.columns) if known == alias and not is_hidden(name)]
        if len(theirs) != len(names):
            what = f"{alias} names {len(names)} columns, there are {len(theirs)}"
            raise StatementRefused(what, where=self.where, next_step="Name as many.")
        for i, name in zip(theirs, names, strict=True):
            self.columns[i] = (alias, name, self.columns[i][2])

    def resolve(self, node: exp.Column) -> Value:
        merged = self._merged(node)
        if merged is not None:
            return self._value(merged)
        found = self._named(node)
        if any(item.type == PROCTIME for item in found):
            raise StatementRefused(
                f"{text_of(node)} is the processing time; it can only stand in FOR SYSTEM_TIME AS OF, or be the time of a window",
                where=self.where,
                next_step="Take the time from a column of the event.",
            )
        if len(found) == 1:
            return Value(column(found[0].name), found[0].type, found[0].nullable)
        if found:
            owners = ", ".join(alias for alias, name, _ in self.columns if name == node.name)
            raise StatementRefused(f"column {node.name} is ambiguous: {owners} have it", where=self.where, next_step="Write alias.column.")
        aliases = {alias for alias, _, _ in self.columns}
        if node.table and node.table not in aliases:
            raise StatementRefused(
                f"{text_of(node)}: no table in FROM is called {node.table}",
                where=self.where,
                next_step=f"Known are {', '.join(sorted(aliases))}.",
            )
        names = [name for alias, name, _ in self.columns if node.table in ("", alias) and not is_hidden(name)]
        alike = difflib.get_close_matches(node.name, names, n=2)
        hint = f"Did you mean {' or '.join(alike)}?" if alike else f"Known are {', '.join(dict.fromkeys(names))}."
        raise StatementRefused(f"column {text_of(node)} is not known", where=self.where, next_step=hint)

    def time(self, node: exp.Column) -> Field | None:
        """The processing time that a column is; None for any other column."""
        return next((item for item in self._named(node) if item.type == PROCTIME), None)

    def _named(self, node: exp.Column) -> list[Field]:
        return [item for alias, name, item in self.columns if name == node.name and node.table in ("", alias)]

    # USING and NATURAL

    def merge(self, names: Sequence[str], start: int, side: str) -> list[tuple[Value, Value]]:
        """Make one column of each of the names, which the columns from `start` on and those before have; the two values of each.

        side  of the join: "", LEFT, RIGHT or FULL
        Errors: StatementRefused for a name that one side has not, or twice.
        """
        shown = list(self._entries(start))
        pairs = []
        for name in names:
            left = self._one([part for label, part in shown if label == name], name, "before")
            right = self._one([i for i in range(start, len(self.columns)) if self.columns[i][1] == name], name, "behind")
            if any(self._value(part).type == PROCTIME for part in (left, right)):
                what = f"{name} is the processing time, by which no two rows are joined"
                raise StatementRefused(what, where=self.where, next_step="Leave it out, or write ON.")
            pairs.append(Merged(name, left, right, side))
        self._joined.append(_Joined(start, len(self.columns), tuple(pairs)))
        return [(self._value(pair.left), self._value(pair.right)) for pair in pairs]

    def last_merged(self) -> list[Value]:
        """The columns that the last join merged."""
        return [self._value(pair) for pair in self._joined[-1].merged]

    def settle(self, fields: Sequence[Field]) -> None:
        """The columns that the last join merged are fields now."""
        last = self._joined[-1]
        self._joined[-1] = replace(last, merged=tuple(replace(pair, made=item) for pair, item in zip(last.merged, fields, strict=True)))

    def joined_names(self, join: exp.Join, start: int) -> list[str] | None:
        """The names of USING, or those that NATURAL JOIN finds; None for any other join. The right side's columns begin at `start`."""
        if str(join.args.get("method") or "").upper() == "NATURAL":
            return self.common_names(start)
        using = join.args.get("using")
        return list(dict.fromkeys(item.name for item in using)) if using else None

    def common_names(self, start: int) -> list[str]:
        """The names that both the columns before and those from `start` on have, in the order of those before."""
        behind = {name for _, name, _ in self.columns[start:] if not is_hidden(name)}
        return list(dict.fromkeys(name for name, _ in self._entries(start) if name in behind))

    def shown(self) -> list[tuple[str, str, SqlType]]:
        """What `SELECT *` shows: (alias, name, type); a merged column has the alias ""."""
        listed = []
        for name, part in self._entries(len(self.columns)):
            if isinstance(part, Merged):
                listed.append(("", name, self._value(part).type))
            else:
                listed.append((self.columns[part][0], name, self.columns[part][2].type))
        return listed

    def columns_of(self, alias: str) -> list[tuple[str, str, SqlType]]:
        """What `alias.*` shows."""
        return [(owner, name, item.type) for owner, name, item in self.columns if owner == alias and not is_hidden(name)]

    def _entries(self, stop: int) -> Iterator[tuple[str, int | Merged]]:
        """The columns before `stop` by name, in the order of `SELECT *`: those that a join merges come before all others of its sides."""
        found: list[tuple[str, int | Merged]] = []
        done = 0
        for join in self._joined:
            if join.stop > stop:
                break
            found += [(self.columns[i][1], i) for i in range(done, join.stop)]
            taken = {part for pair in join.merged for part in (pair.left, pair.right)}
            found = [*((pair.name, pair) for pair in join.merged), *(item for item in found if item[1] not in taken)]
            done = join.stop
        found += [(self.columns[i][1], i) for i in range(done, stop)]
        return (item for item in found if not is_hidden(item[0]))

    def _merged(self, node: exp.Column) -> Merged | None:
        """The merged column that a bare name means; None when it is none, or not the only column of the name."""
        if node.table:
            return None
        found = [part for name, part in self._entries(len(self.columns)) if name == node.name]
        return found[0] if len(found) == 1 and isinstance(found[0], Merged) else None

    def _value(self, part: int | Merged) -> Value:
        if isinstance(part, int):
            item = self.columns[part][2]
            return Value(column(item.name), item.type, item.nullable)
        if part.made is not None:
            return Value(column(part.made.name), part.made.type)  # nullable: an outer join may stand behind
        left, right = self._value(part.left), self._value(part.right)
        common = common_type([left.type, right.type])
        trees = [value.ast if value.type == common else cast(value.ast, common.duckdb) for value in (left, right)]
        match part.side:
            case "FULL":
                return Value(render("COALESCE(_0, _1)", *trees), common, left.nullable and right.nullable)
            case "RIGHT":
                return Value(trees[1], common, right.nullable)
            case "LEFT":
                return Value(trees[0], common, left.nullable)
            case _:
                return Value(trees[0], common, left.nullable and right.nullable)

    def _one(self, found: Sequence[int | Merged], name: str, where: str) -> int | Merged:
        if len(found) == 1:
            return found[0]
        what = f"no table {where} the join has a column {name}" if not found else f"column {name} is ambiguous {where} the join"
        raise StatementRefused(what, where=self.where, next_step="USING and NATURAL take columns that each side has once; or write ON.")
