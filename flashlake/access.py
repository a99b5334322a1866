"""Access: who this project's commands and processes are at its store: the environment's credentials, else the configured token."""

from __future__ import annotations

import os
from typing import Any

from flashlake.config import Config

_VARIABLES = ("FLASHLAKE_USER", "FLASHLAKE_PASSWORD", "FLASHLAKE_TOKEN", "FLASHLAKE_TOKEN_FILE")


def has_own_credentials() -> bool:
    """True when the environment says who we are."""
    return any(os.environ.get(name) for name in _VARIABLES)


def access_of(config: Config, url: str) -> dict[str, Any]:
    """Options of connect() for a server of this project. The URL's own user, and the environment, come before the file's token."""
    if not url.startswith("flashlake"):
        return {}
    access: dict[str, Any] = {}
    if config.server.token_file and not has_own_credentials() and "@" not in url:
        access["token_file"] = config.server.token_file
    if config.server.tls_ca and url.startswith("flashlake+tls"):
        access["tls_ca"] = config.server.tls_ca
    return access
