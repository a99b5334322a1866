"""FlightBackend: a store behind flashlake://host:port or flashlake+tls://host:port: each call of the Backend protocol over Arrow Flight.

Control calls are actions (JSON both ways); lookups and small commits go over sockets (socket_lane.py), larger ones over kept-open
Flight streams (lane.py), which carry everything where no socket lane is reachable; fetch and read are streams.
Holds: a call that may safely be sent twice is sent again after a broken connection, until `retry_s` is over. Commits are such calls:
each has a write id, the caller's own or one of the lane's writer. DDL without IF [NOT] EXISTS is not, and says so.
Never: caches anything that the server owns; sends a call that needs what the server's backend does not declare.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.flight as fl

from storage_engine.api import BackupInfo, CommitInfo, CommitRequest, CommitResult, FetchedFrame, Progress
from storage_engine.client.capabilities import features_of_commit, features_of_lookup, features_of_read, require
from storage_engine.client.endpoint import Endpoint, endpoint_of
from storage_engine.client.lane import Lane, LaneBroken, Writer, WriterPool
from storage_engine.client.socket_lane import AnswerTooLarge, SocketLane
from storage_engine.client.throttle import Throttle
from storage_engine.client.wire import (
    PROTOCOL_VERSION,
    Call,
    Reply,
    decode_commit_info,
    decode_error,
    decode_frames,
    decode_offsets,
    decode_progress,
    decode_reply,
    encode_call,
    encode_commit,
    encode_ranges,
)
from storage_engine.errors import AuthenticationFailed, Backpressure, MalformedMessage, StoreUnavailable, UnsupportedFormatVersion
from storage_engine.schema.descriptor import Offsets, TableBucket, TableDescriptor

ERROR_KEY = b"flashlake-error"
_CALL_TIMEOUT_S = 60.0
_BACKUP_TIMEOUT_S = 6 * 3600.0
_AWAIT_SLICE_S = 10.0
_RETRY_FIRST_S = 0.02
_RETRY_MAX_S = 0.5
_SMALL_COMMIT_BYTES = 1 << 20
# Rows from the wire lie where gRPC put them: Arrow's filters copy the odd misaligned buffer instead of warning about it on stderr.
os.environ.setdefault("ACERO_ALIGNMENT_HANDLING", "reallocate")
# A channel of its own per client: gRPC shares connections and their reconnect back-off between equal channels otherwise.
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class FlightBackend:
    """A client of one server; any number of threads may use it."""

    def __init__(self, url: str, *, connect_s: float = 5.0, retry_s: float = 30.0, **access: Any) -> None:
        """Connect, log in, and learn what the server can do.

        connect_s  how long to wait for a first answer
        retry_s    how long a later call that may be repeated is repeated when the server does not answer
        access     user, password, token, token_file, tls_ca, tls_verify: see endpoint.py
        Errors: StoreUnavailable naming the address; AuthenticationFailed; UnsupportedFormatVersion for a server of another protocol.
        """
        self._endpoint: Endpoint = endpoint_of(url, **access)
        self.url = self._endpoint.url
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._writers = WriterPool()
        self._throttle = Throttle()
        self._is_closed = False
        self._client = self._new_client()
        credentials = self._endpoint.credentials
        self._bearer = f"Bearer {credentials.token}" if credentials.token else ""
        self._lane_address: Mapping[str, Any] | None = None
        self._is_flight_only = False
        hello = self._retried(lambda: self._action("hello", timeout_s=connect_s), is_repeatable=True, retry_s=connect_s)
        if hello["protocol"] != PROTOCOL_VERSION:
            self.close()
            raise UnsupportedFormatVersion(
                f"the server speaks protocol {hello['protocol']}, this client {PROTOCOL_VERSION}",
                where=self.url,
                next_step="Use the same Flashlake version at both ends.",
            )
        self.capabilities = frozenset(hello["capabilities"])

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
        return TableDescriptor.from_json(self._control("alter_table", {"descriptor": descriptor.to_json()}, is_repeatable=False))

    def drop_table(self, name: str, *, if_exists: bool) -> None:
        self._control("drop_table", {"name": name, "if_exists": if_exists}, is_repeatable=if_exists)

    def drop_partition(self, table: str, partition: str, *, if_exists: bool) -> None:
        self._require("drop_partition")
        self._control("drop_partition", {"table": table, "partition": partition, "if_exists": if_exists}, is_repeatable=if_exists)

    def tables(self) -> list[TableDescriptor]:
        return [TableDescriptor.from_json(value) for value in self._control("tables")]

    def partitions(self, table: str) -> list[str]:
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
            arguments, tables = encode_commit(request)
            call = Call("commit", arguments, tables)
            is_small = sum(table.nbytes for table in tables) <= _SMALL_COMMIT_BYTES
            result = self._retried(lambda: self._call(writer, call, is_small=is_small), is_repeatable=True).result
        self._throttle.note(result.get("pressure", 0.0))
        # a duplicate of an id that the caller did not choose is our own retry
        return CommitResult(result["version"], is_duplicate=result["is_duplicate"] and not is_ours)

    # journal
    def version(self) -> int:
        return self._control("version")

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

    # reads
    def offsets(self, table: str, which: Literal["earliest", "latest"], at_version: int | None = None) -> Offsets:
        return decode_offsets(self._control("offsets", {"table": table, "which": which, "at_version": at_version}))

    def fetch(
        self, table: str, ranges: Mapping[TableBucket, tuple[int, int]], columns: Sequence[str] | None
    ) -> Iterator[FetchedFrame]:
        """Frames as they arrive. After a broken connection the stream goes on behind the last frame that came."""
        self._require("scan")
        left = {bucket: (start, stop) for bucket, (start, stop) in ranges.items() if start < stop}
        retry = _Retry(self._retry_s)
        while left:
            arguments = {"table": table, "ranges": encode_ranges(left), "columns": None if columns is None else list(columns)}
            try:
                for frame in self._stream_frames(Call("fetch", arguments)):
                    end = frame.base_offset + frame.n_rows
                    stop = left[frame.bucket][1]
                    left[frame.bucket] = (min(end, stop), stop)
                    retry = _Retry(self._retry_s)
                    yield frame
                return
            except AuthenticationFailed as error:
                self._log_in_again(error, retry)
            except (LaneBroken, StoreUnavailable) as error:
                self._reconnect_after(error, retry)
                left = {bucket: (start, stop) for bucket, (start, stop) in left.items() if start < stop}

    def lookup(self, table: str, keys: pa.Table, columns: Sequence[str] | None, *, insert_if_not_exists: bool) -> pa.Table:
        self._require(*features_of_lookup(insert_if_not_exists=insert_if_not_exists))
        arguments = {"table": table, "columns": _listed(columns), "insert_if_not_exists": insert_if_not_exists}
        return self._table_over_lane(Call("lookup", arguments, [keys]))

    def prefix_lookup(self, table: str, prefixes: pa.Table, columns: Sequence[str] | None, limit: int | None) -> pa.Table:
        self._require("prefix_lookup")
        return self._table_over_lane(Call("prefix_lookup", {"table": table, "columns": _listed(columns), "limit": limit}, [prefixes]))

    def read(self, table: str, columns: Sequence[str] | None, partitions: Sequence[str] | None, at_version: int | None) -> pa.Table:
        self._require(*features_of_read(at_version))
        call = Call("read", {"table": table, "columns": _listed(columns), "partitions": _listed(partitions), "at_version": at_version})
        return self._retried(lambda: self._read_stream(call), is_repeatable=True)

    def count(self, table: str) -> int:
        return self._control("count", {"table": table})

    def backup(self, target: str, *, links: bool = True) -> BackupInfo:
        self._require("backup")
        arguments = {"target": target, "links": links}
        return BackupInfo(**self._retried(lambda: self._action("backup", arguments, timeout_s=_BACKUP_TIMEOUT_S), is_repeatable=False))

    def close(self) -> None:
        self._is_closed = True
        self._writers.close()
        self._client.close()

    # the wire
    def _require(self, *features: str) -> None:
        require(self.capabilities, features, backend=self.url)

    def _control(self, method: str, arguments: Mapping[str, Any] | None = None, *, is_repeatable: bool = True) -> Any:
        return self._retried(lambda: self._action(method, arguments or {}), is_repeatable=is_repeatable)

    def _action(self, method: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = _CALL_TIMEOUT_S) -> Any:
        (message,) = encode_call(Call(method, arguments or {}))
        try:
            results = list(self._client.do_action(fl.Action("call", message.header), self._options(timeout_s)))
        except fl.FlightUnauthenticatedError as error:
            raise self._not_let_in() from error
        except (pa.ArrowException, OSError) as error:
            raise LaneBroken(_first_line(error)) from error
        return decode_reply(json.loads(results[0].body.to_pybytes()), None).result

    def _table_over_lane(self, call: Call) -> pa.Table:
        with self._writers.borrow() as writer:
            return self._retried(lambda: self._rows(writer, call), is_repeatable=True)

    def _rows(self, writer: Writer, call: Call) -> pa.Table:
        lane = self._socket_of(writer)
        if lane is not None:
            try:
                return lane.rows(call.method, dict(call.arguments), call.tables[0])
            except AnswerTooLarge:
                pass
            finally:
                if not lane.is_usable:
                    writer.disconnect_socket()
        return self._call_lane(writer, call).tables[0]

    def _call(self, writer: Writer, call: Call, *, is_small: bool) -> Reply:
        lane = self._socket_of(writer) if is_small else None
        if lane is not None:
            try:
                return lane.call(call)
            except AnswerTooLarge:
                pass
            finally:
                if not lane.is_usable:
                    writer.disconnect_socket()
        return self._call_lane(writer, call)

    def _socket_of(self, writer: Writer) -> SocketLane | None:
        """The writer's socket lane, connected; None: the server has none that can be reached, and Flight carries everything."""
        if writer.socket is None and not self._is_flight_only:
            address = self._lane_address
            if address is not None:
                try:
                    writer.socket = self._new_socket(address)
                except LaneBroken:
                    self._lane_address = None  # the server may have started anew: ask it
            if writer.socket is None:
                self._lane_address = self._ask_lane()
                try:
                    writer.socket = self._new_socket(self._lane_address) if self._lane_address else None
                except LaneBroken:
                    logger.debug("the socket lane cannot be reached", exc_info=True)
                self._is_flight_only = writer.socket is None
        return writer.socket

    def _new_socket(self, address: Mapping[str, Any]) -> SocketLane:
        return SocketLane(self._endpoint.host, address, tls=self._endpoint.tls_context() if address.get("tls") else None)

    def _ask_lane(self) -> Mapping[str, Any] | None:
        try:
            return self._action("lane")
        except MalformedMessage:  # an older server
            return None

    def _call_lane(self, writer: Writer, call: Call) -> Reply:
        if writer.lane is None:
            writer.lane = Lane(self._client, self._options())
        try:
            return writer.lane.call(call)
        except AuthenticationFailed:
            writer.lane.is_usable = False  # it was opened by who we are no more
            raise
        except fl.FlightUnauthenticatedError as error:
            raise self._not_let_in() from error
        finally:
            if not writer.lane.is_usable:
                writer.disconnect()

    def _read_stream(self, call: Call) -> pa.Table:
        reader = self._open_stream(call)
        metadata = reader.schema.metadata or {}
        if ERROR_KEY in metadata:
            raise decode_error(json.loads(metadata[ERROR_KEY]))
        try:
            return reader.read_all()
        except fl.FlightUnauthenticatedError as error:
            raise self._not_let_in() from error
        except (pa.ArrowException, OSError) as error:
            raise LaneBroken(_first_line(error)) from error

    def _stream_frames(self, call: Call) -> Iterator[FetchedFrame]:
        reader = self._open_stream(call)
        is_done = False
        try:
            while True:
                try:
                    received = reader.read_chunk()
                except StopIteration:
                    is_done = True
                    return
                except fl.FlightUnauthenticatedError as error:
                    raise self._not_let_in() from error
                except (pa.ArrowException, OSError) as error:
                    raise LaneBroken(_first_line(error)) from error
                if received.data.num_rows == 0:
                    raise decode_error(json.loads(received.app_metadata.to_pybytes())["error"])
                yield from decode_frames(received.data, received.app_metadata)
        finally:
            if not is_done:
                reader.cancel()

    def _open_stream(self, call: Call) -> fl.FlightStreamReader:
        (message,) = encode_call(call)
        try:
            return self._client.do_get(fl.Ticket(message.header), self._options())
        except fl.FlightUnauthenticatedError as error:
            raise self._not_let_in() from error
        except (pa.ArrowException, OSError) as error:
            raise LaneBroken(_first_line(error)) from error

    # connections
    def _retried(self, attempt: Callable[[], T], *, is_repeatable: bool, retry_s: float | None = None) -> T:
        retry = _Retry(self._retry_s if retry_s is None else retry_s)
        while True:
            try:
                return attempt()
            except StoreUnavailable as error:  # refused by a server that is stopping: nothing was done
                self._reconnect_after(error, retry)
            except Backpressure as error:  # nothing was done
                if self._is_closed or not retry.wait(error.retry_after_ms / 1000):
                    raise
            except AuthenticationFailed as error:  # nothing was done: no session yet, or one that is over
                self._log_in_again(error, retry)
            except LaneBroken as error:
                if not is_repeatable:
                    raise self._unavailable(f"the connection broke and the call may have been done: {error}") from error
                self._reconnect_after(error, retry)

    def _reconnect_after(self, error: Exception, retry: _Retry) -> None:
        if self._is_closed:
            raise StoreUnavailable("this store is closed", where=self.url, next_step="Connect again.") from error
        if not retry.wait():
            raise self._unavailable(f"no answer: {error}") from error
        self._is_flight_only = False
        with self._lock:
            self._client = self._new_client()

    def _unavailable(self, what: str) -> StoreUnavailable:
        next_step = "Is the server running? flashlake status says; flashlake up store starts it."
        return StoreUnavailable(what, where=self.url, next_step=next_step)

    def _new_client(self) -> fl.FlightClient:
        return fl.FlightClient(self._endpoint.location, generic_options=_CHANNEL, **self._endpoint.flight_options())  # type: ignore[arg-type]

    # who we are
    def _options(self, timeout_s: float | None = None) -> fl.FlightCallOptions:
        headers = [(b"authorization", self._bearer.encode())] if self._bearer else []
        return fl.FlightCallOptions(timeout=timeout_s, headers=headers)

    def _log_in_again(self, error: AuthenticationFailed, retry: _Retry) -> None:
        """Open a session with the password, once per call. Errors: AuthenticationFailed; StoreUnavailable."""
        credentials = self._endpoint.credentials
        if self._is_closed or retry.has_logged_in or not credentials.password:
            raise error
        retry.has_logged_in = True
        while True:
            try:
                options = fl.FlightCallOptions(timeout=_CALL_TIMEOUT_S)
                _, value = self._client.authenticate_basic_token(credentials.user, credentials.password, options)
                self._bearer = value.decode()
                return
            except fl.FlightUnauthenticatedError as refusal:
                raise self._not_let_in() from refusal
            except (pa.ArrowException, OSError) as broken:
                self._reconnect_after(LaneBroken(_first_line(broken)), retry)

    def _not_let_in(self) -> AuthenticationFailed:
        credentials = self._endpoint.credentials
        if not credentials.token and not credentials.user:
            return AuthenticationFailed(
                "the server asks for a user", where=self.url, next_step="Connect with user= and password=, or token= (docs/server.md)."
            )
        next_step = "Check user and password, or whether the token is expired or revoked."
        return AuthenticationFailed("the credentials are not accepted", where=self.url, next_step=next_step)


class _Retry:
    """Waits longer from time to time, until a deadline."""

    def __init__(self, retry_s: float) -> None:
        self._deadline = time.monotonic() + retry_s
        self._pause_s = _RETRY_FIRST_S
        self.has_logged_in = False

    def wait(self, at_least_s: float = 0.0) -> bool:
        """Pause before another attempt; False when the time is over."""
        pause_s = max(self._pause_s, at_least_s)
        if time.monotonic() + pause_s > self._deadline:
            return False
        time.sleep(pause_s)
        self._pause_s = min(self._pause_s * 2, _RETRY_MAX_S)
        return True


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


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0].split(". gRPC client debug context")[0]
