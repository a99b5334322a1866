"""Users: managing users, tokens and grants through any Backend that keeps objects; embedded or over the wire.

Holds: DROP USER takes tokens and grants first, so that one cut short leaves a user with less, never rights without a user.
Never: sends or stores a password or a token's text; hashes are made here, at the caller's end.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from storage_engine.access.records import GRANT, TOKEN, USER, GrantRecord, TokenRecord, UserRecord, checked_name
from storage_engine.access.rights import CLUSTER, Grant, checked
from storage_engine.access.secrets import hash_password, hash_token, new_token
from storage_engine.api import Backend
from storage_engine.errors import AlreadyExists, UnknownUser, UnsupportedByBackend

T = TypeVar("T")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Users:
    """The users of one store. Errors of every method: AccessDenied where the caller is not an administrator."""

    def __init__(self, backend: Backend, now_ms: Callable[[], int] = _now_ms) -> None:
        if "users" not in backend.capabilities:
            raise UnsupportedByBackend(
                "this backend lacks users", where=backend.url, next_step=f"It has: {', '.join(sorted(backend.capabilities))}."
            )
        self._backend = backend
        self._now_ms = now_ms

    # users

    def create(self, name: str, password: str | None, *, if_not_exists: bool = False) -> bool:
        """Make a user; False when there is one already and `if_not_exists`. Errors: AlreadyExists; UserError."""
        checked_name(name)
        if name in self._backend.objects(USER):
            if if_not_exists:
                return False
            next_step = "ALTER USER changes its password; DROP USER drops it."
            raise AlreadyExists(f"user {name} exists", where="CREATE USER", next_step=next_step)
        hashed = None if password is None else hash_password(password)
        self._backend.put_object(USER, name, UserRecord(secrets.token_hex(8), hashed, self._now_ms()).to_json())
        return True

    def set_password(self, name: str, password: str) -> None:
        """Change a password; what was opened with the old one ends. Everybody may change their own."""
        record = self._user(name)
        self._backend.put_object(USER, name, replace(record, password=hash_password(password)).to_json())

    def drop(self, name: str, *, if_exists: bool = False) -> bool:
        """Forget a user with his tokens and grants; False when there is none and `if_exists`. Errors: UnknownUser."""
        if if_exists and name not in self._backend.objects(USER):
            return False
        self._user(name)
        for kind, decode in ((TOKEN, TokenRecord.from_json), (GRANT, GrantRecord.from_json)):
            for key, record in readable(self._backend.objects(kind), decode):
                if record.user == name:
                    self._backend.put_object(kind, key, None)
        self._backend.put_object(USER, name, None)
        return True

    def users(self) -> dict[str, UserRecord]:
        """By name; without password hashes where the caller may not have them."""
        return dict(sorted(readable(self._backend.objects(USER), UserRecord.from_json)))

    # grants

    def grant(self, name: str, grants: Iterable[Grant]) -> None:
        """Errors: UnknownUser; StatementRefused for a right that cannot be held there."""
        user_id = self._user(name).id
        for record in [GrantRecord(name, user_id, checked(grant)) for grant in grants]:
            self._backend.put_object(GRANT, record.name, record.to_json())

    def revoke(self, name: str, grants: Iterable[Grant]) -> None:
        """Errors: UnknownUser; StatementRefused for a grant that the user does not hold as such: ALL is not taken apart."""
        user_id = self._user(name).id
        held = self._backend.objects(GRANT)
        records = [GrantRecord(name, user_id, checked(grant)) for grant in grants]
        for record in records:
            if record.name not in held:
                raise UnknownUser(
                    f"{name} was not granted {record.grant}", where="REVOKE", next_step=f"SHOW GRANTS FOR {name} lists what can be revoked."
                )
        for record in records:
            self._backend.put_object(GRANT, record.name, None)

    def make_administrator(self, name: str) -> None:
        """Grant ADMIN on the cluster. Errors: UnknownUser."""
        self.grant(name, [Grant("ADMIN", CLUSTER)])

    def grants(self, name: str | None = None) -> list[GrantRecord]:
        """Of one user, or of all that the caller may see."""
        ids = {user: record.id for user, record in self.users().items()}
        found = [record for _, record in readable(self._backend.objects(GRANT), GrantRecord.from_json)]
        kept = [record for record in found if ids.get(record.user) == record.user_id and name in (None, record.user)]
        return sorted(kept, key=lambda record: (record.user, str(record.grant.scope), record.grant.right))

    # tokens

    def create_token(self, name: str, label: str, *, lifetime_ms: int | None) -> str:
        """A new token of a user: its text, which is nowhere kept. Everybody may make their own."""
        token_id, text = new_token()
        now = self._now_ms()
        expires = None if lifetime_ms is None else now + lifetime_ms
        record = TokenRecord(name, self._user(name).id, label, hash_token(text), now, expires)
        self._backend.put_object(TOKEN, token_id, record.to_json())
        return text

    def revoke_token(self, token_id: str) -> None:
        """Errors: UnknownUser when there is none that the caller may revoke."""
        if token_id not in self._backend.objects(TOKEN):
            raise UnknownUser(f"there is no token {token_id}", where="token", next_step="`flashlake token list` lists them by id.")
        self._backend.put_object(TOKEN, token_id, None)

    def tokens(self) -> dict[str, TokenRecord]:
        """By id."""
        return dict(readable(self._backend.objects(TOKEN), TokenRecord.from_json))

    def _user(self, name: str) -> UserRecord:
        value = self._backend.objects(USER).get(name)
        if value is None:
            raise UnknownUser(f"there is no user {name}", where="user", next_step="SHOW USERS lists them.")
        return UserRecord.from_json(value)


def readable(objects: Mapping[str, dict[str, Any]], decode: Callable[[Mapping[str, Any]], T]) -> list[tuple[str, T]]:
    """The objects that are what their kind says; one that is not gives nobody a right."""
    found = []
    for name, value in objects.items():
        try:
            found.append((name, decode(value)))
        except (ValueError, KeyError, TypeError):
            continue
    return found
