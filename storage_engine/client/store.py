"""Store: what users hold. One surface over every backend; it adds no state of its own.

Owner of the backend it was given: close() closes it.
Never: knows whether the backend is in this process or behind a wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from storage_engine.api import Backend, BackupInfo, CommitInfo, CommitRequest, CommitResult, Progress, WriteId, WriteOp
from storage_engine.client.latest import AnswersLatest, Latest, latest_of
from storage_engine.client.table import Table
from storage_engine.errors import UserError, unknown_table
from storage_engine.schema.descriptor import TableDescriptor

_VIRTUAL = {
    "changelog": "store.table('{0}').scan(metadata=True)",
    "binlog": "store.table('{0}').binlog()",
    "lake": "storage_engine.lake.lake_read(con, store, lake_root, '{0}')",
}


class Session(Protocol):
    """Executes SQL text against a store: storage_engine.stream.session.session.SqlSession."""

    def execute(self, text: str) -> list[Any]:
        """Run statements one after another; a result each. A failing one ends the run."""
        ...


class Store:
    """A store, embedded or served. Use it as a context manager, or call close()."""

    def __init__(self, backend: Backend, session_of: Callable[[Store], Session]) -> None:
        self.backend = backend
        self._session_of = session_of
        self._session: Session | None = None

    @property
    def url(self) -> str:
        return self.backend.url

    @property
    def capabilities(self) -> frozenset[str]:
        return self.backend.capabilities

    def execute(self, sql: str) -> list[Any]:
        """Run DDL and job statements, one after another; a list of results (message, rows). A failing statement ends the run."""
        if self._session is None:
            self._session = self._session_of(self)
        return self._session.execute(sql)

    # catalog

    def table(self, name: str) -> Table:
        """The table of that name ("database.table"). Errors: UnknownTable."""
        return Table(self.backend, self.describe(name))

    def describe(self, name: str) -> TableDescriptor:
        """The descriptor of a table. Errors: UnknownTable, naming the tables that look alike."""
        descriptors = {descriptor.name: descriptor for descriptor in self.backend.tables()}
        if name not in descriptors:
            base, _, suffix = name.rpartition("$")
            if base in descriptors and suffix in _VIRTUAL:
                raise UserError(f"{name} is a virtual table", where="catalog", next_step=f"Use {_VIRTUAL[suffix].format(base)}, or SQL.")
            raise unknown_table(name, descriptors)
        return descriptors[name]

    def tables(self) -> list[str]:
        """The names ("database.table") of all tables that may be seen, sorted."""
        return sorted(descriptor.name for descriptor in self.backend.tables())

    def create_table(self, descriptor: TableDescriptor, *, if_not_exists: bool = False) -> Table:
        """Create a table. Errors: AlreadyExists unless `if_not_exists`, which returns the present table."""
        return Table(self.backend, self.backend.create_table(descriptor, if_not_exists=if_not_exists))

    def objects(self, kind: str) -> dict[str, dict[str, Any]]:
        """The definitions of a kind ("job", "view", "materialized_view", "function"), by name."""
        return self.backend.objects(kind)

    def put_object(self, kind: str, name: str, value: Mapping[str, Any]) -> None:
        """Store a definition under its name, in place of one that is there."""
        self.backend.put_object(kind, name, value)

    def drop_object(self, kind: str, name: str) -> None:
        """Forget a definition; nothing happens when there is none."""
        self.backend.put_object(kind, name, None)

    # writes and the journal

    def commit(self, ops: Sequence[WriteOp] = (), progress: Sequence[Progress] = (), write_id: WriteId | None = None) -> CommitResult:
        """One transaction over any number of tables, with the progress that belongs to it."""
        return self.backend.commit(CommitRequest(tuple(ops), tuple(progress), write_id))

    def version(self) -> int:
        """The newest version of the whole store; each commit is one. Errors: UnsupportedByBackend without a journal."""
        return self.backend.version()

    def latest(self, tables: Sequence[str]) -> Latest:
        """The store's version, and the next offsets of each table at that version."""
        return self.backend.latest(tables) if isinstance(self.backend, AnswersLatest) else latest_of(self.backend, tables)

    def await_version(self, after: int, timeout_s: float) -> int:
        """Block until there is a version after `after`, or the time is over; the version then."""
        return self.backend.await_version(after, timeout_s)

    def commits(self, after: int, limit: int = 1000) -> list[CommitInfo]:
        """At most `limit` commits after version `after`, in order: their time, and the offsets that they wrote by table and bucket."""
        return self.backend.commits(after, limit)

    def progress(self, owner_prefix: str = "") -> dict[str, Progress]:
        """The progress of owners whose names begin so, by owner: "job:", "consumer:", "tier:"."""
        return self.backend.progress(owner_prefix)

    def backup(self, target: str | Path, *, links: bool = True) -> BackupInfo:
        """Copy the store as it is now to a new directory, an absolute path on the machine of the store. Writers go on.

        links   finished log files become hard links where possible; False: everything is copied
        """
        return self.backend.backup(str(target), links=links)

    def close(self) -> None:
        """Give the connection, or the directory, free."""
        self.backend.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
