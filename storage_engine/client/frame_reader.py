"""Frame reader: whole frames from a stream socket, for both ends of the socket lane.

Owner: one connection; one thread at a time. Holds: a small frame costs one call of the kernel, a large one is received into the memory
it stays in. Never: reads a frame beyond the bound; raises for a peer that went away (that is the end of the frames).
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np

_LENGTH: Final = struct.Struct("<I")
_CHUNK_BYTES: Final = 1 << 15
_ALIGNMENT: Final = 64
_HEAD_BYTES: Final = 8  # what follows the head of a large frame lies aligned


class FrameTooLong(Exception):
    """A frame of `n_bytes` is announced."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__(f"a frame of {n_bytes} bytes is announced")
        self.n_bytes = n_bytes


class FrameReader:
    """Frames of one socket: u32 length, then as many bytes."""

    def __init__(self, connection: socket.socket, frame_bytes_max: int) -> None:
        self._connection = connection
        self._receive = connection.recv
        self._frame_bytes_max = frame_bytes_max
        self._held = b""  # received, not given out
        self._poll: select.poll | None = None
        self.admit: Callable[[int], None] | None = None
        """Asked about the bytes of a frame beyond the first chunk before they are received: what it raises, frame() does; then skip()."""
        self.is_duplex = not hasattr(connection, "pending")
        """One thread may send while another receives: not over TLS, whose connection is one object to OpenSSL."""

    def frame(self) -> Any:
        """The next frame without its length, as bytes or an array of bytes; None at the end of the stream, also inside a frame.

        Errors: FrameTooLong; what admit() raises; OSError of the socket.
        """
        data = self._held
        while len(data) < _LENGTH.size:
            more = self._receive(_CHUNK_BYTES)
            if not more:
                return None
            data += more
        (n_bytes,) = _LENGTH.unpack_from(data)
        stop = _LENGTH.size + n_bytes
        if stop == len(data):
            self._held = b""
            return data[_LENGTH.size :]
        if stop < len(data):
            self._held = data[stop:]
            return data[_LENGTH.size : stop]
        if n_bytes > self._frame_bytes_max:
            raise FrameTooLong(n_bytes)
        if self.admit is not None:
            self._held = data
            self.admit(n_bytes)
        whole = np.empty(n_bytes + _ALIGNMENT, np.uint8)
        begin = -(whole.ctypes.data + _HEAD_BYTES) % _ALIGNMENT
        filled = len(data) - _LENGTH.size
        view = memoryview(whole.data)[begin : begin + n_bytes]
        view[:filled] = data[_LENGTH.size :]
        self._held = b""
        while filled < n_bytes:
            n_received = self._connection.recv_into(view[filled:])
            if n_received == 0:
                return None
            filled += n_received
        return view

    def waiting(self, head: bytes, n_max: int) -> list[bytes]:
        """The frames that have arrived whole behind the last one and begin with `head`, without their lengths; at most `n_max`."""
        frames: list[bytes] = []
        data, at = self._held, 0
        while len(frames) < n_max and data.startswith(head, at + _LENGTH.size):
            start = at + _LENGTH.size
            stop = start + _LENGTH.unpack_from(data, at)[0]
            if stop > len(data) or stop < start + len(head):
                break
            frames.append(data[start:stop])
            at = stop
        if at:
            self._held = data[at:]
        return frames

    def skip(self) -> bool:
        """Receive and forget the frame that was not admitted; False when the stream ends inside it. Errors: OSError."""
        n_left = _LENGTH.size + _LENGTH.unpack_from(self._held)[0] - len(self._held)
        self._held = b""
        while n_left > 0:
            part = self._receive(min(n_left, _CHUNK_BYTES))
            if not part:
                return False
            n_left -= len(part)
        return True

    def has_more(self) -> bool:
        """True when something of another frame, or the end of the stream, has arrived."""
        if self._held or (not self.is_duplex and self._connection.pending()):  # type: ignore[attr-defined] - of an SSLSocket
            return True
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._connection, select.POLLIN)
        return bool(self._poll.poll(0))

    def exactly(self, n_bytes: int) -> bytes | None:
        """The next `n_bytes` bytes, before any frame; None at the end of the stream."""
        while len(self._held) < n_bytes:
            more = self._receive(_CHUNK_BYTES)
            if not more:
                return None
            self._held += more
        data, self._held = self._held[:n_bytes], self._held[n_bytes:]
        return data
