"""What a server holds at most: bytes in flight, connections, silence, slow readers. Real server processes under small limits."""

from __future__ import annotations

import itertools
import json
import random
import re
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pytest

import storage_engine
from storage_engine.api import CommitRequest
from storage_engine.client.lane import LANE, write_message
from storage_engine.client.socket_lane import SocketLane
from storage_engine.client.throttle import delay_s
from storage_engine.client.wire import CELL_SCHEMA, Message
from storage_engine.client.wire import packed as wire
from storage_engine.errors import Backpressure, RequestTooLarge
from storage_engine.server import FlightServer, ServerProcess
from storage_engine.server.admission import Admission, Limits
from storage_engine.server.connections import Seen, verdict
from storage_engine.server.socket_server import SocketServer
from tests.waiting import await_true

MB = 1 << 20
TABLES = """
    CREATE TABLE a.log (x BIGINT, pad STRING) WITH ('table.log.arrow.compression.type' = 'NONE');
    CREATE TABLE a.t (k BIGINT NOT NULL, pad STRING, PRIMARY KEY (k) NOT ENFORCED)
"""


def rows(n_bytes: int, x: int = 0) -> dict[str, list[object]]:
    n = max(n_bytes // 100_000, 1)
    return {"x": [x] * n, "pad": ["p" * (n_bytes // n)] * n}


def anonymous_mb(pid: int) -> float:
    """Memory of a process that is its own: a mapped log is not."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024


# admission by itself


def test_a_request_waits_for_room_and_is_refused_when_there_is_none(monkeypatch):
    monkeypatch.setattr("storage_engine.server.admission.WAIT_S", 0.05)
    admission = Admission(Limits(bytes_in_flight_max=100, request_bytes_max=1000))
    admission.acquire(1000)  # one request always fits
    with pytest.raises(Backpressure) as refused:
        admission.acquire(1)
    with pytest.raises(RequestTooLarge):
        admission.acquire(1001)
    admission.release(1000)

    assert refused.value.retry_after_ms > 0
    assert (admission.n_bytes, admission.n_refused) == (0, 1)


def test_room_that_is_given_back_goes_to_who_waits():
    admission = Admission(Limits(bytes_in_flight_max=10, request_bytes_max=10))
    seen = []

    def use(_turn):
        admission.acquire(6)
        seen.append(admission.n_bytes)
        admission.release(6)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(200)))
    assert set(seen) == {6}
    assert admission.n_bytes == 0


def test_pressure_rises_from_half_of_the_budget_and_takes_the_worst_of_its_causes():
    fsync_s = 0.0
    admission = Admission(Limits(bytes_in_flight_max=100, request_bytes_max=100), fsync_s=lambda: fsync_s)
    assert admission.pressure() == 0.0
    admission.acquire(50)
    assert admission.pressure() == 0.0
    admission.acquire(25)
    assert admission.pressure() == 0.5
    fsync_s = 7.75
    assert admission.pressure() == 0.75
    admission.debts.append(lambda: 0.9)
    assert admission.pressure() == 0.9


def test_a_pressed_server_slows_its_writers_by_the_square_of_the_pressure(backend):
    server = FlightServer(backend)
    with storage_engine.connect(f"flashlake://127.0.0.1:{server.port}") as store:
        store.execute(TABLES)
        table = store.table("a.log")
        backend.debts["cleaning"] = lambda: 0.4
        table.append({"x": [1]})
        begin = time.monotonic()
        table.append({"x": [2]})
        slowed_s = time.monotonic() - begin
        backend.debts.clear()
        table.append({"x": [3]})
        begin = time.monotonic()
        table.append({"x": [4]})
        unslowed_s = time.monotonic() - begin

    assert slowed_s >= delay_s(0.4) * 0.9 > unslowed_s


# a server under small limits


def test_many_large_writers_share_a_small_budget_and_all_succeed(tmp_path):
    options = ["--memory-max-bytes", str(8 * MB), "--request-max-bytes", str(8 * MB), "--metrics-port", "0"]
    with ServerProcess(tmp_path / "s", sync="none", options=options) as server, storage_engine.connect(server.url) as store:
        store.execute(TABLES)

        def write(turn: int) -> int:
            with storage_engine.connect(server.url, retry_s=60) as mine:
                for part in range(3):
                    mine.table("a.log").append(rows(5 * MB, turn * 3 + part))
            return turn

        before = anonymous_mb(server.pid)
        with ThreadPoolExecutor(6) as pool:
            assert sorted(pool.map(write, range(6))) == list(range(6))

        assert set(store.table("a.log").scan(columns=["x"]).read_all()["x"].to_pylist()) == set(range(18))
        assert anonymous_mb(server.pid) - before < 150


@pytest.mark.parametrize("kind", ["lane", "socket"])
def test_a_request_beyond_the_limit_is_refused_and_its_stream_lives_on(tmp_path, kind):
    with ServerProcess(tmp_path / "s", sync="none", options=["--request-max-bytes", str(2 * MB)]) as server:
        with storage_engine.connect(server.url) as store:
            store.execute(TABLES)
            store.backend._is_flight_only = kind == "lane"
            table = store.table("a.log")
            table.append(rows(int(1.5 * MB)))
            (writer,) = store.backend._writers._idle
            lane = getattr(writer, kind)
            assert lane is not None
            with pytest.raises(RequestTooLarge, match="server"):
                table.append(rows(5 * MB))
            table.append(rows(int(1.5 * MB)))
            assert getattr(writer, kind) is lane
            assert table.count() == 30


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_commits_on_their_way_are_done_in_order_although_a_pressed_server_refuses_some(backend, kind):
    server = FlightServer(backend)
    lanes = SocketServer(server)
    server.lane_address = lambda principal: {**lanes.address_for(principal), **({} if kind == "unix" else {"unix": None})}
    acquire, n_asked = server.admission.acquire, itertools.count(1)

    def refused_at_times(n_bytes):
        if n_bytes and next(n_asked) % 5 == 0:
            raise Backpressure("no room", where="server", next_step="Again.", retry_after_ms=20)
        acquire(n_bytes)

    server.admission.acquire = refused_at_times
    with storage_engine.connect(f"flashlake://127.0.0.1:{server.port}") as store:
        store.execute(TABLES)
        table = store.table("a.log")
        stream = store.backend.commit_stream(8)
        for i in range(40):
            pad = random.Random(i).randbytes(100_000).hex() if i % 3 else "small"
            stream.send(CommitRequest((table.operation("append", {"x": [i], "pad": [pad]}),)))
        stream.finish()
        stream.close()
        table.append({"x": [40], "pad": [random.Random(40).randbytes(200_000).hex()]})

        assert table.scan(["x"]).read_all()["x"].to_pylist() == list(range(41))
    assert next(n_asked) > 20
    assert server.admission.n_bytes == 0


def test_a_sender_that_stops_in_the_middle_holds_its_room_only_until_it_is_timed_out(tmp_path):
    options = ["--memory-max-bytes", str(4 * MB), "--request-max-bytes", str(4 * MB), "--idle-timeout-s", "2"]
    with ServerProcess(tmp_path / "s", sync="none", options=options) as server, storage_engine.connect(server.url) as store:
        store.execute(TABLES)
        location = server.url.replace("flashlake", "grpc")
        stuck = fl.FlightClient(location, generic_options=[("grpc.use_local_subchannel_pool", 1)])
        writer, reader = stuck.do_exchange(fl.FlightDescriptor.for_command(LANE))
        writer.begin(CELL_SCHEMA)
        header = json.dumps({"method": "commit", "arguments": {}, "sizes": [3 * MB]}).encode()
        write_message(writer, Message(header, pa.py_buffer(bytes(MB))))

        with storage_engine.connect(server.url, retry_s=30) as other:
            other.table("a.log").append(rows(2 * MB))  # waits, is refused, tries again
            assert other.table("a.log").count() == 20
        with pytest.raises((pa.ArrowException, OSError)):
            reader.read_chunk()


def test_readers_that_stop_reading_hold_no_memory_and_nobody_up(tmp_path):
    with ServerProcess(tmp_path / "s", sync="none") as server, storage_engine.connect(server.url) as store:
        store.execute(TABLES)
        table = store.table("a.log")
        for x in range(24):
            table.append(rows(4 * MB, x))
        assert table.scan(columns=["x"]).read_all().num_rows == 24 * 41
        before = anonymous_mb(server.pid)
        readers = []
        for _ in range(6):
            peer = storage_engine.connect(server.url)
            paused = peer.table("a.log").scan()
            paused.read_next_batch()
            readers.append((peer, paused))

        for _ in range(2):
            table.append(rows(4 * MB, 99))
            table.scan(columns=["x"]).read_all()
        assert anonymous_mb(server.pid) - before < 64, "96 MB of log, six times, is not in the server's memory"

        assert sum(paused.read_all().num_rows for _, paused in readers) == 6 * (24 * 41 - 41)
        for peer, _ in readers:
            peer.close()


def test_answers_that_nobody_takes_stop_one_lane_only_and_are_bounded(tmp_path):
    with ServerProcess(tmp_path / "s", sync="none", options=["--stall-timeout-s", "1.5", "--metrics-port", "0"]) as server:
        with storage_engine.connect(server.url) as store:
            store.execute(TABLES)
            store.table("a.t").upsert({"k": list(range(4)), "pad": ["p" * MB] * 4})
            arguments = {"table": "a.t", "columns": None, "insert_if_not_exists": False}
            keys = pa.table({"k": pa.array([0, 1, 2, 3], pa.int64())})
            before = anonymous_mb(server.pid)
            stalled = []
            for kind in ("tcp", "unix") * 3:
                address = dict(store.backend._ask_lane())
                lane = SocketLane("127.0.0.1", {**address, "unix": address["unix"] if kind == "unix" else None})
                prepared, request = lane._request("lookup", arguments, keys)
                lane._send(request)
                for _ in range(20):
                    lane._send(wire.encode_keys_message(keys.to_batches()[0], prepared.handle))
                stalled.append(lane)

            for _ in range(50):
                assert store.table("a.t").lookup([1], ["k"]).num_rows == 1
            assert anonymous_mb(server.pid) - before < 6 * 16 + 32, "one answer per connection, not twenty"

            await_true(lambda: metric(server, 'flashlake_connections{of="socket"}') == 1)  # ours; the kernel's timeout ended the others
            for lane in stalled:
                lane.close()


def test_a_scan_that_pauses_is_closed_and_goes_on_behind_what_it_has(tmp_path):
    with ServerProcess(tmp_path / "s", sync="none", options=["--stall-timeout-s", "1.5", "--metrics-port", "0"]) as server:
        with storage_engine.connect(server.url) as store:
            store.execute(TABLES)
            table = store.table("a.log")
            for x in range(8):
                table.append(rows(4 * MB, x))
            paused = table.scan(columns=["x", "pad"])
            first = paused.read_next_batch()

            await_true(lambda: "broken off" in page(server))

            left = paused.read_all()
            assert [*first["x"].to_pylist(), *left["x"].to_pylist()] == [x for x in range(8) for _ in range(41)]


def page(server: ServerProcess) -> str:
    return urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()


def metric(server: ServerProcess, name: str) -> float:
    return float(re.search(rf"^{re.escape(name)} (\S+)$", page(server), re.MULTILINE).group(1))


def test_silent_connections_are_closed_and_their_clients_go_on(tmp_path):
    with ServerProcess(tmp_path / "s", sync="none", options=["--idle-timeout-s", "1", "--log-format", "json"]) as server:
        with storage_engine.connect(server.url) as store:
            store.execute(TABLES)
            table = store.table("a.t")
            table.upsert({"k": [1], "pad": ["x"]})
            await_true(lambda: '"reason": "idle"' in server.log())
            (writer,) = store.backend._writers._idle
            await_true(lambda: closed(writer.socket._socket))

            assert table.lookup([1]).num_rows == 1
            table.upsert({"k": [2], "pad": ["y"]})
            assert store.table("a.t").scan().read_all().num_rows == 2


def closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    finally:
        connection.setblocking(True)


def test_connections_beyond_the_limit_are_closed_and_those_within_it_work(tmp_path):
    options = ["--connections-max", "4", "--greeting-timeout-s", "0.5", "--log-format", "json"]
    with ServerProcess(tmp_path / "s", sync="none", options=options) as server:
        with storage_engine.connect(server.url) as store:
            store.execute(TABLES)
            port = int(server.url.rpartition(":")[2])
            lane_port = store.backend._ask_lane()["port"]
            strangers = [socket.create_connection(("127.0.0.1", at)) for at in [port, lane_port] * 8]
            await_true(lambda: '"reason": "excess"' in server.log())

            table = store.table("a.t")
            for k in range(5):
                table.upsert({"k": [k], "pad": ["x"]})
            assert table.lookup([0, 4]).num_rows == 2
            for stranger in strangers:
                stranger.settimeout(10)
                while stranger.recv(4096):  # HTTP/2 speaks first
                    pass
                stranger.close()


def test_threads_of_one_client_share_a_budget_of_connections(tmp_path):
    with ServerProcess(tmp_path / "s", sync="none", options=["--connections-max", "2"]) as server:
        with storage_engine.connect(server.url) as store:
            store.execute(TABLES)
            barrier = threading.Barrier(3)

            def work(turn: int) -> int:
                barrier.wait(10)
                for k in range(10):
                    store.table("a.t").upsert({"k": [turn * 10 + k], "pad": ["x"]})
                return turn

            with ThreadPoolExecutor(3) as pool:
                list(pool.map(work, range(3)))
            assert store.table("a.t").count() == 30


@pytest.mark.parametrize(
    ("seen", "rank", "reason"),
    [
        (Seen(age_s=100, quiet_s=0, stalled_s=0, n_received=9), 0, None),
        (Seen(age_s=4, quiet_s=4, stalled_s=0, n_received=0), 0, None),
        (Seen(age_s=6, quiet_s=6, stalled_s=0, n_received=0), 0, "silent"),
        (Seen(age_s=100, quiet_s=0, stalled_s=31, n_received=9), 0, "stalled"),
        (Seen(age_s=100, quiet_s=61, stalled_s=0, n_received=9), 0, "idle"),
        (Seen(age_s=1, quiet_s=0, stalled_s=0, n_received=9), 7, None),
        (Seen(age_s=1, quiet_s=0, stalled_s=0, n_received=9), 8, "excess"),
    ],
)
def test_a_connection_is_closed_for_one_reason_or_left_alone(seen, rank, reason):
    limits = Limits(connections_max=8, idle_s=60, stall_s=30, greeting_s=5)

    assert verdict(seen, rank, limits) == reason
