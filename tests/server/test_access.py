"""Authentication and rights over real server processes, on both lanes, with TLS."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pytest

import storage_engine
from storage_engine import Store
from storage_engine.access import Users
from storage_engine.api import Progress, WriteOp
from storage_engine.client.endpoint import endpoint_of, without_secrets
from storage_engine.client.lane import LaneBroken
from storage_engine.client.socket_lane import SocketLane
from storage_engine.client.wire import packed as wire
from storage_engine.errors import AccessDenied, AuthenticationFailed, InvalidConfiguration, StoreUnavailable, UnknownTable, UserError
from storage_engine.server import ServerProcess
from storage_engine.server.dispatch import _HANDLERS
from storage_engine.server.rights import NEEDS
from storage_engine.stream import Worker
from tests.contract.conftest import free_port  # noqa: F401 - a fixture
from tests.server.authority import Authority

ADMIN = {"user": "admin", "password": "correct horse"}
TABLES = """
    CREATE TABLE shop.orders (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED);
    CREATE TABLE shop.salaries (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED);
    CREATE TABLE other.log (x BIGINT)
"""


def make_admin(directory: Path) -> None:
    with storage_engine.connect(directory.as_uri()) as store:
        users = Users(store.backend)
        users.create(ADMIN["user"], ADMIN["password"])
        users.make_administrator(ADMIN["user"])


class Secured:
    """A server with authentication and TLS, its authority, and an administrator's store."""

    def __init__(self, folder: Path) -> None:
        self.directory = folder / "store"
        self.authority = Authority(folder)
        make_admin(self.directory)
        self.options = ["--authentication", "on", "--log-format", "json", *self.authority.server("127.0.0.1").options]
        self.server = ServerProcess(self.directory, options=self.options).start()
        self.admin = self.connect(**ADMIN)
        self.admin.execute(TABLES)
        self.admin.table("shop.orders").upsert({"k": [1, 2], "v": ["a", "b"]})

    def connect(self, **access: str) -> Store:
        return storage_engine.connect(self.server.url, tls_ca=self.authority.ca, retry_s=5.0, **access)

    def user(self, name: str, *grants: str) -> Store:
        """A new user with these grants, connected."""
        self.admin.execute(f"CREATE USER {name} IDENTIFIED BY 'battery staple'")
        for grant in grants:
            self.admin.execute(f"GRANT {grant} TO {name}")
        return self.connect(user=name, password="battery staple")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    secured = Secured(tmp_path_factory.mktemp("secured"))
    yield secured
    secured.admin.close()
    secured.server.kill()


def socket_of(store: Store):
    """The socket lane that the store's next small call goes over."""
    store.table("shop.orders").lookup([1])
    (writer,) = store.backend._writers._idle
    return writer.socket


def test_every_method_of_the_wire_declares_its_rights() -> None:
    apart = {"commit", "fetch", "read", "snapshot", "lane"}  # dispatched beside the table

    assert set(_HANDLERS) | apart == set(NEEDS)


# who calls


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


# what they may


def test_a_right_is_needed_for_each_kind_of_call_and_grants_take_effect_at_once(secured: Secured) -> None:
    store = secured.user("dora", "DESCRIBE ON TABLE shop.orders")
    table = store.table("shop.orders")
    rows = {"k": [7], "v": ["dora"]}

    def refused(right: str, call) -> None:
        with pytest.raises(AccessDenied, match=f"dora lacks {right} ON"):
            call()
        secured.admin.execute(f"GRANT {right} ON TABLE shop.orders TO dora")
        call()
        secured.admin.execute(f"REVOKE {right} ON TABLE shop.orders FROM dora")
        with pytest.raises(AccessDenied, match=f"dora lacks {right} ON"):
            call()

    refused("WRITE", lambda: table.upsert(rows))
    refused("READ", lambda: table.lookup([1]))
    refused("READ", lambda: table.scan().read_all())
    refused("READ", lambda: table.read())
    refused("READ", lambda: table.count())
    refused("ALTER", lambda: store.execute("ALTER TABLE shop.orders SET ('table.datalake.freshness' = '10s')"))
    refused("ALTER", lambda: table.compact())
    secured.admin.execute("GRANT READ ON TABLE shop.orders TO dora")
    with pytest.raises(AccessDenied, match="WRITE"):
        table.lookup([99], insert_if_not_exists=True)
    with pytest.raises(AccessDenied, match="DROP"):
        store.execute("DROP TABLE shop.orders")
    with pytest.raises(AccessDenied, match=r"CREATE ON DATABASE shop"):
        store.execute("CREATE TABLE shop.new (x BIGINT)")
    with pytest.raises(AccessDenied, match="ADMIN"):
        store.backup("/tmp/nowhere")
    with pytest.raises(AccessDenied, match="WRITE ON CLUSTER"):
        store.commit(progress=[Progress("job:x", {})])
    store.table("shop.orders").consumer("mine").commit()
    assert table.offsets()
    store.close()


def test_a_table_that_may_not_be_seen_looks_like_one_that_does_not_exist(secured: Secured) -> None:
    store = secured.user("eva", "READ ON TABLE shop.orders")
    backend = store.backend

    def error_of(name: str, call) -> str:
        with pytest.raises(UnknownTable) as caught:
            call(name)
        return str(caught.value).replace(name, "NAME")

    calls = [
        lambda name: backend.lookup(name, pa.table({"k": [1]}), None, insert_if_not_exists=False),
        lambda name: backend.read(name, None, None, None),
        lambda name: backend.count(name),
        lambda name: backend.drop_table(name, if_exists=True),
        lambda name: store.commit([WriteOp(name, "upsert", pa.table({"k": [1]}))]),
    ]
    for call in calls:
        assert error_of("shop.salaries", call) == error_of("shop.salariez", call) != ""
    assert store.tables() == ["shop.orders"]
    assert all(set(info.ranges) <= {"shop.orders"} for info in store.commits(0))
    with pytest.raises(UnknownTable) as caught:
        backend.count("shop.order")
    assert "orders" not in caught.value.next_step
    store.close()


def test_who_is_no_administrator_sees_and_changes_only_their_own(secured: Secured) -> None:
    store = secured.user("fay", "ALL ON CLUSTER")
    users = Users(store.backend)

    assert list(users.users()) == ["fay"]
    assert users.users()["fay"].password is None
    assert {record.user for record in users.grants()} == {"fay"}
    for statement in ("CREATE USER gus", "GRANT ADMIN ON CLUSTER TO fay", "DROP USER fay", "REVOKE ALL ON CLUSTER FROM fay"):
        with pytest.raises(AccessDenied, match="ADMIN"):
            store.execute(statement)
    admin = secured.admin.objects("user")["admin"]
    with pytest.raises(AccessDenied, match="ADMIN"):
        store.put_object("user", "admin", admin)
    with secured.connect(token=users.create_token("fay", "mine", lifetime_ms=60_000)) as again:
        assert "shop.salaries" in again.tables()
    admins = Users(secured.admin.backend).create_token("admin", "theirs", lifetime_ms=60_000)
    with pytest.raises(AccessDenied, match="ADMIN"):
        store.drop_object("token", admins.split("_")[1])
    store.close()


def test_a_job_needs_the_rights_of_what_it_reads_and_writes(secured: Secured) -> None:
    store = secured.user("hal", "ALL ON DATABASE hals", "READ ON TABLE shop.orders")
    store.execute("CREATE TABLE hals.copy (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED)")
    store.execute("SET 'pipeline.name' = 'good'; INSERT INTO hals.copy SELECT k, v FROM shop.orders")
    assert [row["job"] for row in store.execute("SHOW JOBS")[0].rows.to_pylist()] == ["good"]

    stolen = {**store.objects("job")["good"], "name": "bad", "select": "SELECT k, v FROM shop.salaries"}
    with pytest.raises(AccessDenied, match="cannot be planned"):
        store.put_object("job", "bad", stolen)
    secured.admin.execute("GRANT DESCRIBE ON TABLE shop.salaries TO hal")
    joined = "SELECT o.k, s.v FROM shop.orders AS o LEFT JOIN shop.salaries FOR SYSTEM_TIME AS OF PROCTIME() AS s ON o.k = s.k"
    for select in ("SELECT k, v FROM shop.salaries", "SELECT k, v FROM shop.orders UNION ALL SELECT k, v FROM shop.salaries", joined):
        with pytest.raises(AccessDenied, match=r"READ ON TABLE shop\.salaries|cannot be planned"):
            store.put_object("job", "bad", {**stolen, "select": select})
    secured.admin.execute("CREATE TABLE other.late (ts TIMESTAMP(3)); GRANT DESCRIBE ON TABLE other.late TO hal")
    store.execute(
        """CREATE TABLE hals.ev (ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ('watermark.late-rows' = 'table:other.late');
        CREATE TABLE hals.counts (e TIMESTAMP(3), n BIGINT)"""
    )
    with pytest.raises(AccessDenied, match=r"WRITE ON TABLE other\.late"):  # where late rows go is written as well
        store.execute(
            "SET 'pipeline.name' = 'bad'; INSERT INTO hals.counts SELECT window_end, COUNT(*) FROM "
            "TABLE(TUMBLE(TABLE hals.ev, DESCRIPTOR(ts), INTERVAL '1' MINUTE)) GROUP BY window_start, window_end"
        )
    reader = secured.user("hana", "READ ON TABLE shop.orders", "DESCRIBE ON TABLE hals.copy")
    with pytest.raises(AccessDenied, match=r"WRITE ON TABLE hals\.copy"):
        reader.put_object("job", "bad", {**store.objects("job")["good"], "name": "bad"})
    with pytest.raises(AccessDenied, match=r"WRITE ON TABLE hals\.copy"):
        reader.execute("STOP JOB good")
    assert set(secured.admin.objects("job")) == {"good"}
    with pytest.raises(AccessDenied, match="WRITE ON CLUSTER"):  # of a job that is not being dropped
        store.backend.drop_progress("job:good")
    Worker(secured.admin).run_until_idle()
    store.execute("STOP JOB good")
    secured.admin.put_object("job", "good", {**secured.admin.objects("job")["good"], "state": "DROPPING"})
    with pytest.raises(AccessDenied, match=r"WRITE ON TABLE hals\.copy"):
        reader.backend.drop_progress("job:good")
    store.execute("DROP JOB good")
    assert (secured.admin.objects("job"), secured.admin.progress("job:good")) == ({}, {})
    store.close()
    reader.close()


def test_a_job_whose_state_its_user_may_not_drop_stays_as_it_was(secured: Secured) -> None:
    store = secured.user("jo", "CREATE, READ, WRITE ON DATABASE jos", "READ ON TABLE shop.orders")
    store.execute("CREATE TABLE jos.n (v STRING, n BIGINT, PRIMARY KEY (v) NOT ENFORCED); SET 'pipeline.name' = 'counted'")
    store.execute("INSERT INTO jos.n SELECT v, COUNT(DISTINCT k) FROM shop.orders GROUP BY v; STOP JOB counted")
    with pytest.raises(AccessDenied, match=r"DROP ON TABLE jos\.n__state_counted"):
        store.execute("DROP JOB counted")
    assert secured.admin.execute("SHOW JOBS")[0].rows["state"].to_pylist() == ["STOPPED"]
    secured.admin.execute("GRANT DROP ON DATABASE jos TO jo")
    store.execute("DROP JOB counted")
    assert secured.admin.objects("job") == {}
    store.close()


def test_only_who_may_do_everything_brings_code_into_a_job(secured: Secured) -> None:
    """A function runs in the worker, with the worker's rights; the server itself imports none, also not to plan a job."""
    definition = {"name": "f", "target": "no.such.module", "inputs": ["STRING"], "result": "STRING", "vectorised": False, "nulls": "skip"}
    store = secured.user("ira", "ALL ON DATABASE iras", "READ ON TABLE shop.orders")
    store.execute("CREATE TABLE iras.copy (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED)")
    store.execute("SET 'pipeline.name' = 'iras'; INSERT INTO iras.copy SELECT k, v FROM shop.orders")
    with pytest.raises(AccessDenied, match="ALL ON CLUSTER"):
        store.put_object("function", "f", definition)
    own = {**store.objects("job")["iras"], "name": "own", "select": "SELECT k, f(v) FROM shop.orders", "functions": {"f": definition}}
    with pytest.raises(AccessDenied, match=r"ALL ON CLUSTER"):
        store.put_object("job", "own", own)

    secured.admin.put_object("function", "f", definition)
    assert list(store.objects("function")) == ["f"]
    with pytest.raises(AccessDenied, match=r"ALL ON CLUSTER"):
        store.put_object("job", "own", {**own, "functions": {"f": {**definition, "target": "os.system"}}})
    store.put_object("job", "own", own)  # planned by the server, which has no such module

    assert set(store.objects("job")) >= {"iras", "own"}
    store.execute("STOP JOB own; STOP JOB iras")
    secured.admin.drop_object("function", "f")
    store.close()


def test_a_prepared_lookup_is_refused_as_soon_as_its_right_is_gone(secured: Secured) -> None:
    store = secured.user("ida", "READ ON TABLE shop.orders")
    lane = socket_of(store)
    arguments = {"table": "shop.orders", "columns": None, "insert_if_not_exists": False}
    assert lane.rows("lookup", arguments, pa.table({"k": [1]})).num_rows == 1

    orders = store.table("shop.orders")
    assert orders.lookup_one(1) == {"k": 1, "v": "a"}

    secured.admin.execute("REVOKE READ ON TABLE shop.orders FROM ida")

    with pytest.raises(UnknownTable):
        lane.rows("lookup", arguments, pa.table({"k": [1]}))
    with pytest.raises(UnknownTable):
        orders.lookup_one(1)
    secured.admin.execute("GRANT READ ON TABLE shop.orders TO ida")
    assert orders.lookup_one(1) == {"k": 1, "v": "a"}
    assert lane.rows("lookup", arguments, pa.table({"k": [1]})).num_rows == 1
    secured.admin.execute("DROP USER ida")
    with pytest.raises(AuthenticationFailed):
        lane.rows("lookup", arguments, pa.table({"k": [1]}))
    store.close()


def test_commits_on_their_way_are_checked_one_by_one_and_none_passes_after_its_right_is_gone(secured: Secured) -> None:
    secured.admin.execute("CREATE TABLE shop.events (x BIGINT)")
    store = secured.user("jim", "WRITE ON TABLE shop.events", "READ ON TABLE shop.events", "READ ON TABLE shop.orders")
    ask = store.backend._ask_lane
    store.backend._ask_lane = lambda: {**ask(), "unix": None}  # over TLS
    events = store.table("shop.events")
    with events.writer() as writer:
        for i in range(30):
            writer.append({"x": [i]})
    events.append({"x": [30]})
    assert socket_of(store)._socket.version() in ("TLSv1.2", "TLSv1.3")
    for kind, name in (("append", "shop.events"), ("upsert", "shop.orders")):
        if kind == "append":
            secured.admin.execute("REVOKE WRITE ON TABLE shop.events FROM jim")
        table, rows = store.table(name), {"x": [99]} if kind == "append" else {"k": [99], "v": ["no"]}
        with pytest.raises(AccessDenied, match="WRITE"):
            getattr(table, kind)(rows)
        writer = table.writer()

        def write(writer=writer, kind=kind, rows=rows) -> None:
            for _ in range(10):
                getattr(writer, kind)(rows)
            writer.flush()

        for _ in range(3):
            with pytest.raises(AccessDenied, match="WRITE"):
                write()
    assert events.count() == 31
    assert secured.admin.table("shop.orders").lookup([99]).num_rows == 0
    store.close()


def test_commits_on_their_way_go_on_in_a_new_session_when_theirs_is_over(tmp_path: Path, free_port: int) -> None:  # noqa: F811
    make_admin(tmp_path / "s")
    options = ["--authentication", "on"]
    server = ServerProcess(tmp_path / "s", port=free_port, options=options).start()
    with storage_engine.connect(server.url, **ADMIN) as store:
        store.execute("CREATE TABLE d.log (x BIGINT)")
        table = store.table("d.log")
        with table.writer() as writer:
            for i in range(200):
                writer.append({"x": [i]})
                if i in (50, 120):
                    server.kill()  # sessions and tickets end with the process
                    server = ServerProcess(tmp_path / "s", port=free_port, options=options).start()
        assert table.scan().read_all()["x"].to_pylist() == list(range(200))
        keyed = {"k": list(range(100)), "v": ["x"] * 100}
        store.execute("CREATE TABLE d.t (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED)")
        store.table("d.t").upsert(keyed)
        server.kill()
        server = ServerProcess(tmp_path / "s", port=free_port, options=options).start()
        assert [found.num_rows for found in store.table("d.t").lookups([[k] for k in range(100)])] == [1] * 100
        server.kill()
        server = ServerProcess(tmp_path / "s", port=free_port, options=options).start()
        assert store.table("d.t").lookup_one(7) == {"k": 7, "v": "x"}
    server.kill()


def test_a_consumer_needs_no_more_than_to_read_its_table(secured: Secured) -> None:
    secured.admin.execute("CREATE TABLE shop.clicks (x BIGINT)")
    secured.admin.table("shop.clicks").append({"x": [1, 2, 3]})
    store = secured.user("kim", "READ ON TABLE shop.clicks")
    backend = store.backend
    generation = backend.heartbeat("consumer:c:shop.clicks", "m", 5000).generation
    assert list(backend.progress("consumer:c:")) == ["consumer:c:shop.clicks"]
    assert generation > 0
    backend.leave_group("consumer:c:shop.clicks", "m")
    assert backend.drop_progress("consumer:c:shop.clicks")
    assert backend.bucket_statistics("shop.clicks").num_rows == 1
    assert backend.late_rows("shop.clicks") == 0
    for owner, error in (("consumer:c:shop.salaries", UnknownTable), ("consumer:c:x:shop.clicks", UnknownTable), ("job:j", AccessDenied)):
        for call in (lambda o: backend.heartbeat(o, "m", 5000), lambda o: backend.leave_group(o, "m"), backend.drop_progress):
            with pytest.raises(error):
                call(owner)
    with pytest.raises(AccessDenied, match="WRITE"):
        backend.create_partition("shop.clicks", "p", if_not_exists=True)
    for call in (backend.bucket_statistics, backend.late_rows):
        with pytest.raises(UnknownTable):
            call("shop.salaries")
    store.close()


# TLS


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


def test_the_log_names_users_and_refusals_and_no_secret(secured: Secured) -> None:
    records = [json.loads(line) for line in secured.server.log().splitlines() if line.startswith("{")]

    assert {"a session was opened", "a login failed", "refused"} <= {record["message"] for record in records}
    assert any(record.get("user") == "dora" and record.get("right") == "WRITE" for record in records)
    assert not any(secret in secured.server.log() for secret in ("correct horse", "battery staple", "wrong horse", "Bearer", "Basic "))
