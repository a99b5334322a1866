"""Records: the files under data/run that say what is wanted and what runs. Written whole (.part, rename), read by anyone.

Owner: the supervisor writes NAME.json of each service and supervisor.json. Anyone writes wanted/NAME: its presence asks for the service.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flashlake.supervisor.process import ProcessId, our_members

State = Literal["starting", "healthy", "unhealthy", "waiting", "stopped"]


@dataclass(frozen=True)
class ServiceRecord:
    """What is known of one service.

    state      starting | healthy | unhealthy (does not answer) | waiting (for a restart or another service) | stopped
    since_s    Unix time of the last start of the process
    n_restarts restarts since the service was asked for
    token      names this run in the environment of all its processes
    """

    name: str
    state: State
    pid: int = 0
    started: str = ""
    token: str = ""
    since_s: float = 0.0
    n_restarts: int = 0
    last_exit: int | None = None
    address: str = ""
    log: str = ""

    @property
    def process(self) -> ProcessId:
        return ProcessId(self.pid, self.started)

    @property
    def is_running(self) -> bool:
        return self.pid > 0 and self.process.is_alive

    @property
    def has_processes(self) -> bool:
        """True while any process of the group lives, the leader or not."""
        return self.pid > 0 and bool(our_members(self.process, self.token))


class RunDir:
    """The folder of the records."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wanted(self) -> set[str]:
        folder = self.path / "wanted"
        return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()

    def want(self, name: str) -> None:
        (self.path / "wanted").mkdir(parents=True, exist_ok=True)
        (self.path / "wanted" / name).touch()

    def unwant(self, name: str) -> None:
        (self.path / "wanted" / name).unlink(missing_ok=True)

    def service(self, name: str) -> ServiceRecord:
        """The record of a service; `stopped` when there is none. A record whose process is gone is shown as stopped."""
        value = self._read(f"{name}.json")
        if value is None:
            return ServiceRecord(name, "stopped")
        record = ServiceRecord(**value)
        if record.state in ("starting", "healthy", "unhealthy") and not record.is_running:
            return replace(record, state="stopped")
        return record

    def put_service(self, record: ServiceRecord) -> None:
        self._write(f"{record.name}.json", asdict(record))

    def supervisor(self) -> ProcessId | None:
        """The live supervisor; None when there is none."""
        value = self._read("supervisor.json")
        process = None if value is None else ProcessId(value["pid"], value["started"])
        return process if process is not None and process.is_alive else None

    def put_supervisor(self, process: ProcessId) -> None:
        self._write("supervisor.json", asdict(process))

    def drop_supervisor(self) -> None:
        (self.path / "supervisor.json").unlink(missing_ok=True)

    def _read(self, file: str) -> dict[str, Any] | None:
        try:
            return json.loads((self.path / file).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def _write(self, file: str, value: dict[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        part = self.path / f"{file}.{os.getpid()}.part"
        part.write_text(json.dumps(value))
        part.replace(self.path / file)
