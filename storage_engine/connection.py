"""Connect: a URL becomes a store. The one place where the surface, its backends and SQL are wired together."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from storage_engine.api import Backend
from storage_engine.client.endpoint import without_secrets
from storage_engine.client.store import Session, Store
from storage_engine.errors import UserError


def connect(url: str, **options: Any) -> Store:
    """Open a store.

    file:///path           embedded: this process owns the directory (options: sync = "commit" | "none", key_memory_bytes_max)
    flashlake://host:port  the bundled server; flashlake+tls:// with TLS (options: user and password, token or token_file, tls_ca;
                            also flashlake://user:password@host:port, and the environment: client/endpoint.py)
    fluss://host:port      an Apache Fluss cluster (extra `fluss`; docs/fluss.md)

    Errors: UserError for another scheme; StoreLocked when another process owns the directory; StoreUnavailable when no server
    answers; AuthenticationFailed.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        from storage_engine.engine.embedded import EmbeddedBackend

        if parts.netloc:
            hint = f"Write file:///{parts.netloc.rpartition('@')[2]}{parts.path} with three slashes."
            raise UserError(f"{without_secrets(url)} names a host", where="store url", next_step=hint)
        return wrap(EmbeddedBackend.open(parts.path, **options))
    if parts.scheme in ("flashlake", "flashlake+tls"):
        from storage_engine.client.flight import FlightBackend

        return wrap(FlightBackend.connect(url, **options))
    if parts.scheme == "fluss":
        try:
            from storage_engine.fluss.backend import FlussBackend
        except ModuleNotFoundError as error:
            if error.name != "fluss":
                raise
            raise UserError("pyfluss is not installed", where="store url", next_step="Install the extra: flashlake[fluss].") from error
        return wrap(FlussBackend.connect(url, **options))
    raise UserError(
        f"{without_secrets(url)} is not a store address",
        where="store url",
        next_step="Use file:///path, flashlake://host:port or fluss://host:port.",
    )


def wrap(backend: Backend) -> Store:
    """The store surface over a backend, with SQL."""
    return Store(backend, _session_of)


def _session_of(store: Store) -> Session:
    from storage_engine.stream.session.session import SqlSession

    return SqlSession(store)
