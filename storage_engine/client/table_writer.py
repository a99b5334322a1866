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
from storage_engine.errors import FlashlakeError

if TYPE_CHECKING:
    from storage_engine.client.table import Table


GATHERED_ROWS: Final = 10_000


class TableWriter:
    """Writes of one table. An error is raised by a later call, at the latest by flush(); a call that raises has not taken its rows.

    A batch that is refused for what it holds is given up, those behind it are written. When the store fails (WriteFailed,
    StoreUnavailable) the first batch without an answer and all behind it stay here: call flush() again, and they are sent again, each
    once and in order. close() gives them up: they are not written, or, where the connection broke, perhaps, and then in order.
    Arrow tables are kept as they are until they are acknowledged; anything else is copied.
    """

    def __init__(self, table: Table, stream: CommitStream) -> None:
        self._table = table
        self._stream = stream
        self._gathered: list[pa.Table] = []
        self._n_gathered = 0

    def append(self, rows: Any) -> None:
        """Send rows; small batches that come while others have no answer are sent as one. Errors: of earlier writes too."""
        table = self._owned(rows)
        is_small = table.num_rows < GATHERED_ROWS
        n_waiting = self._stream.n_waiting() if is_small else 0
        is_full = self._n_gathered + table.num_rows > GATHERED_ROWS
        if self._gathered and (is_full or not n_waiting or not self._gathered[0].schema.equals(table.schema)):
            self._send_gathered()
        if is_small and n_waiting:
            self._gathered.append(table)
            self._n_gathered += table.num_rows
        else:
            self._stream.send(CommitRequest((self._table.operation("append", table),)))

    def upsert(self, rows: Any, columns: Sequence[str] | None = None) -> None:
        """Send whole rows, or the values of `columns` and the key. Errors: of earlier writes too."""
        self._send("upsert", self._owned(rows), columns)

    def delete(self, keys: Any, columns: Sequence[str] | None = None) -> None:
        """Send keys whose rows go, or lose the values of `columns`. Errors: of earlier writes too."""
        self._send("delete", self._owned(keys), columns)

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

    def _owned(self, rows: Any) -> pa.Table:
        """Rows as Arrow that may be kept beyond the call: a numpy array is its caller's, who may write into it again."""
        table = self._table.as_rows(rows)
        return table if isinstance(rows, pa.Table | pa.RecordBatch) else _copied(table)

    def _send_gathered(self) -> None:
        if not self._gathered:
            return
        try:
            operation = self._table.operation("append", pa.concat_tables(self._gathered).combine_chunks())
        except FlashlakeError:  # told once: the others are written
            self._gathered = [part for part in self._gathered if self._fits(part)]
            self._n_gathered = sum(part.num_rows for part in self._gathered)
            raise
        self._stream.send(CommitRequest((operation,)))
        self._gathered, self._n_gathered = [], 0

    def _fits(self, table: pa.Table) -> bool:
        try:
            self._table.operation("append", table)
        except FlashlakeError:
            return False
        return True

    def _send(self, kind: OpKind, rows: pa.Table, columns: Sequence[str] | None) -> None:
        self._send_gathered()
        self._stream.send(CommitRequest((self._table.operation(kind, rows, columns),)))


def _copied(table: pa.Table) -> pa.Table:
    """The same rows in memory of their own; a stream of Arrow's, as only that carries dictionaries."""
    held = pa.BufferOutputStream()
    with pa.ipc.new_stream(held, table.schema) as stream:
        stream.write_table(table)
    return pa.ipc.open_stream(held.getvalue()).read_all()
