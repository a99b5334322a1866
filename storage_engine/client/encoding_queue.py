"""Encoding queue: appends of one writer that a thread beside it compresses, taken out in the order they came.

Owner: one TableWriter, from one thread at a time. Compressing leaves the interpreter to others, so that the writer checks the next rows,
sends what is ready and takes answers meanwhile.
Holds: at most DEPTH appends, one being compressed and one behind it, of at most ROUTED_BYTES_MAX each before they are compressed.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from storage_engine.api import EncodedAppend

if TYPE_CHECKING:
    from storage_engine.client.encoding import RoutedAppend

DEPTH: Final = 2
ROUTED_BYTES_MAX: Final = 8 << 20
"""What is larger its caller compresses: memory stays bounded, and what cannot be sent at all is refused by the call that brings it."""


class EncodingQueue:
    """See the module. False when it is empty."""

    def __init__(self) -> None:
        self._encodings: deque[Future[EncodedAppend]] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._encodings)

    def add(self, routed: RoutedAppend) -> None:
        """Take an append; the caller has made room for it (DEPTH)."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="append-encoding")
        self._encodings.append(self._thread.submit(routed.encoded))

    def is_first_ready(self) -> bool:
        """True when first() need not wait."""
        return bool(self._encodings) and self._encodings[0].done()

    def first(self) -> EncodedAppend:
        """The oldest append, encoded; it stays until it is dropped. Errors: why it could not be encoded; it is dropped then."""
        try:
            return self._encodings[0].result()
        except Exception:
            self.drop_first()
            raise

    def drop_first(self) -> None:
        self._encodings.popleft()

    def close(self) -> None:
        """Give up what is here."""
        self._encodings.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None
