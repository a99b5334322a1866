"""Table writer: many batches for one table, several on their way at once.

Owner: the caller, one thread at a time; close it (or leave its `with` block) to know that everything is acknowledged.
Holds: batches are committed in their order, each in one atomic commit. While answers are awaited, small appends gather to one commit of
       GATHERED_ROWS rows: encoding and committing costs by the call. What gathers leaves with a later call, at the latest with flush().
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from storage_engine.api import CommitRequest, CommitStream, OpKind

if TYPE_CHECKING:
    from storage_engine.client.table import Table


GATHERED_ROWS: Final = 10_000


class TableWriter:
    """Writes of one table. An error is raised by a later call, at the latest by flush(); a call that raises has not taken its rows.

    A batch that is refused for what it holds is given up, those behind it are written. When the store fails (WriteFailed,
    StoreUnavailable) the first batch without an answer and all behind it stay here: call flush() again, and they are sent again, each
    once and in order. close() gives them up: they are not written, or, where the connection broke, perhaps, and then in order.
    """

    def __init__(self, table: Table, stream: CommitStream) -> None:
        self._table = table
        self._stream = stream
        self._gathered: list[pa.Table] = []
        self._n_gathered = 0

    def append(self, rows: Any) -> None:
        """Send rows; small batches that come while others have no answer are sent as one. Errors: of earlier writes too."""
        table = self._table.as_rows(rows)
        is_small = table.num_rows < GATHERED_ROWS
        n_waiting = self._stream.n_waiting() if is_small else 0
        is_full = self._n_gathered + table.num_rows > GATHERED_ROWS
        if self._gathered and (is_full or not n_waiting or not self._gathered[0].schema.equals(table.schema)):
            self._send_gathered()
        if is_small and n_waiting:
            self._gathered.append(table)
            self._n_gathered += table.num_rows
        else:
            self._send("append", table, None)

    def upsert(self, rows: Any, columns: Sequence[str] | None = None) -> None:
        """Send whole rows, or the values of `columns` and the key. Errors: of earlier writes too."""
        self._send("upsert", rows, columns)

    def delete(self, keys: Any, columns: Sequence[str] | None = None) -> None:
        """Send keys whose rows go, or lose the values of `columns`. Errors: of earlier writes too."""
        self._send("delete", keys, columns)

    def flush(self) -> None:
        """Return when everything written so far is acknowledged. Errors: of the first batch that failed."""
        self._send_gathered()
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

    def _send_gathered(self) -> None:
        if self._gathered:
            self._send("append", pa.concat_tables(self._gathered).combine_chunks(), None)
            self._gathered, self._n_gathered = [], 0

    def _send(self, kind: OpKind, rows: Any, columns: Sequence[str] | None) -> None:
        self._stream.send(CommitRequest((self._table.operation(kind, rows, columns),)))
