"""Comparing: two tables as multisets of rows, by DuckDB."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import pyarrow as pa


@dataclass(frozen=True)
class Check:
    """One comparison: rows that should be, rows that are, rows that are in one of both only."""

    name: str
    n_expected: int
    n_found: int
    n_differing: int

    @property
    def holds(self) -> bool:
        return self.n_differing == 0


def compare(name: str, expected: pa.Table, found: pa.Table) -> Check:
    """Both as multisets of rows, columns by name. Row order does not count; nulls are equal to nulls."""
    con = duckdb.connect()
    con.register("expected", expected)
    con.register("found", found.select(expected.column_names))
    differing = con.execute(
        "SELECT (SELECT count(*) FROM (FROM expected EXCEPT ALL FROM found)) + (SELECT count(*) FROM (FROM found EXCEPT ALL FROM expected))"
    ).fetchone()
    assert differing is not None, "a count has one row"
    return Check(name, expected.num_rows, found.num_rows, int(differing[0]))


def require(name: str, *, holds: bool) -> Check:
    """A condition as a check of one row."""
    return Check(name, 1, int(holds), 0 if holds else 1)
