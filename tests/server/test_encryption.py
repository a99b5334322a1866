"""TLS on both lanes of a real server process, and what would be open to others."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

import storage_engine
from storage_engine.client.endpoint import endpoint_of
from storage_engine.client.lane import LaneBroken
from storage_engine.client.socket_lane import SocketLane
from storage_engine.client.wire import packed as wire
from storage_engine.errors import InvalidConfiguration, StoreUnavailable
from tests.contract.conftest import free_port  # noqa: F401 - a fixture
from tests.server.authority import Authority
from tests.server.secured import ADMIN, Secured


def test_a_server_whose_certificate_is_of_another_authority_or_name_is_not_spoken_to(secured: Secured, tmp_path: Path) -> None:
    stranger = Authority(tmp_path)
    with pytest.raises(StoreUnavailable):
        storage_engine.connect(secured.server.url, tls_ca=stranger.ca, connect_s=0.5, **ADMIN)
    with pytest.raises(StoreUnavailable):
        storage_engine.connect(secured.server.url.replace("+tls", ""), connect_s=0.5, **ADMIN)
    address = secured.admin.backend._ask_lane()
    tcp = {**address, "unix": None}
    with pytest.raises(LaneBroken, match="certificate"):
        SocketLane("127.0.0.1", tcp, tls=ssl.create_default_context(cafile=str(stranger.ca)))
    with pytest.raises(LaneBroken, match="not valid for"):
        SocketLane("localhost", tcp, tls=ssl.create_default_context(cafile=str(secured.authority.ca)))
    with storage_engine.connect(secured.server.url, tls_verify=False, **ADMIN) as store:
        assert store.version() > 0


def test_the_socket_lane_is_encrypted_over_tcp(secured: Secured) -> None:
    address = {**secured.admin.backend._ask_lane(), "unix": None}
    assert address["tls"]
    lane = SocketLane("127.0.0.1", address, tls=ssl.create_default_context(cafile=str(secured.authority.ca)))
    arguments = {"table": "shop.orders", "columns": None, "insert_if_not_exists": False}
    answers = list(lane.pipeline("lookup", arguments, [pa.table({"k": [1]}) for _ in range(50)]))
    assert [rows["v"].to_pylist() for rows in answers] == [["a"]] * 50
    assert lane._socket.version() in ("TLSv1.2", "TLSv1.3")
    lane.close()


def test_stalled_handshakes_and_garbage_hold_nobody_up(secured: Secured) -> None:
    address = secured.admin.backend._ask_lane()
    flight_port = endpoint_of(secured.server.url).port
    silent = [socket.create_connection(("127.0.0.1", port)) for port in (flight_port, address["port"]) for _ in range(30)]
    for port in (flight_port, address["port"]):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 300, bytes(4000), wire.MAGIC + bytes(16)):
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(garbage)
    begin = time.monotonic()

    with secured.connect(**ADMIN) as store:
        assert store.table("shop.orders").lookup([1])["v"].to_pylist() == ["a"]
        assert store.table("shop.orders").scan().read_all().num_rows >= 2

    assert time.monotonic() - begin < 4.0, "others waited for those who say nothing"
    for raw in silent:
        raw.settimeout(20)
        assert raw.recv(1) == b"", "a silent connection is closed after the greeting's time"
        raw.close()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--host", "0.0.0.0"], "authentication is off"),
        (["--host", "0.0.0.0", "--authentication", "on"], "in the clear"),
        (["--authentication", "on"], "there is no user"),
        (["--tls-cert", "x.pem"], "TLS needs both"),
        (["--tls-cert", "x.pem", "--tls-key", "x.key"], "cannot be used"),
    ],
)
def test_what_would_be_open_to_others_is_refused_at_the_start(tmp_path: Path, options: list[str], word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "storage_engine.server", "--dir", str(tmp_path / "s"), "--port", "0", *options],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, word in done.stderr, done.stdout) == (1, True, ""), done.stderr


def test_an_address_with_a_ca_must_be_encrypted() -> None:
    with pytest.raises(InvalidConfiguration, match=r"flashlake\+tls"):
        endpoint_of("flashlake://h", tls_ca="ca.pem", environ={})
