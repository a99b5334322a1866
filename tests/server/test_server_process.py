"""The server's process: its one ready line, its refusals, and how it stops."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import pytest

import storage_engine
from storage_engine.errors import StoreUnavailable
from storage_engine.server import ServerProcess


def run(*arguments) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "storage_engine.server", *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_a_started_server_answers_and_sigterm_ends_it_with_its_directory_free(tmp_path):
    server = ServerProcess(tmp_path / "store").start()
    with storage_engine.connect(server.url) as store:
        store.execute("CREATE TABLE a.t (x BIGINT)")
        store.table("a.t").append({"x": [1]})

    assert server.stop() == 0

    with storage_engine.connect((tmp_path / "store").as_uri()) as store:
        assert store.table("a.t").count() == 1


FILTERED_READS = """
import sys, storage_engine
with storage_engine.connect(sys.argv[1]) as store:
    store.execute("CREATE TABLE a.t (k BIGINT NOT NULL, sub BIGINT NOT NULL, v STRING, PRIMARY KEY (k, sub) NOT ENFORCED)")
    table = store.table("a.t")
    table.upsert({"k": [1, 1, 2], "sub": [1, 2, 1], "v": ["a", "b", "c"]})
    table.upsert({"k": [1], "sub": [1], "v": ["z"]})
    print(table.read(columns=["v"], where="k = 1").num_rows, table.scan(columns=["v"], where="k = 1").read_all().num_rows)
"""


def test_filtered_reads_over_the_wire_say_nothing_on_stderr(tmp_path):
    server = ServerProcess(tmp_path / "store").start()

    done = subprocess.run([sys.executable, "-c", FILTERED_READS, server.url], capture_output=True, text=True, timeout=60)

    server.stop()
    assert (done.stdout, done.stderr) == ("2 4\n", "")


def test_a_server_stops_at_once_although_clients_are_connected_and_waiting(tmp_path):
    server = ServerProcess(tmp_path / "store").start()
    with storage_engine.connect(server.url, retry_s=0.2) as store:
        store.execute("CREATE TABLE a.t (x BIGINT)")
        store.table("a.t").append({"x": [1]})  # leaves a lane open
        version = store.version()
        ended = []

        def wait():
            try:
                store.await_version(version, 60)
            except StoreUnavailable as error:
                ended.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        begin = time.monotonic()

        assert server.stop() == 0

        assert time.monotonic() - begin < 8
        waiter.join(20)
    assert len(ended) == 1


def test_a_port_in_use_is_named_and_the_directory_is_left_alone(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("--dir", tmp_path / "store", "--port", port)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"port {port} is in use" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_a_directory_that_another_server_owns_is_refused_with_its_process(tmp_path):
    with ServerProcess(tmp_path / "store").start() as owner:
        ended = run("--dir", tmp_path / "store", "--port", 0)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert str(owner.pid) in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.com"])
def test_an_address_that_others_can_reach_is_refused_without_authentication(tmp_path, host):
    ended = run("--dir", tmp_path / "store", "--host", host, "--port", 0)

    assert ended.returncode == 1
    assert host in ended.stderr
    assert "authentication" in ended.stderr


def test_wrong_usage_ends_with_status_two():
    assert run("--port", 0).returncode == 2


def test_a_server_that_cannot_start_is_reported_with_its_own_words(tmp_path):
    (tmp_path / "store").write_text("not a directory")

    with pytest.raises(StoreUnavailable, match="did not start"):
        ServerProcess(tmp_path / "store").start()
