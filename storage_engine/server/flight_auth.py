"""Flight authentication: the `authorization` header of each call, and the handshake that turns user and password into a session.

Flight's own scheme: a handshake with a Basic header answers with a Bearer header, which later calls carry; tokens are Bearer headers
of their own. A refusal is Flight's Unauthenticated, which a client never takes for a broken connection.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import pyarrow.flight as fl

from storage_engine.errors import AuthenticationFailed, StoreUnavailable
from storage_engine.server.authentication import Authenticator, Principal

ACCESS: Final = "access"
_HEADER: Final = "authorization"

logger = logging.getLogger(__name__)


class Handshake(fl.ServerAuthHandler):
    """Lets the handshake through: the middleware has decided by then."""

    def authenticate(self, outgoing: Any, incoming: Any) -> None:
        pass

    def is_valid(self, token: bytes) -> bytes:  # noqa: ARG002 - Flight's signature
        return b""


class AccessMiddleware(fl.ServerMiddleware):
    """Knows who makes the call; sends a new session's text back."""

    def __init__(self, principal: Principal, session: str | None) -> None:
        self.principal = principal
        self._session = session

    def sending_headers(self) -> dict[str, str]:
        return {} if self._session is None else {_HEADER: f"Bearer {self._session}"}


class AccessFactory(fl.ServerMiddlewareFactory):
    """Decides at the start of each call, before anything of it is looked at."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def start_call(self, info: fl.CallInfo, headers: dict[str, list[str]]) -> AccessMiddleware:  # noqa: ARG002
        given = headers.get(_HEADER) or [""]
        try:
            return AccessMiddleware(*self._authenticator.of_header(given[0]))
        except AuthenticationFailed as error:
            raise fl.FlightUnauthenticatedError(str(error)) from None
        except StoreUnavailable as error:
            raise fl.FlightUnavailableError(str(error)) from None


def principal_of(context: fl.ServerCallContext) -> Principal:
    """Who makes a call, as its middleware has found."""
    middleware = context.get_middleware(ACCESS)
    assert isinstance(middleware, AccessMiddleware), "every call starts with it"
    return middleware.principal
