"""Who calls: passwords, tokens, sessions and where they come from, over a real server process, on both lanes, with TLS."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pytest

import storage_engine
from storage_engine.access import Users
from storage_engine.client.endpoint import endpoint_of, without_secrets
from storage_engine.client.socket_lane import SocketLane
from storage_engine.errors import AuthenticationFailed, UserError
from storage_engine.server import ServerProcess
from tests.contract.conftest import free_port  # noqa: F401 - a fixture
from tests.server.secured import ADMIN, TABLES, Secured, make_admin, socket_of


@pytest.mark.parametrize(
    "access",
    [
        {"user": "admin", "password": "wrong horse"},
        {"user": "nobody", "password": "correct horse"},
        {"token": "flt_0123456789abcdef_" + "x" * 43},
        {"token": "fls.e30=.00"},
        {"user": "admin"},
        {},
    ],
)
def test_wrong_credentials_are_refused_alike_and_are_in_no_text(secured: Secured, access: dict[str, str]) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        secured.connect(**access)

    assert caught.value.what in ("the credentials are not accepted", "the server asks for a user")
    for secret in (access.get("password"), access.get("token")):
        assert secret is None or (secret not in str(caught.value) and secret not in secured.server.log())


def test_a_url_may_carry_the_user_and_no_text_shows_the_password(secured: Secured) -> None:
    url = secured.server.url.replace("://", "://admin:correct%20horse@")
    with storage_engine.connect(url, tls_ca=secured.authority.ca) as store:
        assert store.url == secured.server.url
        assert "horse" not in repr(vars(store.backend))

    for wrong in ("flashlake://u:s3cret@h:p", "flashlike://u:s3cret@h", "flashlake://u:s3/cret@h:1", "file://u:s3cret@h/x"):
        with pytest.raises(UserError) as caught:
            storage_engine.connect(wrong)
        assert "cret" not in str(caught.value)


def test_parameters_come_before_the_url_and_the_url_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("from a file\n")
    environ = {"FLASHLAKE_USER": "env", "FLASHLAKE_PASSWORD": "envword"}

    def of(url: str, environ: dict[str, str] = environ, **given: str):
        found = endpoint_of(url, environ=environ, **given).credentials
        return found.user, found.password, found.token

    assert of("flashlake://h") == ("env", "envword", "")
    assert of("flashlake://url:urlword@h") == ("url", "urlword", "")
    assert of("flashlake://url:urlword@h", user="me", password="mine") == ("me", "mine", "")
    assert of("flashlake://h", token="tok") == ("", "", "tok")
    assert of("flashlake://h", token_file=str(tmp_path / "t")) == ("", "", "from a file")
    assert of("flashlake://h", {"FLASHLAKE_TOKEN_FILE": str(tmp_path / "t")}) == ("", "", "from a file")
    assert of("flashlake://env@h") == ("env", "envword", "")
    assert of("flashlake://another@h") == ("another", "", "")
    assert without_secrets("flashlake://a:b@c@h:1") == "flashlake://h:1"


def test_tokens_open_both_lanes_until_they_are_revoked_or_expire(secured: Secured) -> None:
    secured.admin.execute("CREATE USER robot; GRANT READ ON DATABASE shop TO robot")
    users = Users(secured.admin.backend)
    lasting = users.create_token("robot", "lasting", lifetime_ms=None)
    short = users.create_token("robot", "short", lifetime_ms=1)

    with pytest.raises(AuthenticationFailed):
        secured.connect(token=short)
    with secured.connect(token=lasting) as store:
        assert store.table("shop.orders").lookup([1])["v"].to_pylist() == ["a"]
        assert isinstance(socket_of(store), SocketLane)
        assert store.table("shop.orders").read().num_rows == 2
        (token_id,) = [name for name, record in users.tokens().items() if record.label == "lasting"]
        users.revoke_token(token_id)
        with pytest.raises(AuthenticationFailed):
            store.backend.lookup("shop.orders", pa.table({"k": [1]}), None, insert_if_not_exists=False)
        with pytest.raises(AuthenticationFailed):
            store.table("shop.orders")
    assert lasting not in secured.server.log()


def test_a_changed_password_ends_what_was_opened_with_the_old_one(secured: Secured) -> None:
    store = secured.user("carla", "READ ON TABLE shop.orders")
    table = store.table("shop.orders")
    assert table.lookup([1]).num_rows == 1

    store.execute("ALTER USER carla IDENTIFIED BY 'another staple'")

    with pytest.raises(AuthenticationFailed):
        table.lookup([1])
    with secured.connect(user="carla", password="another staple") as again:
        assert again.table("shop.orders").lookup([1]).num_rows == 1


def test_a_client_logs_in_again_after_a_restart_of_the_server(tmp_path: Path) -> None:
    make_admin(tmp_path / "store")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ServerProcess(tmp_path / "store", port=port, options=["--authentication", "on"]) as server:
        store = storage_engine.connect(server.url, **ADMIN)
        store.execute(TABLES)
        store.table("shop.orders").upsert({"k": [1], "v": ["x"]})
    with ServerProcess(tmp_path / "store", port=port, options=["--authentication", "on"]), store:
        store.table("shop.orders").upsert({"k": [2], "v": ["y"]})
        assert store.table("shop.orders").scan().read_all().num_rows == 2
        assert store.table("shop.orders").lookup([1, 2]).num_rows == 2


def test_a_standard_flight_client_logs_in_by_the_handshake(secured: Secured) -> None:
    location = secured.server.url.replace("flashlake+tls", "grpc+tls")
    with fl.FlightClient(location, tls_root_certs=secured.authority.ca.read_bytes()) as client:
        call = fl.Action("call", json.dumps({"method": "version", "arguments": {}, "sizes": []}).encode())
        with pytest.raises(fl.FlightUnauthenticatedError):
            list(client.do_action(call))
        header = client.authenticate_basic_token(ADMIN["user"], ADMIN["password"])
        (answer,) = client.do_action(call, fl.FlightCallOptions(headers=[header]))
        assert json.loads(answer.body.to_pybytes())["result"] > 0
        basic = (b"authorization", b"Basic " + base64.b64encode(b"admin:correct horse"))
        assert len(list(client.do_action(call, fl.FlightCallOptions(headers=[basic])))) == 1
