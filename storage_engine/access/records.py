"""Records: users, tokens and grants as values of objects of the store (kinds "user", "token", "grant").

Holds: grants and tokens name the user's id beside its name, so that those of a dropped user are never those of a later one of
       that name. One object per grant: two administrators who grant at the same time both succeed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage_engine.access.rights import RIGHTS, Grant, Scope
from storage_engine.access.secrets import PasswordHash
from storage_engine.errors import StatementRefused

USER, TOKEN, GRANT = "user", "token", "grant"
KINDS = (USER, TOKEN, GRANT)
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_.@-]{0,63}$")


@dataclass(frozen=True)
class UserRecord:
    """`password` None: the user logs in by tokens only."""

    id: str
    password: PasswordHash | None
    created_ms: int

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "password": None if self.password is None else self.password.to_json(), "created_ms": self.created_ms}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> UserRecord:
        password = value.get("password")
        return cls(str(value["id"]), None if password is None else PasswordHash.from_json(password), int(value["created_ms"]))


@dataclass(frozen=True)
class TokenRecord:
    """`expires_ms` None: it holds until it is revoked. `sha256`: of the token's text."""

    user: str
    user_id: str
    label: str
    sha256: str
    created_ms: int
    expires_ms: int | None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TokenRecord:
        expires = value.get("expires_ms")
        return cls(
            str(value["user"]), str(value["user_id"]), str(value["label"]), str(value["sha256"]), int(value["created_ms"]),
            None if expires is None else int(expires),
        )  # fmt: skip


@dataclass(frozen=True)
class GrantRecord:
    """A grant as it is stored: to whom by name, and by the id that tells a user from a later one of that name."""

    user: str
    user_id: str
    grant: Grant

    @property
    def name(self) -> str:
        """The object's name: granting the same twice is one grant."""
        return f"{self.user_id} {self.grant.right} {self.grant.scope}"

    def to_json(self) -> dict[str, Any]:
        scope = self.grant.scope
        return {"user": self.user, "user_id": self.user_id, "right": self.grant.right, "on": [scope.kind, scope.name]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GrantRecord:
        kind, name = value["on"]
        if value["right"] not in RIGHTS or kind not in ("CLUSTER", "DATABASE", "TABLE"):
            raise ValueError(f"there is no right {value['right']} on a {kind}")
        return cls(str(value["user"]), str(value["user_id"]), Grant(value["right"], Scope(kind, str(name))))


def checked_name(name: str) -> str:
    """Errors: StatementRefused for a name that no user can have."""
    if not _NAME.match(name):
        next_step = "Use letters, digits and _ . @ -, at most 64, beginning with a letter."
        raise StatementRefused(f"{name!r} cannot be a user's name", where="user", next_step=next_step)
    return name
