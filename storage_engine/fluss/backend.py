"""Fluss backend: the store's Backend protocol over a Fluss cluster. Synchronous outside, asynchronous on a loop thread of its own.

Owner of: the loop thread and the session. Keeps no rows.
Holds: every call ends within `timeout_s` (a write that the client would repeat for ever ends as StoreUnavailable, and its connection is
       replaced); what Fluss lacks is refused before anything is sent (features.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import fluss
import pyarrow as pa

from storage_engine.api import (
    BackupInfo,
    CommitInfo,
    CommitRequest,
    CommitResult,
    FetchedFrame,
    Membership,
    OffsetSpec,
    Progress,
    SpaceInfo,
    WriteOp,
)
from storage_engine.errors import (
    FlashlakeError,
    InvalidPartition,
    OffsetOutOfRange,
    ResultTooLarge,
    StoreUnavailable,
    UnknownTable,
    UserError,
)
from storage_engine.errors import unknown_table as unknown_table_error
from storage_engine.fluss import catalog, lookups, reads, writes
from storage_engine.fluss.faults import translate
from storage_engine.fluss.features import FEATURES, feature_of_owner, refused, require_commit
from storage_engine.fluss.loop import LoopThread
from storage_engine.fluss.scans import BucketReader
from storage_engine.fluss.session import FlussSession
from storage_engine.schema.descriptor import Offsets, TableBucket, TableDescriptor
from storage_engine.schema.point import LONG_WAY, LongWay, PointLookup

TIMEOUT_S = 60.0
CONNECT_S = 10.0
RETRY_S = 10.0
RETRY_PAUSE_S = 0.05
NO_VERSION = 0

T = TypeVar("T")


class OneByOne:
    """A commit stream whose commits are done one after the other."""

    def __init__(self, backend: FlussBackend) -> None:
        self._backend = backend

    def send(self, request: CommitRequest) -> None:
        self._backend.commit(request)

    def n_waiting(self) -> int:
        return 0

    def finish(self) -> None:
        """Everything sent is done."""

    def close(self) -> None:
        """Nothing is held."""


class FlussBackend:
    """A Fluss cluster as a store. A write is one operation on one table, and is atomic per bucket, not over buckets."""

    takes_encoded = False

    capabilities = FEATURES

    def __init__(self, url: str, session: FlussSession, loop: LoopThread, timeout_s: float) -> None:
        self.url = url
        self._session = session
        self._loop = loop
        self._timeout_s = timeout_s
        self._dropped_at: dict[str, float] = {}
        self._is_closed = False

    @classmethod
    def connect(
        cls, url: str, *, timeout_s: float = TIMEOUT_S, connect_s: float = CONNECT_S, properties: Mapping[str, str] | None = None
    ) -> FlussBackend:
        """Connect to fluss://host:port, the cluster's bootstrap address.

        timeout_s   bound on each call; properties: more settings of pyfluss, for example security.protocol
        Errors:     StoreUnavailable when nobody answers; UserError for a malformed address.
        """
        try:
            parts = urlsplit(url)
            servers = f"{parts.hostname}:{parts.port}" if parts.hostname and parts.port else None
        except ValueError:
            servers = None
        if servers is None:
            raise UserError(f"{url} is not a Fluss address", where="store url", next_step="Write fluss://host:port.")
        loop = LoopThread("fluss")
        backend = cls(url, FlussSession(servers, dict(properties or {})), loop, timeout_s)
        try:
            backend._run(backend._session.connection(), connect_s)
        except BaseException:
            loop.close()
            raise
        return backend

    def _run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None, *, where: str | None = None) -> T:
        if self._is_closed:
            work.close()
            raise StoreUnavailable("the store is closed", where=self.url, next_step="Connect again.")
        bound = timeout_s or self._timeout_s
        try:
            return self._loop.run(work, bound)
        except FlashlakeError:
            raise
        except TimeoutError as error:
            what, remedy = (
                f"the cluster did not finish the call in {bound:g} s",
                "A write may or may not be there: read before repeating it.",
            )
            raise StoreUnavailable(what, where=where or self.url, next_step=remedy) from error
        except fluss.FlussError as error:
            raise translate(error, where=where or self.url) from error

    def _read(self, work: Callable[[], Coroutine[Any, Any, T]], *, where: str | None = None) -> T:
        """As _run, for calls that change nothing: what the client calls retriable (a bucket changes its leader) is tried again."""
        deadline = time.monotonic() + RETRY_S
        while True:
            try:
                return self._run(work(), where=where)
            except StoreUnavailable as error:
                if not isinstance(error.__cause__, fluss.FlussError) or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_PAUSE_S)

    def _refuse(self, feature: str) -> NoReturn:
        raise refused(feature, backend=self.url)

    # catalog

    def create_table(self, descriptor: TableDescriptor, *, if_not_exists: bool) -> TableDescriptor:
        # A table made again at once after it was dropped sometimes never gets a leader.
        wait_s = self._dropped_at.pop(descriptor.name, 0.0) + catalog.RECREATE_S - time.monotonic()
        return self._run(
            catalog.create_table(self._session, descriptor, max(wait_s, 0.0), self.url, if_not_exists=if_not_exists), where=descriptor.name
        )

    def alter_table(self, descriptor: TableDescriptor) -> TableDescriptor:  # noqa: ARG002
        self._refuse("alter_table")

    def drop_table(self, name: str, *, if_exists: bool) -> None:
        try:
            self._run(catalog.drop_table(self._session, name), where=name)
        except UnknownTable as error:
            if not if_exists:
                raise unknown_table_error(name, [descriptor.name for descriptor in self.tables()]) from error
            return
        self._dropped_at[name] = time.monotonic()

    def create_partition(self, table: str, partition: str, *, if_not_exists: bool) -> None:
        self._run(catalog.create_partition(self._session, table, partition, self._timeout_s, if_not_exists=if_not_exists), where=table)

    def drop_partition(self, table: str, partition: str, *, if_exists: bool) -> None:
        try:
            self._run(catalog.drop_partition(self._session, table, partition), where=table)
        except InvalidPartition:
            if not if_exists:
                raise

    def tables(self) -> list[TableDescriptor]:
        return self._read(lambda: catalog.tables(self._session))

    def partitions(self, table: str) -> dict[str, int]:
        async def ids() -> dict[str, int]:
            return dict(sorted((await self._session.partitions(await self._session.table(table))).items()))

        return self._read(ids, where=table)

    def put_object(self, kind: str, name: str, value: Mapping[str, Any] | None) -> None:  # noqa: ARG002
        self._refuse("objects")

    def objects(self, kind: str) -> dict[str, dict[str, Any]]:  # noqa: ARG002
        """None, truly: put_object is refused."""
        return {}

    # writes

    def commit(self, request: CommitRequest) -> CommitResult:
        """One operation on one table. The result's version is 0: Fluss has none.

        Errors: UnsupportedByBackend for more than that; UserErrors before anything is sent; StoreUnavailable with unknown outcome.
        """
        require_commit(request, backend=self.url)
        for op in request.ops:
            assert isinstance(op, WriteOp), "appends are encoded for backends that take them so"
            try:
                self._run(self._write(op), where=op.table)
            except StoreUnavailable:
                # The client goes on repeating the failed write for ever, and its close() with it.
                self._loop.run(self._session.drop_connection(), 30)
                raise
        return CommitResult(NO_VERSION)

    async def _write(self, op: WriteOp) -> None:
        table = await self._session.table(op.table)
        async with self._session.write_turn:
            await writes.write(self._session, table, op, self._timeout_s)

    # the journal

    def version(self) -> int:
        self._refuse("journal")

    def await_version(self, after: int, timeout_s: float) -> int:  # noqa: ARG002
        self._refuse("journal")

    def commits(self, after: int, limit: int) -> list[CommitInfo]:  # noqa: ARG002
        self._refuse("journal")

    def progress(self, owner_prefix: str) -> dict[str, Progress]:
        self._refuse(feature_of_owner(owner_prefix))

    def drop_progress(self, owner: str) -> bool:
        self._refuse(feature_of_owner(owner))

    def heartbeat(self, owner: str, member: str, session_timeout_ms: int) -> Membership:  # noqa: ARG002
        self._refuse("consumers")

    def leave_group(self, owner: str, member: str) -> None:  # noqa: ARG002
        self._refuse("consumers")

    # reads

    def offsets(self, table: str, which: OffsetSpec, at_version: int | None = None, bound: int | None = None) -> Offsets:
        if which == "last":
            self._refuse("last_rows")
        if at_version is not None:
            self._refuse("read_at_version")
        if which == "timestamp" and (bound or 0) > time.time_ns() // 1_000_000:
            what = f"timestamp {bound} is in the future"
            raise OffsetOutOfRange(what, where=table, next_step="Give a time that has passed: where rows to come will begin is not known.")

        async def offsets() -> Offsets:
            return await self._session.offsets(await self._session.table(table), which, bound)

        return self._read(offsets, where=table)

    def fetch(
        self,
        table: str,
        ranges: Mapping[TableBucket, tuple[int, int]],
        columns: Sequence[str] | None,
        where: str | None = None,  # noqa: ARG002 - nothing to leave out by
        *,
        as_of: int | None = None,
    ) -> Iterator[FetchedFrame]:
        """Frames of the ranges; the order between buckets is not defined. pyfluss takes no filter: `where` leaves no frame out.

        Errors: OffsetOutOfRange before the first frame.
        """
        if as_of is not None:
            self._refuse("journal")
        earliest, latest = self.offsets(table, "earliest"), self.offsets(table, "latest")
        for bucket, (start, stop) in ranges.items():
            if start < stop and not (earliest.get(bucket, 0) <= start and stop <= latest.get(bucket, -1)):
                what = f"{table} {bucket}: offsets {start} to {stop} are asked for, it holds {earliest.get(bucket)} to {latest.get(bucket)}"
                raise OffsetOutOfRange(what, where=table, next_step="Read between offsets('earliest') and offsets('latest').")

        async def reader() -> BucketReader:
            return BucketReader(self._session, await self._session.table(table), ranges, columns)

        opened = self._read(reader, where=table)
        while frames := self._read(opened.next, where=table):
            yield from frames

    def lookup(self, table: str, keys: pa.Table, columns: Sequence[str] | None, *, insert_if_not_exists: bool) -> pa.Table:
        """By key. insert_if_not_exists is three steps here: look up, upsert the missing keys alone, look up again.

        An upsert of a key alone leaves a row that came in between as it is, and the server gives each new key one id.
        """

        async def look() -> pa.Table:
            return await lookups.lookup(await self._session.table(table), keys, columns)

        found = self._read(look, where=table)
        missing = keys.filter(pa.compute.invert(found["_found"])) if insert_if_not_exists else keys.slice(0, 0)
        if missing.num_rows:
            self.commit(CommitRequest((WriteOp(table, "upsert", missing, tuple(missing.column_names)),)))
            found = self._read(look, where=table)
        return found

    def commit_stream(self, in_flight_max: int) -> OneByOne:  # noqa: ARG002 - each write is awaited: only so are its errors told
        return OneByOne(self)

    def lookup_one(self, table: str, lookup: PointLookup, key: list[Any]) -> LongWay:  # noqa: ARG002 - Fluss has no shorter way
        return LONG_WAY

    def prefix_lookup(
        self, table: str, prefixes: pa.Table, columns: Sequence[str] | None, limit: int | None, rows_max: int | None = None
    ) -> pa.Table:
        """By the beginning of keys. The client gives whole answers only: `rows_max` is checked when they have come."""

        async def look() -> pa.Table:
            return await lookups.prefix_lookup(await self._session.table(table), prefixes, columns, limit)

        rows = self._read(look, where=table)
        if rows_max is not None and rows.num_rows > rows_max:
            what = f"{prefixes.num_rows} prefixes have {rows.num_rows:,} rows, more than {rows_max:,}"
            raise ResultTooLarge(what, where=table, next_step="Ask for fewer prefixes, set a limit per prefix, or raise rows_max.")
        return rows

    def lookups(self, table: str, batches: Iterable[pa.Table], columns: Sequence[str] | None) -> Iterator[pa.Table]:
        return (self.lookup(table, keys, columns, insert_if_not_exists=False) for keys in batches)

    def prefix_lookups(
        self, table: str, batches: Iterable[pa.Table], columns: Sequence[str] | None, limit: int | None
    ) -> Iterator[pa.Table]:
        return (self.prefix_lookup(table, prefixes, columns, limit) for prefixes in batches)

    def read(
        self,
        table: str,
        columns: Sequence[str] | None,
        partitions: Sequence[str] | None,
        at_version: int | None,
        limit: int | None = None,
    ) -> pa.Table:
        """Current rows: each bucket at one point in time, the buckets one after another. Errors: UnsupportedByBackend, see reads.py."""
        if at_version is not None:
            self._refuse("read_at_version")
        return self._read(lambda: reads.read(self._session, table, columns, partitions, self.url, limit), where=table)

    def snapshot(self, table: str, columns: Sequence[str] | None, ends: Offsets, *, as_of: int | None = None) -> pa.RecordBatchReader:  # noqa: ARG002
        self._refuse("read_at_version")

    def count(self, table: str) -> int:
        """Rows: of a log from its offsets, of a primary-key table by reading its keys."""
        return self._read(lambda: reads.count(self._session, table, self.url), where=table)

    def bucket_statistics(self, table: str, positions: Offsets | None = None) -> pa.Table:  # noqa: ARG002
        self._refuse("statistics_of_buckets")

    def late_rows(self, table: str) -> int:  # noqa: ARG002
        self._refuse("late_rows")

    def compact(self, table: str) -> SpaceInfo:  # noqa: ARG002
        self._refuse("compaction")

    def backup(self, target: str, *, links: bool = True) -> BackupInfo:  # noqa: ARG002
        self._refuse("backup")

    def close(self) -> None:
        if self._is_closed:
            return
        try:
            self._run(self._session.drop_connection(), 30)
        finally:
            self._is_closed = True
            self._loop.close()
