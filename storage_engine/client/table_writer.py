"""Table writer: many batches for one table, several on their way at once.

Owner: the caller, one thread at a time; close it (or leave its `with` block) to know that everything is acknowledged.
Holds: batches are committed in their order, each as one atomic commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from storage_engine.api import CommitRequest, CommitStream, OpKind

if TYPE_CHECKING:
    from storage_engine.client.table import Table


class TableWriter:
    """Writes of one table. An error of a batch is raised by a later call, at the latest by flush(); batches behind it may be written."""

    def __init__(self, table: Table, stream: CommitStream) -> None:
        self._table = table
        self._stream = stream

    def append(self, rows: Any) -> None:
        self._send("append", rows, None)

    def upsert(self, rows: Any, columns: Sequence[str] | None = None) -> None:
        self._send("upsert", rows, columns)

    def delete(self, keys: Any, columns: Sequence[str] | None = None) -> None:
        self._send("delete", keys, columns)

    def flush(self) -> None:
        """Return when everything written so far is acknowledged. Errors: of the first batch that failed."""
        self._stream.finish()

    def close(self) -> None:
        """flush(), and give the connection back."""
        try:
            self.flush()
        finally:
            self._stream.close()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._stream.close()

    def _send(self, kind: OpKind, rows: Any, columns: Sequence[str] | None) -> None:
        self._stream.send(CommitRequest((self._table.operation(kind, rows, columns),)))
