"""Acknowledger: answers of one connection that wait for the disk, sent in order by a thread beside the one that works.

Owner: one connection of the socket server. Begun when a client sends its next commit before it has the answer to the last.
Holds: an answer leaves after everything before it; a commit's when it is durable. Waiting commits share a sync (log/commit_log.py).
       At most WAITING_MAX answers wait: then the connection reads nothing more.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

from storage_engine.client.wire import packed as wire
from storage_engine.errors import FlashlakeError

WAITING_MAX: Final = 64

logger = logging.getLogger(__name__)

Answer = tuple[bytes, Callable[[], None] | None]  # the bytes, and what to await before they may leave


class Acknowledger:
    """Sends answers. `is_idle`: all of them have left, and the connection's thread may send itself."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        self._send = send
        self._waiting: queue.Queue[Answer | None] = queue.Queue(WAITING_MAX)
        self._thread: threading.Thread | None = None
        self._is_broken = False

    @property
    def is_idle(self) -> bool:
        return self._waiting.unfinished_tasks == 0

    def add(self, answer: bytes, until: Callable[[], None] | None) -> None:
        """Errors: OSError when the connection is broken."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="lane-acknowledge", daemon=True)
            self._thread.start()
        if self._is_broken:
            raise OSError("the connection is broken")
        self._waiting.put((answer, until))

    def flush(self) -> None:
        """Return when all that was added has left, or cannot."""
        self._waiting.join()

    def close(self) -> None:
        """Return when everything has left, or cannot."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            answer, until = item
            try:
                if until is not None:
                    until()
            except FlashlakeError as error:
                answer = wire.encode_error_frame(error)
            try:
                if not self._is_broken:
                    self._send(answer)
            except OSError:
                logger.debug("answers cannot be sent any more", exc_info=True)
                self._is_broken = True
            self._waiting.task_done()
