"""Users, grants and tokens in the store, by SQL: over every backend that keeps them, and after a restart."""

from __future__ import annotations

import pytest

from storage_engine.access import Users
from storage_engine.errors import AlreadyExists, StatementRefused, UnknownUser, UserError

pytestmark = pytest.mark.needs("users")


def rows_of(store, sql):
    return store.execute(sql)[-1].rows.to_pylist()


def grants_of(store, user):
    return [(row["right"], row["on"]) for row in rows_of(store, f"SHOW GRANTS FOR {user}")]


def test_users_and_grants_survive_a_restart(own):
    own.store.execute("""
        CREATE USER ana IDENTIFIED BY 'correct horse';
        CREATE USER IF NOT EXISTS ana IDENTIFIED BY 'another one';
        GRANT READ, WRITE ON TABLE shop.orders TO ana;
        GRANT ALL ON DATABASE shop TO USER ana;
        REVOKE WRITE ON TABLE shop.orders FROM ana
    """)
    token = Users(own.store.backend).create_token("ana", "laptop", lifetime_ms=60_000)

    own.restart()

    assert "ana" in [row["user"] for row in rows_of(own.store, "SHOW USERS")]
    assert grants_of(own.store, "ana") == [("ALL", "DATABASE shop"), ("READ", "TABLE shop.orders")]
    users = Users(own.store.backend)
    assert users.users()["ana"].password.matches("correct horse")
    assert not users.users()["ana"].password.matches("another one")
    assert [record.label for record in users.tokens().values() if record.user == "ana"] == ["laptop"]
    assert token not in str(users.tokens())


def test_a_user_made_anew_has_nothing_of_the_one_before(own):
    own.store.execute("CREATE USER bo IDENTIFIED BY 'correct horse'; GRANT READ ON CLUSTER TO bo; DROP USER bo")
    own.store.execute("CREATE USER bo IDENTIFIED BY 'correct horse'")

    assert grants_of(own.store, "bo") == []


def test_an_altered_password_replaces_the_old_one(store, db):
    store.execute(f"CREATE USER {db} IDENTIFIED BY 'correct horse'; ALTER USER {db} IDENTIFIED BY 'battery staple'")

    password = Users(store.backend).users()[db].password
    assert password.matches("battery staple")
    assert not password.matches("correct horse")


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("CREATE USER u{db}", AlreadyExists),
        ("CREATE USER x{db} IDENTIFIED BY 'short'", UserError),
        ("CREATE USER x{db} 'secret words'", StatementRefused),
        ("CREATE USER x{db} IDENTIFIED BY 'secret words' 'secret words'", StatementRefused),
        ("CREATE USER `a b` IDENTIFIED BY 'secret words'", StatementRefused),
        ("ALTER USER none{db} IDENTIFIED BY 'secret words'", UnknownUser),
        ("DROP USER none{db}", UnknownUser),
        ("GRANT READ ON CLUSTER TO none{db}", UnknownUser),
        ("GRANT FLY ON CLUSTER TO u{db}", StatementRefused),
        ("GRANT ADMIN ON DATABASE a TO u{db}", StatementRefused),
        ("GRANT CREATE ON TABLE a.b TO u{db}", StatementRefused),
        ("REVOKE READ ON TABLE a.b FROM u{db}", UnknownUser),
    ],
)
def test_what_cannot_be_is_refused_and_no_refusal_shows_a_password(store, db, statement, error):
    store.execute(f"CREATE USER u{db}")

    with pytest.raises(error) as caught:
        store.execute(statement.format(db=db))

    assert "secret" not in str(caught.value)


def test_dropping_a_user_that_is_not_there_is_harmless_when_it_is_said(store):
    assert store.execute("DROP USER IF EXISTS nobody")[0].message == "there is no user nobody"
