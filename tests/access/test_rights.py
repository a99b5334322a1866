"""What a grant permits, and what secrets look like."""

from __future__ import annotations

import pytest

from storage_engine.access import (
    ADMINISTRATOR,
    CLUSTER,
    RIGHTS,
    Grant,
    Grants,
    PasswordHash,
    database,
    hash_password,
    hash_token,
    new_token,
    parse_token,
    table,
)
from storage_engine.access.rights import PLAIN

SCOPES = [CLUSTER, database("shop"), database("other"), table("shop.t"), table("shop.u"), table("other.t")]


def covers(outer, inner) -> bool:
    """By the plain words of the rule, without the code's own tables."""
    if outer.kind == "CLUSTER" or outer == inner:
        return True
    return outer.kind == "DATABASE" and inner.kind == "TABLE" and inner.name.split(".")[0] == outer.name


def implies(held, asked) -> bool:
    if held == asked or held == "ADMIN":
        return True
    return asked in PLAIN if held == "ALL" else asked == "DESCRIBE" and held in ("READ", "WRITE", "CREATE", "DROP", "ALTER")


@pytest.mark.parametrize("held", RIGHTS)
def test_a_grant_permits_what_it_implies_where_it_holds_and_nothing_else(held):
    for outer in SCOPES:
        grants = Grants([Grant(held, outer)])
        for inner in SCOPES:
            for asked in RIGHTS:
                assert grants.permits(asked, inner) == (covers(outer, inner) and implies(held, asked)), (held, outer, asked, inner)


def test_without_grants_nothing_is_permitted_and_an_administrator_may_everything():
    assert not any(Grants([]).permits(right, scope) for right in RIGHTS for scope in SCOPES)
    assert all(ADMINISTRATOR.permits(right, scope) for right in RIGHTS for scope in SCOPES)


def test_a_password_hash_knows_its_password_and_does_not_show_it():
    one, other = hash_password("correct horse"), hash_password("correct horse")

    assert PasswordHash.from_json(one.to_json()).matches("correct horse")
    assert not one.matches("correct horse ")
    assert one.salt != other.salt
    assert one.digest.hex() not in repr(one)


@pytest.mark.parametrize("change", [{"n": 1 << 30}, {"n": 1000}, {"r": 0}, {"p": 99}, {"salt": ""}, {"hash": "00"}, {"scheme": "md5"}])
def test_a_hash_that_would_cost_a_server_its_memory_is_no_hash(change):
    with pytest.raises(ValueError, match=r"scrypt|salt"):
        PasswordHash.from_json({**hash_password("correct horse").to_json(), **change})


def test_tokens_are_all_different_and_found_by_their_id():
    made = [new_token() for _ in range(100)]

    assert len({text for _, text in made}) == 100
    assert all(parse_token(text) == token_id for token_id, text in made)
    assert len({hash_token(text) for _, text in made}) == 100
    assert [parse_token(text) for text in ("", "flt_0_x", made[0][1] + "x", made[0][1][:-1])] == [None] * 4
