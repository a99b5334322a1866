"""Server: a real server process on a free port, with its CPU time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


class Server:
    """A real server process on a free port, with its CPU time and memory."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "storage_engine.server", "--dir", str(directory), "--host", "127.0.0.1", "--port", "0"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.url = next(word for word in line.split() if word.startswith("flashlake://")).rstrip(".,")

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self, field: str = "VmRSS") -> float:
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
        raise AssertionError(field)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
