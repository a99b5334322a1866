"""The socket lane: pipelined lookups, refusals, frames that are none, and a server that outlives all of it."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storage_engine
from storage_engine.api import CommitRequest, WriteOp
from storage_engine.client.flight import FlightBackend
from storage_engine.client.frame_reader import FrameReader
from storage_engine.client.lane import LaneBroken
from storage_engine.client.socket_lane import AnswerTooLarge, SocketLane
from storage_engine.client.wire import Call, Reply, encode_commit, encode_ranges, frames_of_reply
from storage_engine.client.wire import packed as wire
from storage_engine.errors import MalformedMessage, OffsetOutOfRange, SchemaMismatch, UnknownTable
from storage_engine.server import ServerProcess

KEYS = pa.schema([pa.field("k", pa.int64(), nullable=False)])
LOOKUP = {"table": "l.t", "columns": None, "insert_if_not_exists": False}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[storage_engine.Store]:
    with ServerProcess(tmp_path_factory.mktemp("lane")) as server, storage_engine.connect(server.url) as store:
        store.execute("CREATE TABLE l.t (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED)")
        store.table("l.t").upsert({"k": list(range(100)), "v": [f"v{i}" for i in range(100)]})
        yield store


def address_of(store: storage_engine.Store) -> dict[str, object]:
    assert isinstance(store.backend, FlightBackend)
    address = store.backend._ask_lane()
    assert address is not None
    return dict(address)


def keys(*values: int) -> pa.Table:
    return pa.table({"k": pa.array(values, pa.int64())}, schema=KEYS)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_pipelined_lookups_are_answered_in_order(store: storage_engine.Store, kind: str) -> None:
    address = address_of(store)
    lane = SocketLane("127.0.0.1", {**address, "unix": address["unix"] if kind == "unix" else None})
    answers = list(lane.pipeline("lookup", LOOKUP, [keys(i % 100, (i + 1) % 100) for i in range(500)]))
    assert [rows["v"].to_pylist() for rows in answers] == [[f"v{i % 100}", f"v{(i + 1) % 100}"] for i in range(500)]
    lane.close()


def test_a_lane_survives_a_refusal(store: storage_engine.Store) -> None:
    lane = SocketLane("127.0.0.1", address_of(store))
    with pytest.raises(UnknownTable):
        lane.rows("lookup", {**LOOKUP, "table": "l.none"}, keys(1))
    assert lane.is_usable
    assert lane.rows("lookup", LOOKUP, keys(7))["v"].to_pylist() == ["v7"]
    lane.close()


def test_an_answer_follows_a_changed_schema(store: storage_engine.Store) -> None:
    store.execute("CREATE TABLE l.a (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED)")
    table = store.table("l.a")
    table.upsert({"k": [1], "v": ["x"]})
    assert table.lookup([1]).to_pylist() == [{"k": 1, "v": "x"}]
    store.execute("ALTER TABLE l.a ADD COLUMN w INT")
    assert table.lookup([1]).to_pylist() == [{"k": 1, "v": "x"}]
    assert store.table("l.a").lookup([1]).to_pylist() == [{"k": 1, "v": "x", "w": None}]


def test_an_answer_beyond_a_frame_comes_over_flight(store: storage_engine.Store) -> None:
    store.execute("CREATE TABLE l.big (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED)")
    table = store.table("l.big")
    for k in range(20):
        table.upsert({"k": [k], "v": ["x" * (1 << 20)]})
    assert table.lookup(list(range(20)))["k"].to_pylist() == list(range(20))
    assert table.lookup([3])["k"].to_pylist() == [3]


def test_a_small_fetch_is_the_same_over_both_lanes(store: storage_engine.Store) -> None:
    store.execute("CREATE TABLE l.few (v STRING) WITH ('bucket.num' = '2')")
    for n in range(5):
        store.table("l.few").append({"v": [f"{n} {i}" for i in range(40)]})
    backend = store.backend
    assert isinstance(backend, FlightBackend)
    version, ends = store.latest(["l.few", "l.t"])
    assert (version, ends["l.few"]) == (store.version(), backend.offsets("l.few", "latest"))
    ranges = encode_ranges({bucket: (end // 3, end) for bucket, end in ends["l.few"].items()})
    call = Call("fetch", {"table": "l.few", "ranges": ranges, "columns": ["v"], "where": None, "as_of": version})
    lane = SocketLane("127.0.0.1", address_of(store))
    frames = frames_of_reply(lane.call(call))
    assert frames == list(backend._stream_frames(call))
    assert frames
    nothing = Call("fetch", {**call.arguments, "ranges": encode_ranges({})})
    assert frames_of_reply(lane.call(nothing)) == []
    lane.close()


def test_a_fetch_beyond_a_frame_comes_over_flight(store: storage_engine.Store) -> None:
    store.execute("CREATE TABLE l.wide (v STRING) WITH ('table.log.arrow.compression.type' = 'none')")
    table = store.table("l.wide")
    for n in range(20):
        table.append({"v": [str(n) * (1 << 20)]})
    ranges = encode_ranges({bucket: (0, end) for bucket, end in table.offsets("latest").items()})
    lane = SocketLane("127.0.0.1", address_of(store))
    with pytest.raises(AnswerTooLarge):
        lane.call(Call("fetch", {"table": "l.wide", "ranges": ranges, "columns": None, "where": None, "as_of": None}))
    lane.close()
    assert [row["v"] for row in table.scan().read_all().to_pylist()] == [str(n) * (1 << 20) for n in range(20)]


@pytest.fixture(scope="module")
def changes(store: storage_engine.Store) -> storage_engine.Table:
    """A changelog of some 30 MB in two buckets, uncompressed: several groups of frames."""
    options = "'bucket.num' = '2', 'table.log.arrow.compression.type' = 'none'"
    store.execute(f"CREATE TABLE l.changes (k BIGINT NOT NULL, v STRING, w BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ({options})")
    table = store.table("l.changes")
    for n in range(15):
        table.upsert({"k": list(range(n, n + 1000)), "v": [f"{n} {k} ".ljust(1000, "x") for k in range(1000)], "w": [n] * 1000})
    return table


def stream_of(table: storage_engine.Table, columns: list[str] | None = None) -> Call:
    ranges = encode_ranges({bucket: (0, end) for bucket, end in table.offsets("latest").items()})
    return Call("fetch_stream", {"table": table.name, "ranges": ranges, "columns": columns, "where": None, "as_of": None})


@pytest.mark.parametrize("columns", [None, ["k"], ["w", "v"], []])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_scan_is_the_same_over_both_lanes(
    store: storage_engine.Store, changes: storage_engine.Table, kind: str, columns: list[str] | None
) -> None:
    backend = store.backend
    assert isinstance(backend, FlightBackend)
    address = address_of(store)
    lane = SocketLane("127.0.0.1", {**address, "unix": address["unix"] if kind == "unix" else None})
    call = stream_of(changes, columns)

    groups = list(lane.stream(call))

    assert [frame for group in groups for frame in group] == list(backend._stream_frames(replace(call, method="fetch")))
    assert (len(groups) > 1) == (columns is None or "v" in columns)
    assert all(frame.message.address % 64 == 0 for group in groups for frame in group)
    assert lane.is_usable
    assert list(lane.stream(replace(call, arguments={**call.arguments, "ranges": {}}))) == []
    assert lane.rows("lookup", LOOKUP, keys(7))["v"].to_pylist() == ["v7"]
    lane.close()


def test_a_scan_is_answered_in_its_turn(store: storage_engine.Store, changes: storage_engine.Table) -> None:
    lane = SocketLane("127.0.0.1", address_of(store))
    for n in range(3):
        rows = pa.table({"k": pa.array([5000], pa.int64()), "v": [f"turn {n}"]})
        lane.post(wire.call_frame_parts(Call("commit", *encode_commit(CommitRequest([WriteOp("l.t", "upsert", rows)])))))
    lane.post(wire.call_frame_parts(stream_of(changes, ["k"])))

    versions = [lane.take_reply(is_last=False).result["version"] for _ in range(3)]
    kind, _, _ = lane._receive()

    assert versions == sorted(set(versions))
    assert kind == wire.FRAMES
    lane.close()
    store.table("l.t").delete({"k": [5000]})


def test_a_scan_that_is_refused_leaves_the_lane_usable(store: storage_engine.Store, changes: storage_engine.Table) -> None:
    lane = SocketLane("127.0.0.1", address_of(store))
    call = stream_of(changes)
    beyond = {bucket: [0, stop + 1] for bucket, (_, stop) in call.arguments["ranges"].items()}
    with pytest.raises(OffsetOutOfRange):
        list(lane.stream(replace(call, arguments={**call.arguments, "ranges": beyond})))
    with pytest.raises(UnknownTable):
        list(lane.stream(replace(call, arguments={**call.arguments, "table": "l.none"})))
    assert lane.is_usable
    assert lane.rows("lookup", LOOKUP, keys(7))["v"].to_pylist() == ["v7"]
    lane.close()


def test_a_scan_left_in_the_middle_gives_its_lane_up(store: storage_engine.Store, changes: storage_engine.Table) -> None:
    lane = SocketLane("127.0.0.1", address_of(store))
    stream = lane.stream(stream_of(changes))
    next(stream)
    stream.close()
    assert not lane.is_usable
    rows = changes.scan()
    assert rows.read_next_batch().num_rows
    rows.close()
    assert changes.scan().read_all().num_rows == sum(changes.offsets("latest").values())


def test_a_scan_goes_on_over_flight_behind_a_frame_that_is_too_large(store: storage_engine.Store) -> None:
    store.execute("CREATE TABLE l.mixed (n INT, v STRING) WITH ('table.log.arrow.compression.type' = 'none')")
    table = store.table("l.mixed")
    sizes = [1, 17, 2, 1, 17, 1]
    for n, size in enumerate(sizes):
        table.append({"n": [n] * 4096, "v": [str(n) * (size << 8)] * 4096})
    lane = SocketLane("127.0.0.1", address_of(store))
    came: list[int] = []
    with pytest.raises(AnswerTooLarge):
        came.extend(frame.base_offset for group in lane.stream(stream_of(table)) for frame in group)
    assert lane.is_usable
    lane.close()

    rows = table.scan().read_all()

    assert rows["n"].to_pylist() == [n for n in range(len(sizes)) for _ in range(4096)]
    assert [len(rows["v"][n * 4096].as_py()) for n in range(len(sizes))] == [size << 8 for size in sizes]
    assert table.scan(["n"]).read_all().equals(rows.select(["n"]))


def test_a_call_that_the_lane_does_not_have_is_refused(store: storage_engine.Store) -> None:
    lane = SocketLane("127.0.0.1", address_of(store))
    with pytest.raises(MalformedMessage):
        lane.call(Call("drop_table", {"name": "l.t", "if_exists": True}))
    assert not lane.is_usable
    assert store.table("l.t").count() == 100


def test_a_lane_without_the_servers_token_is_closed(store: storage_engine.Store) -> None:
    with pytest.raises(LaneBroken):
        SocketLane("127.0.0.1", {**address_of(store), "token": "00" * wire.TOKEN_BYTES})


def test_a_frame_beyond_the_bound_is_refused_before_it_is_read(store: storage_engine.Store) -> None:
    with greeted(store) as raw:
        raw.sendall(wire.LENGTH.pack(wire.FRAME_BYTES_MAX + 1))
        answer = drained(raw)
    kind, _, body = wire.parse_frame(answer[wire.LENGTH.size :])
    assert kind == wire.ERROR
    assert isinstance(wire.decode_error_frame(body), MalformedMessage)


def greeted(store: storage_engine.Store) -> socket.socket:
    address = address_of(store)
    raw = socket.create_connection(("127.0.0.1", int(str(address["port"]))), 5.0)
    greeting = wire.MAGIC + bytes.fromhex(str(address["token"]))
    raw.sendall(greeting)
    assert raw.recv(len(greeting), socket.MSG_WAITALL) == greeting
    return raw


def drained(raw: socket.socket) -> bytes:
    """Everything until the server closes; a reset counts as that."""
    received = b""
    try:
        raw.shutdown(socket.SHUT_WR)
        while chunk := raw.recv(1 << 16):
            received += chunk
    except (ConnectionResetError, BrokenPipeError):
        pass
    return received


def test_a_server_outlives_frames_that_are_none(store: storage_engine.Store) -> None:
    seed = random.Random(11)
    good = wire.encode_prepare(0, "lookup", LOOKUP, KEYS) + wire.encode_keys_message(keys(1, 2).to_batches()[0], 0)
    for _ in range(150):
        data = bytearray(good if seed.random() < 0.8 else seed.randbytes(64))
        for _ in range(seed.randint(1, 6)):
            data[seed.randrange(len(data))] = seed.randrange(256)
        with greeted(store) as raw:
            raw.sendall(bytes(data[: seed.randint(1, len(data))]))
            drained(raw)
    assert store.table("l.t").lookup([5])["v"].to_pylist() == ["v5"]


FRAMES = [
    wire.encode_prepare(3, "lookup", LOOKUP, KEYS),
    wire.encode_keys_message(keys(1, 2).to_batches()[0], 3),
    wire.encode_call_frame(Call("lookup", LOOKUP, [keys(1)])),
    wire.encode_rows(keys(1, 2).to_batches()[0], None),
    wire.encode_reply_frame(Reply({"version": 1})),
]


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(FRAMES), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4), st.integers(0, 4000))
def test_a_parser_reads_a_frame_or_refuses_it(frame: bytes, changes: list[tuple[int, int]], stop: int) -> None:
    data = bytearray(frame[wire.LENGTH.size :])
    for at, value in changes:
        data[at % len(data)] = value
    payload = bytes(data if stop > 3000 else data[: stop % (len(data) + 1)])
    for parse in (
        lambda _, body: wire.decode_prepare(body),
        lambda _, body: wire.decode_batch(body, KEYS),
        wire.decode_call_frame,
        lambda number, body: wire.decode_rows(number, body, KEYS)[0].num_rows,
        wire.decode_envelope,
    ):
        try:
            _, number, body = wire.parse_frame(payload)
            parse(number, body)
        except MalformedMessage:
            continue


def test_two_clients_write_and_each_sees_the_others_rows(store: storage_engine.Store) -> None:
    with storage_engine.connect(store.url) as peer:
        peer.table("l.t").upsert({"k": [1000], "v": ["theirs"]})
        assert store.table("l.t").lookup([1000])["v"].to_pylist() == ["theirs"]
        store.table("l.t").delete({"k": [1000]})
        assert peer.table("l.t").lookup([1000]).num_rows == 0


def sent_at_once(
    store: storage_engine.Store, table: str, batches: list[pa.Table], method: str = "lookup", asked: dict[str, object] = LOOKUP
) -> list[pa.Table | MalformedMessage]:
    """What requests that arrive in one piece are answered, up to the end of the connection or the last of them."""
    reader_answers: list[pa.Table | MalformedMessage] = []
    schema = batches[0].schema
    frames = [wire.encode_prepare(1, method, {**asked, "table": table}, schema)]
    frames += [wire.encode_keys_message(batch.combine_chunks().to_batches()[0], 1) for batch in batches]
    with greeted(store) as raw:
        raw.sendall(b"".join(frames))
        reader, known = FrameReader(raw, wire.FRAME_BYTES_MAX), None
        for _ in batches:
            kind, number, body = wire.parse_frame(reader.frame())
            if kind == wire.ERROR:
                error = wire.decode_error_frame(body)
                assert isinstance(error, MalformedMessage)
                return [*reader_answers, error]
            rows, known = wire.decode_rows(number, body, known)
            rows.validate(full=True)
            reader_answers.append(pa.Table.from_batches([rows]))
    return reader_answers


@pytest.fixture(scope="module")
def uneven(store: storage_engine.Store) -> storage_engine.Table:
    """Keys of two columns; values with nulls, empty and long texts; some rows in each of several frames."""
    store.execute("CREATE TABLE l.u (k BIGINT NOT NULL, s STRING NOT NULL, v STRING, n INT, b BYTES, PRIMARY KEY (k, s) NOT ENFORCED)")
    table = store.table("l.u")
    for start in range(0, 300, 60):
        ks = range(start, start + 60)
        texts = [None if k % 7 == 0 else "" if k % 7 == 1 else f"text {k} " * (k % 5) for k in ks]
        numbers = [None if k % 4 == 0 and k > 120 else k for k in ks]
        table.upsert({"k": list(ks), "s": [f"s{k}" for k in ks], "v": texts, "n": numbers, "b": [bytes(k % 20) for k in ks]})
    return table


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_lookups_that_arrive_together_are_answered_as_one_by_one(
    store: storage_engine.Store, uneven: storage_engine.Table, data: st.DataObject
) -> None:
    drawn = st.integers(0, 299) if data.draw(st.booleans(), "all are there") else st.integers(-3, 305)
    asked = data.draw(st.lists(st.lists(drawn, max_size=40), min_size=1, max_size=20))
    batches = [
        pa.table(
            {"k": pa.array(part, pa.int64()), "s": pa.array([f"s{k}" for k in part], pa.string())}, schema=uneven.descriptor.key_schema
        )
        for part in asked
    ]
    batches = [batch for batch in batches if batch.num_rows]  # an empty table has no message
    if batches:
        assert sent_at_once(store, "l.u", batches) == [uneven.lookup(batch, missing="null") for batch in batches]


@pytest.fixture(scope="module", params=[1, 3])
def grouped(request: pytest.FixtureRequest, store: storage_engine.Store) -> storage_engine.Table:
    """Prefixes 0 .. 99 with k % 5 rows each, in one bucket or several; 100 has 20,000 rows."""
    name = f"l.g{request.param}"
    store.execute(
        f"CREATE TABLE {name} (k BIGINT NOT NULL, i BIGINT NOT NULL, v STRING, PRIMARY KEY (k, i) NOT ENFORCED) "
        f"WITH ('bucket.key' = 'k', 'bucket.num' = '{request.param}')"
    )
    table = store.table(name)
    for i in (3, 1, 200, 0):
        ks = [k for k in range(100) if i < k % 5 or i == 200]
        table.upsert({"k": ks, "i": [i] * len(ks), "v": [None if k % 7 == 0 else f"text {k} " * (k % 4) for k in ks]})
    table.delete({"k": list(range(0, 100, 5)), "i": [200] * 20})
    table.upsert({"k": [100] * 20_000, "i": list(range(20_000)), "v": ["many"] * 20_000})
    return table


@settings(deadline=None, max_examples=40)
@given(
    asked=st.lists(st.lists(st.integers(-2, 103), min_size=1, max_size=40), min_size=1, max_size=20),
    times=st.sampled_from([1, 4]),
    limit=st.sampled_from([None, 0, 2]),
    columns=st.sampled_from([None, ["v", "k"]]),
)
def test_prefix_lookups_that_arrive_together_are_answered_as_one_by_one(
    store: storage_engine.Store,
    grouped: storage_engine.Table,
    asked: list[list[int]],
    times: int,
    limit: int | None,
    columns: list[str] | None,
) -> None:
    """Together they may ask for more prefixes, or find more rows, than are answered in one pass."""
    parts = [[k for k in part * times if k != 100 or i == 0][:150] or [1] for i, part in enumerate(asked)]
    batches = [pa.table({"k": pa.array(part, pa.int64())}) for part in parts]
    alone = [grouped.prefix_lookup(batch, columns, limit, rows_max=10_000_000) for batch in batches]
    if sum(rows.nbytes for rows in alone) < wire.FRAME_BYTES_MAX:
        assert sent_at_once(store, grouped.name, batches, "prefix_lookup", {"columns": columns, "limit": limit}) == alone


def test_prefix_lookups_of_a_column_that_is_not_there_are_refused(store: storage_engine.Store, grouped: storage_engine.Table) -> None:
    lane = SocketLane("127.0.0.1", address_of(store))
    asked = {"table": grouped.name, "columns": ["nothing"], "limit": None}
    with pytest.raises(SchemaMismatch):
        list(lane.pipeline("prefix_lookup", asked, [pa.table({"k": [1]})] * 20))
    lane.close()


def test_a_request_that_is_none_does_not_take_the_answers_of_those_before_it(
    store: storage_engine.Store, uneven: storage_engine.Table
) -> None:
    whole = pa.table({"k": pa.array(range(50), pa.int64()), "s": [f"s{k}" for k in range(50)]}, schema=uneven.descriptor.key_schema)
    broken = pa.table([whole["k"].cast(pa.int32()), whole["s"]], names=["k", "s"])  # fewer bytes than its schema says
    answers = sent_at_once(store, "l.u", [whole, whole, broken, whole])
    assert answers[:2] == [uneven.lookup(whole, missing="null")] * 2
    assert len(answers) == 3
    assert isinstance(answers[2], MalformedMessage)
