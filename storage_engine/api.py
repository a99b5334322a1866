"""Backend: what a store must answer, embedded or remote. The client surface (Store, Table) is written once over it.

Data goes one way: rows in as Arrow (CommitRequest), stored frames out (FetchedFrame) or Arrow tables out.
A backend declares its `capabilities`; what it lacks raises UnsupportedByBackend.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from storage_engine.schema.descriptor import Offsets, TableBucket, TableDescriptor

OpKind = Literal["append", "upsert", "delete"]

CAPABILITIES = frozenset(
    {
        "append", "upsert", "delete", "partial_update", "lookup", "prefix_lookup", "scan", "changelog", "read", "read_at_version",
        "aggregation", "auto_increment", "insert_if_not_exists", "transactions", "consumers", "jobs", "alter_table", "drop_partition",
        "backup", "journal", "idempotent_writes", "objects", "tiering", "users",
    }
)


@dataclass(frozen=True)
class WriteOp:
    """Rows for one table. `columns` names the target columns of a partial update or delete; None: all of them."""

    table: str
    kind: OpKind
    rows: pa.Table
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class WriteId:
    """Names a write, so that a retry is applied once: sequences of one writer only grow."""

    writer: str
    sequence: int


@dataclass(frozen=True)
class Progress:
    """How far `owner` ("job:NAME", "consumer:NAME", "tier:TABLE", ...) has come; commits together with what it wrote.

    expected   the offsets the writer believes to be recorded; None: do not compare. A difference raises ProgressConflict.
    offsets    table name -> next offset per bucket; replaces the recorded offsets of the owner.
    detail     anything small the owner wants to find again (JSON values).
    """

    owner: str
    offsets: Mapping[str, Offsets]
    expected: Mapping[str, Offsets] | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CommitRequest:
    """One transaction: all operations and all progress become visible together, or none does."""

    ops: Sequence[WriteOp] = ()
    progress: Sequence[Progress] = ()
    write_id: WriteId | None = None


@dataclass(frozen=True)
class CommitResult:
    """`version`: the store's version that contains the write. `is_duplicate`: the write id was applied before."""

    version: int
    is_duplicate: bool = False


@dataclass(frozen=True)
class CommitInfo:
    """One entry of the commit journal: which offset ranges of which tables it added. Commits without rows are not listed."""

    version: int
    timestamp_ms: int
    ranges: Mapping[str, Mapping[TableBucket, tuple[int, int]]]


@dataclass(frozen=True)
class FetchedFrame:
    """A stored frame, pruned to `columns`: `message` is an Arrow IPC record-batch message without schema.

    Rows carry offsets base_offset .. base_offset + n_rows; `change_types` has one byte per row (see log/frame.py), None: all +A.
    """

    bucket: TableBucket
    base_offset: int
    n_rows: int
    timestamp_ms: int
    schema_id: int
    columns: tuple[str, ...]
    change_types: bytes | None
    message: pa.Buffer


@dataclass(frozen=True)
class BackupInfo:
    """A copy of a store: where it is, the version it holds, the position its log ends at, and the bytes of its log."""

    target: str
    version: int
    position: int
    n_bytes: int


class Backend(Protocol):
    """What a store must answer. Every method may raise a FlashlakeError; none returns damaged data."""

    url: str
    capabilities: frozenset[str]

    # catalog
    def create_table(self, descriptor: TableDescriptor, *, if_not_exists: bool) -> TableDescriptor: ...
    def alter_table(self, descriptor: TableDescriptor) -> TableDescriptor: ...
    def drop_table(self, name: str, *, if_exists: bool) -> None: ...
    def drop_partition(self, table: str, partition: str, *, if_exists: bool) -> None: ...
    def tables(self) -> list[TableDescriptor]: ...
    def partitions(self, table: str) -> list[str]: ...
    def put_object(self, kind: str, name: str, value: Mapping[str, Any] | None) -> None:
        """Store (or with None: drop) a small named definition: kind is "job", "view", "materialized_view", "function"."""
        ...

    def objects(self, kind: str) -> dict[str, dict[str, Any]]: ...

    # writes
    def commit(self, request: CommitRequest) -> CommitResult: ...

    # journal
    def version(self) -> int: ...
    def await_version(self, after: int, timeout_s: float) -> int:
        """Block until version() > after or the time is over; the version then."""
        ...

    def commits(self, after: int, limit: int) -> list[CommitInfo]: ...
    def progress(self, owner_prefix: str) -> dict[str, Progress]: ...

    # reads
    def offsets(self, table: str, which: Literal["earliest", "latest"], at_version: int | None = None) -> Offsets: ...
    def fetch(self, table: str, ranges: Mapping[TableBucket, tuple[int, int]], columns: Sequence[str] | None) -> Iterator[FetchedFrame]: ...
    def lookup(self, table: str, keys: pa.Table, columns: Sequence[str] | None, *, insert_if_not_exists: bool) -> pa.Table:
        """One row per key, in the order of the keys, with a last column `_found` (bool); missing rows are null."""
        ...

    def prefix_lookup(self, table: str, prefixes: pa.Table, columns: Sequence[str] | None, limit: int | None) -> pa.Table: ...
    def read(self, table: str, columns: Sequence[str] | None, partitions: Sequence[str] | None, at_version: int | None) -> pa.Table:
        """Current rows of a primary-key table, at the newest version or at an older one."""
        ...

    def count(self, table: str) -> int: ...
    def backup(self, target: str, *, links: bool = True) -> BackupInfo:
        """Copy the store as it is now to `target`, a new directory where the store itself is; writers go on."""
        ...

    def close(self) -> None: ...
