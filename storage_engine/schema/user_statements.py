"""User statements: CREATE, ALTER and DROP USER, GRANT, REVOKE, SHOW USERS, SHOW GRANTS: values and their parsers.

Holds: a password is in no refusal and not in the statement's text; only `password` carries it, which no repr shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from storage_engine.schema.reader import Reader
from storage_engine.schema.statements import Statement

_RIGHTS = ("READ", "WRITE", "CREATE", "DROP", "ALTER", "DESCRIBE", "ALL", "ADMIN")


@dataclass(frozen=True)
class CreateUser(Statement):
    """CREATE USER [IF NOT EXISTS] u [IDENTIFIED BY 'password']; without a password the user logs in by tokens only."""

    name: str
    password: str | None = field(repr=False)
    if_not_exists: bool = False


@dataclass(frozen=True)
class AlterUser(Statement):
    """ALTER USER u IDENTIFIED BY 'password'."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class DropUser(Statement):
    name: str
    if_exists: bool = False


@dataclass(frozen=True)
class GrantRights(Statement):
    """GRANT right, ... ON CLUSTER | DATABASE d | [TABLE] t TO [USER] u; `scope` is CLUSTER, DATABASE or TABLE, `on` its name."""

    rights: tuple[str, ...]
    scope: str
    on: str
    user: str


@dataclass(frozen=True)
class RevokeRights(Statement):
    """REVOKE right, ... ON ... FROM [USER] u."""

    rights: tuple[str, ...]
    scope: str
    on: str
    user: str


@dataclass(frozen=True)
class ShowUsers(Statement):
    pass


@dataclass(frozen=True)
class ShowGrants(Statement):
    """SHOW GRANTS [FOR [USER] u]; without a name all that the caller may see."""

    user: str | None = None


def _create_user(reader: Reader) -> Statement:
    if_not_exists = reader.take_words("IF", "NOT", "EXISTS")
    name = _user_name(reader)
    password = _password(reader) if reader.peek().kind != "end" else None
    return CreateUser(name, password, if_not_exists, **_place(reader, f"CREATE USER {name} ..."))


def _alter_user(reader: Reader) -> Statement:
    name = _user_name(reader)
    return AlterUser(name, _password(reader), **_place(reader, f"ALTER USER {name} ..."))


def _drop_user(reader: Reader) -> Statement:
    if_exists = reader.take_words("IF", "EXISTS")
    return DropUser(_user_name(reader), if_exists, **reader.place)


def _grant(reader: Reader) -> Statement:
    rights, scope, on = _rights_on(reader)
    reader.expect_word("TO", "GRANT READ ON TABLE db.t TO user")
    reader.take_words("USER")
    return GrantRights(rights, scope, on, _user_name(reader), **reader.place)


def _revoke(reader: Reader) -> Statement:
    rights, scope, on = _rights_on(reader)
    reader.expect_word("FROM", "REVOKE READ ON TABLE db.t FROM user")
    reader.take_words("USER")
    return RevokeRights(rights, scope, on, _user_name(reader), **reader.place)


def _show_grants(reader: Reader) -> Statement:
    user = None
    if reader.take_words("FOR"):
        reader.take_words("USER")
        user = _user_name(reader)
    return ShowGrants(user, **reader.place)


def _rights_on(reader: Reader) -> tuple[tuple[str, ...], str, str]:
    rights = [_right(reader)]
    while reader.at(","):
        reader.take()
        rights.append(_right(reader))
    reader.expect_word("ON", "... ON CLUSTER, ON DATABASE db or ON TABLE db.t")
    if reader.take_words("CLUSTER"):
        return tuple(rights), "CLUSTER", ""
    if reader.take_words("DATABASE"):
        return tuple(rights), "DATABASE", reader.database_name()
    reader.take_words("TABLE")
    return tuple(rights), "TABLE", reader.table_name()


def _right(reader: Reader) -> str:
    token = reader.peek()
    if token.upper not in _RIGHTS:
        raise reader.refusal(f"{token} is not a right", f"Rights are {', '.join(_RIGHTS)}.")
    reader.take()
    if token.upper == "ALL":
        reader.take_words("PRIVILEGES")
    return token.upper


def _user_name(reader: Reader) -> str:
    """A user's name: a word, or quoted in any way."""
    return reader.take().value if reader.peek().kind == "string" else reader.plain_name("the user's name")


def _password(reader: Reader) -> str:
    if not reader.take_words("IDENTIFIED", "BY") or reader.peek().kind != "string":
        raise reader.refusal("the password is not given as IDENTIFIED BY '...'", "Write IDENTIFIED BY 'password', in single quotes.")
    password = reader.take().value
    if reader.peek().kind != "end":
        raise reader.refusal("something follows the password", "End the statement there; inside it, ' is written twice.")
    return password


def _place(reader: Reader, text: str) -> dict[str, Any]:
    return {**reader.place, "text": text}


USER_STATEMENTS: tuple[tuple[tuple[str, ...], Callable[[Reader], Statement]], ...] = (
    (("CREATE", "USER"), _create_user),
    (("ALTER", "USER"), _alter_user),
    (("DROP", "USER"), _drop_user),
    (("GRANT",), _grant),
    (("REVOKE",), _revoke),
    (("SHOW", "USERS"), lambda reader: ShowUsers(**reader.place)),
    (("SHOW", "GRANTS"), _show_grants),
)
