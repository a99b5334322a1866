"""Backend: what a store must answer, embedded or remote. The client surface (Store, Table) is written once over it.

Data goes one way: rows in as Arrow (CommitRequest), stored frames out (FetchedFrame) or Arrow tables out.
A backend declares its `capabilities`; what it lacks raises UnsupportedByBackend.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from storage_engine.schema.descriptor import Offsets, TableBucket, TableDescriptor
from storage_engine.schema.point import LongWay, PointLookup

OpKind = Literal["append", "upsert", "delete", "retract"]
OffsetSpec = Literal["earliest", "latest", "timestamp", "last"]

CAPABILITIES = frozenset(
    {
        "append",
        "upsert",
        "delete",
        "partial_update",
        "lookup",
        "prefix_lookup",
        "scan",
        "changelog",
        "read",
        "read_at_version",
        "aggregation",
        "auto_increment",
        "insert_if_not_exists",
        "transactions",
        "consumers",
        "jobs",
        "alter_table",
        "drop_partition",
        "backup",
        "compaction",
        "journal",
        "idempotent_writes",
        "objects",
        "tiering",
        "add_partition",
        "auto_partition",
        "late_rows",
        "statistics_of_buckets",
        "scan_from_timestamp",
        "last_rows",
        "statistics",
        "retract",
        "users",
        "computed_columns",
    }
)


CONSUMER_PREFIX = "consumer:"
"""Owners of progress that begin so are consumer groups: consumer:NAME:TABLE."""

JOB_PREFIX = "job:"
TIER_PREFIX = "tier:"
FORGOTTEN_INPUT = "forgotten_input"
"""The kind of the objects that say what of a job's input was dropped after it was read: job -> table -> partition -> [version, rows]."""
"""Owners that begin so are stream jobs: job:NAME."""

WORKERS_PREFIX = "workers:"
"""Owners that begin so are groups of worker processes: members and generations like those of consumers, without offsets."""


@dataclass(frozen=True)
class WriteOp:
    """Rows for one table. `columns` names the target columns of a partial update, delete or retraction; None: all of them."""

    table: str
    kind: OpKind
    rows: pa.Table
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class EncodedRows:
    """Rows of one bucket as an Arrow IPC record-batch message without schema, compressed or not. bucket -1: the store chooses."""

    partition: str
    bucket: int
    n_rows: int
    message: pa.Buffer


@dataclass(frozen=True)
class EncodedAppend:
    """Rows for a log table, routed and encoded by the caller in the columns of `schema_id`. Checked on arrival, stored as they come.

    n_buckets   over how many buckets the caller has routed, 0: as many as the table has; rows that the table routes otherwise by now
                are routed again
    """

    table: str
    schema_id: int
    frames: Sequence[EncodedRows]
    n_buckets: int = 0


@dataclass(frozen=True)
class WriteId:
    """Names a write, so that a retry is applied once: sequences of one writer only grow.

    after   the sequence of the commit that this one was sent behind, before its answer was there: it is done only while that one is
            the writer's newest in the store, and else refused as OutOfOrderSequence. None: every commit before it has been answered,
            or given up. Whoever keeps several commits on their way must say it (a commit stream does).
    """

    writer: str
    sequence: int
    after: int | None = None


@dataclass(frozen=True)
class Progress:
    """How far `owner` ("job:NAME", "consumer:NAME", "tier:TABLE", ...) has come; commits together with what it wrote.

    expected   the offsets the writer believes to be recorded; None: do not compare. A difference raises ProgressConflict.
    offsets    table name -> next offset per bucket; replaces the recorded offsets of the owner.
    detail     anything small the owner wants to find again (JSON values).
    as_of      the store's version when the offsets were read: a partition created after it is not the one that was read, and
               raises ProgressConflict. None: do not compare.
    merges     `offsets` replace those of the buckets they name, and `expected` is compared for those it names; the others stay.
    generation of the consumer group, as the member knows it; another one raises ProgressConflict. None: do not compare.
    """

    owner: str
    offsets: Mapping[str, Offsets]
    expected: Mapping[str, Offsets] | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    as_of: int | None = None
    merges: bool = False
    generation: int | None = None


@dataclass(frozen=True)
class Membership:
    """A consumer group as one of its members is told: its generation, and the ids of all live members, sorted."""

    generation: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class CommitRequest:
    """One transaction: all operations and all progress become visible together, or none does."""

    ops: Sequence[WriteOp | EncodedAppend] = ()
    progress: Sequence[Progress] = ()
    write_id: WriteId | None = None


@dataclass(frozen=True)
class CommitResult:
    """`version`: the store's version that contains the write. `is_duplicate`: the write id was applied before.

    n_late_rows  rows left out because retention has passed their partition ('table.auto-partition.late-rows' = 'drop')
    """

    version: int
    is_duplicate: bool = False
    n_late_rows: int = 0


@dataclass(frozen=True)
class CommitInfo:
    """One entry of the commit journal: which offset ranges of which tables it added. Commits without rows are not listed."""

    version: int
    timestamp_ms: int
    ranges: Mapping[str, Mapping[TableBucket, tuple[int, int]]]


@dataclass(frozen=True)
class FetchedFrame:
    """A stored frame, pruned to `columns`: its parts, one after another, are an Arrow IPC record-batch message without schema.

    parts    pieces of the stored frame as they lie, so that whoever sends the message copies them once, to where it goes
    columns  names that the columns have now; a column of the table that is not among them is null in these rows
    types    SQL types that the columns were stored with: what the message decodes with. They may be narrower than those of the table
    Rows carry offsets base_offset .. base_offset + n_rows; `change_types` has one byte per row (see log/frame.py), None: all +A.
    timestamps  of a frame that holds several commits: (row after its last, milliseconds) of each; None: all rows have `timestamp_ms`.
    """

    bucket: TableBucket
    base_offset: int
    n_rows: int
    timestamp_ms: int
    schema_id: int
    columns: tuple[str, ...]
    types: tuple[str, ...]
    change_types: bytes | None
    parts: tuple[pa.Buffer | bytes | memoryview, ...]
    timestamps: tuple[tuple[int, int], ...] | None = None

    @property
    def n_message_bytes(self) -> int:
        return sum(map(len, self.parts))

    @property
    def message(self) -> pa.Buffer:
        """The message in one piece: a single part as it is, several are copied."""
        if len(self.parts) == 1 and isinstance(self.parts[0], pa.Buffer):
            return self.parts[0]  # a buffer around it would belong to Python: a thread of Arrow's could not let go of it when Python ends
        return pa.py_buffer(b"".join(self.parts))


@dataclass(frozen=True)
class BackupInfo:
    """A copy of a store: where it is, the version it holds, the position its log ends at, and the bytes of its log."""

    target: str
    version: int
    position: int
    n_bytes: int


@dataclass(frozen=True)
class SpaceInfo:
    """What compact() of a table did. Bytes count whole log files, which tables share: those removed, and what was copied to remove them.

    n_rows_expired   rows that left the log or changelog, by `table.log.ttl`; current rows of a primary-key table stay
    n_rows_outlived  current rows that left, by `table.kv.ttl`
    """

    table: str
    n_rows_expired: int
    n_rows_outlived: int
    n_bytes_rewritten: int
    n_files_removed: int
    n_bytes_reclaimed: int


BUCKET_STATISTICS = pa.schema(
    [
        ("partition", pa.string()), ("bucket", pa.int32()), ("start_offset", pa.int64()), ("end_offset", pa.int64()),
        ("n_frames", pa.int64()), ("bytes", pa.int64()), ("last_commit_ms", pa.int64()), ("unread_ms", pa.int64()),
    ]
)  # fmt: skip
"""What bucket_statistics answers. Ages are by the clock of the store; null where no row is left."""


PLACE_FIELDS = (
    pa.field("_partition", pa.string(), nullable=False),
    pa.field("_bucket", pa.int32(), nullable=False),
    pa.field("_log_offset", pa.int64(), nullable=False),
    pa.field("_commit_timestamp", pa.timestamp("ms", "UTC"), nullable=False),
)
"""Where a row lies in the log or changelog, and when it was committed."""


class CommitStream(Protocol):
    """Commits of one writer, done in their order, several of them under way at once. An error is raised by a later call.

    A commit that is refused for what it says is given up; those behind it are done. When the store fails (WriteFailed, StoreUnavailable)
    the first commit without an answer and all behind it stay here: the next call sends them again, each is done once, and close()
    gives them up.
    """

    def send(self, request: CommitRequest) -> None:
        """Take a commit. One that raises has not taken it. Errors: of earlier commits."""
        ...

    def n_waiting(self) -> int:
        """How many commits have no answer yet, as far as one can tell without waiting. Errors: of earlier commits."""
        ...

    def finish(self) -> None:
        """Return when everything sent is acknowledged, or was refused and raised. Errors: of the first commit that failed."""
        ...

    def close(self) -> None:
        """Give the stream up; what is not acknowledged may or may not be done."""
        ...


class Backend(Protocol):
    """What a store must answer. Every method may raise a FlashlakeError; none returns damaged data."""

    url: str
    capabilities: frozenset[str]
    takes_encoded: bool
    """True where encoding appends at the caller relieves somebody else: behind a wire."""

    # catalog
    def create_table(self, descriptor: TableDescriptor, *, if_not_exists: bool) -> TableDescriptor:
        """Create a table; its descriptor with its id. Errors: AlreadyExists unless `if_not_exists`, which returns the present table."""
        ...

    def alter_table(self, descriptor: TableDescriptor) -> TableDescriptor:
        """Make the table what a descriptor says that schema/evolve.py made from its present one; the new descriptor.

        Columns are told by field id. With another number of buckets, rows have moved when it returns; a call that changes nothing
        completes a rescale that was cut short. Errors: TableAltered when the table has other columns by now.
        """
        ...

    def drop_table(self, name: str, *, if_exists: bool) -> None:
        """Drop a table with its rows. Errors: UnknownTable unless `if_exists`."""
        ...

    def create_partition(self, table: str, partition: str, *, if_not_exists: bool) -> None:
        """Create a partition by its name. Errors: AlreadyExists unless `if_not_exists`; InvalidPartition."""
        ...

    def drop_partition(self, table: str, partition: str, *, if_exists: bool) -> None:
        """Drop a partition with its rows. Errors: InvalidPartition unless `if_exists`."""
        ...

    def tables(self) -> list[TableDescriptor]:
        """Every table, as it is now."""
        ...

    def partitions(self, table: str) -> dict[str, int]:
        """Name -> id of every partition, sorted by name. A partition created again under its name has another id."""
        ...

    def put_object(self, kind: str, name: str, value: Mapping[str, Any] | None) -> None:
        """Store (or with None: drop) a small named definition: kind is "job", "view", "materialized_view", "function"."""
        ...

    def objects(self, kind: str) -> dict[str, dict[str, Any]]:
        """The small definitions of a kind, by name; see put_object."""
        ...

    # writes
    def commit(self, request: CommitRequest) -> CommitResult:
        """One transaction, durable on return. Errors: a UserError leaves the store as it was; WriteFailed tells by `is_absent`."""
        ...

    def commit_stream(self, in_flight_max: int) -> CommitStream:
        """Commits of one writer, at most `in_flight_max` without an answer at a time."""
        ...

    # journal
    def version(self) -> int:
        """The newest version of the whole store that readers see."""
        ...

    def await_version(self, after: int, timeout_s: float) -> int:
        """Block until version() > after or the time is over; the version then."""
        ...

    def commits(self, after: int, limit: int) -> list[CommitInfo]:
        """At most `limit` commits after version `after`, in order: their time, and which offsets of which table they wrote."""
        ...

    def progress(self, owner_prefix: str) -> dict[str, Progress]:
        """The progress of every owner whose name begins so; see CONSUMER_PREFIX, JOB_PREFIX."""
        ...

    def drop_progress(self, owner: str) -> bool:
        """Forget an owner's progress; False when there is none."""
        ...

    def heartbeat(self, owner: str, member: str, session_timeout_ms: int) -> Membership:
        """Say that a member of a consumer group lives. A new member joins; one not heard of for its session timeout is out."""
        ...

    def leave_group(self, owner: str, member: str) -> None:
        """A member of a consumer group goes at once, instead of when its session times out."""
        ...

    # reads
    def offsets(self, table: str, which: OffsetSpec, at_version: int | None = None, bound: int | None = None) -> Offsets:
        """Offsets of every bucket: "earliest", "latest", of the first row committed at or after "timestamp" (bound: ms since 1970),
        or of the first of the "last" rows of the whole log (bound: how many). `at_version`: rows after that version do not exist.

        Errors: OffsetOutOfRange for a version or a timestamp in the future.
        """
        ...

    def fetch(
        self,
        table: str,
        ranges: Mapping[TableBucket, tuple[int, int]],
        columns: Sequence[str] | None,
        where: str | None = None,
        *,
        as_of: int | None = None,
    ) -> Iterator[FetchedFrame]:
        """The frames that hold `ranges`. `where`: a condition; frames in which no row can meet it may be left out, rows never are.

        as_of  the version the ranges were made at; a partition created after it is not the one meant, and raises PartitionChanged,
               as one does that is gone
        """
        ...

    def lookup(self, table: str, keys: pa.Table, columns: Sequence[str] | None, *, insert_if_not_exists: bool) -> pa.Table:
        """One row per key, in the order of the keys, with a last column `_found` (bool); missing rows are null."""
        ...

    def lookup_one(self, table: str, lookup: PointLookup, key: list[Any]) -> list[Any] | LongWay | None:
        """The row of one key, given as lookup.stored_key() has it, as Python values; LONG_WAY: lookup() has to say."""
        ...

    def prefix_lookup(
        self, table: str, prefixes: pa.Table, columns: Sequence[str] | None, limit: int | None, rows_max: int | None = None
    ) -> pa.Table:
        """Rows by the beginning of their keys. Errors: ResultTooLarge when there are more than `rows_max` (None: no bound)."""
        ...

    def lookups(self, table: str, batches: Iterable[pa.Table], columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """lookup() of each batch of keys, in order."""
        ...

    def prefix_lookups(
        self, table: str, batches: Iterable[pa.Table], columns: Sequence[str] | None, limit: int | None
    ) -> Iterator[pa.Table]:
        """prefix_lookup() of each batch of prefixes, in order."""
        ...

    def read(
        self,
        table: str,
        columns: Sequence[str] | None,
        partitions: Sequence[str] | None,
        at_version: int | None,
        limit: int | None = None,
    ) -> pa.Table:
        """Current rows of a primary-key table, at the newest version or at an older one; at most `limit`, whichever."""
        ...

    def snapshot(self, table: str, columns: Sequence[str] | None, ends: Offsets, *, as_of: int | None = None) -> pa.RecordBatchReader:
        """The rows of a primary-key table that were current before the offsets `ends`, PLACE_FIELDS before the columns.

        Shapes: batches of bounded size, in no order that means anything; a bucket that `ends` does not name has no rows.
        as_of   as of fetch()
        Errors: OffsetOutOfRange for ends that the log does not hold any more; PartitionChanged.
        """
        ...

    def count(self, table: str) -> int:
        """Rows now: of a log those that have not expired, of a primary-key table the current ones."""
        ...

    def bucket_statistics(self, table: str, positions: Offsets | None = None) -> pa.Table:
        """One row per bucket that was ever written, from the frame index: BUCKET_STATISTICS.

        positions  `unread_ms` is the age of the oldest row at or after them (of a bucket not named: of its oldest row)
        """
        ...

    def late_rows(self, table: str) -> int:
        """Rows left out so far because retention had passed their partition ('table.auto-partition.late-rows' = 'drop')."""
        ...

    def compact(self, table: str) -> SpaceInfo:
        """Give back now what a table holds and nobody needs, by one round of cleaning that goes by no minimum amounts.

        It takes what background cleaning may take and no more: rows within `table.log.ttl`, or that a job, a consumer or the lake has yet
        to read, stay as they stay there. Errors: UnknownTable; WriteFailed, also when only the next round can go on.
        """
        ...

    def backup(self, target: str, *, links: bool = True) -> BackupInfo:
        """Copy the store as it is now to `target`, a new directory where the store itself is; writers go on."""
        ...

    def close(self) -> None:
        """Give the connection, or the directory, free. A second call does nothing."""
        ...
