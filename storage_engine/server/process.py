"""ServerProcess: a store server as a child process, for those who start one themselves: tests, notebooks, benchmarks.

Holds: start() returns when the server accepts calls, or raises what the server said; the child dies with stop() or kill().
Never: restarts a server, or hides its log (flashlake up supervises).
"""

from __future__ import annotations

import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from storage_engine.errors import StoreUnavailable


class ServerProcess:
    """One `python -m storage_engine.server` over one directory. A context manager; `url` is what to connect to."""

    def __init__(self, directory: Path | str, *, port: int = 0, sync: str = "commit", options: Sequence[str] = ()) -> None:
        """`options`: further ones of the command line, as it takes them."""
        self._command = [sys.executable, "-m", "storage_engine.server", "--dir", str(directory), "--port", str(port), "--sync", sync]
        self._command += options
        self._where = str(directory)
        self._child: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()
        self.url = ""
        self.metrics_url = ""
        self.pid = -1

    def start(self, timeout_s: float = 60.0) -> ServerProcess:
        """Errors: StoreUnavailable with the server's own words when it ends or is not ready in time."""
        self._child = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=self._log, stdin=subprocess.DEVNULL, bufsize=0)
        self.pid = self._child.pid
        line = _first_line(self._child, time.monotonic() + timeout_s)
        if not line.startswith("ready "):
            self.kill()
            raise StoreUnavailable(f"the server did not start: {self.log()}", where=self._where, next_step="See its own words above.")
        self.url = line.split()[1]
        self.metrics_url = line.rpartition(" metrics=")[2].strip() if " metrics=" in line else ""
        return self

    def stop(self, timeout_s: float = 30.0) -> int:
        """Ask it to stop (SIGTERM) and wait; its exit status.

        Errors: StoreUnavailable with the stacks of its threads when it does not stop in time; it is killed then.
        """
        try:
            return self._end(signal.SIGTERM, timeout_s)
        except subprocess.TimeoutExpired as error:
            stacks = self._stacks()
            self.kill()
            raise StoreUnavailable(f"the server does not stop: {stacks}", where=self._where, next_step="Its threads are above.") from error

    def kill(self) -> None:
        """SIGKILL: nothing of it runs after this returns."""
        self._end(signal.SIGKILL, 30.0)

    def log(self) -> str:
        """What it wrote to standard error."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()

    def _stacks(self) -> str:
        assert self._child is not None, "it runs"
        n_before = len(self.log())
        self._child.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 2.0
        while len(self.log()) == n_before and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.log()

    def _end(self, number: signal.Signals, timeout_s: float) -> int:
        if self._child is None:
            return 0
        if self._child.poll() is None:
            self._child.send_signal(number)
        status = self._child.wait(timeout_s)
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._child = None
        return status

    def __enter__(self) -> ServerProcess:
        return self if self._child is not None else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        self._log.close()


def _first_line(child: subprocess.Popen[bytes], deadline: float) -> str:
    """The child's first line of output, or "" when it ends or the time is over first."""
    assert child.stdout is not None, "opened as a pipe"
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(deadline - time.monotonic(), 0.0)):
                break
            # one byte at a time: a buffered read could wait for more than the one line there is
            byte = child.stdout.read(1)
            if not byte:
                break
            line += byte
    return line.decode()
