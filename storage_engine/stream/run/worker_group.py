"""Worker group: which of several worker processes runs which job.

Workers are members of one group at the store, which hears of them every BEAT_S; one not heard of for SESSION_S is out, and the change is
a new generation, committed before any member is told of it. Jobs go round the members in the order of their submission.
Holds: under one generation every job belongs to one member. Who gains jobs waits GRACE_S after it learned of the generation, in which the
       others learn of it and let go; who does not reach the store for SESSION_S lets go of all. What is left of two runners of one job
       is decided by the store: a commit from offsets that are no longer the recorded ones is refused.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from storage_engine.api import WORKERS_PREFIX, Backend
from storage_engine.errors import FlashlakeError

OWNER: Final = f"{WORKERS_PREFIX}stream"
SESSION_S = 3.0
BEAT_S = 0.5
GRACE_S = 1.0

_log = logging.getLogger(__name__)


def share_of(member: str, members: Sequence[str], jobs: Sequence[str]) -> set[str]:
    """The jobs of a member. `jobs` in the order of their submission: a later one moves no earlier one.

    >>> share_of("b", ["b", "a"], ["first", "second", "third"])
    {'second'}
    """
    if member not in members:
        return set()
    ordered = sorted(members)
    return set(jobs[ordered.index(member) :: len(ordered)])


@dataclass(frozen=True)
class Seat:
    """What a member knows: the group's generation, when it learned of it, and when the store last heard of it (monotonic seconds)."""

    generation: int
    members: tuple[str, ...]
    since_s: float
    heard_s: float


class WorkerGroup:
    """The process as a member. Beats in a thread of its own, over a backend of its own: a long micro-batch does not silence it."""

    def __init__(self, backend: Backend, member: str | None = None) -> None:
        self.member = member or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._backend = backend
        self._seat: Seat | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker-group", daemon=True)

    def start(self) -> WorkerGroup:
        self._thread.start()
        return self

    @property
    def generation(self) -> int:
        """Of the group, as far as this member knows; 0 before it was heard of, and when it is out."""
        seat = self._seat
        return 0 if seat is None or time.monotonic() - seat.heard_s > SESSION_S else seat.generation

    @property
    def is_settled(self) -> bool:
        """True when time alone will not change what this member runs: its grace is over, or there is no group without it."""
        seat = self._seat
        return seat is not None and time.monotonic() - seat.since_s >= GRACE_S and self.generation != 0

    def mine(self, jobs: Sequence[str], held: set[str]) -> set[str]:
        """The jobs that this member runs now. `held`: those that it runs already, which need no grace."""
        seat, now = self._seat, time.monotonic()
        if seat is None or now - seat.heard_s > SESSION_S:
            return set()
        share = share_of(self.member, seat.members, jobs)
        return share if now - seat.since_s >= GRACE_S else share & held

    def close(self) -> None:
        """Leave: the others take over at once."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(SESSION_S)
        try:
            self._backend.leave_group(OWNER, self.member)
        except FlashlakeError as error:
            _log.warning("could not leave the group of workers, its session ends by itself: %s", error)

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                membership = self._backend.heartbeat(OWNER, self.member, int(SESSION_S * 1000))
            except FlashlakeError as error:
                _log.warning("the store does not hear this worker: %s", error)
            else:
                seat = self._seat
                since = seat.since_s if seat is not None and seat.generation == membership.generation else time.monotonic()
                # sessions are counted from when the beat was sent: the store may have taken it as early as that
                self._seat = Seat(membership.generation, membership.members, since, began)
            self._stop.wait(BEAT_S)
