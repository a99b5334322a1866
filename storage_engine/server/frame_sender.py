"""Frame sender: the frames of one scan after another, from the log's files into the socket of one connection.

Holds: a message is copied once, from where it lies in the log to the socket. While the reader pauses one group waits: references to
       mapped files, and to what was read of the log's end, which is mapped later. No frame of the wire is longer than FRAME_BYTES_MAX.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from storage_engine.api import FetchedFrame
from storage_engine.client.wire import Reply, reply_of_frames
from storage_engine.client.wire import packed as wire

_GROUP_BYTES: Final = 8 << 20  # from here on a group is sent
_GROUP_BYTES_MAX: Final = wire.FRAME_BYTES_MAX - (1 << 20)  # the rest is for the header
_GROUP_FRAMES_MAX: Final = 1024
_FEW_BYTES_MAX: Final = 8 << 20  # of frames in one answer; more is streamed


class PeerGone(Exception):
    """The connection broke while frames were sent."""


class FrameSender:
    """Sends one scan. `n_bytes` were sent, which took `seconds`, the reader's pauses among them."""

    def __init__(self, send: Callable[[Any], object]) -> None:
        self._send = send
        self.n_bytes, self.seconds = 0, 0.0

    def send(self, frames: Iterator[FetchedFrame]) -> bool:
        """Send all; False: one of them is too large for this lane, and was not sent. Errors: PeerGone; what `frames` raises."""
        group: list[FetchedFrame] = []
        n_bytes = 0
        for frame in frames:
            size = frame.n_message_bytes + (0 if frame.change_types is None else frame.n_rows)
            if n_bytes >= _GROUP_BYTES or n_bytes + size > _GROUP_BYTES_MAX or len(group) == _GROUP_FRAMES_MAX:
                if not self._send_group(group):
                    return False
                group, n_bytes = [], 0
            if size > _GROUP_BYTES_MAX:
                return False
            group.append(frame)
            n_bytes += size
        return self._send_group(group)

    def _send_group(self, group: list[FetchedFrame]) -> bool:
        if not group:
            return True
        parts = wire.frames_parts(group)
        n_bytes = wire.n_bytes_of(parts)
        if n_bytes > wire.FRAME_BYTES_MAX:
            return False
        begin_s = time.perf_counter()
        try:
            for piece in wire.pieces(parts):
                self._send(piece)
        except OSError as error:
            raise PeerGone from error
        finally:
            self.seconds += time.perf_counter() - begin_s
        self.n_bytes += n_bytes
        return True


def few_frames(frames: Iterator[FetchedFrame]) -> Reply | None:
    """The frames of a small fetch in one answer; None: they are too many for one."""
    found: list[FetchedFrame] = []
    n_bytes = 0
    for frame in frames:
        n_bytes += frame.n_message_bytes
        if n_bytes > _FEW_BYTES_MAX:
            return None
        found.append(frame)
    return reply_of_frames(found)
