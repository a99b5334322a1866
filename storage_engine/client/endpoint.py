"""Endpoint: where a server is and who we are there, from a URL, parameters and the environment. Values; secrets are in no repr.

    flashlake://[user[:password]@]host[:port]          plain TCP
    flashlake+tls://[user[:password]@]host[:port]      TLS on both lanes, the server's certificate verified

Parameters come before the URL, the URL before the environment: FLASHLAKE_USER, FLASHLAKE_PASSWORD, FLASHLAKE_TOKEN,
FLASHLAKE_TOKEN_FILE, FLASHLAKE_TLS_CA.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from storage_engine.errors import InvalidConfiguration

DEFAULT_PORT = 9650
_SCHEMES = ("flashlake", "flashlake+tls")
_SECRET = re.compile(r"(://).*@", re.DOTALL)


@dataclass(frozen=True)
class Credentials:
    """A user with a password, or a token; neither is somebody who asks to be let in without."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    @property
    def basic_header(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Endpoint:
    """`url` names the server without secrets; `ca` is the PEM of whom we trust, b"" for the machine's own list."""

    url: str
    host: str
    port: int
    is_tls: bool = False
    credentials: Credentials = Credentials()
    ca: bytes = field(default=b"", repr=False)
    is_verifying: bool = True

    @property
    def location(self) -> str:
        return f"grpc{'+tls' if self.is_tls else ''}://{self.host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """For a socket; None where the connection is plain."""
        if not self.is_tls:
            return None
        context = ssl.create_default_context(cadata=self.ca.decode() or None)
        if not self.is_verifying:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def flight_options(self) -> dict[str, object]:
        """What Flight's client takes for TLS."""
        if not self.is_tls:
            return {}
        if not self.is_verifying:
            return {"disable_server_verification": True}
        return {"tls_root_certs": self.ca or _system_roots()}


def endpoint_of(
    url: str,
    *,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    token_file: str | Path | None = None,
    tls_ca: str | Path | None = None,
    tls_verify: bool = True,
    environ: Mapping[str, str] | None = None,
) -> Endpoint:
    """Errors: InvalidConfiguration; no text of it carries what the URL says before the @."""
    environ = os.environ if environ is None else environ
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in _SCHEMES or not parts.hostname or port == -1 or parts.path.strip("/"):
        raise InvalidConfiguration(
            f"{without_secrets(url)} is not the address of a server",
            where="store url",
            next_step="Write flashlake://host:port, or flashlake+tls://host:port.",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = DEFAULT_PORT if port is None else port
    is_tls = parts.scheme == "flashlake+tls"
    if tls_ca is not None and not is_tls:
        next_step = "Write flashlake+tls://host:port."
        raise InvalidConfiguration("tls_ca is given and the address is plain", where="store url", next_step=next_step)
    ca_file = tls_ca or environ.get("FLASHLAKE_TLS_CA", "")
    return Endpoint(
        url=f"{parts.scheme}://{host}:{port}",
        host=host,
        port=port,
        is_tls=is_tls,
        credentials=_credentials(
            Credentials(user or "", password or "", token or _token_of(token_file)),
            Credentials(unquote(parts.username or ""), unquote(parts.password or "")),
            Credentials(
                environ.get("FLASHLAKE_USER", ""),
                environ.get("FLASHLAKE_PASSWORD", ""),
                environ.get("FLASHLAKE_TOKEN", "") or _token_of(environ.get("FLASHLAKE_TOKEN_FILE")),
            ),
        ),
        ca=_read(ca_file, "tls_ca") if ca_file and is_tls else b"",
        is_verifying=tls_verify,
    )


def without_secrets(url: str) -> str:
    """The URL as it may be printed.

    >>> without_secrets("flashlake://ana:secret@host:9650")
    'flashlake://host:9650'
    """
    return _SECRET.sub(r"\1", url)


def _credentials(*given: Credentials) -> Credentials:
    """The first that says who we are; a user named without a password takes it from a later one of no other name."""
    for at, chosen in enumerate(given):
        if chosen.token or (chosen.user and chosen.password):
            return chosen
        if chosen.user:
            found = next((later.password for later in given[at + 1 :] if later.password and later.user in ("", chosen.user)), "")
            return Credentials(chosen.user, found)
        if chosen.password:
            later = next((later.user for later in given[at + 1 :] if later.user), "")
            return Credentials(later, chosen.password)
    return Credentials()


def _token_of(file: str | Path | None) -> str:
    return _read(file, "token_file").decode().strip() if file else ""


def _read(file: str | Path, what: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        said = f"{what} cannot be read: {error.strerror}"
        raise InvalidConfiguration(said, where=str(file), next_step="Name a readable file.") from error


def _system_roots() -> bytes:
    file = ssl.get_default_verify_paths().cafile
    if file is None or not Path(file).exists():
        raise InvalidConfiguration(
            "this machine has no list of authorities to verify the server with", where="tls", next_step="Name one with tls_ca."
        )
    return Path(file).read_bytes()
