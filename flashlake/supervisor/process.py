"""Process: a process known by pid and start time, so that a reused pid is never taken for it, and its process group.

Linux reads /proc; elsewhere `ps` answers the same questions.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TOKEN_ENV = "FLASHLAKE_SERVICE_TOKEN"  # noqa: S105 - names a run of a service, not a secret
_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessId:
    """A process: `pid`, and `started`, its start time as the kernel states it."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this pid now; None when there is none."""
        started = start_time(pid)
        return None if started is None else cls(pid, started)

    @property
    def is_alive(self) -> bool:
        return start_time(self.pid) == self.started


def start_time(pid: int) -> str | None:
    """The start time of the process with this pid; None when there is none or it has ended and waits to be reaped."""
    if _PROC.is_dir():
        fields = _stat_fields(pid)
        return None if fields is None or _has_ended(pid, fields[0]) else fields[19]
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    state, _, started = shown.partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name: state, ppid, pgrp, session, ..., starttime at 19."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None


def _has_ended(pid: int, state: str) -> bool:
    """True for a process that only waits to be reaped. While other threads of it still end, it holds its files and ports."""
    if state not in ("Z", "X"):
        return False
    try:
        return len(list((_PROC / str(pid) / "task").iterdir())) <= 1
    except OSError:
        return True


def group_members(pgid: int) -> list[int]:
    """The live processes of a group or of the session it leads."""
    if _PROC.is_dir():
        members = []
        for entry in _PROC.iterdir():
            if entry.name.isdigit() and (fields := _stat_fields(int(entry.name))) is not None:
                if str(pgid) in fields[2:4] and not _has_ended(int(entry.name), fields[0]):
                    members.append(int(entry.name))
        return members
    shown = subprocess.run(["ps", "-axo", "pid=,pgid=,stat="], capture_output=True, text=True, check=False).stdout
    rows = [line.split() for line in shown.splitlines()]
    return [int(row[0]) for row in rows if row[1] == str(pgid) and not row[2].startswith("Z")]


def has_token(pid: int, token: str) -> bool:
    """True when the process carries our token in its environment; where that cannot be read (no /proc), True."""
    if not _PROC.is_dir():
        return True
    try:
        return f"{TOKEN_ENV}={token}".encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def our_members(leader: ProcessId, token: str) -> list[int]:
    """The live processes of the group that `leader` was started to lead, also when the leader itself has ended.

    A pid is not given out again while its group has members; a group whose leader is someone else's process is not ours.
    """
    now = start_time(leader.pid)
    if now is not None and now != leader.started:
        return []
    members = group_members(leader.pid)
    return members if now == leader.started else [pid for pid in members if has_token(pid, token)]


def stop_group(leader: ProcessId, token: str, *, seconds_max: float) -> bool:
    """End every process of the group: SIGTERM, then after `seconds_max` SIGKILL. True if none had to be killed."""
    _signal(leader.pid, our_members(leader, token), signal.SIGTERM)
    if await_gone(leader, token, seconds_max=seconds_max):
        return True
    _signal(leader.pid, our_members(leader, token), signal.SIGKILL)
    await_gone(leader, token, seconds_max=5)
    return False


def await_gone(leader: ProcessId, token: str, *, seconds_max: float) -> bool:
    """Wait until the group has no live process of ours; False when the time is over."""
    deadline = time.monotonic() + seconds_max
    while True:
        _reap(leader.pid)
        if not our_members(leader, token):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)


def _signal(pgid: int, members: list[int], signum: int) -> None:
    """To the whole group at once, and to each of `members`, which may have left the group for one of their own."""
    if not members:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pgid, signum)
    for pid in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def spawn(command: list[str], *, environment: Mapping[str, str], cwd: Path, log: Path, token: str) -> subprocess.Popen[bytes]:
    """Start a command as the leader of a session and group of its own, output appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment, TOKEN_ENV: token},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
