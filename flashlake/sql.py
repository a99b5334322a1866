"""Sql: opens the project's store, and a session on it that answers DDL, jobs and queries over store and lake."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import storage_engine
from flashlake.access import access_of
from flashlake.config import Config
from flashlake.functions import use_functions
from flashlake.supervisor.probes import port_answers
from flashlake.supervisor.records import RunDir
from storage_engine import Store
from storage_engine.errors import StatementRefused, StoreLocked

if TYPE_CHECKING:
    import pyarrow as pa

    from query_engine import QueryEngine
    from storage_engine.lake import LakeHistory
    from storage_engine.schema.descriptor import TableBucket
    from storage_engine.stream.session.session import SqlSession

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_.]*)\}")


def open_store(config: Config, url: str | None = None) -> Store:
    """The store named by `url`, else by store.url, else our running server, else the folder, opened in this process.

    This process may run its functions from then on. Errors: StoreLocked when another process has the folder and no server of ours
    answers; StoreUnavailable.
    """
    use_functions(config)
    if url or config.store.url:
        return connect_as_project(config, url or config.store.url)
    if RunDir(config.services.run_dir).service("store").is_running:
        return connect_as_project(config, config.server_url)
    try:
        return storage_engine.connect(config.directory_url, key_memory_bytes_max=config.store.key_memory_mb << 20)
    except StoreLocked:
        if port_answers(config.store.host, config.store.port):
            return connect_as_project(config, config.server_url)
        raise


def connect_as_project(config: Config, url: str) -> Store:
    """A store, with the project's token where it is a server and the environment names nobody else."""
    return storage_engine.connect(url, **access_of(config, url))


def open_engine(config: Config, store: Store) -> QueryEngine:
    """The query engine over a store and the project's lake."""
    from query_engine import QueryEngine

    config.query.spill_dir.mkdir(parents=True, exist_ok=True)
    return QueryEngine(store, config.lake.root, spill_dir=config.query.spill_dir, memory_limit=config.query.memory_limit)


def open_session(config: Config, store: Store) -> SqlSession:
    """A session that runs every statement: DDL and jobs in the store, queries in the query engine (opened at the first one)."""
    from storage_engine.stream.session.session import SqlSession

    engine: QueryEngine | None = None

    def query(text: str, **options: Any) -> object:
        nonlocal engine
        engine = engine or open_engine(config, store)
        return engine.query(text, **options)

    return SqlSession(store, query=query, lake=_ProjectLake(config, store))


class _ProjectLake:
    """The project's lake for a session, whose libraries are loaded when it is first read."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config, self._store = config, store

    def log_rows(self, table: str, columns: Sequence[str], ranges: Mapping[TableBucket, tuple[int, int]]) -> pa.Table:
        return self._opened().log_rows(table, columns, ranges)

    def all_rows(self, table: str, columns: Sequence[str], at: int) -> pa.Table:
        return self._opened().all_rows(table, columns, at)

    def _opened(self) -> LakeHistory:
        from storage_engine.lake import LakeHistory

        return LakeHistory(self._store, self._config.lake.root)


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Replace ${name} by its value.

    Errors: StatementRefused naming a variable without a value.

    >>> fill_in("WHERE ds = '${day}'", {"day": "2017-01-01"})
    "WHERE ds = '2017-01-01'"
    """

    def value(match: re.Match[str]) -> str:
        if match.group(1) not in values:
            line = text.count("\n", 0, match.start()) + 1
            raise StatementRefused(f"{match.group(0)} has no value", where=f"line {line}", next_step=f"Add -D {match.group(1)}=VALUE.")
        return values[match.group(1)]

    return _VARIABLE.sub(value, text)
