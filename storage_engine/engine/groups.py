"""Groups: who is in a consumer group. Members say that they live; one not heard of for its session timeout is out.

Owner: engine/consumers.py, which commits a new generation of the group with every change of its members.
State: in memory only. After a restart every member is unknown and joins again, under a later generation: the generation is what is
       durable (Progress.detail), and what fences a member that has not noticed.
Holds: members and generation are read and replaced together. The clock is a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock


@dataclass(frozen=True)
class Group:
    """One generation. `until_ms`: member -> when it is out unless it is heard of again."""

    generation: int = 0
    until_ms: Mapping[str, int] = field(default_factory=dict)

    def alive(self, now_ms: int) -> dict[str, int]:
        return {member: until_ms for member, until_ms in self.until_ms.items() if until_ms > now_ms}

    def prolonged(self, member: str, session_timeout_ms: int, now_ms: int) -> Group:
        return Group(self.generation, {**self.until_ms, member: now_ms + session_timeout_ms})

    def left(self, member: str, now_ms: int) -> dict[str, int]:
        """Those alive, without the member."""
        return {name: until_ms for name, until_ms in self.alive(now_ms).items() if name != member}


class ConsumerGroups:
    """The groups by the owner of their progress."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self._lock = Lock()

    def get(self, owner: str) -> Group:
        return self._groups.get(owner, Group())

    def beat(self, owner: str, member: str, session_timeout_ms: int, now_ms: int, generation: int) -> Group | None:
        """Prolong a member's session. None when the group has to change first: the member is new, another one is out, or the recorded
        `generation` is not the group's.
        """
        with self._lock:
            group = self.get(owner)
            if group.generation != generation or member not in group.until_ms or len(group.alive(now_ms)) < len(group.until_ms):
                return None
            self._groups[owner] = group = group.prolonged(member, session_timeout_ms, now_ms)
            return group

    def install(self, owner: str, group: Group) -> None:
        """Make it so: its generation is committed."""
        with self._lock:
            if group.until_ms:
                self._groups[owner] = group
            else:
                self._groups.pop(owner, None)
