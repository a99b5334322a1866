"""Rights: what may be granted, on what, and what follows from it. Pure.

Scopes nest as in Apache Fluss: a grant on the cluster holds for every database, one on a database for every table in it.
READ, WRITE, CREATE, DROP and ALTER imply DESCRIBE where they hold; ALL is all six; ADMIN (on the cluster only) is ALL, and
the management of users, tokens, grants and backups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from storage_engine.errors import StatementRefused

Right = Literal["READ", "WRITE", "CREATE", "DROP", "ALTER", "DESCRIBE", "ALL", "ADMIN"]
ScopeKind = Literal["CLUSTER", "DATABASE", "TABLE"]

PLAIN: tuple[Right, ...] = ("READ", "WRITE", "CREATE", "DROP", "ALTER", "DESCRIBE")
RIGHTS: tuple[Right, ...] = (*PLAIN, "ALL", "ADMIN")
_IMPLIES: dict[Right, tuple[Right, ...]] = {
    **{right: (right, "DESCRIBE") for right in PLAIN},
    "ALL": (*PLAIN, "ALL"),
    "ADMIN": (*PLAIN, "ALL", "ADMIN"),
}


@dataclass(frozen=True)
class Scope:
    """Where a right holds: the cluster, a database ("db") or a table ("db.t")."""

    kind: ScopeKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


CLUSTER = Scope("CLUSTER")


def database(name: str) -> Scope:
    return Scope("DATABASE", name)


def table(name: str) -> Scope:
    return Scope("TABLE", name)


@dataclass(frozen=True)
class Grant:
    """One right on one scope."""

    right: Right
    scope: Scope

    def __str__(self) -> str:
        return f"{self.right} ON {self.scope}"


def checked(grant: Grant) -> Grant:
    """Errors: StatementRefused for a right that does not exist, or that cannot be held there."""
    if grant.right not in RIGHTS:
        raise StatementRefused(f"there is no right {grant.right}", where="GRANT", next_step=f"Use one of {', '.join(RIGHTS)}.")
    if grant.right == "ADMIN" and grant.scope.kind != "CLUSTER":
        raise StatementRefused("ADMIN is a right on the cluster", where="GRANT", next_step="Write GRANT ADMIN ON CLUSTER TO user, or ALL.")
    if grant.right == "CREATE" and grant.scope.kind == "TABLE":
        raise StatementRefused("CREATE is a right on a database", where="GRANT", next_step="Write GRANT CREATE ON DATABASE db TO user.")
    return grant


class Grants:
    """All grants of one user, with everything they imply; `permits` is a few look-ups in a set.

    >>> held = Grants([Grant("WRITE", database("shop"))])
    >>> held.permits("DESCRIBE", table("shop.orders")), held.permits("READ", table("shop.orders"))
    (True, False)
    """

    def __init__(self, grants: Iterable[Grant]) -> None:
        self._held = frozenset((implied, grant.scope.kind, grant.scope.name) for grant in grants for implied in _IMPLIES[grant.right])

    def permits(self, right: Right, scope: Scope) -> bool:
        """Whether these grants imply `right` on `scope`: held there, on its database, or on the cluster."""
        held = self._held
        if (right, "CLUSTER", "") in held:
            return True
        if scope.kind == "CLUSTER":
            return False
        if (right, scope.kind, scope.name) in held:
            return True
        return scope.kind == "TABLE" and (right, "DATABASE", scope.name.partition(".")[0]) in held


ADMINISTRATOR = Grants([Grant("ADMIN", CLUSTER)])
