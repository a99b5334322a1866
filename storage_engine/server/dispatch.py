"""Dispatch: one call of the wire becomes one call of a Backend. No network, no threads, no knowledge of which backend it is.

Holds: every method of the Backend protocol has exactly one entry; arguments are decoded by the functions that the client encoded with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from storage_engine.api import Backend, FetchedFrame
from storage_engine.client.wire import (
    PROTOCOL_VERSION,
    Call,
    Reply,
    decode_commit,
    decode_ranges,
    encode_commit_info,
    encode_offsets,
    encode_progress,
)
from storage_engine.errors import MalformedMessage
from storage_engine.schema.descriptor import TableDescriptor

Arguments = Mapping[str, Any]
Handler = Callable[[Backend, Arguments, Sequence[pa.Table]], Reply]


def answer(backend: Backend, call: Call) -> Reply:
    """Do the call. Errors: what the backend raises; MalformedMessage for a method that does not exist."""
    handler = _HANDLERS.get(call.method)
    if handler is None:
        raise MalformedMessage(f"there is no method {call.method}", where="wire", next_step="Use the same Flashlake version at both ends.")
    return handler(backend, call.arguments, call.tables)


def fetched(backend: Backend, arguments: Arguments) -> Iterator[FetchedFrame]:
    return backend.fetch(arguments["table"], decode_ranges(arguments["ranges"]), arguments["columns"])


def current_rows(backend: Backend, arguments: Arguments) -> pa.Table:
    return backend.read(arguments["table"], arguments["columns"], arguments["partitions"], arguments["at_version"])


def _hello(backend: Backend, _arguments: Arguments, _tables: Sequence[pa.Table]) -> Reply:
    return Reply(
        {
            "protocol": PROTOCOL_VERSION,
            "capabilities": sorted(backend.capabilities),
            "version": backend.version(),
            "store": backend.url,
            "pid": os.getpid(),
        }
    )


def _create_table(backend: Backend, arguments: Arguments, _tables: Sequence[pa.Table]) -> Reply:
    descriptor = TableDescriptor.from_json(arguments["descriptor"])
    return Reply(backend.create_table(descriptor, if_not_exists=arguments["if_not_exists"]).to_json())


def _alter_table(backend: Backend, arguments: Arguments, _tables: Sequence[pa.Table]) -> Reply:
    return Reply(backend.alter_table(TableDescriptor.from_json(arguments["descriptor"])).to_json())


def _commit(backend: Backend, arguments: Arguments, tables: Sequence[pa.Table]) -> Reply:
    result = backend.commit(decode_commit(arguments, tables))
    return Reply({"version": result.version, "is_duplicate": result.is_duplicate})


def _lookup(backend: Backend, arguments: Arguments, tables: Sequence[pa.Table]) -> Reply:
    rows = backend.lookup(arguments["table"], tables[0], arguments["columns"], insert_if_not_exists=arguments["insert_if_not_exists"])
    return Reply(tables=[rows])


def _prefix_lookup(backend: Backend, arguments: Arguments, tables: Sequence[pa.Table]) -> Reply:
    return Reply(tables=[backend.prefix_lookup(arguments["table"], tables[0], arguments["columns"], arguments["limit"])])


_HANDLERS: dict[str, Handler] = {
    "hello": _hello,
    "create_table": _create_table,
    "alter_table": _alter_table,
    "drop_table": lambda backend, args, _: Reply(backend.drop_table(args["name"], if_exists=args["if_exists"])),
    "drop_partition": lambda backend, args, _: Reply(backend.drop_partition(args["table"], args["partition"], if_exists=args["if_exists"])),
    "tables": lambda backend, _args, _: Reply([descriptor.to_json() for descriptor in backend.tables()]),
    "partitions": lambda backend, args, _: Reply(backend.partitions(args["table"])),
    "put_object": lambda backend, args, _: Reply(backend.put_object(args["kind"], args["name"], args["value"])),
    "objects": lambda backend, args, _: Reply(backend.objects(args["kind"])),
    "commit": _commit,
    "version": lambda backend, _args, _: Reply(backend.version()),
    "await_version": lambda backend, args, _: Reply(backend.await_version(args["after"], args["timeout_s"])),
    "commits": lambda backend, args, _: Reply([encode_commit_info(info) for info in backend.commits(args["after"], args["limit"])]),
    "progress": lambda backend, args, _: Reply([encode_progress(found) for found in backend.progress(args["owner_prefix"]).values()]),
    "offsets": lambda backend, args, _: Reply(encode_offsets(backend.offsets(args["table"], args["which"], args["at_version"]))),
    "lookup": _lookup,
    "prefix_lookup": _prefix_lookup,
    "backup": lambda backend, args, _: Reply(asdict(backend.backup(args["target"], links=args["links"]))),
    "count": lambda backend, args, _: Reply(backend.count(args["table"])),
}
