"""State: everything the journal says besides rows, and how one commit record changes it.

Owner: engine/core.py holds the only instance; `apply` is its only writer.
State: derived. Replaying all commit records from an empty StoreState gives the same state; a checkpoint is a copy.
Holds: table ids, partition ids and versions are never reused; `version` is the number of the last applied commit.
Never: touches a file, a clock or a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from storage_engine.api import CONSUMER_PREFIX, FORGOTTEN_INPUT, JOB_PREFIX, Progress
from storage_engine.engine.schemas import Schemas
from storage_engine.errors import DamagedFrame
from storage_engine.log.file_set import FileEntry
from storage_engine.log.frame_index import BucketId
from storage_engine.schema.descriptor import Offsets, TableBucket, TableDescriptor

WRITER_EXPIRATION_MS = 7 * 24 * 3600 * 1000
"""A writer that has not written for so long is forgotten, and with it the recognition of its retries (Fluss: 7 days)."""
WRITERS_SWEEP_COMMITS = 4096
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
"""What values of another shape than expected raise where they are decoded."""


def unreadable_record(error: Exception) -> DamagedFrame:
    """What to raise for the payload of a COMMIT frame that no program of this version has written."""
    return DamagedFrame(
        f"a commit record cannot be read: {type(error).__name__}: {error}",
        where="commit record",
        next_step="Open the store with the program version that wrote it, or restore it from a copy.",
    )


@dataclass
class CommitRecord:
    """The payload of a COMMIT frame: what the transaction did besides adding rows.

    version       number of this commit, one more than the one before
    timestamp_ms  wall clock of the store, never smaller than in the commit before
    write         (writer, sequence) of an idempotent write
    progress      owners whose offsets moved
    partitions    (table_id, partition name, partition_id) created by this commit
    counters      table_id -> last auto-increment id given out
    late_rows     table_id -> rows this commit left out because retention had passed their partition
    changes       catalog changes, each {"op": ..., ...}
    """

    version: int
    timestamp_ms: int
    write: tuple[str, int] | None = None
    progress: list[Progress] = field(default_factory=list)
    partitions: list[tuple[int, str, int]] = field(default_factory=list)
    counters: dict[int, int] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    late_rows: dict[int, int] = field(default_factory=dict)

    def encode(self) -> bytes:
        value: dict[str, Any] = {"v": self.version, "t": self.timestamp_ms}
        if self.write:
            value["w"] = list(self.write)
        if self.progress:
            value["p"] = [encode_progress(item) for item in self.progress]
        if self.partitions:
            value["n"] = self.partitions
        if self.counters:
            value["c"] = list(self.counters.items())
        if self.changes:
            value["d"] = self.changes
        if self.late_rows:
            value["l"] = list(self.late_rows.items())
        return json.dumps(value, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, payload: bytes) -> CommitRecord:
        """The inverse of encode. Errors: DamagedFrame when the bytes are no such record."""
        try:
            value = json.loads(payload)
            return cls(
                version=value["v"],
                timestamp_ms=value["t"],
                write=(value["w"][0], value["w"][1]) if "w" in value else None,
                progress=[decode_progress(item) for item in value.get("p", [])],
                partitions=[(int(t), name, int(p)) for t, name, p in value.get("n", [])],
                counters={int(t): int(n) for t, n in value.get("c", [])},
                changes=value.get("d", []),
                late_rows={int(t): int(n) for t, n in value.get("l", [])},
            )
        except UNREADABLE as error:
            raise unreadable_record(error) from error


def encode_offsets(offsets: Mapping[str, Offsets]) -> dict[str, dict[str, int]]:
    """Offsets by table and by the text of their bucket, as commit records and checkpoints hold them."""
    return {table: {str(bucket): offset for bucket, offset in by_bucket.items()} for table, by_bucket in offsets.items()}


def decode_offsets(value: Mapping[str, Mapping[str, int]]) -> dict[str, Offsets]:
    """The inverse of encode_offsets()."""
    return {table: {TableBucket.parse(bucket): offset for bucket, offset in by_bucket.items()} for table, by_bucket in value.items()}


def encode_progress(progress: Progress) -> dict[str, Any]:
    """Progress as commit records hold it: without `expected`, which was compared when it was written."""
    return {"owner": progress.owner, "offsets": encode_offsets(progress.offsets), "detail": dict(progress.detail)}


def decode_progress(value: Mapping[str, Any]) -> Progress:
    """The inverse of encode_progress()."""
    return Progress(value["owner"], decode_offsets(value["offsets"]), None, value.get("detail", {}))


@dataclass
class TableState:
    """A live table: its schemas, its partitions by name, the last auto-increment id given out, and how many buckets there are.

    bucket_counts  buckets of the partitions that have another number than the descriptor says: they wait to be rescaled
    n_buckets_max  the largest number of buckets the table has had: history stays in buckets that no row goes to any more
    moves          versions whose commits only moved rows between buckets
    """

    schemas: Schemas
    partitions: dict[str, int] = field(default_factory=dict)
    last_id: int = 0
    bucket_counts: dict[str, int] = field(default_factory=dict)
    n_buckets_max: int = 1
    moves: list[int] = field(default_factory=list)

    @property
    def descriptor(self) -> TableDescriptor:
        return self.schemas.descriptor

    @property
    def partition_names(self) -> list[str]:
        """Live partitions; the one without a name of a table that has none."""
        return list(self.partitions) if self.descriptor.partition_keys else [""]

    def n_buckets_of(self, partition: str) -> int:
        """Buckets that rows of a partition are routed to; of a partition that is not there yet: those it will have."""
        return self.bucket_counts.get(partition, self.descriptor.n_buckets)

    def to_json(self) -> list[Any]:
        buckets = {"counts": self.bucket_counts, "max": self.n_buckets_max, "moves": self.moves}
        return [self.descriptor.to_json(), self.partitions, self.last_id, self.schemas.to_json(), buckets]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> TableState:
        """The inverse of to_json; from before tables could be rescaled, `buckets` is missing."""
        table, partitions, last_id, schemas, *rest = value
        descriptor = TableDescriptor.from_json(table)
        buckets = rest[0] if rest else {"counts": {}, "max": descriptor.n_buckets, "moves": []}
        counts, n_buckets_max, moves = dict(buckets["counts"]), buckets["max"], list(buckets["moves"])
        return cls(Schemas.from_json(descriptor, schemas), dict(partitions), last_id, counts, n_buckets_max, moves)


class LogStart(NamedTuple):
    """Where the log of a bucket begins for its readers, since retention moved it.

    version     the newest commit of which rows have expired: offsets at a version before it are not known any more
    n_expired   rows that have expired so far; n_unread of them before every job and consumer had read them
    expired_ms  when the last of them did
    """

    offset: int
    version: int
    n_expired: int
    n_unread: int
    expired_ms: int


@dataclass
class StoreState:
    """All derived state of the store except rows and their indexes.

    born_tables, born_partitions  id -> version that created it
    late_rows  table_id -> rows left out so far because retention had passed their partition
    files      finished log files; None: version 1 did not say
    idle_writes  writer -> sequence, version and time of a commit that changed nothing, where it is the writer's newest. It is not in the
                 log, so a restart forgets it, and so does a store that goes back: what it was compared with may be gone
    """

    version: int = 0
    timestamp_ms: int = 0
    tables: dict[str, TableState] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    partition_names: dict[int, str] = field(default_factory=lambda: {0: ""})
    objects: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    writers: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    next_table_id: int = 1
    next_partition_id: int = 1
    born_tables: dict[int, int] = field(default_factory=dict)
    born_partitions: dict[int, int] = field(default_factory=dict)
    late_rows: dict[int, int] = field(default_factory=dict)
    log_starts: dict[BucketId, LogStart] = field(default_factory=dict)
    files: list[FileEntry] | None = None
    idle_writes: dict[str, tuple[int, int, int]] = field(default_factory=dict, compare=False)

    def newest_write(self, writer: str) -> tuple[int, int] | None:
        """Sequence and version of the writer's newest commit; None: there is none, or it was forgotten."""
        found = self.idle_writes.get(writer) or self.writers.get(writer)
        return None if found is None else found[:2]

    def holds(self, bucket: BucketId) -> bool:
        """Whether the bucket's table and partition exist."""
        return bucket.table_id in self.names and bucket.partition_id in self.partition_names

    def by_id(self, table_id: int) -> TableState | None:
        name = self.names.get(table_id)
        return None if name is None else self.tables[name]

    def apply(self, record: CommitRecord) -> None:
        """Advance by one commit. Records must come in order of their versions."""
        assert record.version == self.version + 1, f"commit {record.version} follows {self.version}"
        for change in record.changes:
            _CHANGES[change["op"]](self, change)
        for table_id, name, partition_id in record.partitions:
            table = self.by_id(table_id)
            assert table is not None, f"partition {name} of a table that does not exist"
            table.partitions[name] = partition_id
            self.partition_names[partition_id] = name
            self.born_partitions[partition_id] = record.version
            self.next_partition_id = max(self.next_partition_id, partition_id + 1)
        for table_id, last_id in record.counters.items():
            table = self.by_id(table_id)
            assert table is not None, "auto-increment of a table that does not exist"
            table.last_id = last_id
        for item in record.progress:
            self.progress[item.owner] = item
        for table_id, n_rows in record.late_rows.items():
            self.late_rows[table_id] = self.late_rows.get(table_id, 0) + n_rows
        if record.write:
            self.writers[record.write[0]] = (record.write[1], record.version, record.timestamp_ms)
            self.idle_writes.pop(record.write[0], None)
        self.version = record.version
        self.timestamp_ms = record.timestamp_ms
        if record.version % WRITERS_SWEEP_COMMITS == 0:
            oldest_ms = record.timestamp_ms - WRITER_EXPIRATION_MS
            self.writers = {writer: last for writer, last in self.writers.items() if last[2] >= oldest_ms}
            self.idle_writes = {writer: last for writer, last in self.idle_writes.items() if last[2] >= oldest_ms}

    def _create_table(self, change: dict[str, Any]) -> None:
        descriptor = TableDescriptor.from_json(change["table"])
        self.tables[descriptor.name] = TableState(Schemas.of(descriptor), n_buckets_max=descriptor.n_buckets)
        self.names[descriptor.table_id] = descriptor.name
        self.born_tables[descriptor.table_id] = self.version + 1
        self.next_table_id = max(self.next_table_id, descriptor.table_id + 1)

    def _alter_table(self, change: dict[str, Any]) -> None:
        descriptor = TableDescriptor.from_json(change["table"])
        table = self.tables[descriptor.name]
        if table.descriptor.has_primary_key and descriptor.n_buckets != table.descriptor.n_buckets:
            counts = {name: table.n_buckets_of(name) for name in table.partition_names}
            table.bucket_counts = {name: n for name, n in counts.items() if n != descriptor.n_buckets}
        table.n_buckets_max = max(table.n_buckets_max, descriptor.n_buckets)
        table.schemas = table.schemas.after(descriptor)

    def _rescale(self, change: dict[str, Any]) -> None:
        """The rows of a partition have moved: from now on they are routed over as many buckets as the descriptor says."""
        table = self.tables[change["table"]]
        table.bucket_counts.pop(change["partition"], None)
        table.moves.append(self.version + 1)

    def _drop_table(self, change: dict[str, Any]) -> None:
        table = self.tables.pop(change["name"])
        table_id = table.descriptor.table_id
        self.names.pop(table_id)
        self.born_tables.pop(table_id, None)
        self.late_rows.pop(table_id, None)
        self.log_starts = {bucket: start for bucket, start in self.log_starts.items() if bucket.table_id != table_id}
        for partition_id in table.partitions.values():
            self.partition_names.pop(partition_id, None)
            self.born_partitions.pop(partition_id, None)
        self._forget_progress(change["name"], None)
        for owner in [owner for owner in self.progress if owner.startswith(CONSUMER_PREFIX) and owner.endswith(f":{change['name']}")]:
            del self.progress[owner]  # a consumer is of one table

    def _drop_partition(self, change: dict[str, Any]) -> None:
        table = self.tables[change["table"]]
        table.partitions.pop(change["partition"])
        table.bucket_counts.pop(change["partition"], None)
        self.partition_names.pop(change["partition_id"], None)
        self.born_partitions.pop(change["partition_id"], None)
        self.log_starts = {bucket: start for bucket, start in self.log_starts.items() if bucket.partition_id != change["partition_id"]}
        self._forget_progress(change["table"], change["partition"])

    def _forget_progress(self, table: str, partition: str | None) -> None:
        """Offsets of what is gone must not be taken for offsets of a later table or partition of the same name."""
        for owner, item in list(self.progress.items()):
            if table not in item.offsets:
                continue
            offsets = {name: dict(by_bucket) for name, by_bucket in item.offsets.items()}
            if partition is None:
                del offsets[table]
            else:
                offsets[table] = {bucket: offset for bucket, offset in offsets[table].items() if bucket.partition != partition}
            self.progress[owner] = Progress(owner, offsets, None, item.detail)
            if owner.startswith(JOB_PREFIX):
                gone = {bucket: n for bucket, n in item.offsets[table].items() if partition is None or bucket.partition == partition}
                self._note_forgotten(owner.removeprefix(JOB_PREFIX), table, gone)

    def _note_forgotten(self, job: str, table: str, offsets: Offsets) -> None:
        """What a job has read of partitions that are no more: its results still hold these rows, and nobody can compute them again."""
        noted = self.objects.get(FORGOTTEN_INPUT, {}).get(job, {})
        of_table = dict(noted.get(table, {}))
        for bucket, n_rows in offsets.items():
            if n_rows:
                of_table[bucket.partition] = [self.version + 1, of_table.get(bucket.partition, [0, 0])[1] + n_rows]
        if of_table:
            self.objects[FORGOTTEN_INPUT] = {**self.objects.get(FORGOTTEN_INPUT, {}), job: {**noted, table: of_table}}

    def _drop_progress(self, change: dict[str, Any]) -> None:
        self.progress.pop(change["owner"], None)
        if FORGOTTEN_INPUT in self.objects:  # a job of this name begins anew
            self.objects[FORGOTTEN_INPUT].pop(change["owner"].removeprefix(JOB_PREFIX), None)

    def _put_object(self, change: dict[str, Any]) -> None:
        kind = self.objects.setdefault(change["kind"], {})
        if change["value"] is None:
            kind.pop(change["name"], None)
        else:
            kind[change["name"]] = change["value"]

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "timestamp_ms": self.timestamp_ms,
            "tables": [table.to_json() for table in self.tables.values()],
            "objects": self.objects,
            "progress": [encode_progress(item) for item in self.progress.values()],
            "writers": {writer: list(last) for writer, last in self.writers.items()},
            "next_table_id": self.next_table_id,
            "next_partition_id": self.next_partition_id,
            "born_tables": list(self.born_tables.items()),
            "born_partitions": list(self.born_partitions.items()),
            "late_rows": list(self.late_rows.items()),
            "log_starts": [[*bucket, *start] for bucket, start in self.log_starts.items()],
            "files": self.files,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StoreState:
        state = cls(
            version=value["version"],
            timestamp_ms=value["timestamp_ms"],
            objects=value["objects"],
            progress={item["owner"]: decode_progress(item) for item in value["progress"]},
            writers={writer: (last[0], last[1], last[2]) for writer, last in value["writers"].items()},
            next_table_id=value["next_table_id"],
            next_partition_id=value["next_partition_id"],
            born_tables={int(i): int(v) for i, v in value.get("born_tables", [])},
            born_partitions={int(i): int(v) for i, v in value.get("born_partitions", [])},
            late_rows={int(i): int(n) for i, n in value.get("late_rows", [])},
            log_starts={BucketId(*item[:3]): LogStart(*item[3:]) for item in value.get("log_starts", [])},
            files=None if value.get("files") is None else [FileEntry(*pair) for pair in value["files"]],
        )
        for of_table in value["tables"]:
            table = TableState.from_json(of_table)
            state.tables[table.descriptor.name] = table
            state.names[table.descriptor.table_id] = table.descriptor.name
            state.partition_names.update({partition_id: name for name, partition_id in table.partitions.items()})
        return state


_CHANGES = {
    "create_table": StoreState._create_table,
    "alter_table": StoreState._alter_table,
    "rescale": StoreState._rescale,
    "drop_table": StoreState._drop_table,
    "drop_partition": StoreState._drop_partition,
    "put_object": StoreState._put_object,
    "drop_progress": StoreState._drop_progress,
}
