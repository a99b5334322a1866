"""Supervision, with real processes: start, health, restart, ports, clean stop of whole process groups."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest

import storage_engine
from flashlake.supervisor import start_services, status_table, stop_services
from flashlake.supervisor.probes import always, http_answers, port_is_free
from flashlake.supervisor.process import ProcessId, group_members, our_members, spawn, stop_group
from flashlake.supervisor.records import RunDir
from flashlake.supervisor.services import Service
from flashlake.supervisor.supervise import Observed, Supervisor, backoff_seconds, decide
from storage_engine.errors import InvalidConfiguration, StoreUnavailable
from storage_engine.stream.run.worker_group import OWNER
from tests.waiting import await_true

SLEEPER = "import time; time.sleep(600)"
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}])
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], start_new_session=False)
time.sleep(600)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


@contextmanager
def supervised(config, **commands):
    """A supervisor in a thread of this process, over services that run these Python programs."""
    known = {
        name: service if isinstance(service, Service) else Service(name, (sys.executable, "-c", service), probe=always)
        for name, service in commands.items()
    }
    run_dir = RunDir(config.services.run_dir)
    for name in known:
        run_dir.want(name)
    supervisor = Supervisor(config, known)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield run_dir
    finally:
        supervisor.stopping.set()
        thread.join(30)
        assert not thread.is_alive()


def test_a_service_that_ends_is_started_again(config):
    with supervised(config, one=SLEEPER) as run_dir:
        first = await_true(lambda: healthy(run_dir, "one"))
        os.kill(first.pid, signal.SIGKILL)

        second = await_true(lambda: (record := healthy(run_dir, "one")) and record.pid != first.pid and record)

        assert second.n_restarts == 1
        assert second.last_exit == -signal.SIGKILL


def test_a_service_that_fails_at_once_is_retried_with_growing_pauses(config):
    with supervised(config, one="raise SystemExit(3)") as run_dir:
        record = await_true(lambda: (found := run_dir.service("one")).n_restarts >= 2 and found)

    assert record.last_exit == 3
    assert [backoff_seconds(n, 30) for n in range(1, 7)] == [1, 2, 4, 8, 16, 30]


def test_a_service_starts_after_those_it_needs_are_healthy(config):
    needy = Service("two", (sys.executable, "-c", SLEEPER), probe=always, needs=("one",))
    never = Service("one", (sys.executable, "-c", SLEEPER), probe=http_answers("http://127.0.0.1:9/"))
    with supervised(config, one=never, two=needy) as run_dir:
        await_true(lambda: run_dir.service("one").state == "starting")
        await_true(lambda: run_dir.service("two").state == "waiting")

        assert run_dir.service("two").pid == 0


def test_an_unwanted_service_is_stopped_and_the_others_go_on(config):
    with supervised(config, one=SLEEPER, two=SLEEPER) as run_dir:
        one, two = (await_true(lambda name=name: healthy(run_dir, name)) for name in ("one", "two"))

        run_dir.unwant("one")

        await_true(lambda: not one.process.is_alive)
        assert run_dir.service("two").pid == two.pid
        assert two.process.is_alive


def test_stopping_ends_the_whole_process_group(config):
    with supervised(config, one=PARENT) as run_dir:
        record = await_true(lambda: (found := healthy(run_dir, "one")) and len(group_members(found.pid)) == 3 and found)
        members = group_members(record.pid)
    await_true(lambda: not group_members(record.pid))

    assert not any(ProcessId.of(pid) for pid in members)


def test_what_a_dead_service_leaves_behind_is_ended_too(config):
    with supervised(config, one=PARENT) as run_dir:
        record = await_true(lambda: (found := healthy(run_dir, "one")) and len(group_members(found.pid)) == 3 and found)
        left_behind = [pid for pid in group_members(record.pid) if pid != record.pid]
        os.kill(record.pid, signal.SIGKILL)

        await_true(lambda: not any(ProcessId.of(pid) for pid in left_behind))


def test_a_process_that_ignores_the_request_is_killed(tmp_path):
    log = tmp_path / "log"
    child = spawn([sys.executable, "-c", STUBBORN], environment=dict(os.environ), cwd=tmp_path, log=log, token="t")
    leader = ProcessId.of(child.pid)
    assert leader is not None
    await_true(lambda: "up" in log.read_text())

    assert stop_group(leader, "t", seconds_max=0.3) is False
    assert not leader.is_alive


def test_a_reused_pid_is_never_taken_for_ours(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    try:
        ours_long_ago = ProcessId(child.pid, started="1")

        assert not ours_long_ago.is_alive
        assert our_members(ours_long_ago, "t") == []
        stop_group(ours_long_ago, "t", seconds_max=0.1)
        assert child.poll() is None, "someone else's process was touched"
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("seen", "now", "action"),
    [
        (Observed(is_wanted=False, is_running=False, is_ready_to_start=True), 0, "none"),
        (Observed(is_wanted=False, is_running=True, is_ready_to_start=True), 0, "stop"),
        (Observed(is_wanted=True, is_running=False, is_ready_to_start=False), 0, "none"),
        (Observed(is_wanted=True, is_running=False, is_ready_to_start=True, start_after=5), 4, "none"),
        (Observed(is_wanted=True, is_running=False, is_ready_to_start=True, start_after=5), 5, "start"),
        (Observed(is_wanted=True, is_running=True, is_ready_to_start=True, started_at=0), 9, "none"),
        (Observed(is_wanted=True, is_running=True, is_ready_to_start=True, started_at=0), 11, "restart"),
        (Observed(is_wanted=True, is_running=True, is_ready_to_start=True, healthy_at=0), 59, "none"),
        (Observed(is_wanted=True, is_running=True, is_ready_to_start=True, healthy_at=0), 61, "restart"),
    ],
)
def test_the_next_action_follows_from_what_is_seen(seen, now, action):
    assert decide(seen, now, start_seconds_max=10) == action


def test_up_serves_the_store_and_down_stops_it(config):
    (record,) = start_services(config, ["store"])
    try:
        with storage_engine.connect(record.address) as store:
            store.execute("CREATE TABLE a.t (x BIGINT)")
            store.table("a.t").append({"x": [1, 2]})
        table, is_well = status_table(config)
        again = start_services(config, ["store"])
    finally:
        stopped = stop_services(config)

    line = next(row for row in table.to_pylist() if row["name"] == "store")
    assert is_well
    assert (line["health"], line["pid"]) == ("healthy", str(record.pid))
    assert again[0].pid == record.pid, "a running service is left alone"
    assert stopped == ["store"]
    assert not record.process.is_alive
    assert RunDir(config.services.run_dir).supervisor() is None
    assert port_is_free("127.0.0.1", config.store.port)
    with storage_engine.connect(config.directory_url) as store:
        assert store.table("a.t").count() == 2


@pytest.mark.crash
def test_status_says_what_is_down_when_the_store_was_killed_and_cannot_come_back(config):
    start_services(config, ["store"])
    run_dir = RunDir(config.services.run_dir)
    supervisor = run_dir.supervisor()
    assert supervisor is not None
    try:
        os.kill(supervisor.pid, signal.SIGKILL)
        await_true(lambda: not supervisor.is_alive)
        os.killpg(run_dir.service("store").pid, signal.SIGKILL)
        await_true(lambda: not run_dir.service("store").is_running)

        table, is_well = status_table(config)
    finally:
        stop_services(config)

    assert not is_well
    assert table.to_pylist()[0]["health"] == "down"


@pytest.mark.crash
def test_services_left_by_a_killed_supervisor_are_ended_by_down(config):
    (record,) = start_services(config, ["store"])
    supervisor = RunDir(config.services.run_dir).supervisor()
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    await_true(lambda: not supervisor.is_alive)
    assert record.process.is_alive

    stop_services(config)

    assert not record.process.is_alive


@pytest.mark.crash
def test_services_left_by_a_killed_supervisor_are_replaced_by_up(config):
    (record,) = start_services(config, ["store"])
    supervisor = RunDir(config.services.run_dir).supervisor()
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    await_true(lambda: not supervisor.is_alive)
    try:
        (found,) = start_services(config, ["store"])

        assert not record.process.is_alive
        assert found.process.is_alive
        assert found.address == record.address
    finally:
        stop_services(config)


def test_a_port_in_use_is_refused_with_the_port_and_the_key(config):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", config.store.port))
        taken.listen()

        with pytest.raises(StoreUnavailable) as refused:
            start_services(config, ["store"])

    assert f"port {config.store.port} is in use" in str(refused.value)
    assert "store.port" in str(refused.value)
    assert "FLASHLAKE__STORE__PORT" in str(refused.value)
    assert RunDir(config.services.run_dir).supervisor() is None
    assert RunDir(config.services.run_dir).wanted() == set()


def test_a_service_that_cannot_start_is_refused_with_the_end_of_its_log(config):
    with storage_engine.connect(config.directory_url), pytest.raises(StoreUnavailable) as refused:
        start_services(config, ["store"])

    assert "service store" in str(refused.value)
    assert "store.log" in str(refused.value)
    assert str(os.getpid()) in str(refused.value), "the log's last line names the process that holds the folder"
    assert RunDir(config.services.run_dir).supervisor() is None


def test_an_unknown_service_is_refused_with_the_known_ones(config):
    with pytest.raises(InvalidConfiguration, match="store, stream, tiering"):
        start_services(config, ["stroe"])


def test_a_store_that_is_not_ours_is_not_started(config):
    elsewhere = config.model_copy(update={"store": replace_store(config, url="flashlake://127.0.0.1:1")})

    with pytest.raises(InvalidConfiguration, match="no service store"):
        start_services(elsewhere, ["store"])


def replace_store(config, **changes):
    return config.store.model_copy(update=changes)


def healthy(run_dir, name):
    record = run_dir.service(name)
    return replace(record) if record.state == "healthy" else None


def test_the_configured_number_of_stream_workers_is_started_watched_and_stopped(config):
    def with_workers(number):
        return config.model_copy(update={"stream": config.stream.model_copy(update={"workers": number})})

    run_dir = RunDir(config.services.run_dir)
    try:
        records = start_services(with_workers(2), ["store", "stream"])
        assert [record.name for record in records] == ["store", "stream", "stream-2"]
        with storage_engine.connect(records[0].address) as store:
            await_true(lambda: (group := store.progress(OWNER).get(OWNER)) and len(group.detail["members"]) == 2, what="a group of two")
        table, is_well = status_table(with_workers(2))
        os.kill(run_dir.service("stream-2").pid, signal.SIGKILL)
        first = run_dir.service("stream").pid
        await_true(lambda: run_dir.service("stream-2").n_restarts and healthy(run_dir, "stream-2"), what="another second worker")

        start_services(with_workers(3), ["stream"])  # of the third this supervisor has not heard before
        third = run_dir.service("stream-3")
        start_services(with_workers(1), ["stream"])
        await_true(lambda: {run_dir.service(name).state for name in ("stream-2", "stream-3")} == {"stopped"}, what="one worker")
        assert run_dir.service("stream").pid == first, "a running service is left alone"
        start_services(with_workers(2), ["stream"])
    finally:
        stopped = stop_services(with_workers(1))  # whatever the configuration says by then

    lines = {row["name"]: row["health"] for row in table.to_pylist() if row["kind"] == "service"}
    assert is_well
    assert (lines["stream"], lines["stream-2"]) == ("healthy", "healthy")
    assert not third.is_running
    assert sorted(stopped) == ["store", "stream", "stream-2"]
