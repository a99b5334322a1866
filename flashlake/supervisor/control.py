"""Control: starting and stopping from the command line. It says what is wanted, and waits until the supervisor has done it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from flashlake.config import Config
from flashlake.supervisor.probes import port_is_free
from flashlake.supervisor.process import ProcessId, spawn, stop_group
from flashlake.supervisor.records import RunDir, ServiceRecord
from flashlake.supervisor.services import SERVICE_NAMES, Service, base_environment, kind_of, services
from storage_engine.errors import InvalidConfiguration, StoreUnavailable

POLL_SECONDS = 0.1
FAILED_STARTS_MAX = 3
Say = Callable[[str], None]


def start_services(
    config: Config, names: Iterable[str] = (), *, say: Say = lambda _: None, await_names: Sequence[str] | None = None
) -> list[ServiceRecord]:
    """Start the named services (none: all) and return once each is healthy; those that run already are left alone.

    Stream workers beyond the configured number are stopped.

    await_names  wait for these only; None: for all of them

    Errors: InvalidConfiguration for an unknown name; StoreUnavailable naming a port in use and its key, or a service
    that does not become healthy, with the end of its log. What this call started is then stopped again.
    """
    known = services(config)
    chosen = check_names(names, known) or list(known)
    run_dir = RunDir(config.services.run_dir)
    if run_dir.supervisor() is None:
        stop_services(config)  # what a supervisor that died left running
    for name in run_dir.wanted() - set(known):
        if kind_of(name) in chosen:
            run_dir.unwant(name)
    fresh = [name for name in chosen if run_dir.service(name).state in ("stopped", "waiting")]
    for name in fresh:
        check_port(known[name])
    if {"webserver", "daemon"} & set(fresh):
        from flashlake.orchestration.dagster_yaml import prepare_home  # imports Dagster: not in the supervisor

        prepare_home(config.dagster.home)
    for name in chosen:
        run_dir.want(name)
    ensure_supervisor(config, run_dir)
    try:
        await_healthy(config, run_dir, chosen if await_names is None else list(await_names), say=say)
    except BaseException:
        stop_services(config, fresh)
        raise
    return [run_dir.service(name) for name in chosen]


def stay_in_foreground(config: Config) -> None:
    """Wait until this process is interrupted or terminated, or the services are stopped by another; then stop them all."""
    run_dir = RunDir(config.services.run_dir)
    ended = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: ended.set())
    while run_dir.supervisor() is not None and not ended.wait(0.5):
        pass
    stop_services(config)


def stop_services(config: Config, names: Iterable[str] = (), *, say: Say = lambda _: None) -> list[str]:
    """Stop the named services (none: all, and the supervisor); returns once all their processes are gone. The names that ran."""
    run_dir = RunDir(config.services.run_dir)
    known = [*dict.fromkeys([*SERVICE_NAMES, *services(config), *sorted(run_dir.wanted())])]
    chosen = check_names(names, known) or known
    running = [name for name in chosen if run_dir.service(name).has_processes]
    for name in chosen:
        run_dir.unwant(name)
    deadline = time.monotonic() + (config.services.stop_seconds_max + 5) * max(1, len(running))
    while run_dir.supervisor() is not None and time.monotonic() < deadline:
        if run_dir.wanted() and all(run_dir.service(name).state == "stopped" for name in chosen):
            break  # others go on, and the supervisor with them
        time.sleep(POLL_SECONDS)
    for name in reversed(chosen):  # without a supervisor, or past the deadline: by the records
        record = run_dir.service(name)
        if record.has_processes:
            stop_group(record.process, record.token, seconds_max=config.services.stop_seconds_max)
        if record.pid:
            run_dir.put_service(ServiceRecord(name, "stopped", address=record.address, log=record.log))
    for name in running:
        say(f"{name}: stopped")
    return running


def check_names(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The services that are meant, in their order of starting; `stream` means every stream worker. Errors: InvalidConfiguration."""
    known = list(known)
    chosen = list(names)
    for name in chosen:
        if name not in known:
            raise InvalidConfiguration(f"there is no service {name}", where="flashlake up", next_step=f"Use one of: {', '.join(known)}.")
    return [name for name in known if name in chosen or kind_of(name) in chosen]


def check_port(service: Service) -> None:
    """Refuse to start a service whose port is taken.

    Errors: StoreUnavailable naming the port and the key to change.
    """
    if service.port_key is None:
        return
    key, host, port = service.port_key
    if not port_is_free(host, port):
        variable = "FLASHLAKE__" + key.upper().replace(".", "__")
        raise StoreUnavailable(
            f"port {port} is in use by another process",
            where=f"{key} = {port}, service {service.name}",
            next_step=f"Stop that process, or set {key} in flashlake.toml (or {variable}) to a free port.",
        )


def ensure_supervisor(config: Config, run_dir: RunDir) -> ProcessId:
    """The supervisor, started in a session of its own when none is alive."""
    if (running := run_dir.supervisor()) is not None:
        return running
    log = config.services.log_dir / "supervisor.log"
    child = spawn(
        [sys.executable, "-m", "flashlake.supervisor.supervise"],
        environment=base_environment(config),
        cwd=config.project,
        log=log,
        token=f"supervisor-{os.getpid()}",
    )
    deadline = time.monotonic() + config.services.start_seconds_max
    while (found := run_dir.supervisor()) is None:
        if child.poll() is not None or time.monotonic() > deadline:
            raise StoreUnavailable("the supervisor did not start: " + tail(log), where=str(log), next_step="Read its log.")
        time.sleep(POLL_SECONDS)
    return found


def await_healthy(config: Config, run_dir: RunDir, names: Sequence[str], *, say: Say = lambda _: None) -> None:
    """Wait until every named service is healthy; the first that cannot become so ends the wait with an error."""
    deadline = time.monotonic() + config.services.start_seconds_max
    pending = list(names)
    while pending:
        for name in list(pending):
            record = run_dir.service(name)
            if record.state == "healthy":
                say(f"{name}: healthy" + (f", {record.address}" if record.address else ""))
                pending.remove(name)
            elif record.n_restarts >= FAILED_STARTS_MAX:
                raise not_healthy(record, "ends as soon as it is started")
        if pending and time.monotonic() > deadline:
            raise not_healthy(run_dir.service(pending[0]), f"was not healthy after {config.services.start_seconds_max} s")
        if pending:
            ensure_supervisor(config, run_dir)  # it may have been about to end when we asked
            time.sleep(POLL_SECONDS)


def not_healthy(record: ServiceRecord, what: str) -> StoreUnavailable:
    """The error of a service that did not come up, with the end of its log."""
    return StoreUnavailable(
        f"service {record.name} {what}: {tail(Path(record.log))}", where=record.log, next_step="Read its log; then repeat `flashlake up`."
    )


def tail(log: Path, n_lines: int = 1) -> str:
    """The last lines of a log that say something."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace")[-8000:].splitlines() if line.strip()]
    except OSError:
        return "no log"
    return " / ".join(lines[-n_lines:]) or "an empty log"
