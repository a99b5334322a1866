"""What a caller may: rights over a real server process, on both lanes, with TLS."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

import storage_engine
from storage_engine.access import Users
from storage_engine.api import Progress, WriteOp
from storage_engine.errors import AccessDenied, AuthenticationFailed, UnknownTable
from storage_engine.server import ServerProcess
from storage_engine.server.dispatch import _HANDLERS
from storage_engine.server.rights import NEEDS
from storage_engine.stream import Worker
from tests.contract.conftest import free_port  # noqa: F401 - a fixture
from tests.server.secured import ADMIN, Secured, make_admin, socket_of


def test_every_method_of_the_wire_declares_its_rights() -> None:
    apart = {"commit", "fetch", "read", "snapshot", "lane"}  # dispatched beside the table

    assert set(_HANDLERS) | apart == set(NEEDS)


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
    refused("ALTER", lambda: store.execute("ALTER TABLE shop.orders SET ('table.log.ttl' = '8d')"))
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


def test_the_log_names_users_and_refusals_and_no_secret(secured: Secured) -> None:
    with pytest.raises(AuthenticationFailed):
        secured.connect(user="admin", password="wrong horse")

    records = [json.loads(line) for line in secured.server.log().splitlines() if line.startswith("{")]

    assert {"a session was opened", "a login failed", "refused"} <= {record["message"] for record in records}
    assert any(record.get("user") == "dora" and record.get("right") == "WRITE" for record in records)
    assert secured.secrets_in_log() == []
