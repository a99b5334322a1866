"""The wire's functions are inverses of each other, whatever the sizes and wherever buffers happen to lie."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import storage_engine.client.wire.envelope as envelope
from storage_engine import errors
from storage_engine.api import CommitInfo, CommitRequest, FetchedFrame, Progress, WriteId, WriteOp
from storage_engine.client.wire import (
    Assembler,
    Call,
    Message,
    Reply,
    decode_call,
    decode_chunk,
    decode_commit,
    decode_commit_info,
    decode_error,
    decode_frames,
    decode_group,
    decode_offsets,
    decode_progress,
    decode_reply,
    encode_call,
    encode_chunk,
    encode_commit,
    encode_commit_info,
    encode_error,
    encode_error_reply,
    encode_frames,
    encode_group,
    encode_offsets,
    encode_progress,
    encode_reply,
)
from storage_engine.client.wire import packed as socket_wire
from storage_engine.schema.descriptor import TableBucket

ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "name": ["a", None, "ccc"], "tags": [["x"], [], None]})

buckets = st.builds(TableBucket, st.text("abc-_019", max_size=6), st.integers(0, 4095))
offsets = st.dictionaries(buckets, st.integers(0, 1 << 60), max_size=4)
by_table = st.dictionaries(st.sampled_from(["a.b", "ods.transactions"]), offsets, max_size=2)


def assembled(messages):
    assembler = Assembler()
    results = [assembler.feed(message) for message in messages]
    assert all(result is None for result in results[:-1])
    assert results[-1] is not None
    return results[-1]


def unaligned(buffer: pa.Buffer) -> pa.Buffer:
    """The same bytes at an odd address, as gRPC hands them over."""
    return pa.py_buffer(b"\x00" + buffer.to_pybytes()).slice(1)


@given(offsets)
def test_offsets_survive_the_wire(value):
    assert decode_offsets(encode_offsets(value)) == value


@given(st.builds(Progress, st.text(max_size=9), by_table, st.none() | by_table, st.dictionaries(st.text(max_size=3), st.integers())))
def test_progress_survives_the_wire(progress):
    assert decode_progress(encode_progress(progress)) == progress


def test_a_progress_that_expects_nothing_recorded_is_not_one_that_does_not_compare():
    expecting_none = Progress("job:a", {}, expected={})

    assert decode_progress(encode_progress(expecting_none)).expected == {}
    assert decode_progress(encode_progress(Progress("job:a", {}))).expected is None


def test_a_commit_info_survives_the_wire():
    info = CommitInfo(7, 1_500_000_000_000, {"a.b": {TableBucket("", 0): (3, 9), TableBucket("2017-01-01", 2): (0, 1)}})

    assert decode_commit_info(encode_commit_info(info)) == info


@pytest.mark.parametrize("after", [None, 0, 8])
@pytest.mark.parametrize("columns", [None, (), ("id", "name")])
def test_a_commit_survives_the_wire_with_rows_columns_progress_and_write_id(columns, after):
    request = CommitRequest(
        ops=[WriteOp("a.b", "upsert", ROWS, columns), WriteOp("a.c", "append", ROWS.slice(1, 1))],
        progress=[Progress("job:x", {"a.b": {TableBucket("", 0): 4}}, expected={})],
        write_id=WriteId("w", 9, after),
    )

    arguments, tables, _ = encode_commit(request)
    call = decode_call(*assembled(encode_call(Call("commit", arguments, tables))))

    assert decode_commit(call.arguments, call.tables) == request


@pytest.mark.parametrize("write_id", [[], ["w"], ["w", "1"], [1, 1], ["w", 1.5], ["w", 2, "1"], ["w", 3, 2, 1], "w", {"w": 1}, ["w", True]])
def test_a_write_id_that_names_no_commit_is_refused(write_id):
    arguments, tables, _ = encode_commit(CommitRequest())

    with pytest.raises(errors.MalformedMessage):
        decode_commit({**arguments, "write_id": write_id}, tables)


def test_an_empty_commit_survives_the_wire():
    arguments, tables, _ = encode_commit(CommitRequest())

    assert decode_commit(arguments, tables) == CommitRequest(ops=[], progress=[])


@pytest.mark.parametrize("chunk_bytes", [64, 100, 1 << 20])
@pytest.mark.parametrize("table", [ROWS, ROWS.slice(0, 0), pa.concat_tables([ROWS, ROWS.slice(2)])], ids=["rows", "none", "chunked"])
def test_tables_survive_the_wire_in_chunks_of_any_size(monkeypatch, chunk_bytes, table):
    monkeypatch.setattr(envelope, "CHUNK_BYTES_MAX", chunk_bytes)

    messages = [Message(message.header, message.chunk and unaligned(message.chunk)) for message in encode_reply(Reply(5, [table, ROWS]))]
    reply = decode_reply(*assembled(messages))

    assert (reply.result, reply.tables) == (5, [table, ROWS])
    assert all(message.chunk is None or message.chunk.size <= chunk_bytes for message in messages)


def test_decoded_tables_have_aligned_buffers():
    table = pa.table({"x": np.arange(1000)})
    messages = [Message(message.header, message.chunk and unaligned(message.chunk)) for message in encode_reply(Reply(None, [ROWS, table]))]

    reply = decode_reply(*assembled(messages))

    assert reply.tables[1]["x"].chunk(0).buffers()[1].address % 8 == 0


def test_a_chunk_survives_as_one_cell_of_a_batch():
    chunk = pa.py_buffer(b"bytes")

    assert decode_chunk(encode_chunk(chunk)).to_pybytes() == b"bytes"


def test_more_rows_than_a_message_may_carry_are_refused_before_anything_is_sent(monkeypatch):
    monkeypatch.setattr(envelope, "REQUEST_BYTES_MAX", 100)

    with pytest.raises(errors.RequestTooLarge, match=r"commit.*Send fewer rows"):
        list(encode_call(Call("commit", {}, [ROWS])))


@pytest.mark.parametrize(
    "messages",
    [
        [Message(b"{", None)],
        [Message(b"[]", None)],
        [Message(b'{"sizes": [-1]}', None)],
        [Message(b'{"sizes": [%d]}' % (1 << 40), None)],
        [Message(None, pa.py_buffer(b"x"))],
        [Message(b'{"sizes": [64]}', pa.py_buffer(bytes(65)))],
        [Message(b'{"sizes": [64]}', None), Message(b'{"sizes": []}', None)],
    ],
    ids=["no json", "no object", "negative size", "huge size", "chunk first", "too long", "header inside"],
)
def test_what_is_not_of_this_protocol_is_refused_by_name(messages):
    assembler = Assembler()

    *first, last = messages
    for message in first:
        assembler.feed(message)

    with pytest.raises(errors.MalformedMessage):
        assembler.feed(last)


def test_bytes_that_are_not_an_arrow_stream_are_refused_by_name():
    with pytest.raises(errors.MalformedMessage, match="Arrow IPC"):
        decode_call({"method": "commit", "arguments": {}, "sizes": [64]}, pa.py_buffer(b"\xff" * 64))


def leaves(kind: type[errors.FlashlakeError]) -> list[type[errors.FlashlakeError]]:
    return [kind, *(leaf for child in kind.__subclasses__() if child.__module__ == errors.__name__ for leaf in leaves(child))]


@pytest.mark.parametrize("kind", leaves(errors.FlashlakeError))
def test_every_error_of_the_tree_arrives_as_itself(kind):
    error = kind("what", where="where", next_step="next step")

    with pytest.raises(kind) as caught:
        decode_reply(*assembled(encode_error_reply(error)))

    assert type(caught.value) is kind
    assert (str(caught.value), vars(caught.value)) == (str(error), vars(error))


def test_an_error_carries_its_data():
    locked = errors.StoreLocked("locked", where="d", next_step="n", pid=42)
    damaged = errors.DamagedFrame("bad", where="d", next_step="n", file="log/0.log", offset=128)

    assert decode_error(encode_error(locked)).pid == 42
    assert (decode_error(encode_error(damaged)).file, decode_error(encode_error(damaged)).offset) == ("log/0.log", 128)


def test_an_error_of_a_newer_peer_arrives_as_its_nearest_known_parent():
    value = encode_error(errors.UserError("w", where="x", next_step="n"))

    decoded = decode_error({**value, "classes": ["QuotaExceeded", "RetriableError", "FlashlakeError"]})

    assert type(decoded) is errors.RetriableError


def frame(
    message: bytes, *, columns=("a",), base_offset=0, change_types=None, partition="", wide="BIGINT", timestamps=None
) -> FetchedFrame:
    bucket, types, data = TableBucket(partition, 1), (wide,) * len(columns), pa.py_buffer(message)
    return FetchedFrame(bucket, base_offset, 3, 1_500_000_000_000, 2, columns, types, change_types, (data,), timestamps)


@given(
    st.lists(
        st.builds(
            frame,
            st.binary(max_size=300),
            columns=st.sampled_from([("a",), ("a", "b"), ()]),
            base_offset=st.integers(0, 1 << 50),
            change_types=st.none() | st.binary(min_size=3, max_size=3),
            partition=st.sampled_from(["", "2017-01-01"]),
            wide=st.sampled_from(["INT", "BIGINT"]),
            timestamps=st.sampled_from([None, ((1, 1_500_000_000_000), (3, 1_500_000_000_007))]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_frames_survive_the_wire_byte_for_byte(frames):
    batch, header = encode_frames(frames)

    assert list(decode_frames(batch, header)) == frames
    n_header, parts = encode_group(frames)
    assert decode_group(n_header, joined(parts)) == frames
    assert b"".join(socket_wire.pieces(parts)) == b"".join(parts)


def joined(parts) -> pa.Buffer:
    return pa.py_buffer(b"".join(parts))


@given(st.lists(st.integers(0, 3 * socket_wire.JOINED_BYTES_MAX), max_size=12))
def test_small_parts_are_sent_together_and_large_ones_from_where_they_lie(sizes):
    parts = [bytes([number]) * size for number, size in enumerate(sizes)]

    pieces = list(socket_wire.pieces(parts))

    assert b"".join(pieces) == b"".join(parts)
    large = [part for part in parts if len(part) > socket_wire.JOINED_BYTES_MAX]
    assert [id(piece) for piece in pieces if len(piece) > socket_wire.JOINED_BYTES_MAX] == [id(part) for part in large]


def test_messages_of_a_group_are_sent_from_where_they_lie_and_received_aligned():
    frames = [frame(b"x" * 13, change_types=b"abc"), frame(b"y" * 100), frame(b"z" * 1000)]
    n_header, parts = encode_group(frames)
    assert all(any(part is item.parts[0] for part in parts) for item in frames)

    decoded = decode_group(n_header, unaligned(joined(parts)))

    assert [item.message.to_pybytes() for item in decoded] == [b"x" * 13, b"y" * 100, b"z" * 1000]
    assert all(item.message.address % 64 == 0 for item in decoded)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"1000", b"9000"), (b"1000", b'"1k"'), (b"1000", b"1e3 "), (b'"BIGINT"', b"8       "), (b'"columns"', b'"colours"')],
)  # fmt: skip
def test_a_group_that_no_peer_sends_is_refused_by_name(old, new):
    n_header, parts = encode_group([frame(b"z" * 1000, timestamps=((3, 1_500_000_000_000),))])
    data = b"".join(parts)
    assert old in data

    with pytest.raises(errors.MalformedMessage):
        decode_group(n_header, pa.py_buffer(data.replace(old, new, 1)))
    with pytest.raises(errors.MalformedMessage):
        decode_group(n_header - 64, pa.py_buffer(data))
    with pytest.raises(errors.MalformedMessage):
        decode_group(n_header, pa.py_buffer(data[: n_header + 999]))


def test_messages_of_decoded_frames_are_aligned_so_that_readers_need_no_copy():
    batch, header = encode_frames([frame(b"x" * 13), frame(b"y" * 100), frame(b"z")])
    cells = batch.column("message")
    _, starts, data = cells.buffers()
    moved = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(cells), [None, starts, unaligned(data)])
    batch = batch.set_column(batch.num_columns - 1, batch.schema.field("message"), moved)

    decoded = list(decode_frames(batch, header))

    assert [item.message.to_pybytes() for item in decoded] == [b"x" * 13, b"y" * 100, b"z"]
    assert all(item.message.address % 64 == 0 for item in decoded)


def test_a_frame_that_travels_alone_is_not_copied():
    lone = frame(b"x" * 1000)

    batch, _ = encode_frames([lone])

    assert batch.column("message").buffers()[2].address == lone.message.address
