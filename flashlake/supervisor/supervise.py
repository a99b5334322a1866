"""Supervise: the loop of the one supervising process. It makes what runs equal to what is wanted (data/run/wanted).

Owner of: every service process, and their records. Decisions (`decide`, `backoff_seconds`) are pure; `Supervisor` does the effects.
A service that ends, or stays unhealthy, is started again after 1, 2, 4, ... seconds; a minute of health resets the count.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flashlake.config import Config, load_config
from flashlake.supervisor.process import ProcessId, spawn, stop_group
from flashlake.supervisor.records import RunDir, ServiceRecord
from flashlake.supervisor.services import STREAM, Service, base_environment, kind_of, service_of, services

POLL_SECONDS = 0.2
PROBE_SECONDS = {"starting": 0.4, "healthy": 3.0, "unhealthy": 1.0}
UNHEALTHY_SECONDS_MAX = 60.0
FORGIVEN_AFTER_SECONDS = 60.0
LOG_BYTES_MAX = 64 << 20

Action = Literal["none", "start", "stop", "restart"]
logger = logging.getLogger("flashlake.supervisor")


@dataclass(frozen=True)
class Observed:
    """What is known of a service when its next action is decided; times in monotonic seconds."""

    is_wanted: bool
    is_running: bool
    is_ready_to_start: bool
    started_at: float = 0.0
    healthy_at: float | None = None
    start_after: float = 0.0


def decide(seen: Observed, now: float, *, start_seconds_max: float) -> Action:
    """What to do about one service; "restart" is for one that runs and does not answer.

    >>> decide(Observed(is_wanted=True, is_running=False, is_ready_to_start=True, start_after=9.0), 8.0, start_seconds_max=60)
    'none'
    >>> decide(Observed(is_wanted=True, is_running=True, is_ready_to_start=True, started_at=0.0), 61.0, start_seconds_max=60)
    'restart'
    """
    if not seen.is_wanted:
        return "stop" if seen.is_running else "none"
    if not seen.is_running:
        return "start" if seen.is_ready_to_start and now >= seen.start_after else "none"
    if seen.healthy_at is None:
        return "restart" if now - seen.started_at > start_seconds_max else "none"
    return "restart" if now - seen.healthy_at > UNHEALTHY_SECONDS_MAX else "none"


def backoff_seconds(n_failures: int, maximum: float) -> float:
    """The pause before the next start after n failures in a row: 1, 2, 4, ... up to `maximum`.

    >>> [backoff_seconds(n, 30) for n in (1, 2, 3, 9)]
    [1, 2, 4, 30]
    """
    return min(2 ** min(n_failures - 1, 16), maximum)


class Supervised:
    """One service under supervision: its process, if any, and what the next decision needs."""

    def __init__(self, service: Service, record: ServiceRecord) -> None:
        self.service = service
        self.record = record
        self.child: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.healthy_at: float | None = None
        self.start_after = 0.0
        self.n_failures = 0
        self.probed_at = 0.0


class Supervisor:
    """Runs until nothing is wanted and nothing runs, or until it is told to stop."""

    def __init__(self, config: Config, known: Mapping[str, Service] | None = None) -> None:
        self.config = config
        self.run_dir = RunDir(config.services.run_dir)
        self.stopping = threading.Event()
        self.known = {name: self._supervised(service) for name, service in (known or services(config)).items()}

    def _supervised(self, service: Service) -> Supervised:
        return Supervised(service, ServiceRecord(service.name, "stopped", address=service.address, log=str(self.log_of(service.name))))

    def log_of(self, name: str) -> Path:
        return self.config.services.log_dir / f"{name}.log"

    def run(self) -> None:
        """The loop; returns at once when another supervisor holds the folder. Leftovers of one that died are ended first."""
        self.run_dir.path.mkdir(parents=True, exist_ok=True)
        with (self.run_dir.path / "supervisor.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("another supervisor runs; this one ends")
                return
            self._run()

    def _run(self) -> None:
        me = ProcessId.of(os.getpid())
        assert me is not None, "a running process has a start time"
        self.run_dir.put_supervisor(me)
        self._learn(self.run_dir.wanted())
        self._end_leftovers()
        while not self.stopping.is_set():
            wanted = self.run_dir.wanted()
            self._learn(wanted)
            for one in reversed(self.known.values()):  # those that need others stop before them
                if self._next_action(one, wanted) == "stop":
                    self._stop(one)
            for one in self.known.values():
                self._look_after(one, wanted)
            if not wanted & set(self.known) and not any(one.child for one in self.known.values()):
                break
            self.stopping.wait(POLL_SECONDS)
        for one in reversed(self.known.values()):
            self._stop(one)
        if self.run_dir.supervisor() == me:
            self.run_dir.drop_supervisor()

    def _learn(self, wanted: set[str]) -> None:
        """Stream workers of whom there were fewer in the configuration when this process read it."""
        for name in sorted(wanted - set(self.known)):
            if kind_of(name) == STREAM:
                self.known[name] = self._supervised(service_of(self.config, name))

    def _end_leftovers(self) -> None:
        for name in self.known:
            record = self.run_dir.service(name)
            if record.has_processes:
                logger.warning("%s: ending process %d, left over by a supervisor that died", name, record.pid)
                stop_group(record.process, record.token, seconds_max=self.config.services.stop_seconds_max)

    def _look_after(self, one: Supervised, wanted: set[str]) -> None:
        now = time.monotonic()
        if one.child is not None and (status := one.child.poll()) is not None:
            self._ended(one, status, now)
        self._probe(one, now)
        action = self._next_action(one, wanted)
        if action == "start":
            self._start(one, now)
        elif action == "restart":
            logger.error("%s: does not answer; it is ended and started again", one.service.name)
            self._stop(one)
            self._failed(one, None, now)
        elif one.service.name in wanted and one.child is None and one.record.state == "stopped":
            self._note(one, state="waiting")
        elif one.service.name not in wanted and one.record.state == "waiting":
            self._note(one, state="stopped")
            one.n_failures, one.start_after = 0, 0.0

    def _next_action(self, one: Supervised, wanted: set[str]) -> Action:
        seen = Observed(
            is_wanted=one.service.name in wanted,
            is_running=one.child is not None,
            is_ready_to_start=all(self.known[name].record.state == "healthy" for name in one.service.needs if name in wanted),
            started_at=one.started_at,
            healthy_at=one.healthy_at,
            start_after=one.start_after,
        )
        return decide(seen, time.monotonic(), start_seconds_max=self.config.services.start_seconds_max)

    def _start(self, one: Supervised, now: float) -> None:
        log = self.log_of(one.service.name)
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_suffix(".log.1"))
        token = secrets.token_hex(8)
        environment = {**base_environment(self.config), **one.service.environment()}
        one.child = spawn(list(one.service.command), environment=environment, cwd=self.config.project, log=log, token=token)
        process = ProcessId.of(one.child.pid)
        one.started_at, one.healthy_at, one.probed_at = now, None, 0.0
        logger.info("%s: started as process %d", one.service.name, one.child.pid)
        self._note(one, state="starting", pid=one.child.pid, started=process.started if process else "", token=token, since_s=time.time())

    def _probe(self, one: Supervised, now: float) -> None:
        if one.child is None or now - one.probed_at < PROBE_SECONDS.get(one.record.state, 1.0):
            return
        one.probed_at = now
        if now - one.started_at >= one.service.settle_s and one.service.probe():
            one.healthy_at = now
            if now - one.started_at > FORGIVEN_AFTER_SECONDS:
                one.n_failures = 0
            self._note(one, state="healthy")
        elif one.record.state == "healthy":
            self._note(one, state="unhealthy")

    def _ended(self, one: Supervised, status: int, now: float) -> None:
        logger.error("%s: process %d ended with status %d", one.service.name, one.record.pid, status)
        stop_group(one.record.process, one.record.token, seconds_max=self.config.services.stop_seconds_max)  # what it left behind
        self._failed(one, status, now)

    def _failed(self, one: Supervised, status: int | None, now: float) -> None:
        one.child = None
        one.n_failures += 1
        pause = backoff_seconds(one.n_failures, self.config.services.backoff_seconds_max)
        one.start_after = now + pause
        self._note(one, state="waiting", last_exit=status, n_restarts=one.record.n_restarts + 1)

    def _stop(self, one: Supervised) -> None:
        if one.child is not None:
            clean = stop_group(one.record.process, one.record.token, seconds_max=self.config.services.stop_seconds_max)
            one.child.wait()
            logger.info("%s: stopped%s", one.service.name, "" if clean else " (killed)")
            one.child = None
        one.n_failures, one.start_after, one.healthy_at = 0, 0.0, None
        self._note(one, state="stopped", n_restarts=0)

    def _note(self, one: Supervised, **changes: object) -> None:
        record = replace(one.record, **changes)  # type: ignore[arg-type]
        if record != one.record or record.state == "stopped":
            one.record = record
            self.run_dir.put_service(record)


def supervise(config: Config) -> None:
    """Run the supervisor in this process until SIGTERM or SIGINT, or until nothing is wanted any more."""
    supervisor = Supervisor(config)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: supervisor.stopping.set())
    supervisor.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    supervise(load_config())
