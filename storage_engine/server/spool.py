"""Spool: the rows of an answer on their way to its reader: in memory while they are taken, in a file as soon as the reader pauses.

Holds: a reader that takes nothing for PAUSE_S holds one batch of memory. The file has no name, and is gone with the answer.
       Where it cannot be written (a full disk), the rows stay in memory; the answer is the same.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import deque
from collections.abc import Generator
from typing import IO, Final

import pyarrow as pa

PAUSE_S: Final = 1.0
BYTES_MIN: Final = 16 << 20
_ROWS_MAX: Final = 1 << 16

logger = logging.getLogger(__name__)


class Spool:
    """One answer. `directory`: where its file goes, on the disk of the store; None: where temporary files go."""

    def __init__(self, rows: pa.Table, directory: str | None = None, *, pause_s: float = PAUSE_S, bytes_min: int = BYTES_MIN) -> None:
        self.schema = rows.schema
        self._waiting = deque(rows.to_batches(max_chunksize=_ROWS_MAX))
        self._directory, self._pause_s = directory, pause_s
        self._is_large = rows.nbytes >= bytes_min
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._file: IO[bytes] | None = None
        self._filed: pa.RecordBatchReader | None = None
        self._n_taken, self._n_filed = 0, 0

    @property
    def is_in_file(self) -> bool:
        """Whether rows wait in the file."""
        return self._n_filed > 0

    def batches(self) -> Generator[pa.RecordBatch]:
        """The rows, once, in their order."""
        if self._is_large:
            threading.Thread(target=self._watch, name="answer", daemon=True).start()
        try:
            while (batch := self._next()) is not None:
                if self._is_large:
                    batch = _alone(batch)  # nothing here may hold what it was cut from while the reader pauses
                yield batch
        finally:
            self._is_over.set()
            with self._lock:
                self._waiting.clear()
                if self._file is not None:
                    self._file.close()

    def _next(self) -> pa.RecordBatch | None:
        with self._lock:
            self._n_taken += 1
            if self._n_filed:
                self._n_filed -= 1
                return self._reader().read_next_batch()
            return self._waiting.popleft() if self._waiting else None

    def _watch(self) -> None:
        """Wait until the reader has taken nothing for a while, then put what it has not taken into the file."""
        seen = -1
        while not self._is_over.wait(self._pause_s):
            with self._lock:
                if self._n_taken != seen:
                    seen = self._n_taken
                    continue
                if not self._is_over.is_set():
                    self._write()
                return

    def _write(self) -> None:
        n_bytes = 0
        try:
            self._file = tempfile.TemporaryFile(dir=self._directory)
            with pa.ipc.new_stream(self._file, self.schema) as writer:
                for batch in self._waiting:
                    writer.write_batch(batch)
                    n_bytes += batch.nbytes
            self._file.flush()
        except OSError as error:
            logger.warning("the rows of a reader that pauses stay in memory", extra={"error": str(error), "bytes": n_bytes})
            return
        self._n_filed = len(self._waiting)
        self._waiting.clear()
        pa.default_memory_pool().release_unused()
        logger.info("the rows of a reader that pauses went to a file", extra={"bytes": n_bytes})

    def _reader(self) -> pa.RecordBatchReader:
        assert self._file is not None
        if self._filed is None:
            self._file.seek(0)
            self._filed = pa.ipc.open_stream(pa.PythonFile(self._file, "r"))
        return self._filed


def _alone(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with buffers of their own: a slice keeps all that it was cut from."""
    return pa.ipc.read_record_batch(batch.serialize(), batch.schema)
