"""Secrets: password hashes and tokens, how they are made, written and compared. No clock, no store.

A password is kept as scrypt with its parameters beside it; a token, 256 random bits, as SHA-256: it needs no slow hash.
Holds: a secret never appears in a repr, an error or a log; comparisons take the same time wherever they differ.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage_engine.errors import UserError

PASSWORD_CHARACTERS_MIN = 8
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 14, 8, 5
"""16 MiB and about 0.2 s of one core: OWASP's choice for little memory."""
_N_MAX, _R_MAX, _P_MAX, _HASH_BYTES = 1 << 17, 16, 16, 32
_TOKEN = re.compile(r"^flt_([0-9a-f]{16})_([A-Za-z0-9_-]{43})$")


@dataclass(frozen=True, repr=False)
class PasswordHash:
    """scrypt of a password, with what it takes to compute it again."""

    n: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    def matches(self, password: str) -> bool:
        return hmac.compare_digest(_scrypt(password, self.n, self.r, self.p, self.salt), self.digest)

    def to_json(self) -> dict[str, Any]:
        return {"scheme": "scrypt", "n": self.n, "r": self.r, "p": self.p, "salt": self.salt.hex(), "hash": self.digest.hex()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PasswordHash:
        """Errors: ValueError for parameters beyond what a server will compute, and whatever else is no hash."""
        if value.get("scheme") != "scrypt":
            raise ValueError("the scheme is not scrypt")
        n, r, p = int(value["n"]), int(value["r"]), int(value["p"])
        if not (1 < n <= _N_MAX and n & (n - 1) == 0 and 0 < r <= _R_MAX and 0 < p <= _P_MAX):
            raise ValueError("scrypt's parameters are out of range")
        salt, digest = bytes.fromhex(value["salt"]), bytes.fromhex(value["hash"])
        if len(salt) < 16 or len(digest) != _HASH_BYTES:
            raise ValueError("the salt or the hash is cut")
        return cls(n, r, p, salt, digest)


def hash_password(password: str) -> PasswordHash:
    """Errors: UserError for a password that is too short."""
    if len(password) < PASSWORD_CHARACTERS_MIN:
        raise UserError("the password is too short", where="password", next_step=f"Take at least {PASSWORD_CHARACTERS_MIN} characters.")
    salt = secrets.token_bytes(16)
    return PasswordHash(SCRYPT_N, SCRYPT_R, SCRYPT_P, salt, _scrypt(password, SCRYPT_N, SCRYPT_R, SCRYPT_P, salt))


def _scrypt(password: str, n: int, r: int, p: int, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r + (1 << 20), dklen=_HASH_BYTES)


def new_token() -> tuple[str, str]:
    """A new token's id, which names it, and its text, which is shown once."""
    token_id = secrets.token_hex(8)
    return token_id, f"flt_{token_id}_{secrets.token_urlsafe(32)}"


def parse_token(text: str) -> str | None:
    """The id of a token, None for what is no token."""
    found = _TOKEN.match(text)
    return found.group(1) if found else None


def hash_token(text: str) -> str:
    """SHA-256 of a token in hexadecimal: what is stored of it. Tokens are random and long, so neither salt nor stretching is needed."""
    return hashlib.sha256(text.encode()).hexdigest()
