"""Stage: a project of its own with free ports, and its store server, stream worker and tiering worker as supervised processes.

Owner of: the folder it is given, and every process started in it; leaving the context stops them.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from assets.scenarios.statements import FOLDER
from flashlake.config import FILE_NAME, Config, load_config
from flashlake.sql import open_store
from flashlake.supervisor import start_services, stop_services
from flashlake.supervisor.records import RunDir
from storage_engine import Store
from storage_engine.stream import load_jobs, plan_job

REPOSITORY = FOLDER.parents[1]
SERVICES = ("store", "stream", "tiering")
LATE_S = 120.0
_POLL_S = 0.05


@dataclass
class Stage:
    """The running platform. `store` is a client of its server."""

    config: Config
    store: Store

    @property
    def lake(self) -> Path:
        return self.config.lake.root

    def await_jobs(self, timeout_s: float = LATE_S, *, only: Callable[[str], bool] = lambda _: True) -> float:
        """Wait until every running job has read all that is in its sources; the seconds it took.

        only  names of jobs to wait for
        Errors: RuntimeError when a job has failed; TimeoutError when they do not catch up.
        """
        return await_jobs(self.store, timeout_s, only=only)

    def await_lake(self, table: str, timeout_s: float = LATE_S) -> None:
        """Wait until the lake has every row of a tiered table. Errors: TimeoutError."""
        from storage_engine.lake import tier_lag

        deadline = time.monotonic() + timeout_s
        while (lag := tier_lag(self.store, table)[0]).n_rows:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{table}: {lag.n_rows} rows are not in the lake after {timeout_s:.0f} s: {lag.error or 'no error'}")
            time.sleep(_POLL_S)

    def kill(self, service: str) -> int:
        """End a service with SIGKILL, as a crash does; the supervisor starts it again. The process that was ended."""
        run_dir = RunDir(self.config.services.run_dir)
        pid = run_dir.service(service).pid
        os.kill(pid, signal.SIGKILL)
        return pid

    def await_service(self, service: str, old_pid: int, timeout_s: float = LATE_S) -> None:
        """Wait until a killed service is healthy as another process. Errors: TimeoutError."""
        run_dir = RunDir(self.config.services.run_dir)
        deadline = time.monotonic() + timeout_s
        while (record := run_dir.service(service)).state != "healthy" or record.pid == old_pid:
            if time.monotonic() > deadline:
                raise TimeoutError(f"service {service} is {record.state} after {timeout_s:.0f} s; its log: {record.log}")
            time.sleep(_POLL_S)


@contextmanager
def open_stage(folder: Path, say: Callable[[str], None], functions: dict[str, str] | None = None) -> Iterator[Stage]:
    """Start the three services in `folder` and connect to the store; stop them at the end.

    functions  name in CREATE FUNCTION ... AS 'name' to the Python function it stands for
    Errors: StoreUnavailable, with the log of the service that did not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["[store]", f"port = {_free_port()}", "[services]", "stop_seconds_max = 10", "backoff_seconds_max = 1", "[functions]"]
    lines += [f'"{name}" = "{python}"' for name, python in (functions or {}).items()]
    (folder / FILE_NAME).write_text("\n".join(lines) + "\n")
    config = load_config(folder, {})
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))  # for the services
    start_services(config, SERVICES, say=say)
    try:
        with open_store(config) as store:
            yield Stage(config, store)
    finally:
        stop_services(config)


def await_jobs(store: Store, timeout_s: float, *, only: Callable[[str], bool] = lambda _: True) -> float:
    """Wait until all jobs have read their sources to the end, those that read other jobs' tables as well; the seconds it took."""
    started = time.monotonic()
    sources: dict[str, tuple[str, ...]] = {}
    seen = -1
    while True:
        version = store.version()
        behind = _jobs_behind(store, sources, only)
        if not behind and seen == version:  # nothing was committed since the last look, at which nobody was behind
            return time.monotonic() - started
        seen = version if not behind else -1
        if time.monotonic() - started > timeout_s:
            raise TimeoutError(f"jobs {', '.join(behind)} still had rows to read after {timeout_s:.0f} s")
        time.sleep(_POLL_S)


def _jobs_behind(store: Store, sources: dict[str, tuple[str, ...]], only: Callable[[str], bool]) -> list[str]:
    """Names of running jobs that have rows to read. `sources` remembers what each job reads."""
    behind = []
    progress = store.progress("job:")
    for name, job in load_jobs(store).items():
        if job.state == "FAILED":
            raise RuntimeError(f"job {name} has failed: {job.last_error}")
        if job.state != "RUNNING" or not only(name):
            continue
        if name not in sources:
            sources[name] = tuple(plan_job(store, job).source_tables)
        recorded = progress.get(job.owner)
        offsets = recorded.offsets if recorded else {}
        latest = {table: store.backend.offsets(table, "latest") for table in sources[name]}
        if any(end > offsets.get(table, {}).get(bucket, 0) for table, ends in latest.items() for bucket, end in ends.items()):
            behind.append(name)
    return behind


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
