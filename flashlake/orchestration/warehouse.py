"""Warehouse: what orchestration needs of a running store, as a Dagster resource of this shape (key "warehouse").

The project's resources/warehouse.py implements it; tests may implement it over another store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from storage_engine.api import CommitInfo

RESOURCE_KEY = "warehouse"


@dataclass(frozen=True)
class Proof:
    """The result of recomputing a table by batch and comparing it with what the stream wrote, row by row.

    partitions      the partitions compared; empty: the whole table
    version         the store's version both sides were read at
    n_rows          rows of the table (in those partitions) now: current rows, or log rows of a log table
    n_rows_of       the same per partition; empty when the whole table was compared
    n_compared      rows compared, over all pipelines that write the table
    n_differing     rows that differ, are missing or are extra
    sample          some of the differing rows, printable
    notes           what limits the proof, for example a dimension that changed since
    refused         why nothing was proved, "" when it was: input that has expired or was dropped, days without a row
    """

    table: str
    partitions: tuple[str, ...]
    version: int
    n_rows: int
    n_compared: int
    n_differing: int
    sample: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    pipelines: tuple[str, ...] = ()
    n_rows_of: Mapping[str, int] = field(default_factory=dict)
    refused: str = ""

    @property
    def holds(self) -> bool:
        return self.n_differing == 0 and not self.refused


class Warehouse(Protocol):
    """A store with its lake and query engine. Methods raise FlashlakeErrors."""

    def verify(self, table: str, partitions: Sequence[str] = ()) -> Proof:
        """Recompute by batch at one version and compare; changes nothing. No partitions: the whole table."""
        ...

    def repair(self, table: str, partitions: Sequence[str] = ()) -> int:
        """Write what the batch says into the rows that differ; the number of rows written or deleted."""
        ...

    def column_types(self, table: str) -> dict[str, str]:
        """Column name -> SQL type, as the store has it."""
        ...

    def version(self) -> int:
        """The store's newest version."""
        ...

    def commits(self, after: int, limit: int) -> list[CommitInfo]:
        """The commit journal after version `after`, oldest first."""
        ...
