"""Following: a reader of a table's log, on a connection and thread of its own, that notes when it received which rows.

Rows are kept as they came and looked at after the run, so that measuring does not slow what is measured.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType

import pyarrow as pa

from flashlake.config import Config
from flashlake.sql import open_store

_WAIT_S = 0.5
OFFSET = "_log_offset"


@dataclass(frozen=True)
class Received:
    """Rows that came at once. at_ms: milliseconds since 1970 when they were decoded; version: of the store, at least their commit's."""

    at_ms: float
    version: int
    rows: pa.Table


class Follower:
    """Reads what is written to a table from now on. `with Follower(...) as f: ...; f.received` has the rows in order."""

    def __init__(self, config: Config, table: str, columns: list[str]) -> None:
        self.received: list[Received] = []
        self._config, self._table, self._columns = config, table, columns
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"follow {table}", daemon=True)

    def _run(self) -> None:
        try:
            with open_store(self._config) as store:
                version = store.version()
                offsets = store.table(self._table).offsets("latest")
                self._ready.set()
                while True:
                    is_last = self._stop.is_set()
                    reached = store.await_version(version, 0.0 if is_last else _WAIT_S)
                    if reached != version or is_last:
                        latest = store.backend.offsets(self._table, "latest")
                        if latest != offsets:
                            rows = store.table(self._table).scan(self._columns, start=offsets, stop=latest).read_all()
                            self.received.append(Received(time.time_ns() / 1e6, max(reached, store.version()), rows))
                            offsets = latest
                    version = reached
                    if is_last:
                        return
        except BaseException as error:  # noqa: BLE001 - the thread's top: it is raised where the follower is left
            self._error = error
            self._ready.set()

    def __enter__(self) -> Follower:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Read to the end, then stop. Errors: what went wrong in the thread."""
        self._stop.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error


class LakeWatch:
    """Notes when a table's lake reached which version of the store, every few milliseconds."""

    def __init__(self, config: Config, table: str) -> None:
        self.reached: list[tuple[float, int]] = []
        self._config, self._owner = config, f"tier:{table}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lake of {table}", daemon=True)

    def _run(self) -> None:
        with open_store(self._config) as store:
            while not self._stop.wait(0.05):
                recorded = store.progress(self._owner).get(self._owner)
                version = int(recorded.detail.get("version", 0)) if recorded else 0
                if version and (not self.reached or version > self.reached[-1][1]):
                    self.reached.append((time.time_ns() / 1e6, version))

    def __enter__(self) -> LakeWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
