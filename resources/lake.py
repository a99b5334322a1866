"""Lake: Delta tables that no stream writes, under the same root as the tiered ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


class Lake(dg.ConfigurableResource):
    """The lake of a project. `project`: the folder of flashlake.toml."""

    project: str

    @property
    def root(self) -> Path:
        from flashlake.config import load_config

        return load_config(Path(self.project)).lake.root

    def path(self, table: str) -> Path:
        """The folder of a table: ROOT/database/name."""
        return self.root.joinpath(*table.split("."))

    def duckdb(self) -> "duckdb.DuckDBPyConnection":
        """A DuckDB that reads the lake's tables with delta_scan(). The caller closes it."""
        from storage_engine.lake import connect_delta

        return connect_delta()

    def scan(self, table: str, version: int) -> str:
        """SQL for a table at one of its versions, for a connection of duckdb()."""
        return f"delta_scan('{self.path(table)}', version := {int(version)})"

    def replace(
        self, table: str, schema: "pa.Schema", batches: "Iterator[pa.RecordBatch]", *, partition_by: str, where: str | None = None
    ) -> int:
        """Replace the rows that satisfy `where` (None: all rows) in one commit; the new version of the table.

        Rows outside `where` are refused by Delta. `schema` is the schema of the batches.
        """
        import pyarrow as pa
        from deltalake import DeltaTable, write_deltalake

        target = self.path(table)
        target.parent.mkdir(parents=True, exist_ok=True)
        exists = DeltaTable.is_deltatable(str(target))
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        write_deltalake(str(target), reader, mode="overwrite", partition_by=[partition_by], predicate=where if exists else None)
        return DeltaTable(str(target)).version()
