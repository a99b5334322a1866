"""Plan of UNNEST: each row once for each element of an array, or for each entry of a map, that the row has.

Holds: stateless, and a row that is taken back takes back the rows made of it: the same expression over the same row gives the same
       elements. Values only, like tree.py.
Source: Flink 2.2 UnnestRowsFunction, LogicalUnnestRule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlglot import exp

from storage_engine.stream.dialect.render import sql

if TYPE_CHECKING:
    from storage_engine.stream.plan.tree import Field, Node


@dataclass(frozen=True)
class Unnest:
    """Each input row with each of its elements, in the elements' order. A row whose array is empty or NULL gives none.

    elements  the array over the input's fields (functions/unnesting.py); each of its elements makes one row
    parts     the fields made of an element, each with the name of the part that it is: "" for the element itself
    ordinal   the field of the element's position, from 1; None: not asked for
    is_outer  LEFT JOIN: a row without elements stays, with nulls
    key       the part that differs between the elements of one row (a map's key); None: only the position does
    """

    input: Node
    elements: exp.Expr
    parts: tuple[tuple[Field, str], ...]
    ordinal: Field | None = None
    is_outer: bool = False
    key: str | None = None

    @property
    def made(self) -> tuple[Field, ...]:
        """The fields beside those of the input."""
        return tuple(item for item, _ in self.parts) + ((self.ordinal,) if self.ordinal is not None else ())

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.input.fields + self.made

    @property
    def is_retracting(self) -> bool:
        return self.input.is_retracting

    @property
    def unique_key(self) -> tuple[str, ...] | None:
        of_input = self.input.unique_key
        within = self.ordinal.name if self.ordinal is not None else self.key
        if of_input is None or within is None or all(item.name != within for item in self.made):
            return None
        return (*of_input, within)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.input,)

    def line(self) -> str:
        made = ", ".join(item.name for item in self.made) or "nothing of them"
        return f"Unnest {'left' if self.is_outer else 'inner'} {sql(self.elements)}: {made}"
