"""Cluster: a Fluss of one node and a standalone Flink (JobManager, TaskManager, a PyFlink session) on loopback and free ports.

Owner of: a directory with configurations, logs, data and checkpoints, and of the processes it starts. A context manager: whatever
happens, they are stopped. Memory as in the recorded runs: JobManager 1 GiB, TaskManager 4 GiB, tablet server 1 GiB of heap.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.flink import setup
from storage_engine.errors import StoreUnavailable, UserError
from storage_engine.fluss.cluster import ROLES, FlussCluster, free_ports

READY_S = 90.0
STOP_S = 20.0
_ENDED = ("CANCELED", "FAILED", "FINISHED")


class FlinkRefused(Exception):
    """Flink did not take a statement, or a job of it failed. The text is Flink's."""


class FlinkOverFluss:
    """Started on entering, stopped on leaving."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = setup.set_up()
        self.fluss = FlussCluster(directory / "fluss")
        self._rest, self._rpc = free_ports(2)
        self._children: dict[str, subprocess.Popen[Any]] = {}

    def __enter__(self) -> FlinkOverFluss:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self._children.values()):
            _end(child)
        self._children.clear()
        if (self.directory / "fluss").exists():
            self.fluss.stop()

    @property
    def pids(self) -> dict[str, int]:
        """The five servers; the PyFlink client that submits is not counted."""
        fluss = {role: pid for role in ROLES if (pid := self.fluss.pid(role)) is not None}
        return {**fluss, **{name: child.pid for name, child in self._children.items() if name != "session"}}

    def execute(self, *statements: str, conf: Mapping[str, str] | None = None) -> list[str | None]:
        """Run statements one after another; the job of each that starts one. Errors: FlinkRefused."""
        return self._ask({"conf": dict(conf or {}), "sql": statements})

    def state(self, job: str) -> str:
        return self._get(f"/jobs/{job}")["state"]

    def why_failed(self, job: str) -> str:
        entries = self._get(f"/jobs/{job}/exceptions")["exceptionHistory"]["entries"]
        return entries[0]["stacktrace"].split("\n\tat ")[0][:600] if entries else "no exception recorded"

    def cancel(self, job: str) -> None:
        """End a job and wait until it has ended."""
        request = urllib.request.Request(f"http://localhost:{self._rest}/jobs/{job}", method="PATCH")
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            if self.state(job) not in _ENDED:
                raise StoreUnavailable(f"Flink does not cancel {job}", where="flink", next_step="Read its log.") from error
        _await(lambda: self.state(job) in _ENDED, STOP_S, f"job {job} to end")

    def _start(self) -> None:
        self.fluss.start()
        conf = self._configure()
        environment = {
            **os.environ, "FLINK_HOME": str(self.home), "FLINK_CONF_DIR": str(conf), "FLINK_LOG_DIR": str(self.directory / "log"),
            "FLINK_PID_DIR": str(self.directory / "pid"),
        }  # fmt: skip
        for name in ("jobmanager", "taskmanager"):
            with (self.directory / "log" / f"{name}.out").open("wb") as log:
                command = ["bash", str(self.home / "bin" / f"{name}.sh"), "start-foreground"]
                self._children[name] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
                )
        _await(lambda: self._is_running() and bool(self._get("/taskmanagers")["taskmanagers"]), READY_S, "Flink to start", self._tail)
        command = [str(setup.python()), "-W", "ignore", str(Path(__file__).with_name("session.py")), str(self._rest)]
        with (self.directory / "log" / "session.err").open("wb") as log:
            self._children["session"] = subprocess.Popen(
                [*command, self.fluss.url.removeprefix("fluss://")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True,
            )  # fmt: skip
        self._answer()

    def _configure(self) -> Path:
        conf = self.directory / "conf"
        for folder in (conf, self.directory / "log", self.directory / "pid", self.directory / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
        shipped = self.home / "conf"
        for file in shipped.iterdir():
            (conf / file.name).write_bytes(file.read_bytes())
        opens = next(
            line.partition("all:")[2].strip() for line in (shipped / "config.yaml").read_text().splitlines() if " all: --add" in line
        )
        settings = {
            "env.java.opts.all": f'"{opens}"',
            "jobmanager.rpc.address": "localhost",
            "jobmanager.rpc.port": self._rpc,
            "jobmanager.bind-host": "localhost",
            "jobmanager.memory.process.size": "1g",
            "taskmanager.bind-host": "localhost",
            "taskmanager.host": "localhost",
            "taskmanager.memory.process.size": "4g",
            "taskmanager.memory.network.max": "256m",
            "taskmanager.memory.managed.fraction": 0.1,
            "taskmanager.numberOfTaskSlots": 24,
            "rest.address": "localhost",
            "rest.bind-address": "localhost",
            "rest.port": self._rest,
            "parallelism.default": 1,
            "execution.checkpointing.dir": f"file://{self.directory / 'checkpoints'}",
        }
        (conf / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
        return conf

    def _is_running(self) -> bool:
        if any(child.poll() is not None for child in self._children.values()):
            raise StoreUnavailable("Flink did not start", where=str(self.directory / "log"), next_step=self._tail())
        return True

    def _tail(self) -> str:
        lines = [
            line for file in sorted((self.directory / "log").glob("*.out")) for line in file.read_text(errors="replace").splitlines()[-4:]
        ]
        return "Its log says: " + " | ".join(lines)

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://localhost:{self._rest}{path}", timeout=10) as answer:
            return json.load(answer)

    def _ask(self, request: Mapping[str, Any]) -> list[str | None]:
        pipe = self._children["session"].stdin
        assert pipe is not None
        pipe.write(json.dumps(request) + "\n")
        pipe.flush()
        return self._answer()

    def _answer(self) -> list[str | None]:
        pipe = self._children["session"].stdout
        assert pipe is not None
        for line in pipe:
            if line.startswith("{"):  # anything else is a library talking
                said = json.loads(line)
                if "error" in said:
                    raise FlinkRefused(said["error"])
                return said["jobs"]
        tail = (self.directory / "log" / "session.err").read_text(errors="replace").splitlines()[-3:]
        raise UserError(
            f"the PyFlink session ended: {' | '.join(tail)}", where="flink", next_step=f"Remove {setup.root()} and set up again."
        )


def _end(child: subprocess.Popen[Any]) -> None:
    """End a child with the session of processes that it leads."""
    for number, wait_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        if child.poll() is not None:
            return
        os.killpg(child.pid, number)
        try:
            child.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue


def _await(is_done: Callable[[], bool], timeout_s: float, what: str, tail: Callable[[], str] = lambda: "Read its log.") -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if is_done():
                return
        except (urllib.error.URLError, ConnectionError):
            pass  # not listening yet
        if time.monotonic() > deadline:
            raise StoreUnavailable(f"waited {timeout_s:.0f} s for {what}", where="flink", next_step=tail())
        time.sleep(0.1)
