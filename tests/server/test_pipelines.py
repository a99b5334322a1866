"""Many requests under way on one connection: commits are done once and in order over a kill, lookups see whole rows."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storage_engine
from storage_engine.client.frame_reader import FrameReader, FrameTooLong
from storage_engine.client.wire import packed as wire
from storage_engine.errors import MalformedMessage
from storage_engine.schema.bucketing import bucket_ids, bucket_of_key
from storage_engine.schema.integer_keys import integer_hashes, integer_ranks
from storage_engine.schema.keys import encode_keys, hash64
from storage_engine.schema.point import RowShape
from storage_engine.server import ServerProcess
from tests.contract.conftest import free_port  # noqa: F401 - a fixture

KINDS = [pa.int64(), pa.string(), pa.int32(), pa.float64(), pa.binary(), pa.int8()]
SHAPE = RowShape(KINDS)
VALUES = st.tuples(
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.text(max_size=9).map(str.encode),
    st.none() | st.integers(-(2**31), 2**31 - 1),
    st.none() | st.floats(allow_nan=False),
    st.none() | st.binary(max_size=9),
    st.none() | st.integers(-128, 127),
)
EDGES = st.sampled_from([2**7, 2**14, 2**49, 2**56 - 1, 2**56])


@given(VALUES)
def test_a_packed_row_is_read_as_it_was_written(values: tuple[object, ...]) -> None:
    packed = SHAPE.encode(values)
    assert SHAPE.decode_stored(packed) == list(values)
    assert SHAPE.decode(packed) == [v.decode() if i == 1 and isinstance(v, bytes) else v for i, v in enumerate(values)]


@settings(max_examples=300)
@given(VALUES, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4), st.integers(0, 200))
def test_packed_bytes_are_a_row_or_refused(values: tuple[object, ...], changes: list[tuple[int, int]], stop: int) -> None:
    data = bytearray(SHAPE.encode(values))
    for at, value in changes:
        data[at % len(data)] = value
    try:
        row = SHAPE.decode(bytes(data[: stop % (len(data) + 20)]))
    except MalformedMessage:
        return
    assert [type(value) for value in row if value is not None] == [
        kind for kind, value in zip((int, str, int, float, bytes, int), row, strict=True) if value is not None
    ]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=70_000), max_size=5), st.integers(1, 9))
def test_frames_are_read_whole_however_they_arrive(payloads: list[bytes], n_cuts: int) -> None:
    ours, theirs = socket.socketpair()
    stream = b"".join(wire.LENGTH.pack(len(payload)) + payload for payload in payloads)

    def send() -> None:
        for part in np.array_split(np.frombuffer(stream, np.uint8), n_cuts):
            theirs.sendall(part.tobytes())
        theirs.close()

    sender = threading.Thread(target=send)
    sender.start()
    reader = FrameReader(ours, 1 << 20)
    received = [bytes(reader.frame()) for _ in payloads]
    assert reader.frame() is None
    sender.join()
    ours.close()
    assert received == payloads


def test_a_frame_beyond_the_bound_is_not_read() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(wire.LENGTH.pack(1 << 30))
    with pytest.raises(FrameTooLong):
        FrameReader(ours, 1 << 20).frame()
    ours.close()
    theirs.close()


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2**20) | EDGES, min_size=1), st.sampled_from([1, 1000]))
def test_integers_few_or_many_are_hashed_as_their_key_bytes(values: list[int], times: int) -> None:
    values = values * times
    for kind, part in ((pa.int64(), values), (pa.int32(), [value % 2**32 - 2**31 for value in values])):
        array = pa.array(part, kind)
        hashes = integer_hashes(array)
        if hashes is None:
            assert min(part) < 0 or max(part) >= 2**56
        else:
            assert hashes.tolist() == hash64(encode_keys([array])).tolist()
            ranks = integer_ranks(array)
            assert ranks is not None
            by_bytes = pc.rank(encode_keys([array]), tiebreaker="dense")
            assert pc.rank(pa.array(ranks), tiebreaker="dense").equals(by_bytes)


@pytest.mark.parametrize("times", [1, 20])
def test_integers_of_every_length_are_hashed_as_their_key_bytes(times: int) -> None:
    array = pa.array([2**bits + around for bits in range(56) for around in (-1, 0, 1)] * times)
    hashes = integer_hashes(array)
    assert hashes is not None
    assert hashes.tolist() == hash64(encode_keys([array])).tolist()


@given(st.lists(st.binary(max_size=20), min_size=1), st.integers(1, 500))
def test_one_key_goes_to_the_bucket_that_an_array_of_keys_goes_to(keys: list[bytes], n_buckets: int) -> None:
    assert [bucket_of_key(key, n_buckets) for key in keys] == bucket_ids(pa.array(keys, pa.binary()), n_buckets).tolist()


def test_a_lookup_beside_writers_sees_whole_rows_and_never_an_older_one(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "s", sync="none") as server, storage_engine.connect(server.url) as store:
        store.execute("CREATE TABLE d.t (k BIGINT NOT NULL, a BIGINT, b STRING, PRIMARY KEY (k) NOT ENFORCED)")
        keys = np.arange(200)

        def rows(version: int) -> pa.Table:
            return pa.table({"k": keys, "a": np.full(200, version), "b": [f"text of version {version}"] * 200})

        table = store.table("d.t")
        table.upsert(rows(0))
        acknowledged = [0]
        problems: list[object] = []
        is_over = threading.Event()

        def read(seed: int) -> None:
            with storage_engine.connect(server.url) as mine:
                own = mine.table("d.t")
                chance = np.random.default_rng(seed)
                seen = 0
                while not is_over.is_set():
                    floor = acknowledged[0]
                    row = own.lookup_one(int(chance.integers(0, 200)))
                    if row is None or row["b"] != f"text of version {row['a']}" or row["a"] < max(floor, seen):
                        problems.append((floor, seen, row))
                    seen = row["a"] if row else seen
                    many = own.lookup({"k": chance.choice(200, 50, replace=False)})
                    if many.num_rows != 50 or len(set(many["a"].to_pylist())) != 1:
                        problems.append(many.to_pylist()[:3])
                    floor = acknowledged[0]
                    for part in own.lookups([{"k": chance.choice(200, 20, replace=False)} for _ in range(30)]):
                        versions = set(part["a"].to_pylist())
                        texts = set(part["b"].to_pylist())
                        if part.num_rows != 20 or len(versions) != 1 or texts != {f"text of version {min(versions)}"}:
                            problems.append(part.to_pylist()[:3])
                        if min(versions) < floor:
                            problems.append((floor, versions))
                        floor = min(versions)

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
        for reader in readers:
            reader.start()
        for version in range(1, 120):
            table.upsert(rows(version))
            acknowledged[0] = version
        is_over.set()
        for reader in readers:
            reader.join(60)
        assert problems == []


@pytest.mark.crash
@pytest.mark.parametrize(("kind", "n_rows"), [("append", 40), ("append", 10_000), ("upsert", 40)])
def test_a_pipeline_rides_over_kills_and_each_batch_is_there_once_in_order(tmp_path: Path, free_port: int, kind: str, n_rows: int) -> None:  # noqa: F811
    server = ServerProcess(tmp_path / "s", port=free_port).start()
    with storage_engine.connect(server.url, retry_s=60.0) as store:
        key = "PRIMARY KEY (n) NOT ENFORCED" if kind == "upsert" else ""
        store.execute(f"CREATE TABLE d.t (n BIGINT NOT NULL, w INT{', ' + key if key else ''})")
        table = store.table("d.t")
        with table.writer() as writer:
            for i in range(300):
                rows = {"n": np.arange(n_rows * i, n_rows * (i + 1)), "w": np.full(n_rows, i, np.int32)}
                getattr(writer, kind)(pa.table(rows))
                if i in (60, 61, 200):
                    server.kill()
                    server = ServerProcess(tmp_path / "s", port=free_port).start()
        assert table.count() == 300 * n_rows
        assert np.array_equal(table.scan(["n"]).read_all()["n"].to_numpy(), np.arange(300 * n_rows))
    server.kill()


def test_a_refused_commit_is_raised_later_and_those_behind_it_are_done(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "s") as server, storage_engine.connect(server.url) as store:
        store.execute("CREATE TABLE d.t (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED)")
        table = store.table("d.t")
        writer = table.writer()
        writer.upsert({"k": [1], "v": ["a"]})

        def write() -> None:
            for i in range(2, 50):
                writer.upsert({"k": [i], "v": ["x"]} if i != 3 else {"k": [i], "wrong": ["x"]})
            writer.flush()

        with pytest.raises(storage_engine.errors.SchemaMismatch):
            write()
        writer.flush()
        writer.close()
        found = sorted(table.read()["k"].to_pylist())
        assert found[:2] == [1, 2]
        assert 3 not in found


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=80))
def test_a_get_of_bytes_that_are_no_key_is_refused_or_finds_nothing(data: bytes) -> None:
    shape = RowShape([pa.int64(), pa.string()])
    try:
        key = shape.decode_stored(data)
    except MalformedMessage:
        return
    assert shape.encode(key) == data or None in key
