"""Warehouse: the store as orchestration needs it (flashlake.orchestration.Warehouse): proofs, repairs, and the commit journal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from flashlake.orchestration import Proof

if TYPE_CHECKING:
    from flashlake.config import Config
    from storage_engine import Store
    from storage_engine.api import CommitInfo


class StoreWarehouse(dg.ConfigurableResource):
    """The warehouse of a project. `project`: the folder of flashlake.toml, which says where the store is.

    Each call opens the store and closes it: a run must not hold the store of a project that was stopped and started meanwhile.
    """

    project: str

    def open(self) -> "Store":
        """The project's store. The caller closes it."""
        from flashlake.sql import open_store

        return open_store(self._config())

    def _config(self) -> "Config":
        from flashlake.config import load_config

        return load_config(Path(self.project))

    def verify(self, table: str, partitions: Sequence[str] = ()) -> Proof:
        from flashlake.orchestration.proof import prove

        with self.open() as store:
            return prove(store, table, partitions, self._config().lake.root)

    def repair(self, table: str, partitions: Sequence[str] = ()) -> int:
        from flashlake.orchestration.proof import repair

        with self.open() as store:
            return repair(store, table, partitions, self._config().lake.root)

    def column_types(self, table: str) -> dict[str, str]:
        with self.open() as store:
            return {column.name: column.type for column in store.describe(table).columns}

    def version(self) -> int:
        with self.open() as store:
            return store.version()

    def commits(self, after: int, limit: int) -> "list[CommitInfo]":
        with self.open() as store:
            return store.commits(after, limit)
