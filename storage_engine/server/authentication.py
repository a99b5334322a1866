"""Authentication: credentials become a Principal. Passwords open sessions, tokens are checked as they come.

Owner of nothing but a random key: sessions are signed texts, so that a restart ends all of them and none takes memory.
State: derived from the store's users, tokens and grants; `changed()` makes it read anew.
Holds: an unknown user costs as much time as a wrong password; a principal is checked again after each change and past its deadline.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from storage_engine.access import ADMINISTRATOR, GRANT, TOKEN, USER, GrantRecord, Grants, TokenRecord, UserRecord, hash_password, hash_token
from storage_engine.access.secrets import parse_token
from storage_engine.access.users import readable
from storage_engine.api import Backend
from storage_engine.errors import AuthenticationFailed, StoreUnavailable

SESSION_S: Final = 12 * 3600.0
_SESSION = "fls"
_LOGINS_AT_ONCE: Final = 2  # scrypt takes 16 MiB and a core each
_LOGIN_WAIT_S: Final = 10.0
_CACHED_MAX: Final = 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Principal:
    """Who calls, and what they may do. `mark`: the salt of the password, or the id of the token, that opened this."""

    user: str
    user_id: str
    kind: Literal["none", "session", "token"]
    mark: str
    deadline_s: float
    grants: Grants
    generation: int


ANYBODY: Final = Principal("", "", "none", "", float("inf"), ADMINISTRATOR, 0)
"""Without authentication everybody may everything."""


class Authenticator:
    """Knows the users of a backend. With `is_on` False everybody is ANYBODY."""

    def __init__(self, backend: Backend, *, is_on: bool, now_s: Callable[[], float] = time.time) -> None:
        self.is_on = is_on
        self.generation = 1 if is_on else 0
        self._backend = backend
        self._now_s = now_s
        self._key = secrets.token_bytes(32)
        self._logins = threading.BoundedSemaphore(_LOGINS_AT_ONCE)
        self._nobody = hash_password(secrets.token_hex(16)) if is_on else None
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Principal] = OrderedDict()
        self._tickets: OrderedDict[bytes, Principal] = OrderedDict()

    def changed(self) -> None:
        """Users, tokens or grants have changed: every principal is checked again at its next call."""
        if self.is_on:
            self.generation += 1

    def of_header(self, header: str) -> tuple[Principal, str | None]:
        """The principal of an `authorization` header, and a session's text when it opened one. Errors: AuthenticationFailed."""
        if not self.is_on:
            return ANYBODY, None
        scheme, _, value = header.partition(" ")
        if scheme.lower() == "bearer":
            return self._of_bearer(value.strip()), None
        if scheme.lower() == "basic":
            try:
                user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                raise _failed() from None
            return self._of_password(user, password)
        raise AuthenticationFailed(
            "the server asks for a user", where="connect", next_step="Connect with user= and password=, or token= (docs/server.md)."
        )

    def current(self, principal: Principal) -> Principal:
        """The principal as it stands now. Errors: AuthenticationFailed when its user or token is gone or past its time."""
        if principal.generation != self.generation:
            principal = self._resolved(principal.user, principal.user_id, principal.kind, principal.mark, principal.deadline_s)
        if principal.deadline_s != float("inf") and self._now_s() >= principal.deadline_s:
            raise _failed()
        return principal

    # the socket lane's greeting

    def ticket(self, principal: Principal) -> bytes:
        """16 bytes that greet a socket lane in this principal's name, as long as the principal stands."""
        name = json.dumps([principal.user, principal.user_id, principal.kind, principal.mark, principal.deadline_s]).encode()
        ticket = hmac.digest(self._key, b"ticket " + name, "sha256")[:16]
        with self._lock:
            _put(self._tickets, ticket, principal)
        return ticket

    def of_ticket(self, ticket: bytes) -> Principal | None:
        with self._lock:
            return self._tickets.get(ticket)

    # credentials

    def _of_password(self, user: str, password: str) -> tuple[Principal, str]:
        if not self._logins.acquire(timeout=_LOGIN_WAIT_S):
            raise StoreUnavailable("too many logins at once", where="connect", next_step="Try again.")
        try:
            record = self._users().get(user)
            assert self._nobody is not None, "made when authentication is on"
            known = record.password if record is not None and record.password is not None else self._nobody
            is_right = known.matches(password)
        finally:
            self._logins.release()
        if not is_right or record is None or record.password is None:
            logger.warning("a login failed", extra={"user": user[:64]})
            raise _failed()
        deadline_s = self._now_s() + SESSION_S
        principal = self._resolved(user, record.id, "session", record.password.salt.hex(), deadline_s)
        logger.info("a session was opened", extra={"user": user})
        return principal, self._session_text(principal)

    def _of_bearer(self, text: str) -> Principal:
        digest = hashlib.sha256(text.encode()).digest()
        with self._lock:
            known = self._known.get(digest)
        if known is None:
            known = self._of_session(text) if text.startswith(f"{_SESSION}.") else self._of_token(text)
        principal = self.current(known)
        if principal is not self._known.get(digest):
            with self._lock:
                _put(self._known, digest, principal)
        return principal

    def _of_token(self, text: str) -> Principal:
        token_id = parse_token(text) or ""
        record = dict(readable(self._backend.objects(TOKEN), TokenRecord.from_json)).get(token_id)
        expected = record.sha256 if record is not None else hash_token("")
        if not hmac.compare_digest(expected, hash_token(text)) or record is None:
            logger.warning("a token was refused", extra={"token": token_id})
            raise _failed()
        return self._resolved(record.user, record.user_id, "token", token_id, _deadline_of(record))

    def _of_session(self, text: str) -> Principal:
        try:
            _, payload, mac = text.split(".")
            if not hmac.compare_digest(self._mac(payload), mac):
                raise _failed()
            user, user_id, mark, deadline_s = json.loads(base64.urlsafe_b64decode(payload))
        except (ValueError, TypeError):
            raise _failed() from None
        return self._resolved(user, user_id, "session", mark, deadline_s)

    def _session_text(self, principal: Principal) -> str:
        value = json.dumps([principal.user, principal.user_id, principal.mark, principal.deadline_s]).encode()
        payload = base64.urlsafe_b64encode(value).decode()
        return f"{_SESSION}.{payload}.{self._mac(payload)}"

    def _mac(self, payload: str) -> str:
        return hmac.digest(self._key, b"session " + payload.encode(), "sha256").hex()

    def _resolved(self, user: str, user_id: str, kind: str, mark: str, deadline_s: float) -> Principal:
        generation = self.generation  # before the objects: a change in between makes this one stale at once
        record = self._users().get(user)
        if record is None or record.id != user_id:
            raise _failed()
        if kind == "session":
            if record.password is None or record.password.salt.hex() != mark:
                raise _failed()
        else:
            token = dict(readable(self._backend.objects(TOKEN), TokenRecord.from_json)).get(mark)
            if token is None or token.user_id != user_id:
                raise _failed()
        held = [found.grant for _, found in readable(self._backend.objects(GRANT), GrantRecord.from_json) if found.user_id == user_id]
        return Principal(user, user_id, kind, mark, deadline_s, Grants(held), generation)  # type: ignore[arg-type]

    def _users(self) -> dict[str, UserRecord]:
        return dict(readable(self._backend.objects(USER), UserRecord.from_json))


def _deadline_of(record: TokenRecord) -> float:
    return float("inf") if record.expires_ms is None else record.expires_ms / 1000


def _put(cache: OrderedDict[bytes, Principal], key: bytes, principal: Principal) -> None:
    cache[key] = principal
    cache.move_to_end(key)
    if len(cache) > _CACHED_MAX:
        cache.popitem(last=False)


def _failed() -> AuthenticationFailed:
    next_step = "Check user and password, or whether the token is expired or revoked."
    return AuthenticationFailed("the credentials are not accepted", where="connect", next_step=next_step)
