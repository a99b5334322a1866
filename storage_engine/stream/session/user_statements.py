"""User statements as a session runs them: over access.Users, in the words of SQL. One function per statement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from storage_engine.access import Grant, Scope, Users
from storage_engine.client.store import Store
from storage_engine.schema import user_statements as st

Answer = tuple[str, pa.Table | None]
_TEXT = pa.string()
_TIME = pa.timestamp("ms", "UTC")


def _create(store: Store, statement: st.CreateUser) -> Answer:
    is_new = Users(store.backend).create(statement.name, statement.password, if_not_exists=statement.if_not_exists)
    return f"user {statement.name}" if is_new else f"user {statement.name} exists", None


def _alter(store: Store, statement: st.AlterUser) -> Answer:
    Users(store.backend).set_password(statement.name, statement.password)
    return f"altered user {statement.name}", None


def _drop(store: Store, statement: st.DropUser) -> Answer:
    was_there = Users(store.backend).drop(statement.name, if_exists=statement.if_exists)
    return f"dropped user {statement.name}" if was_there else f"there is no user {statement.name}", None


def _grant(store: Store, statement: st.GrantRights) -> Answer:
    Users(store.backend).grant(statement.user, _grants_of(statement))
    return f"granted {', '.join(map(str, _grants_of(statement)))} to {statement.user}", None


def _revoke(store: Store, statement: st.RevokeRights) -> Answer:
    Users(store.backend).revoke(statement.user, _grants_of(statement))
    return f"revoked {', '.join(map(str, _grants_of(statement)))} from {statement.user}", None


def _grants_of(statement: st.GrantRights | st.RevokeRights) -> list[Grant]:
    return [Grant(right, Scope(statement.scope, statement.on)) for right in statement.rights]  # type: ignore[arg-type]


def _show_users(store: Store, _statement: st.ShowUsers) -> Answer:
    users = Users(store.backend)
    found = users.users()
    tokens = [record.user_id for record in users.tokens().values()]
    rows = {
        "user": pa.array(list(found), _TEXT),
        "created": pa.array([record.created_ms for record in found.values()], _TIME),
        "tokens": pa.array([tokens.count(record.id) for record in found.values()], pa.int64()),
    }
    return "users", pa.table(rows)


def _show_grants(store: Store, statement: st.ShowGrants) -> Answer:
    found = Users(store.backend).grants(statement.user)
    rows = {
        "user": pa.array([record.user for record in found], _TEXT),
        "right": pa.array([record.grant.right for record in found], _TEXT),
        "on": pa.array([str(record.grant.scope) for record in found], _TEXT),
    }
    return "grants", pa.table(rows)


ANSWERS: dict[type, Callable[[Store, Any], Answer]] = {
    st.CreateUser: _create,
    st.AlterUser: _alter,
    st.DropUser: _drop,
    st.GrantRights: _grant,
    st.RevokeRights: _revoke,
    st.ShowUsers: _show_users,
    st.ShowGrants: _show_grants,
}
