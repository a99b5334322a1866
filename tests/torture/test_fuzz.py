"""Whatever bytes lie on the disk or come over the wire: a parser answers, or refuses by an error of the tree; no other error, no crash,
and no large allocation.

Each parser gets what was written by its encoder, changed: bytes set, cut out, put in, the end lost, or bytes at random. Where a checksum
would stop all of that at the door, it is also made to match.  Longer: FLASHLAKE_FUZZ=20000 python -m pytest tests/torture/test_fuzz.py
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest

from storage_engine import Progress, TableBucket, WriteId, WriteOp
from storage_engine.api import CommitInfo, CommitRequest, EncodedAppend, EncodedRows, FetchedFrame
from storage_engine.client import wire
from storage_engine.client.frame_reader import FrameReader
from storage_engine.client.wire import packed
from storage_engine.engine import checkpoint, upkeep
from storage_engine.engine.backup import restore
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.engine.fsck import check_store
from storage_engine.engine.key_snapshots import read_snapshot
from storage_engine.errors import AlreadyExists, DamageError, FlashlakeError, UserError
from storage_engine.log.commit_log import CommitLog
from storage_engine.log.format_file import claim_directory
from storage_engine.log.frame import HEADER_BYTES, decode_batch, encode_message, parse_header, verify_payload
from storage_engine.log.log_file import check_file_header
from storage_engine.log.pruning import MessagePruner
from storage_engine.server.admission import Admission, Limits
from storage_engine.server.authentication import ANYBODY, Authenticator
from storage_engine.server.guard import Guard
from storage_engine.server.metrics import Metrics
from storage_engine.server.socket_server import _Connection
from tests.torture.harness import POLICIES
from tests.torture.model import KINDS, Op
from tests.torture.operations import draw_rows, request_op
from tests.torture.simulated_disk import SimulatedDisk

N = int(os.environ.get("FLASHLAKE_FUZZ", "150"))
MEMORY_BYTES = 1 << 30
STORE = Path("/s")
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("tags", pa.list_(pa.string())), ("p", pa.struct([("x", pa.float64())]))])
ROWS = pa.table(
    {"id": [1, None, 3], "name": ["a", "béta", None], "tags": [["x", None], [], None], "p": [{"x": 1.0}, None, {"x": 2.5}]}, schema=SCHEMA
)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """A parser that believes a length of many gigabytes gets no memory for it."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, pool = resource.getrlimit(resource.RLIMIT_AS), pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())  # gives back at once what a false length made it take
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        pa.set_memory_pool(pool)


def changed(chance: random.Random, data: bytes) -> bytes:
    """The bytes, in some way not what they were."""
    out = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        at = chance.randrange(len(out) + 1)
        what = chance.choice(["set", "set", "bit", "word", "cut", "put", "lose"])
        if what == "set" and at < len(out):
            out[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif what == "bit" and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif what == "word":
            out[at : at + 8] = struct.pack("<q", chance.choice([0, -1, 1, 2**31, 2**62, -(2**63), len(out), chance.randrange(1 << 20)]))
        elif what == "cut":
            del out[at : at + chance.choice([1, 4, 8, 64])]
        elif what == "put":
            out[at:at] = chance.randbytes(chance.choice([1, 4, 8, 64]))
        elif what == "lose" and chance.random() < 0.3:
            del out[at:]
    return chance.randbytes(chance.randrange(200)) if chance.random() < 0.03 else bytes(out)


def attack(parse: Callable[[bytes], object], samples: list[bytes], refusals: tuple[type[BaseException], ...] = (DamageError,)) -> None:
    """Feed the parser N times; `refusals` are what it may raise."""
    n_refused = 0
    for sample in samples:
        parse(sample)  # what was written is read
    for number in range(N):
        chance = random.Random(number)
        data = changed(chance, chance.choice(samples))
        try:
            parse(data)
        except refusals:
            n_refused += 1
        except BaseException as error:
            error.add_note(f"number {number}: {data[:2000]!r}")
            raise
    assert n_refused or refusals == ()


# on disk


def _filled() -> SimulatedDisk:
    disk = SimulatedDisk(1)
    chance = random.Random(1)
    store = EmbeddedBackend.open(STORE, disk=disk, now_ms=lambda: 1, checkpoints=POLICIES[0], maintenance=False, log_file_bytes_max=8192)
    for name in ("t.log", "t.last", "t.days", "t.ids"):
        descriptor = store.create_table(KINDS[name], if_not_exists=False)
        kind = "upsert" if descriptor.has_primary_key else "append"
        for _ in range(4):
            progress = (Progress("job:a", {"t.log": {TableBucket("", 0): chance.randrange(9)}}, None, {"n": 1}),)
            op = request_op(descriptor, Op(name, kind, draw_rows(chance, descriptor)))
            store.commit(CommitRequest((op,), progress, WriteId("w", chance.randrange(1 << 40))))
    store.backup("/b", links=False)
    store.close()
    return disk


DISK = _filled()
FILES = DISK.files(Path("/"))
LOGS = [path for path in FILES if path.suffix == ".log" and path.is_relative_to(STORE)]


def _file(path: str) -> bytes:
    return FILES[Path(path)].live


def _holding(path: str, data: bytes) -> SimulatedDisk:
    """The store with other bytes in one file."""
    disk = DISK.clone()
    disk.files(Path("/"))[Path(path)].__init__(data)  # type: ignore[misc]
    return disk


def _with_crc(data: bytes, at: int, begin: int) -> bytes:
    """The checksum at `at` made that of all from `begin` on."""
    return data[:at] + google_crc32c.value(data[begin:]).to_bytes(4, "little") + data[at + 4 :] if len(data) > begin else data


def test_a_store_with_a_changed_log_opens_or_says_what_is_damaged() -> None:
    def parse(data: bytes) -> None:
        disk = _holding(str(LOGS[-1]), data)
        disk.unlink(STORE / "CHECKPOINT")
        for file in check_store(STORE, disk=disk).damages if len(data) % 3 == 0 else ():
            assert file.file.startswith("/s/")
        log = CommitLog.open(disk, STORE)
        for commit in log.recover():
            upkeep.decode(commit.record)
            for _, location in commit.frames:
                log.read(location)

    attack(parse, [_file(str(LOGS[-1]))])


def test_frame_headers_whose_checksum_matches() -> None:
    data = _file(str(LOGS[0]))
    frames = [data[at : at + 256] for at in range(64, len(data) - 256, 64) if data[at : at + 4] == b"FLF1"]

    def parse(frame: bytes) -> None:
        if len(frame) >= HEADER_BYTES:
            frame = frame[:4] + google_crc32c.value(frame[8:HEADER_BYTES]).to_bytes(4, "little") + frame[8:]
        position = struct.unpack_from("<Q", frame.ljust(64, b"\0"), 16)[0]
        header = parse_header(pa.py_buffer(frame), 0, position)
        verify_payload(pa.py_buffer(frame), 0, header)

    attack(parse, [frame[: struct.unpack_from("<I", frame, 12)[0]] for frame in frames if struct.unpack_from("<I", frame, 12)[0] <= 256])


def test_file_headers() -> None:
    attack(lambda data: check_file_header(pa.py_buffer(_with_crc(data[:64], 8, 12)), 0, "f"), [_file(str(LOGS[0]))[:64]])


def test_commit_records() -> None:
    log = CommitLog.open(DISK.clone(), STORE)
    attack(upkeep.decode, [commit.record for commit in log.recover()])


@pytest.mark.parametrize("is_matching", [False, True])
def test_checkpoints_are_used_or_not_but_never_stop_the_store(is_matching: bool) -> None:
    def parse(data: bytes) -> None:
        checkpoint.load(_holding("/s/CHECKPOINT", _with_crc(data, 8, 12) if is_matching else data), STORE)

    attack(parse, [_file("/s/CHECKPOINT")], ())


@pytest.mark.parametrize("is_matching", [False, True])
def test_key_snapshots_are_used_or_not_but_never_stop_the_store(is_matching: bool) -> None:
    paths = [str(path) for path in FILES if path.suffix == ".index"]
    assert paths

    def parse(data: bytes) -> None:
        read_snapshot(_holding(paths[0], _with_crc(data, 8, 12) if is_matching else data), Path(paths[0]))

    attack(parse, [_file(path) for path in paths], ())


def test_format_files() -> None:
    attack(lambda data: claim_directory(_holding("/s/FORMAT", data), STORE), [_file("/s/FORMAT")])


@pytest.mark.parametrize("is_matching", [False, True])
def test_backup_manifests(is_matching: bool) -> None:
    def parse(data: bytes) -> None:
        line = data.partition(b"\n")[0] + b"\n"
        disk = _holding("/b/BACKUP", line + f"crc32c {google_crc32c.value(line):08x}\n".encode() if is_matching else data)
        restore(Path("/b"), Path("/restored"), disk=disk)

    attack(parse, [_file("/b/BACKUP")], (DamageError, UserError, AlreadyExists))


# Arrow messages


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_arrow_messages(compression: str) -> None:
    message = encode_message(ROWS.combine_chunks().to_batches()[0], compression, bytes_min=0).to_pybytes()
    pruners = [MessagePruner(SCHEMA, columns) for columns in ([0], [1, 2], [3, 0], [])]

    def parse(data: bytes) -> None:
        for pruner in pruners:
            pruned = pruner.prune(pa.py_buffer(data))
            decode_batch(pruned, pruner.schema, untrusted=True)
        decode_batch(pa.py_buffer(data), SCHEMA, untrusted=True)

    attack(parse, [message])


# on the wire


def _envelope(messages: Iterator[wire.Message]) -> list[bytes]:
    (message,) = messages
    assert message.header is not None
    return [struct.pack("<I", len(message.header)) + message.header + (message.chunk.to_pybytes() if message.chunk else b"")]


def _fed(data: bytes) -> tuple[dict[str, Any], pa.Buffer | None] | None:
    size = struct.unpack("<I", data[:4].ljust(4, b"\0"))[0]
    header, chunk = data[4 : 4 + size], data[4 + size :]
    return wire.Assembler().feed(wire.Message(header, pa.py_buffer(chunk) if chunk else None))


def _commit_call() -> wire.Call:
    progress = Progress("job:a", {"a.b": {TableBucket("d", 1): 5}}, {"a.b": {}}, {"n": 1})
    request = CommitRequest((WriteOp("a.b", "append", ROWS, ("id",)),), (progress,), WriteId("w", 3))
    return wire.Call("commit", *wire.encode_commit(request))


def test_calls_and_the_commits_in_them() -> None:
    def parse(data: bytes) -> None:
        if (done := _fed(data)) is not None:
            call = wire.decode_call(*done)
            wire.decode_commit(call.arguments, call.tables, call.blobs)

    attack(parse, _envelope(wire.encode_call(_commit_call())))


def test_replies_and_errors_in_them() -> None:
    def parse(data: bytes) -> None:
        if (done := _fed(data)) is not None:
            wire.decode_reply(*done)

    error = UserError("what", where="where", next_step="next")
    attack(parse, _envelope(wire.encode_reply(wire.Reply({"a": [1]}, [ROWS]))))
    samples = _envelope(wire.encode_error_reply(error))
    with pytest.raises(UserError):
        parse(samples[0])
    for number in range(N):
        try:
            parse(changed(random.Random(number), samples[0]))
        except FlashlakeError:
            continue


def test_frames_on_the_wire() -> None:
    message = encode_message(ROWS.combine_chunks().to_batches()[0])
    frames = [FetchedFrame(TableBucket("d", n), n, 3, 1, 0, ("id", "name"), ("bigint", "string"), b"\0\0\0", (message,)) for n in range(2)]
    batch, header = wire.encode_frames(frames)
    sample = struct.pack("<I", header.size) + header.to_pybytes() + batch.serialize().to_pybytes()

    def parse(data: bytes) -> None:
        size = struct.unpack("<I", data[:4].ljust(4, b"\0"))[0]
        try:
            received = pa.ipc.read_record_batch(pa.py_buffer(data[4 + size :]), batch.schema)
        except (pa.ArrowException, OSError, EOFError):
            return  # Flight has refused it
        list(wire.decode_frames(received, pa.py_buffer(data[4 : 4 + size])))

    attack(parse, [sample])

    n_header, parts = wire.encode_group(frames)
    attack(
        lambda data: wire.decode_group(struct.unpack("<I", data[:4].ljust(4, b"\0"))[0], pa.py_buffer(data[4:])),
        [struct.pack("<I", n_header) + b"".join(parts)],
    )


def test_values_of_other_shapes() -> None:
    info = CommitInfo(1, 2, {"a.b": {TableBucket("d", 1): (0, 3)}})
    encoded = EncodedAppend("a.b", 1, [EncodedRows("d", 0, 3, pa.py_buffer(b"a message"))])
    request = CommitRequest((WriteOp("a.b", "append", ROWS), encoded), (Progress("o", {}, None, {}),), None)
    arguments, tables, blobs = wire.encode_commit(request)
    samples: list[tuple[Callable[[Any], object], Any]] = [
        (wire.decode_offsets, {"d/1": 5}), (wire.decode_ranges, {"d/1": [0, 5]}), (wire.decode_commit_info, wire.encode_commit_info(info)),
        (wire.decode_progress, wire.encode_progress(Progress("o", {"a.b": {TableBucket("", 0): 1}}, {}, {}))),
        (lambda value: wire.decode_commit(value, tables, blobs), arguments),
    ]  # fmt: skip
    for decode, value in samples:
        text = json.dumps(value).encode()

        def parse(data: bytes, decode: Callable[[Any], object] = decode) -> None:
            try:
                found = json.loads(data)
            except (ValueError, RecursionError):
                return
            decode(found)

        parse(text)
        for number in range(N):
            try:
                parse(changed(random.Random(number), text))
            except DamageError:
                continue
        for other in (None, 3, "x", [], {}, [[]], {"a": None}, {"d/1": None}, {"d/x": 1}, {"x": 1}):
            try:
                decode(other)
            except DamageError:
                continue


def test_prepared_lookups_rows_and_errors_of_the_socket_lane() -> None:
    keys = pa.schema([("id", pa.int64())])
    prepare = packed.encode_prepare(3, "lookup", {"table": "a.b", "columns": ["id"]}, keys)[4:]
    rows = packed.encode_rows(ROWS.combine_chunks().to_batches()[0], None)[4:]
    error = packed.encode_error_frame(UserError("what", where="where", next_step="next"))[4:]
    call = packed.encode_call_frame(_commit_call())[4:]

    def parse(data: bytes) -> None:
        kind, number, body = packed.parse_frame(data)
        if kind == packed.PREPARE:
            packed.decode_prepare(body)
        elif kind == packed.ROWS:
            packed.decode_rows(number, body, None)
        elif kind == packed.ERROR:
            assert isinstance(packed.decode_error_frame(body), FlashlakeError)
        elif kind == packed.CALL:
            packed.decode_call_frame(number, body)

    attack(parse, [prepare, rows, error, call])


def test_a_connection_of_the_socket_lane_refuses_by_name_and_never_meets_a_bug_of_ours() -> None:
    disk = DISK.clone()
    store = EmbeddedBackend.open(STORE, disk=disk, now_ms=lambda: 1, maintenance=False)
    schema = pa.schema([pa.field("k1", pa.int32(), nullable=False), pa.field("k2", pa.string(), nullable=False)])
    keys = pa.record_batch([pa.array([1, 2], pa.int32()), pa.array(["a", ""])], schema=schema)
    sample = packed.encode_prepare(1, "lookup", {"table": "t.last", "columns": None}, schema) + packed.encode_keys_message(keys, 1) * 2
    guard = Guard(store, Authenticator(store, is_on=False))
    admission = Admission(Limits())
    gate = SimpleNamespace(in_flight=nullcontext, refuse_when_stopping=lambda: None, admission=admission, metrics=Metrics(), guard=guard)

    def parse(data: bytes) -> None:
        sent: list[bytes] = []
        stream = io.BytesIO(data)
        peer = SimpleNamespace(recv=stream.read, recv_into=stream.readinto, pending=lambda: 0)
        _Connection(gate, ANYBODY, FrameReader(peer, packed.FRAME_BYTES_MAX), sent.append).run()  # type: ignore[arg-type]
        answer = b"".join(sent)
        assert b"ServerFault" not in answer, answer

    attack(parse, [sample], ())
    store.close()


def test_what_a_parser_reads_has_the_rows_that_were_written() -> None:
    message = encode_message(ROWS.combine_chunks().to_batches()[0], "zstd", bytes_min=0)
    assert decode_batch(message, SCHEMA, untrusted=True).to_pylist() == ROWS.to_pylist()
    assert np.frombuffer(message, np.uint8).size == message.size
