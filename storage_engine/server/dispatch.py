"""Dispatch: one call of the wire becomes one call of a Backend. No network, no threads, no knowledge of which backend it is.

Holds: every method of the Backend protocol has exactly one entry; arguments are decoded by the functions that the client encoded with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import pyarrow as pa

from storage_engine.api import Backend, CommitResult, FetchedFrame
from storage_engine.client.latest import latest_of
from storage_engine.client.wire import (
    PROTOCOL_VERSION,
    Call,
    Reply,
    decode_commit,
    decode_offsets,
    decode_ranges,
    encode_commit_info,
    encode_offsets,
    encode_progress,
)
from storage_engine.errors import MalformedMessage
from storage_engine.schema.descriptor import TableDescriptor

Arguments = Mapping[str, Any]
Handler = Callable[[Backend, Arguments, Sequence[pa.Table]], Reply]
LANE_CALLS: Final = ("version", "latest", "offsets", "commits", "progress", "objects", "tables", "fetch", "fetch_stream")
"""Calls that the socket lane answers too: short questions that are asked often, none of which waits for others' commits; a fetch of few
rows; and one of many, whose frames are streamed."""


def answer(backend: Backend, call: Call) -> Reply:
    """Do the call. Errors: what the backend raises; MalformedMessage for a method that does not exist."""
    if call.method == "commit":
        return commit_reply(backend.commit(decode_commit(call.arguments, call.tables, call.blobs)))
    handler = _HANDLERS.get(call.method)
    if handler is None:
        raise MalformedMessage(f"there is no method {call.method}", where="wire", next_step="Use the same Flashlake version at both ends.")
    return handler(backend, call.arguments, call.tables)


def fetched(backend: Backend, arguments: Arguments) -> Iterator[FetchedFrame]:
    """The frames of a fetch() call. Errors: MalformedMessage; as Backend.fetch()."""
    ranges = decode_ranges(arguments["ranges"])
    return backend.fetch(arguments["table"], ranges, arguments["columns"], arguments["where"], as_of=arguments["as_of"])


def current_rows(backend: Backend, arguments: Arguments) -> pa.Table:
    """The rows of a read() call. Errors: as Backend.read()."""
    return backend.read(arguments["table"], arguments["columns"], arguments["partitions"], arguments["at_version"], arguments["limit"])


def snapshot(backend: Backend, arguments: Arguments) -> pa.RecordBatchReader:
    """The batches that such a call asks for. Errors: what the backend raises."""
    ends = decode_offsets(arguments["ends"])
    return backend.snapshot(arguments["table"], arguments["columns"], ends, as_of=arguments["as_of"])


def _hello(backend: Backend, _arguments: Arguments, _tables: Sequence[pa.Table]) -> Reply:
    return Reply(
        {
            "protocol": PROTOCOL_VERSION,
            "capabilities": sorted(backend.capabilities),
            "version": backend.version(),
            "store": backend.url,
            "pid": os.getpid(),
            "takes_encoded": True,
            "lane_calls": list(LANE_CALLS),
        }
    )


def _create_table(backend: Backend, arguments: Arguments, _tables: Sequence[pa.Table]) -> Reply:
    descriptor = TableDescriptor.from_json(arguments["descriptor"])
    return Reply(backend.create_table(descriptor, if_not_exists=arguments["if_not_exists"]).to_json())


def _alter_table(backend: Backend, arguments: Arguments, _tables: Sequence[pa.Table]) -> Reply:
    return Reply(backend.alter_table(TableDescriptor.from_json(arguments["descriptor"])).to_json())


def _heartbeat(backend: Backend, arguments: Arguments, _tables: Sequence[pa.Table]) -> Reply:
    return Reply(asdict(backend.heartbeat(arguments["owner"], arguments["member"], arguments["session_timeout_ms"])))


def _bucket_statistics(backend: Backend, arguments: Arguments, _tables: Sequence[pa.Table]) -> Reply:
    return Reply(backend.bucket_statistics(arguments["table"], decode_offsets(arguments["positions"])).to_pydict())


def commit_reply(result: CommitResult) -> Reply:
    return Reply(asdict(result))


def _lookup(backend: Backend, arguments: Arguments, tables: Sequence[pa.Table]) -> Reply:
    rows = backend.lookup(arguments["table"], tables[0], arguments["columns"], insert_if_not_exists=arguments["insert_if_not_exists"])
    return Reply(tables=[rows])


def _prefix_lookup(backend: Backend, arguments: Arguments, tables: Sequence[pa.Table]) -> Reply:
    rows = backend.prefix_lookup(arguments["table"], tables[0], arguments["columns"], arguments["limit"], arguments["rows_max"])
    return Reply(tables=[rows])


def _offsets(backend: Backend, arguments: Arguments, _tables: Sequence[pa.Table]) -> Reply:
    return Reply(encode_offsets(backend.offsets(arguments["table"], arguments["which"], arguments["at_version"], arguments["bound"])))


def _latest(backend: Backend, arguments: Arguments, _tables: Sequence[pa.Table]) -> Reply:
    version, offsets = latest_of(backend, arguments["tables"])
    return Reply({"version": version, "offsets": {table: encode_offsets(ends) for table, ends in offsets.items()}})


_HANDLERS: dict[str, Handler] = {
    "hello": _hello,
    "create_table": _create_table,
    "alter_table": _alter_table,
    "drop_table": lambda backend, args, _: Reply(backend.drop_table(args["name"], if_exists=args["if_exists"])),
    "create_partition": lambda backend, args, _: Reply(
        backend.create_partition(args["table"], args["partition"], if_not_exists=args["if_not_exists"])
    ),
    "drop_partition": lambda backend, args, _: Reply(backend.drop_partition(args["table"], args["partition"], if_exists=args["if_exists"])),
    "tables": lambda backend, _args, _: Reply([descriptor.to_json() for descriptor in backend.tables()]),
    "partitions": lambda backend, args, _: Reply(backend.partitions(args["table"])),
    "put_object": lambda backend, args, _: Reply(backend.put_object(args["kind"], args["name"], args["value"])),
    "objects": lambda backend, args, _: Reply(backend.objects(args["kind"])),
    "version": lambda backend, _args, _: Reply(backend.version()),
    "await_version": lambda backend, args, _: Reply(backend.await_version(args["after"], args["timeout_s"])),
    "commits": lambda backend, args, _: Reply([encode_commit_info(info) for info in backend.commits(args["after"], args["limit"])]),
    "progress": lambda backend, args, _: Reply([encode_progress(found) for found in backend.progress(args["owner_prefix"]).values()]),
    "drop_progress": lambda backend, args, _: Reply(backend.drop_progress(args["owner"])),
    "heartbeat": _heartbeat,
    "leave_group": lambda backend, args, _: Reply(backend.leave_group(args["owner"], args["member"])),
    "late_rows": lambda backend, args, _: Reply(backend.late_rows(args["table"])),
    "bucket_statistics": _bucket_statistics,
    "offsets": _offsets,
    "latest": _latest,
    "lookup": _lookup,
    "prefix_lookup": _prefix_lookup,
    "compact": lambda backend, args, _: Reply(asdict(backend.compact(args["table"]))),
    "backup": lambda backend, args, _: Reply(asdict(backend.backup(args["target"], links=args["links"]))),
    "count": lambda backend, args, _: Reply(backend.count(args["table"])),
}
