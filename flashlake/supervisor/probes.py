"""Probes: one question each, "does it answer?", with an answer within two seconds. A probe never raises for a service that is down."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

Probe = Callable[[], bool]
TIMEOUT_S = 2.0


def always() -> bool:
    """For services that only work through the store: alive is healthy; their lag tells the rest."""
    return True


def http_answers(url: str) -> Probe:
    """True when the URL answers with status 200."""

    def probe() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - our own http address
                return answer.status == 200
        except (OSError, urllib.error.URLError, ValueError):
            return False

    return probe


def port_answers(host: str, port: int) -> bool:
    """True when something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S):
            return True
    except OSError:
        return False


def store_answers(url: str, tls_ca: Path | str = "") -> Probe:
    """True when the store server answers a call: a server that only accepts connections is not healthy, one that asks who we are is."""

    def probe() -> bool:
        import storage_engine
        from storage_engine.client.endpoint import endpoint_of
        from storage_engine.errors import AuthenticationFailed, FlashlakeError

        endpoint = endpoint_of(url)
        if not port_answers(endpoint.host.strip("[]"), endpoint.port):
            return False
        try:
            with storage_engine.connect(url, **({"tls_ca": tls_ca} if tls_ca else {})) as store:
                return store.version() >= 0
        except AuthenticationFailed:
            return True
        except FlashlakeError:
            return False

    return probe


def port_is_free(host: str, port: int) -> bool:
    """True when a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
