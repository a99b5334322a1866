"""Table writer: many batches for one table, several on their way at once.

Owner: the caller, one thread at a time; close it (or leave its `with` block) to know that everything is acknowledged.
Holds: batches are committed in their order, each in one atomic commit. While answers are awaited, small appends gather to one commit of
       GATHERED_ROWS rows: encoding and committing costs by the call; and rows behind a wire are compressed by a thread beside the caller.
       What gathers, or is compressed, leaves with a later call, at the latest with flush().
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from storage_engine.api import CommitRequest, CommitStream, OpKind
from storage_engine.client.encoding_queue import DEPTH, ROUTED_BYTES_MAX, EncodingQueue
from storage_engine.errors import FlashlakeError

if TYPE_CHECKING:
    from storage_engine.client.encoding import RoutedAppend
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
        self._encoding = EncodingQueue()

    def append(self, rows: Any) -> None:
        """Send rows; small batches that come while others have no answer are sent as one. Errors: of earlier writes too.

        Arrow's buffers are read after this call; they are not to be changed, nor what they share memory with, before flush().
        """
        table = self._table.as_rows(rows)
        is_small = table.num_rows < GATHERED_ROWS
        self._send_encoded()
        is_behind = len(self._encoding) + self._stream.n_waiting() > 0
        if is_behind and not isinstance(rows, pa.Table | pa.RecordBatch):
            table = _copied(table)  # the caller may write into its arrays again
        is_full = self._n_gathered + table.num_rows > GATHERED_ROWS
        if self._gathered and (is_full or not is_behind or not self._gathered[0].schema.equals(table.schema)):
            self._send_gathered()
        if is_small and is_behind:
            self._gathered.append(table)
            self._n_gathered += table.num_rows
        else:
            self._append(table, self._table.routed(table), is_behind=is_behind)

    def upsert(self, rows: Any, columns: Sequence[str] | None = None) -> None:
        """Send whole rows, or the values of `columns` and the key. Errors: of earlier writes too."""
        self._send("upsert", rows, columns)

    def delete(self, keys: Any, columns: Sequence[str] | None = None) -> None:
        """Send keys whose rows go, or lose the values of `columns`. Errors: of earlier writes too."""
        self._send("delete", keys, columns)

    def flush(self) -> None:
        """Return when everything written so far is acknowledged. Errors: of the first batch that failed."""
        self._send_gathered()
        self._send_encoded(n_left=0)
        self._stream.finish()

    def close(self) -> None:
        """flush(), and give the connection back."""
        try:
            self.flush()
        finally:
            self._give_up()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._encoding.close()
        self._stream.close()

    def _send_gathered(self) -> None:
        if not self._gathered:
            return
        table = pa.concat_tables(self._gathered).combine_chunks()
        try:
            routed = self._table.routed(table)
        except FlashlakeError:
            self._gathered = [part for part in self._gathered if self._fits(part)]
            self._n_gathered = sum(part.num_rows for part in self._gathered)
            raise
        self._append(table, routed, is_behind=True)
        self._gathered, self._n_gathered = [], 0

    def _fits(self, table: pa.Table) -> bool:
        try:
            self._table.routed(table)
        except FlashlakeError:
            return False
        return True

    def _append(self, table: pa.Table, routed: RoutedAppend | None, *, is_behind: bool) -> None:
        """`is_behind`: answers are awaited, there is time to compress beside."""
        if routed is not None and is_behind and routed.n_bytes <= ROUTED_BYTES_MAX:
            self._send_encoded(n_left=DEPTH - 1)
            self._encoding.add(routed)
            return
        self._send_encoded(n_left=0)
        self._stream.send(CommitRequest((self._table.operation("append", table) if routed is None else routed.encoded(),)))

    def _send_encoded(self, n_left: int = DEPTH) -> None:
        """Send what is compressed, and wait for it until at most `n_left` appends are not."""
        while len(self._encoding) > n_left or self._encoding.is_first_ready():
            self._stream.send(CommitRequest((self._encoding.first(),)))
            self._encoding.drop_first()

    def _send(self, kind: OpKind, rows: Any, columns: Sequence[str] | None) -> None:
        self._send_gathered()
        self._send_encoded(n_left=0)
        self._stream.send(CommitRequest((self._table.operation(kind, rows, columns),)))


def _copied(table: pa.Table) -> pa.Table:
    """The same rows in memory of their own."""
    return pa.Table.from_batches([pa.ipc.read_record_batch(batch.serialize(), table.schema) for batch in table.to_batches()], table.schema)
