"""Processes: CPU seconds and resident memory of running processes, read from /proc."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.2


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> tuple[float, float]:
    """MiB of a process in memory now: (of its own, of mapped files). Pages of files can be dropped by the kernel at any time."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in status) if name.startswith("Rss")}
    return (kib["RssAnon"] + kib["RssShmem"]) / 1024, kib["RssFile"] / 1024


@dataclass(frozen=True)
class Usage:
    """What processes took: CPU seconds of each, and MiB at the moment when all together held most (own memory; mapped files)."""

    cpu_s: Mapping[str, float]
    own_mb: Mapping[str, float]
    mapped_mb: Mapping[str, float]

    @property
    def peak_mb(self) -> float:
        """Resident memory of all processes, mapped files included."""
        return sum(self.own_mb.values()) + sum(self.mapped_mb.values())


class Watch:
    """Samples processes by name while it is open; `usage` afterwards."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before = {name: cpu_s(pid) for name, pid in self._pids.items()}
        self._stop = threading.Event()
        self._peak: dict[str, tuple[float, float]] = {}
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def usage(self) -> Usage:
        """Errors: FileNotFoundError when a process has ended."""
        self._look()
        used = {name: cpu_s(pid) - self._before[name] for name, pid in self._pids.items()}
        return Usage(used, {name: mb[0] for name, mb in self._peak.items()}, {name: mb[1] for name, mb in self._peak.items()})

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            try:
                self._look()
            except (FileNotFoundError, ProcessLookupError, KeyError):
                return  # a process ended: whoever waits for it will say so

    def _look(self) -> None:
        now = {name: resident_mb(pid) for name, pid in self._pids.items()}
        if sum(map(sum, now.values())) > sum(map(sum, self._peak.values())):
            self._peak = now


def stop_on_sigterm() -> None:
    """Let SIGTERM unwind like an exit, so that processes started here are stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
