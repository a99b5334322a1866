"""Receiving: the messages of an exchange stream become requests, each admitted before its body is read.

Holds: room taken for a request is given back by who got it (Received.n_admitted), or by close() when the stream ends inside one.
       A refused request's chunks are read and forgotten, so that the stream lives on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from storage_engine.client.wire import Assembler, Message
from storage_engine.client.wire.envelope import sizes_of
from storage_engine.errors import Backpressure, FlashlakeError, RequestTooLarge
from storage_engine.server.admission import Admission


@dataclass(frozen=True)
class Received:
    """A whole request, or its refusal."""

    header: dict[str, Any]
    body: pa.Buffer | None
    n_admitted: int
    refusal: FlashlakeError | None = None


class Receiver:
    """One stream's requests, one after another."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._assembler = Assembler()
        self._n_admitted = 0
        self._refusal: FlashlakeError | None = None
        self._n_skipped = 0
        self._header: dict[str, Any] = {}

    def feed(self, message: Message) -> Received | None:
        """Waits while there is no room. Errors: MalformedMessage."""
        if self._refusal is not None:
            return self._skip(message)
        if message.header is not None and self._n_admitted == 0:
            n_bytes = _announced(message.header)
            try:
                self._admission.acquire(n_bytes)
            except (Backpressure, RequestTooLarge) as refusal:
                self._refusal, self._n_skipped, self._header = refusal, n_bytes, {"method": "refused"}
                return self._skip(message)
            self._n_admitted = n_bytes
        done = self._assembler.feed(message)
        if done is None:
            return None
        received = Received(*done, self._n_admitted)
        self._n_admitted = 0
        return received

    def close(self) -> None:
        self._admission.release(self._n_admitted)
        self._n_admitted = 0

    def _skip(self, message: Message) -> Received | None:
        self._n_skipped -= message.chunk.size if message.chunk is not None else 0
        if self._n_skipped > 0:
            return None
        received = Received(self._header, None, 0, self._refusal)
        self._refusal = None
        return received


def _announced(header: bytes) -> int:
    """Bytes of body that a header announces; 0 for one that is none: the assembler refuses it."""
    try:
        return sum(-(-size // 64) * 64 for size in sizes_of(json.loads(header)))
    except (ValueError, KeyError, TypeError):
        return 0
