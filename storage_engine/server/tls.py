"""TLS: the server's certificate for both lanes, and where plain TCP may carry passwords. No sockets."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from storage_engine.errors import InvalidConfiguration


@dataclass(frozen=True, repr=False)
class Certificate:
    """A PEM certificate (chain) and its private key, as Flight takes them; `context` is for the socket lane."""

    chain: bytes
    key: bytes
    context: ssl.SSLContext


def load_certificate(chain: Path | str, key: Path | str) -> Certificate:
    """Errors: InvalidConfiguration naming the file that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(chain, key)
        return Certificate(Path(chain).read_bytes(), Path(key).read_bytes(), context)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfiguration(
            f"the certificate and its key cannot be used: {error}",
            where=f"{chain}, {key}",
            next_step="Name a PEM certificate and its unencrypted PEM key.",
        ) from error


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_safe(host: str, *, is_authenticated: bool, is_encrypted: bool, allows_plain: bool) -> None:
    """Errors: InvalidConfiguration for an address beyond loopback without authentication, or with passwords in plain TCP."""
    if is_loopback(host):
        return
    if not is_authenticated:
        raise InvalidConfiguration(
            f"{host} is not a loopback address and authentication is off",
            where="--host",
            next_step="Listen on 127.0.0.1, or turn authentication on (--authentication on, store.authentication).",
        )
    if not is_encrypted and not allows_plain:
        raise InvalidConfiguration(
            f"{host} is not a loopback address and there is no TLS: passwords, tokens and rows would cross the network in the clear",
            where="--host",
            next_step="Give --tls-cert and --tls-key; or --allow-plain-passwords where the network itself encrypts.",
        )
