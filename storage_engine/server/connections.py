"""Connections: watches the TCP connections of the Flight port, which its library neither limits nor times out.

The kernel knows each connection's age of last byte (TCP_INFO); a watcher reads it every second and shuts down those that are idle,
that do not take what they are sent, that never said anything, or that are one too many (the newest). Linux only.
Never: reads or writes a byte of a connection; a connection shut down looks to both ends like one that broke.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from storage_engine.server.admission import Limits

_PERIOD_S: Final = 1.0
_U32 = struct.Struct("<24I")
_U64 = struct.Struct("<QQ")
_U32_AT, _U64_AT = 8, 120  # struct tcp_info: eight bytes, 24 u32, two pacing rates, then bytes acknowledged and received
_LAST_SENT, _LAST_RECEIVED = 9, 11

logger = logging.getLogger(__name__)
Reason = Literal["idle", "stalled", "silent", "excess"]


@dataclass(frozen=True)
class Seen:
    """One connection as the watcher sees it: seconds since the first look, the last byte either way, and the last progress in sending."""

    age_s: float
    quiet_s: float
    stalled_s: float
    n_received: int


def verdict(seen: Seen, rank: int, limits: Limits) -> Reason | None:
    """Why a connection is shut down, None to leave it. `rank`: its place by age, from 0, the oldest.

    >>> verdict(Seen(age_s=9, quiet_s=9, stalled_s=0, n_received=0), 0, Limits(greeting_s=5))
    'silent'
    """
    if rank >= limits.connections_max:
        return "excess"
    if seen.n_received == 0 and seen.age_s > limits.greeting_s:
        return "silent"
    if seen.stalled_s > limits.stall_s:
        return "stalled"
    return "idle" if seen.quiet_s > limits.idle_s else None


@dataclass
class _Tracked:
    first_s: float
    acked: int = -1
    progress_s: float = 0.0


class ConnectionWatcher:
    """Watches a port from construction on. `n_open` connections; `closed` counts those that it shut down, by reason."""

    def __init__(self, port: int, limits: Limits) -> None:
        self._port = port
        self._limits = limits
        self._tracked: dict[str, _Tracked] = {}
        self.n_open = 0
        self.closed: dict[str, int] = {}
        threading.Thread(target=self._watch, name="connections", daemon=True).start()

    def _watch(self) -> None:
        period_s = min(_PERIOD_S, self._limits.greeting_s / 2)
        while True:
            time.sleep(period_s)
            self.look(time.monotonic())

    def look(self, now_s: float) -> None:
        """One round."""
        seen: list[tuple[float, str, int, Seen]] = []
        for inode, fd in _sockets():
            found = self._seen(inode, fd, now_s)
            if found is not None:
                seen.append((self._tracked[inode].first_s, inode, fd, found))
        alive = {inode for _, inode, _, _ in seen}
        self._tracked = {inode: tracked for inode, tracked in self._tracked.items() if inode in alive}
        self.n_open = len(seen)
        for rank, (_, inode, fd, found) in enumerate(sorted(seen, key=lambda item: item[:2])):
            reason = verdict(found, rank, self._limits)
            if reason is not None and _shut_down(fd, inode):
                self.closed[reason] = self.closed.get(reason, 0) + 1
                logger.info("a connection was closed", extra={"reason": reason})

    def _seen(self, inode: str, fd: int, now_s: float) -> Seen | None:
        """What TCP says of a socket of ours; None when it is none, or gone meanwhile."""
        try:
            with socket.socket(fileno=os.dup(fd)) as copy:
                if copy.type != socket.SOCK_STREAM or copy.family not in (socket.AF_INET, socket.AF_INET6):
                    return None
                if copy.getsockname()[1] != self._port or copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    return None
                raw = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                (n_queued,) = struct.unpack("i", fcntl.ioctl(copy, termios.TIOCOUTQ, bytes(4)))
        except OSError:
            return None
        if len(raw) < _U64_AT + _U64.size:
            return None
        ages = _U32.unpack_from(raw, _U32_AT)
        acked, received = _U64.unpack_from(raw, _U64_AT)
        tracked = self._tracked.get(inode)
        if tracked is None:
            tracked = self._tracked[inode] = _Tracked(now_s)
        if n_queued == 0 or acked != tracked.acked:
            tracked.acked, tracked.progress_s = acked, now_s
        quiet_s = min(ages[_LAST_SENT], ages[_LAST_RECEIVED]) / 1000
        return Seen(now_s - tracked.first_s, min(quiet_s, now_s - tracked.first_s), now_s - tracked.progress_s, received)


def _sockets() -> Iterator[tuple[str, int]]:
    """The sockets that this process has open: (inode, descriptor)."""
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if link.startswith("socket:"):
            yield link, int(name)


def _shut_down(fd: int, inode: str) -> bool:
    """Break a connection off; False when its descriptor belongs to another by now."""
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            if os.readlink(f"/proc/self/fd/{copy.fileno()}") != inode:
                return False
            copy.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    return True
