"""Consumers: what the store does for consumer groups: heartbeats, generations, and forgetting those that are dead.

Owner: engine/embedded.py, which gives it the writer's lock, the state, and a way to commit. Itself a maintenance task.
State: the members of the groups (engine/groups.py), in memory; offsets and generations are progress in the state.
Holds: a change of members is committed as the group's next generation before any member is told of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from storage_engine.api import CONSUMER_PREFIX, WORKERS_PREFIX, Membership, Progress
from storage_engine.engine.groups import ConsumerGroups, Group
from storage_engine.engine.progress import COMMITTED_MS, GENERATION, MEMBERS, generation_of
from storage_engine.engine.state import StoreState
from storage_engine.errors import UserError

EXPIRATION_MS = 7 * 24 * 3600 * 1000
"""A consumer that has not committed for so long, and has no live member, is forgotten."""
INTERVAL_MS = 600_000
SESSION_MS_RANGE = (100, 24 * 3600 * 1000)

Commit = Callable[[Sequence[Progress], list[dict[str, Any]]], None]


class Consumers:
    """The consumer groups of one store."""

    name = "consumer-expiration"
    interval_ms = INTERVAL_MS

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[None]],
        state: Callable[[], StoreState],
        commit: Commit,
        expiration_ms: int,
    ) -> None:
        """`writing()` holds the writer's lock; within it `commit(progress, changes)` returns when it is durable. expiration_ms 0: never."""
        self._writing = writing
        self._state = state
        self._commit = commit
        self._expiration_ms = expiration_ms
        self._groups = ConsumerGroups()

    def heartbeat(self, owner: str, member: str, session_timeout_ms: int, now_ms: int) -> Membership:
        low, high = SESSION_MS_RANGE
        if not owner.startswith((CONSUMER_PREFIX, WORKERS_PREFIX)) or not member or not low <= session_timeout_ms <= high:
            raise UserError(
                f"member {member!r} of {owner} with a session of {session_timeout_ms} ms",
                where="consumer group",
                next_step=f"Name a consumer and a member; a session takes {low} to {high} ms.",
            )
        group = self._groups.beat(owner, member, session_timeout_ms, now_ms, self._generation(owner))
        if group is None:
            with self._writing():
                group = self._changed(owner, member, session_timeout_ms, now_ms)
        return Membership(group.generation, tuple(sorted(group.until_ms)))

    def _changed(self, owner: str, member: str, session_timeout_ms: int, now_ms: int) -> Group:
        recorded, before = self._generation(owner), self._groups.get(owner)
        joined = Group(recorded, {**before.alive(now_ms), member: now_ms + session_timeout_ms})
        if set(joined.until_ms) != set(before.until_ms) or recorded == 0:
            joined = Group(self._next_generation(owner, joined.until_ms), joined.until_ms)
        self._groups.install(owner, joined)
        return joined

    def leave(self, owner: str, member: str, now_ms: int) -> None:
        """Take a member out at once: the others need not wait for its session to end."""
        with self._writing():
            group = self._groups.get(owner)
            if member not in group.until_ms:
                return
            left = group.left(member, now_ms)
            self._groups.install(owner, Group(self._next_generation(owner, left), left))

    def run(self, now_ms: int) -> None:
        """Forget the consumers that are dead."""
        if self._expiration_ms <= 0:
            return
        with self._writing():
            dead = [owner for owner in self._state().progress if owner.startswith(CONSUMER_PREFIX) and self._is_dead(owner, now_ms)]
            if dead:
                self._commit((), [{"op": "drop_progress", "owner": owner} for owner in dead])

    def _is_dead(self, owner: str, now_ms: int) -> bool:
        committed_ms = self._state().progress[owner].detail.get(COMMITTED_MS)
        return committed_ms is not None and committed_ms < now_ms - self._expiration_ms and not self._groups.get(owner).alive(now_ms)

    def _generation(self, owner: str) -> int:
        return generation_of(self._state().progress.get(owner))

    def _next_generation(self, owner: str, members: Iterable[str]) -> int:
        """Commit a new generation: the number of its commit, which no generation of that name has had."""
        recorded = self._state().progress.get(owner)
        generation = self._state().version + 1
        detail = {GENERATION: generation, MEMBERS: sorted(members)}
        self._commit((Progress(owner, recorded.offsets if recorded else {}, None, detail),), [])
        return generation
