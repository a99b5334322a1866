"""The Flight backend over a real server: broken connections, faults, stopping, many threads."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.flight as fl
import pytest

import storage_engine
from storage_engine.api import CommitRequest, WriteOp
from storage_engine.client.flight import FlightBackend, parse_url
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.errors import (
    InvalidConfiguration,
    SchemaMismatch,
    ServerFault,
    StoreUnavailable,
    UnknownTable,
    UnsupportedFormatVersion,
)
from storage_engine.server import FlightServer

TABLES = """
    CREATE TABLE a.total (k STRING NOT NULL, n BIGINT, PRIMARY KEY (k) NOT ENFORCED)
      WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum');
    CREATE TABLE a.ids (k STRING NOT NULL, id BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ('auto-increment.fields' = 'id');
    CREATE TABLE a.log (x BIGINT NOT NULL, pad STRING) WITH ('table.log.arrow.compression.type' = 'NONE')
"""


@pytest.fixture
def store(server):
    with storage_engine.connect(f"flashlake://127.0.0.1:{server.port}") as store:
        store.execute(TABLES)
        yield store


@pytest.fixture
def through_proxy(store, proxy):
    with storage_engine.connect(f"flashlake://127.0.0.1:{proxy.port}") as store:
        yield store


@pytest.mark.parametrize(("direction", "step"), [("to_server", 40), ("to_client", 10)])
def test_a_write_is_applied_once_wherever_the_connection_is_cut(store, through_proxy, proxy, direction, step):
    table = through_proxy.table("a.total")
    for n_done in itertools.count(1):
        proxy.cut_after(n_done * step, direction)

        table.upsert({"k": ["all"], "n": [1]})

        assert store.table("a.total").read()["n"].to_pylist() == [n_done]
        if proxy.disarm():
            break  # the write needed fewer bytes: every place in it was cut
    assert proxy.n_cuts == n_done - 1 > 5


def test_ids_are_given_once_wherever_the_connection_is_cut(store, through_proxy, proxy):
    table = through_proxy.table("a.ids")
    for n_done in itertools.count(1):
        proxy.cut_after(n_done * 60, "to_client")
        keys = [f"k{n_done}", "shared"]

        ids = table.lookup({"k": keys}, insert_if_not_exists=True)["id"].to_pylist()

        assert ids == store.table("a.ids").lookup({"k": keys})["id"].to_pylist()
        if proxy.disarm():
            break
    rows = store.table("a.ids").read()
    assert sorted(rows["id"].to_pylist()) == list(range(1, rows.num_rows + 1))
    assert rows.num_rows == n_done + 1 > 5


def test_a_scan_returns_every_row_once_although_its_connection_is_cut(store, through_proxy, proxy):
    for first in range(0, 60, 3):
        store.table("a.log").append({"x": [first, first + 1, first + 2], "pad": ["p" * 200_000] * 3})
    whole = 12_000_000
    table = through_proxy.table("a.log")

    for n_bytes in range(1_000, whole, whole // 6):
        proxy.cut_after(n_bytes, "to_client")
        assert table.scan().read_all()["x"].to_pylist() == list(range(60))
        proxy.disarm()

    assert proxy.n_cuts >= 5


def test_a_table_is_not_made_twice_when_the_answer_was_lost_but_the_caller_is_told(through_proxy, proxy):
    proxy.cut_after(1, "to_client")

    with pytest.raises(StoreUnavailable, match="may have been done"):
        through_proxy.execute("CREATE TABLE a.another (x BIGINT)")


def test_calls_end_when_the_server_does_not_come_back(proxy, server, store):
    with storage_engine.connect(f"flashlake://127.0.0.1:{proxy.port}", retry_s=0.3) as broken:
        proxy.close()
        proxy.cut_after(0, "to_server")

        with pytest.raises(StoreUnavailable, match=str(proxy.port)):
            broken.version()
        with pytest.raises(StoreUnavailable):
            broken.commit([WriteOp("a.log", "append", pa.table({"x": [1]}))])


def test_a_refusal_does_not_break_the_lane(store):
    table = store.table("a.log")
    writer_before = None
    for _ in range(3):
        with pytest.raises(SchemaMismatch):
            store.commit([WriteOp("a.log", "append", pa.table({"nope": [1]}))])
        (writer,) = store.backend._writers._idle
        assert writer_before in (None, writer.lane), "a refusal cost a connection"
        writer_before = writer.lane

    table.append({"x": [1]})

    assert table.count() == 1


def test_a_stored_message_passes_the_server_unchanged(backend, store):
    store.table("a.log").append({"x": [1, 2, 3], "pad": ["a", "b", None]})
    ranges = {bucket: (0, end) for bucket, end in store.table("a.log").offsets().items()}

    for columns in (None, ["pad"]):
        sent, stored = (
            [replace(frame, parts=(frame.message,)) for frame in at.fetch("a.log", ranges, columns)] for at in (store.backend, backend)
        )
        assert sent == stored


def test_an_error_in_a_stream_is_raised_as_itself(store):
    with pytest.raises(UnknownTable, match=r"a\.none"):
        list(store.backend.fetch("a.none", {storage_engine.TableBucket("", 0): (0, 1)}, None))
    with pytest.raises(UnknownTable, match=r"a\.none"):
        store.backend.read("a.none", None, None, None)


def test_threads_share_one_client_and_none_of_their_writes_is_taken_for_another(store):
    def write(turn):
        for _ in range(15):
            store.table("a.total").upsert({"k": [f"k{turn}", "all"], "n": [1, 1]})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))

    totals = dict(zip(*store.table("a.total").read().to_pydict().values(), strict=True))
    assert totals == {**{f"k{turn}": 15 for turn in range(8)}, "all": 120}


def test_a_reader_that_pauses_does_not_hold_up_writers(store):
    for x in range(40):
        store.table("a.log").append({"x": [x], "pad": ["p" * 500_000]})
    paused = store.table("a.log").scan()
    paused.read_next_batch()

    store.table("a.log").append({"x": [40]})

    assert store.table("a.log").count() == 41
    assert paused.read_all().num_rows == 39


class FaultyBackend(EmbeddedBackend):
    """A store with bugs."""

    def count(self, table: str) -> int:
        return len(table) // 0

    def fetch(self, table, ranges, columns, where=None, **options):
        yield from super().fetch(table, ranges, columns, where, **options)
        raise KeyError("gone")

    def read(self, table, columns, partitions, at_version, limit=None):
        raise AssertionError("no")


def test_a_bug_of_the_server_is_told_apart_and_the_server_goes_on(tmp_path, caplog):
    backend = FaultyBackend.open(tmp_path / "faulty")
    server = FlightServer(backend)
    with storage_engine.connect(f"flashlake://127.0.0.1:{server.port}") as store:
        store.execute(TABLES)
        store.table("a.log").append({"x": [1]})

        with pytest.raises(ServerFault, match=r"ZeroDivisionError.*count"):
            store.table("a.log").count()
        with pytest.raises(ServerFault, match=r"KeyError.*fetch"):
            store.table("a.log").scan().read_all()
        with pytest.raises(ServerFault, match=r"AssertionError.*read"):
            store.table("a.total").read()

        assert store.version() == backend.version()
    assert "ZeroDivisionError" in caplog.text
    backend.close()


def test_a_caller_that_speaks_nonsense_is_refused_and_others_go_on(server, store):
    with fl.connect(f"grpc://127.0.0.1:{server.port}") as stranger:
        with pytest.raises(pa.ArrowException):
            list(stranger.do_action(fl.Action("call", b"nonsense")))
        with pytest.raises(pa.ArrowException):
            stranger.do_get(fl.Ticket(b"nonsense")).read_all()

    assert store.version() > 0


def test_a_server_of_another_protocol_is_refused_by_version(server, monkeypatch):
    monkeypatch.setattr("storage_engine.server.dispatch.PROTOCOL_VERSION", 99)

    with pytest.raises(UnsupportedFormatVersion, match="99"):
        FlightBackend.connect(f"flashlake://127.0.0.1:{server.port}")


def test_a_draining_server_lets_go_of_waiters_and_refuses_new_calls(server, store):
    version = store.version()
    ended = []

    def wait():
        with storage_engine.connect(f"flashlake://127.0.0.1:{server.port}", retry_s=0.1) as waiting:
            is_waiting.set()
            try:
                waiting.await_version(version, timeout_s=60)
            except StoreUnavailable as error:
                ended.append(error)

    is_waiting = threading.Event()
    waiter = threading.Thread(target=wait)
    waiter.start()
    is_waiting.wait(10)

    assert server.drain(timeout_s=10)
    waiter.join(10)

    assert len(ended) == 1
    with pytest.raises(StoreUnavailable, match="stopping"):
        FlightBackend.connect(f"flashlake://127.0.0.1:{server.port}", connect_s=0.1)


def test_a_closed_store_says_so(server):
    store = storage_engine.connect(f"flashlake://127.0.0.1:{server.port}")
    store.close()

    with pytest.raises(StoreUnavailable, match="closed"):
        store.version()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.backend.commit(CommitRequest())
    store.close()


def test_rows_larger_than_one_message_are_looked_up_and_written_whole(store):
    store.execute("CREATE TABLE a.wide (k BIGINT NOT NULL, pad STRING, PRIMARY KEY (k) NOT ENFORCED)")
    rows = {"k": [1, 2, 3], "pad": [letter * 8_000_000 for letter in "abc"]}

    store.table("a.wide").upsert(rows)

    assert store.table("a.wide").lookup({"k": [1, 2, 3]}).to_pydict() == rows
    assert store.table("a.wide").read().to_pydict() == rows


@pytest.mark.parametrize(
    ("url", "address"),
    [("flashlake://h:1", ("h", 1)), ("flashlake://h", ("h", 9650)), ("flashlake://[::1]:7", ("[::1]", 7)), ("flashlake://h:1/", ("h", 1))],
)
def test_an_address_names_host_and_port(url, address):
    assert parse_url(url) == address


@pytest.mark.parametrize("url", ["flashlake://", "flashlake://h:p", "flashlake://h:1/db", "http://h:1"])
def test_an_address_that_names_no_server_is_refused(url):
    with pytest.raises(InvalidConfiguration, match="flashlake://host:port"):
        parse_url(url)
