"""Pipelined writers over a server whose disk fails and whose connections break: nothing acknowledged is lost, doubled or out of order."""

from __future__ import annotations

import errno
import random
import select
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import storage_engine
from storage_engine.api import CommitRequest, WriteId, WriteOp
from storage_engine.client.commit_stream import SocketCommitStream
from storage_engine.client.table_writer import GATHERED_ROWS, TableWriter
from storage_engine.connection import wrap
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.errors import OutOfOrderSequence, SchemaMismatch, WriteFailed
from storage_engine.server import FlightServer
from storage_engine.server.socket_server import SocketServer
from tests.torture.simulated_disk import Fault, SimulatedDisk
from tests.waiting import await_true, let_pass

STORE = Path("/store")
DEADLINE_S = 30.0
FOR_EVER = 1 << 40


@pytest.fixture
def disk() -> SimulatedDisk:
    disk = SimulatedDisk(1)
    disk.make_directory(STORE)
    return disk


@pytest.fixture
def backend(disk: SimulatedDisk) -> Iterator[EmbeddedBackend]:
    backend = EmbeddedBackend.open(STORE, disk=disk, maintenance=False)
    yield backend
    disk.clear_plans()
    backend.close()


@pytest.fixture
def store(server: FlightServer) -> Iterator[storage_engine.Store]:
    lanes = SocketServer(server)
    server.lane_address = lanes.address_for
    with storage_engine.connect(f"flashlake://127.0.0.1:{server.port}") as store:
        store.execute("CREATE TABLE d.log (x BIGINT NOT NULL); CREATE TABLE d.pk (k BIGINT, v STRING, PRIMARY KEY (k) NOT ENFORCED)")
        yield store
    lanes.close()


def break_syncs(disk: SimulatedDisk, times: int) -> None:
    disk.plan(Fault("error", 0, frozenset({"fdatasync"}), errno.EIO, times))


def numbers_in(store: storage_engine.Store) -> list[int]:
    return store.table("d.log").scan().read_all()["x"].to_pylist()


def writer_flushed(writer: TableWriter) -> None:
    while True:
        try:
            return writer.flush()
        except WriteFailed:
            continue


def append(*numbers: int) -> CommitRequest:
    return CommitRequest((WriteOp("d.log", "append", pa.table({"x": pa.array(numbers, pa.int64())})),))


def stream_of(store: storage_engine.Store) -> SocketCommitStream:
    stream = store.backend.commit_stream(8)
    assert isinstance(stream, SocketCommitStream)
    return stream


def await_answer(stream: SocketCommitStream, n_bytes: int = 0) -> int:
    """Wait until more than `n_bytes` of answers have arrived, which stay unread; how many."""
    connection = stream._writer.socket._socket
    seen = [0]

    def has_more() -> bool:
        if select.select([connection], [], [], 0)[0]:
            seen[0] = len(connection.recv(1 << 16, 0x2))  # MSG_PEEK
        return seen[0] > n_bytes

    await_true(has_more, "the server has answered", timeout_s=DEADLINE_S)
    return seen[0]


def break_connection(stream: SocketCommitStream) -> None:
    stream._writer.socket._socket.close()


def test_a_commit_that_was_taken_back_unheard_is_no_duplicate_when_it_is_sent_again(disk, backend, store) -> None:
    """Its sync fails and the store goes back; the next one arrives; the connection breaks before an answer is read."""
    stream = stream_of(store)
    stream.send(append(1))
    stream.finish()
    break_syncs(disk, times=2)
    stream.send(append(2))
    n_bytes = await_answer(stream)  # it was taken back, and nobody has read that
    stream.send(append(3))
    await_answer(stream, n_bytes)
    break_connection(stream)

    stream.finish()

    assert numbers_in(store) == [1, 2, 3]


def test_a_commit_that_was_refused_unheard_is_refused_again_and_those_behind_it_are_done(backend, store) -> None:
    """The server has done a later one by the time the refused one is sent again: that must not make it an acknowledged one."""
    stream = stream_of(store)
    stream.send(append(1))
    stream.finish()
    wrong = CommitRequest((WriteOp("d.log", "append", pa.table({"y": [2]})),))
    stream.send(wrong)
    n_bytes = await_answer(stream)
    stream.send(append(3))
    stream.send(append(4))
    await_answer(stream, n_bytes)
    break_connection(stream)

    with pytest.raises(SchemaMismatch):
        stream.finish()
    stream.finish()

    assert numbers_in(store) == [1, 3, 4]


def test_what_the_store_could_not_do_stays_and_is_done_in_order_by_a_later_call(disk, backend, store) -> None:
    stream = stream_of(store)
    stream.send(append(1))
    stream.finish()
    break_syncs(disk, times=FOR_EVER)
    for number in range(2, 6):
        stream.send(append(number))

    for _ in range(3):
        with pytest.raises(WriteFailed):
            stream.finish()
    disk.clear_plans()
    stream.send(append(6))
    stream.finish()

    assert numbers_in(store) == [1, 2, 3, 4, 5, 6]


def test_what_is_given_up_is_not_done_and_what_comes_later_is(disk, backend, store) -> None:
    stream = stream_of(store)
    break_syncs(disk, times=2)
    stream.send(append(1))
    await_answer(stream)
    stream.send(append(2))
    with pytest.raises(WriteFailed):
        stream.finish()
    stream.close()

    with store.table("d.log").writer() as writer:
        writer.append({"x": [3]})

    assert numbers_in(store) == [3]


def test_commits_that_change_nothing_do_not_break_the_chain(backend, store) -> None:
    table = store.table("d.pk")
    table.upsert({"k": [1], "v": ["a"]})
    before = store.version()

    with table.writer() as writer:
        for number in range(20):
            writer.upsert({"k": [1], "v": ["a"]})
            writer.upsert({"k": [2 + number], "v": ["b"]})

    assert store.version() == before + 20
    assert sorted(table.read()["k"].to_pylist()) == list(range(1, 22))


def test_a_stream_that_is_older_than_the_time_of_its_retries_still_rides_over_a_broken_connection(server, backend, store) -> None:
    with storage_engine.connect(f"flashlake://127.0.0.1:{server.port}", retry_s=0.3) as impatient:
        stream = stream_of(impatient)
        stream.send(append(1))
        stream.finish()
        let_pass(0.4)  # longer than the time of its retries, which is what this test gives it
        stream.send(append(2))
        break_connection(stream)

        stream.finish()

    assert numbers_in(store) == [1, 2]


@pytest.mark.parametrize("n_rows", [1, GATHERED_ROWS])
def test_a_writer_that_raises_has_not_taken_its_rows_and_loses_none_that_it_took(disk, backend, store, n_rows) -> None:
    """Small appends gather while answers are awaited; the disk fails now and then; each append is given again until it is taken."""
    chance = random.Random(4)
    with store.table("d.log").writer(in_flight=4) as writer:
        for number in range(300):
            if number % 25 == 10:
                break_syncs(disk, times=chance.choice([2, 2, 3]))
            while True:
                try:
                    writer.append(pa.table({"x": np.arange(number * n_rows, (number + 1) * n_rows)}))
                    break
                except WriteFailed:
                    continue
            if number % 25 == 20:
                writer_flushed(writer)
        disk.clear_plans()
        writer_flushed(writer)

    assert disk.counts.faults["EIO from fdatasync"] > 10
    assert numbers_in(store) == list(range(300 * n_rows))


def test_a_pipeline_in_this_process_writes_again_what_was_taken_back(disk, backend) -> None:
    store = wrap(backend)
    store.execute("CREATE TABLE d.log (x BIGINT NOT NULL)")
    stream = backend.commit_stream(4)
    for number in range(60):
        if number % 7 == 3:
            break_syncs(disk, times=2)
        while True:
            try:
                stream.send(append(number))
                break
            except WriteFailed:
                continue
        if number % 10 == 5:
            with suppress(WriteFailed):
                backend.commit(append(1000 + number))  # another writer's sync may be the one that fails
    disk.clear_plans()
    stream.finish()

    assert [number for number in numbers_in(store) if number < 1000] == list(range(60))


def test_a_commit_behind_another_is_done_only_while_that_is_the_newest_of_its_writer(backend, store) -> None:
    def commit(number: int, after: int | None) -> None:
        store.backend.commit(replace(append(number), write_id=WriteId("w", number, after)))

    commit(5, None)
    for after in (0, 4, 6):
        with pytest.raises(OutOfOrderSequence) as refusal:
            commit(7, after)
        assert refusal.value.last == 5
    commit(7, 5)

    assert numbers_in(store) == [5, 7]
