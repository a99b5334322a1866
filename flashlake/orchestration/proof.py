"""Proof: the query engine's verification of a table, one report per pipeline, as one value for Dagster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flashlake.orchestration.warehouse import Proof

if TYPE_CHECKING:
    from storage_engine import Store
    from storage_engine.client.table import Table
    from storage_engine.stream.run.history import Lake

SAMPLE_ROWS_MAX = 20


def prove(store: Store, table: str, partitions: Sequence[str] = (), lake_root: Path | None = None) -> Proof:
    """Recompute and compare all pipelines that write a table; some partitions, or (empty) all of it.

    lake_root  where the rows of tiered tables are that have expired in the store; None: not at hand
    """
    from query_engine.verify import verify

    reports = verify(store, None, table, partitions=partitions, lake=_lake(store, lake_root))
    n_rows_of = count_rows(store.table(table), partitions) if partitions else {}
    return Proof(
        table=table,
        partitions=tuple(partitions),
        version=max(report.version for report in reports),
        n_rows=sum(n_rows_of.values()) if partitions else store.table(table).count(),
        n_compared=sum(report.rows_compared for report in reports),
        n_differing=sum(report.rows_differing for report in reports),
        sample=tuple({"pipeline": report.job, **row} for report in reports for row in report.sample)[:SAMPLE_ROWS_MAX],
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        pipelines=tuple(report.job for report in reports),
        n_rows_of=n_rows_of,
        refused="; ".join(dict.fromkeys(report.refused for report in reports if report.refused)),
    )


def repair(store: Store, table: str, partitions: Sequence[str] = (), lake_root: Path | None = None) -> int:
    """Write what the batch says into the rows that differ; the number of rows written or cleared.

    Errors: StatementRefused for a table whose rows cannot be overwritten.
    """
    from query_engine.verify import repair as write

    return write(store, None, table, partitions=partitions, lake=_lake(store, lake_root))


def _lake(store: Store, lake_root: Path | None) -> Lake | None:
    from storage_engine.lake import LakeHistory

    return None if lake_root is None else LakeHistory(store, lake_root)


def count_rows(table: Table, partitions: Sequence[str]) -> dict[str, int]:
    """Rows of each partition, however its column writes the day: current rows of a primary-key table, log rows of a log table."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from query_engine.verify import partition_column, spellings

    counts = dict.fromkeys(partitions, 0)
    meant = {name: partition for partition in partitions for name in spellings(partition)}
    if table.descriptor.has_primary_key:
        column = partition_column(table.descriptor)
        where = where_partitions(column, list(meant)) if pa.types.is_string(table.descriptor.column(column).arrow.type) else None
        for item in pc.value_counts(pc.cast(table.read([column], where)[column], pa.string())).to_pylist():
            if item["values"] in meant:
                counts[meant[item["values"]]] += item["counts"]
        return counts
    earliest = table.offsets("earliest")
    for bucket, stop in table.offsets("latest").items():
        if bucket.partition in meant:
            counts[meant[bucket.partition]] += stop - earliest.get(bucket, 0)
    return counts


def where_partitions(column: str, partitions: Sequence[str]) -> str:
    """A predicate for some values of a STRING column.

    >>> where_partitions("ds", ["2017-01-01"])
    "ds IN ('2017-01-01')"
    """
    listed = ", ".join("'" + value.replace("'", "''") + "'" for value in partitions)
    return f"{column} IN ({listed})"
