"""Operating a server: its numbers, its memory, its log, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

import storage_engine
from storage_engine.errors import FlashlakeError, StoreUnavailable
from storage_engine.server import ServerProcess
from storage_engine.server.metrics import BOUNDS_S, Metrics
from tests.waiting import await_true

TABLES = """
    CREATE TABLE a.t (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED);
    CREATE TABLE a.log (x BIGINT, pad STRING) WITH ('table.log.arrow.compression.type' = 'NONE')
"""


def page_of(server: ServerProcess) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def test_the_page_counts_each_call_once_and_says_what_the_store_says(tmp_path):
    with ServerProcess(tmp_path / "s", options=["--metrics-port", "0"]) as server, storage_engine.connect(server.url) as store:
        store.execute(TABLES)
        table = store.table("a.t")
        for k in range(7):
            table.upsert({"k": [k], "v": ["x"]})
        for _ in range(50):
            table.lookup([1])
        with pytest.raises(FlashlakeError):
            store.backend.count("a.none")
        table.scan().read_all()
        store.table("a.log").append({"x": list(range(10))})
        consumer = store.table("a.log").consumer("c")
        consumer.poll(4)
        consumer.commit()
        store.table("a.log").append({"x": list(range(5))})
        lag = consumer.lag()
        page = page_of(server)
        version = store.version()

    def value(name: str, **labels: str) -> float:
        return page[f"flashlake_{name}", frozenset(labels.items())]

    assert value("requests_total", lane="socket", method="lookup", outcome="ok") == 50
    assert value("request_seconds_count", lane="socket", method="lookup") == 50
    assert value("request_seconds_bucket", lane="socket", method="lookup", le="+Inf") == 50
    assert 0 < value("request_seconds_sum", lane="socket", method="lookup") < 50
    assert value("requests_total", lane="socket", method="commit", outcome="ok") == 10
    assert value("requests_total", lane="flight", method="count", outcome="UnknownTable") == 1
    assert value("requests_total", lane="socket", method="fetch", outcome="ok") == 2
    assert value("rows_written_total", table="a.t") == 7
    assert value("rows_written_total", table="a.log") == 15
    assert value("lag_rows", owner="consumer:c:a.log") == lag > 0
    assert value("index_bytes", table="a.t") > 0
    assert value("store_version") == version
    assert value("log_end_bytes") == value("log_durable_bytes") > 0
    assert value("fsyncs_total") >= 12
    assert value("fsync_seconds_total") > 0
    assert value("connections", of="socket") == 1
    assert value("pressure") == value("bytes_in_flight") == 0
    assert value("sent_bytes_total", lane="socket") > 50


def test_counts_of_threads_add_up_also_after_they_have_ended():
    metrics = Metrics()

    def count(turn: int) -> None:
        counts = metrics.open("socket")
        for n in range(1000):
            counts.add("lookup", "ok", BOUNDS_S[n % len(BOUNDS_S)], 1, 2)
        if turn % 2:
            metrics.close(counts)

    threads = [threading.Thread(target=count, args=(turn,)) for turn in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    row = metrics.totals()["socket"].rows["lookup", "ok"]
    assert (row[1], row[2], sum(row[3:])) == (8000, 16000, 8000)
    assert row[-1] == 0, "a duration on a bound is below it"


def test_an_idle_server_stays_small(tmp_path):
    with ServerProcess(tmp_path / "s", options=["--metrics-port", "0"]) as server, storage_engine.connect(server.url) as store:
        store.execute(TABLES)
        store.table("a.t").upsert({"k": [1], "v": ["x"]})
        assert store.table("a.t").lookup([1]).num_rows == 1
        page_of(server)
        status = open(f"/proc/{server.pid}/status").read()
        rss_bytes = int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024

    assert rss_bytes < 150e6


def test_a_log_of_json_lines_names_the_request_of_a_fault(tmp_path):
    with ServerProcess(tmp_path / "s", options=["--log-format", "json", "--log-level", "info"]) as server:
        with storage_engine.connect(server.url) as store:
            store.execute(TABLES)
            with pytest.raises(FlashlakeError) as fault:
                store.backend._control("offsets", {"table": "a.t"}, is_repeatable=False)
        server.stop()
        records = [json.loads(line) for line in server.log().splitlines()]

    request = re.search(r"request (\w+)", str(fault.value)).group(1)
    (found,) = [record for record in records if record.get("request") == request]
    assert (found["level"], "KeyError" in found["exception"]) == ("ERROR", True)
    assert {"time", "level", "logger", "message"} <= set(records[-1])


# how it ends


def test_a_stopping_server_finishes_what_it_has_begun_and_keeps_what_it_acknowledged(tmp_path):
    server = ServerProcess(tmp_path / "s").start()
    acknowledged: list[list[int]] = [[] for _ in range(4)]
    refused = []

    def write(turn: int) -> None:
        with storage_engine.connect(server.url, retry_s=0.1) as store:
            for k in range(100_000):
                try:
                    store.table("a.t").upsert({"k": [turn * 100_000 + k], "v": ["x"]})
                except StoreUnavailable as error:
                    refused.append(error)
                    return
                acknowledged[turn].append(turn * 100_000 + k)

    with storage_engine.connect(server.url) as store:
        store.execute(TABLES)
    threads = [threading.Thread(target=write, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    await_true(lambda: min(map(len, acknowledged)) >= 5, "five commits of each writer", timeout_s=30)

    assert server.stop() == 0

    for thread in threads:
        thread.join(30)
    assert len(refused) == 4
    with storage_engine.connect((tmp_path / "s").as_uri()) as store:
        held = set(store.table("a.t").read()["k"].to_pylist())
    assert held >= {k for keys in acknowledged for k in keys}
    assert len(held) <= sum(map(len, acknowledged)) + 4


def stalled_reader(server: ServerProcess):
    """A stream that the server is in the middle of."""
    store = storage_engine.connect(server.url)
    store.execute(TABLES)
    for _ in range(12):
        store.table("a.log").append({"x": [1] * 40, "pad": ["p" * 100_000] * 40})
    reader = store.table("a.log").scan()
    reader.read_next_batch()
    return store, reader


def test_the_bound_ends_a_stop_that_waits_for_a_reader(tmp_path):
    server = ServerProcess(tmp_path / "s", sync="none", options=["--stop-timeout-s", "0.5"]).start()
    held = stalled_reader(server)
    begin = time.monotonic()

    assert server.stop() == 3

    assert 0.5 <= time.monotonic() - begin < 10
    assert "still in flight" in server.log()
    held[0].close()
    with storage_engine.connect((tmp_path / "s").as_uri()) as store:
        assert store.table("a.log").count() == 480


def test_a_second_signal_ends_a_stop_that_waits_and_one_given_twice_at_once_does_not(tmp_path):
    server = ServerProcess(tmp_path / "s", sync="none", options=["--stop-timeout-s", "60"]).start()
    held = stalled_reader(server)
    child = server._child
    for _ in range(2):  # as a supervisor does: the group, then the process
        child.send_signal(signal.SIGTERM)
    await_true(lambda: "stopping" in server.log(), "the stop begins")
    assert child.poll() is None

    def is_over_after_another_signal() -> bool:
        child.send_signal(signal.SIGTERM)
        return child.poll() is not None

    await_true(is_over_after_another_signal, "the stop is cut short", every_s=0.2)
    assert child.returncode == 3
    assert "second signal" in server.log()
    held[0].close()
    server.kill()
