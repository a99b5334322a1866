"""FlightBackend: a store behind flashlake://host:port or flashlake+tls://host:port: each call of the Backend protocol over Arrow Flight.

Control calls are actions (JSON both ways); lookups, small commits and the questions that stream jobs ask in every micro-batch go over
sockets (socket_lane.py), larger ones over kept-open Flight streams (lane.py), which carry everything where no socket lane is reachable;
fetch and read are streams, but for a fetch of few rows, which is such a question.
Holds: a call that may safely be sent twice is sent again after a broken connection (link.py), for `retry_s` long. Commits are such calls:
each has a write id, the caller's own or one of the lane's writer. DDL without IF [NOT] EXISTS is not, and says so.
Never: caches anything that the server owns; sends a call that needs what the server's backend does not declare.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from storage_engine.api import (
    BUCKET_STATISTICS,
    BackupInfo,
    CommitInfo,
    CommitRequest,
    CommitResult,
    FetchedFrame,
    Membership,
    OffsetSpec,
    Progress,
    SpaceInfo,
)
from storage_engine.client.capabilities import features_of_commit, features_of_lookup, features_of_offsets, features_of_read, require
from storage_engine.client.commit_stream import Connections, SocketCommitStream
from storage_engine.client.endpoint import endpoint_of
from storage_engine.client.lane import LaneBroken, Writer
from storage_engine.client.latest import Latest, latest_of
from storage_engine.client.link import Link, Retry
from storage_engine.client.socket_lane import AnswerTooLarge
from storage_engine.client.wire import (
    PROTOCOL_VERSION,
    Call,
    Reply,
    decode_commit_info,
    decode_offsets,
    decode_progress,
    encode_commit,
    encode_offsets,
    encode_ranges,
)
from storage_engine.errors import AuthenticationFailed, Backpressure, StoreUnavailable, UnsupportedFormatVersion
from storage_engine.schema.descriptor import Offsets, TableBucket, TableDescriptor
from storage_engine.schema.point import LONG_WAY, LongWay, PointLookup

_LONG_CALL_TIMEOUT_S = 6 * 3600.0
_AWAIT_SLICE_S = 10.0
_SOCKET_COMMIT_BYTES = 12 << 20  # a frame holds 16 MiB, and nbytes is an estimate
LANE_FETCH_ROWS = 1 << 14
"""Rows that are fetched in one answer of the socket lane. Should their bytes be too many, the server says so and Flight carries them."""

logger = logging.getLogger(__name__)


class FlightBackend(Link):
    """A client of one server; any number of threads may use it."""

    def __init__(self, url: str, *, connect_s: float = 5.0, retry_s: float = 30.0, **access: Any) -> None:
        """Connect, log in, and learn what the server can do.

        connect_s  how long to wait for a first answer
        retry_s    how long a later call that may be repeated is repeated when the server does not answer
        access     user, password, token, token_file, tls_ca, tls_verify: see endpoint.py
        Errors: StoreUnavailable naming the address; AuthenticationFailed; UnsupportedFormatVersion for a server of another protocol.
        """
        super().__init__(url, retry_s=retry_s, **access)
        hello = self._retried(lambda: self._action("hello", timeout_s=connect_s), is_repeatable=True, retry_s=connect_s)
        if hello["protocol"] != PROTOCOL_VERSION:
            self.close()
            raise UnsupportedFormatVersion(
                f"the server speaks protocol {hello['protocol']}, this client {PROTOCOL_VERSION}",
                where=self.url,
                next_step="Use the same Flashlake version at both ends.",
            )
        self.capabilities = frozenset(hello["capabilities"])
        self.takes_encoded = hello.get("takes_encoded", False)
        self._lane_calls = frozenset(hello.get("lane_calls", ()))

    @classmethod
    def connect(cls, url: str, *, connect_s: float = 5.0, retry_s: float = 30.0, **access: Any) -> FlightBackend:
        return cls(url, connect_s=connect_s, retry_s=retry_s, **access)

    # catalog
    def create_table(self, descriptor: TableDescriptor, *, if_not_exists: bool) -> TableDescriptor:
        created = self._control(
            "create_table", {"descriptor": descriptor.to_json(), "if_not_exists": if_not_exists}, is_repeatable=if_not_exists
        )
        return TableDescriptor.from_json(created)

    def alter_table(self, descriptor: TableDescriptor) -> TableDescriptor:
        self._require("alter_table")
        arguments = {"descriptor": descriptor.to_json()}  # may move rows: it takes as long as it takes
        altered = self._retried(lambda: self._action("alter_table", arguments, timeout_s=_LONG_CALL_TIMEOUT_S), is_repeatable=False)
        return TableDescriptor.from_json(altered)

    def drop_table(self, name: str, *, if_exists: bool) -> None:
        self._control("drop_table", {"name": name, "if_exists": if_exists}, is_repeatable=if_exists)

    def create_partition(self, table: str, partition: str, *, if_not_exists: bool) -> None:
        self._require("add_partition")
        arguments = {"table": table, "partition": partition, "if_not_exists": if_not_exists}
        self._control("create_partition", arguments, is_repeatable=if_not_exists)

    def drop_partition(self, table: str, partition: str, *, if_exists: bool) -> None:
        self._require("drop_partition")
        self._control("drop_partition", {"table": table, "partition": partition, "if_exists": if_exists}, is_repeatable=if_exists)

    def tables(self) -> list[TableDescriptor]:
        return [TableDescriptor.from_json(value) for value in self._control("tables")]

    def partitions(self, table: str) -> dict[str, int]:
        return self._control("partitions", {"table": table})

    def put_object(self, kind: str, name: str, value: Mapping[str, Any] | None) -> None:
        self._control("put_object", {"kind": kind, "name": name, "value": None if value is None else dict(value)})

    def objects(self, kind: str) -> dict[str, dict[str, Any]]:
        return self._control("objects", {"kind": kind})

    # writes
    def commit(self, request: CommitRequest) -> CommitResult:
        self._require(*features_of_commit(request))
        self._throttle.wait()
        with self._writers.borrow() as writer:
            is_ours = request.write_id is None
            if is_ours:
                request = replace(request, write_id=writer.next_write_id())
            call = Call("commit", *encode_commit(request))
            is_small = sum(table.nbytes for table in call.tables) + sum(blob.size for blob in call.blobs) <= _SOCKET_COMMIT_BYTES
            result = self._retried(lambda: self._call(writer, call, is_small=is_small), is_repeatable=True).result
        self._throttle.note(result.get("pressure", 0.0))
        # a duplicate of an id that the caller did not choose is our own retry
        return CommitResult(result["version"], result["is_duplicate"] and not is_ours, result["n_late_rows"])

    def commit_stream(self, in_flight_max: int) -> SocketCommitStream:
        retry: Retry | None = None  # its time begins with the trouble, not with the stream

        def reconnect(error: Exception) -> None:
            nonlocal retry
            retry = retry or Retry(self._retry_s)
            self._go_on_after(error, retry)

        def answered(reply: Reply) -> None:
            nonlocal retry
            retry = None
            self._throttle.note(reply.result.get("pressure", 0.0))

        def call(writer: Writer, request: Call) -> Reply:
            return self._retried(lambda: self._call_lane(writer, request), is_repeatable=True)

        connections = Connections(self._socket_of, call, reconnect, answered, self._throttle.wait, self._writers.give_back)
        return SocketCommitStream(connections, self._writers.take(), in_flight_max)

    # journal
    def version(self) -> int:
        return self._control("version")

    def latest(self, tables: Sequence[str]) -> Latest:
        if "latest" not in self._lane_calls:
            return latest_of(self, tables)
        found = self._control("latest", {"tables": list(tables)})
        return found["version"], {table: decode_offsets(offsets) for table, offsets in found["offsets"].items()}

    def await_version(self, after: int, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(deadline - time.monotonic(), 0.0)
            version: int = self._control("await_version", {"after": after, "timeout_s": min(left_s, _AWAIT_SLICE_S)})
            if version > after or time.monotonic() >= deadline:
                return version

    def commits(self, after: int, limit: int) -> list[CommitInfo]:
        return [decode_commit_info(value) for value in self._control("commits", {"after": after, "limit": limit})]

    def progress(self, owner_prefix: str) -> dict[str, Progress]:
        found = self._control("progress", {"owner_prefix": owner_prefix})
        return {value["owner"]: decode_progress(value) for value in found}

    def drop_progress(self, owner: str) -> bool:
        return self._control("drop_progress", {"owner": owner}, is_repeatable=False)

    def heartbeat(self, owner: str, member: str, session_timeout_ms: int) -> Membership:
        self._require("consumers")
        found = self._control("heartbeat", {"owner": owner, "member": member, "session_timeout_ms": session_timeout_ms})
        return Membership(found["generation"], tuple(found["members"]))

    def leave_group(self, owner: str, member: str) -> None:
        self._control("leave_group", {"owner": owner, "member": member})

    # reads
    def offsets(self, table: str, which: OffsetSpec, at_version: int | None = None, bound: int | None = None) -> Offsets:
        self._require(*features_of_offsets(which))
        return decode_offsets(self._control("offsets", {"table": table, "which": which, "at_version": at_version, "bound": bound}))

    def fetch(
        self,
        table: str,
        ranges: Mapping[TableBucket, tuple[int, int]],
        columns: Sequence[str] | None,
        where: str | None = None,
        *,
        as_of: int | None = None,
    ) -> Iterator[FetchedFrame]:
        """Frames as they arrive. After a broken connection the stream goes on behind the last frame that came.

        Few rows come at once, in one answer of the socket lane; many as a stream of it, or of Flight where a frame is too large.
        """
        self._require("scan")
        left = {bucket: (start, stop) for bucket, (start, stop) in ranges.items() if start < stop}
        if "fetch" in self._lane_calls and 0 < sum(stop - start for start, stop in left.values()) <= LANE_FETCH_ROWS:
            arguments = {"table": table, "ranges": encode_ranges(left), "columns": _listed(columns), "where": where, "as_of": as_of}
            frames = self._frames_over_socket(Call("fetch", arguments))
            if frames is not None:
                yield from frames
                return
        retry = Retry(self._retry_s)
        streamed = self._streamed
        while left:
            arguments = {"table": table, "ranges": encode_ranges(left), "columns": _listed(columns), "where": where, "as_of": as_of}
            try:
                for frame in streamed(Call("fetch", arguments)):
                    end = frame.base_offset + frame.n_rows
                    stop = left[frame.bucket][1]
                    left[frame.bucket] = (min(end, stop), stop)
                    yield frame
                    retry = Retry(self._retry_s)
                return
            except AnswerTooLarge:
                streamed = self._stream_frames
            except (AuthenticationFailed, Backpressure, LaneBroken, StoreUnavailable) as error:
                self._go_on_after(error, retry)
            left = {bucket: (start, stop) for bucket, (start, stop) in left.items() if start < stop}

    def lookup(self, table: str, keys: pa.Table, columns: Sequence[str] | None, *, insert_if_not_exists: bool) -> pa.Table:
        self._require(*features_of_lookup(insert_if_not_exists=insert_if_not_exists))
        arguments = {"table": table, "columns": _listed(columns), "insert_if_not_exists": insert_if_not_exists}
        return self._table_over_lane(Call("lookup", arguments, [keys]))

    def lookup_one(self, table: str, lookup: PointLookup, key: list[Any]) -> list[Any] | LongWay | None:
        if "lookup" not in self.capabilities:
            return LONG_WAY
        packed = lookup.packed_key(key)
        writer = self._writers.take()
        try:
            return self._row(writer, table, lookup, packed)
        except (LaneBroken, StoreUnavailable, AuthenticationFailed):
            return self._retried(lambda: self._row(writer, table, lookup, packed), is_repeatable=True)
        finally:
            self._writers.give_back(writer)

    def prefix_lookup(
        self, table: str, prefixes: pa.Table, columns: Sequence[str] | None, limit: int | None, rows_max: int | None = None
    ) -> pa.Table:
        self._require("prefix_lookup")
        arguments = {"table": table, "columns": _listed(columns), "limit": limit, "rows_max": rows_max}
        return self._table_over_lane(Call("prefix_lookup", arguments, [prefixes]))

    def lookups(self, table: str, batches: Iterable[pa.Table], columns: Sequence[str] | None) -> Iterator[pa.Table]:
        self._require("lookup")
        arguments = {"table": table, "columns": _listed(columns), "insert_if_not_exists": False}
        return self._pipelined("lookup", arguments, batches)

    def prefix_lookups(
        self, table: str, batches: Iterable[pa.Table], columns: Sequence[str] | None, limit: int | None
    ) -> Iterator[pa.Table]:
        self._require("prefix_lookup")
        return self._pipelined("prefix_lookup", {"table": table, "columns": _listed(columns), "limit": limit}, batches)

    def _pipelined(self, method: str, arguments: dict[str, Any], batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Answers in order; what a broken connection or a frame's bound leaves unanswered is asked one by one, then the rest goes on."""
        waiting: deque[pa.Table] = deque()
        left = iter(batches)

        def sent() -> Iterator[pa.Table]:
            for keys in left:
                waiting.append(keys)
                yield keys

        with self._writers.borrow() as writer:
            while True:
                try:
                    lane = self._socket_of(writer)
                except (LaneBroken, StoreUnavailable, AuthenticationFailed):
                    lane = None  # asked one by one, which logs in and tries again
                if lane is None:
                    waiting.extend(itertools.islice(left, 1))
                else:
                    try:
                        for rows in lane.pipeline(method, arguments, sent()):
                            waiting.popleft()
                            yield rows
                        return
                    except (LaneBroken, StoreUnavailable, AnswerTooLarge, AuthenticationFailed, Backpressure):
                        logger.debug("a pipeline of lookups broke; what waits is asked again", exc_info=True)
                    finally:
                        if not lane.is_usable:
                            writer.disconnect_socket()
                if not waiting:
                    return
                while waiting:
                    yield self._table_over_lane(Call(method, arguments, [waiting[0]]))
                    waiting.popleft()

    def read(
        self,
        table: str,
        columns: Sequence[str] | None,
        partitions: Sequence[str] | None,
        at_version: int | None,
        limit: int | None = None,
    ) -> pa.Table:
        self._require(*features_of_read(at_version))
        arguments = {"table": table, "columns": _listed(columns), "partitions": _listed(partitions), "at_version": at_version}
        call = Call("read", {**arguments, "limit": limit})
        return self._retried(lambda: self._read_stream(call), is_repeatable=True)

    def snapshot(self, table: str, columns: Sequence[str] | None, ends: Offsets, *, as_of: int | None = None) -> pa.RecordBatchReader:
        self._require("read_at_version")
        return self._stream_batches(
            Call("snapshot", {"table": table, "columns": _listed(columns), "ends": encode_offsets(ends), "as_of": as_of})
        )

    def count(self, table: str) -> int:
        return self._control("count", {"table": table})

    def bucket_statistics(self, table: str, positions: Offsets | None = None) -> pa.Table:
        self._require("statistics_of_buckets")
        found = self._control("bucket_statistics", {"table": table, "positions": encode_offsets(positions or {})})
        return pa.Table.from_pydict(found, BUCKET_STATISTICS)

    def late_rows(self, table: str) -> int:
        self._require("late_rows")
        return self._control("late_rows", {"table": table})

    def compact(self, table: str) -> SpaceInfo:
        self._require("compaction")
        arguments = {"table": table}
        return SpaceInfo(**self._retried(lambda: self._action("compact", arguments, timeout_s=_LONG_CALL_TIMEOUT_S), is_repeatable=True))

    def backup(self, target: str, *, links: bool = True) -> BackupInfo:
        self._require("backup")
        arguments = {"target": target, "links": links}
        return BackupInfo(**self._retried(lambda: self._action("backup", arguments, timeout_s=_LONG_CALL_TIMEOUT_S), is_repeatable=False))

    def _require(self, *features: str) -> None:
        require(self.capabilities, features, backend=self.url)


def parse_url(url: str) -> tuple[str, int]:
    """Host and port of a server's address; the port defaults to DEFAULT_PORT.

    Errors: InvalidConfiguration.

    >>> parse_url("flashlake://[::1]:9650")
    ('[::1]', 9650)
    """
    endpoint = endpoint_of(url, environ={})
    return endpoint.host, endpoint.port


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)
