"""Warehouse: the store with its lake and query engine, as orchestration needs them (flashlake.orchestration.Warehouse)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from flashlake.orchestration import Proof

if TYPE_CHECKING:
    from query_engine import QueryEngine
    from storage_engine.client.backend import CommitInfo
    from storage_engine.client.store import Store


class StoreWarehouse(dg.ConfigurableResource):
    """The warehouse of a project: each call opens the store of flashlake.toml and closes it. `project`: the folder of that file."""

    project: str

    @contextmanager
    def open(self) -> "Iterator[tuple[Store, QueryEngine]]":
        """A store and a query engine over it, for one piece of work."""
        from flashlake.config import load_config
        from query_engine import QueryEngine
        from storage_engine import connect

        config = load_config(Path(self.project))
        with connect(config.server_url) as store:
            yield store, QueryEngine(store, config.lake.root, spill_dir=config.query.spill_dir)

    def verify(self, table: str, partitions: Sequence[str] = ()) -> Proof:
        from flashlake.orchestration.proof import prove

        with self.open() as (store, engine):
            return prove(store, engine, table, partitions)

    def repair(self, table: str, partitions: Sequence[str] = ()) -> int:
        from flashlake.orchestration.proof import repair

        with self.open() as (store, engine):
            return repair(store, engine, table, partitions)

    def column_types(self, table: str) -> dict[str, str]:
        with self.open() as (store, _):
            return {column.name: column.type for column in store.describe(table).columns}

    def commits(self, after: int, limit: int) -> "list[CommitInfo]":
        with self.open() as (store, _):
            return store.commits(after, limit)
