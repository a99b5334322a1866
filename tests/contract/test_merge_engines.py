"""Contract: first_row keeps the first row, versioned the newest version, and a WAL changelog has no old rows."""

from __future__ import annotations

import pytest

from storage_engine.errors import UserError


def create(store, name, **options):
    listed = ", ".join(f"'{key}' = '{value}'" for key, value in options.items())
    store.execute(f"CREATE TABLE {name} (id BIGINT NOT NULL, v INT, s STRING, PRIMARY KEY (id) NOT ENFORCED) WITH ({listed})")
    return store.table(name)


def rows(*values):
    return {name: [value[i] for value in values] for i, name in enumerate(("id", "v", "s"))}


def changes(table):
    return [tuple(row.values()) for row in table.scan().read_all().to_pylist()]


def current(table):
    return sorted(tuple(row.values()) for row in table.read().to_pylist())


@pytest.fixture
def firsts(store, db):
    return create(store, f"{db}.firsts", **{"table.merge-engine": "first_row"})


@pytest.fixture
def versions(store, db):
    return create(store, f"{db}.versions", **{"table.merge-engine": "versioned", "table.merge-engine.versioned.ver-column": "v"})


@pytest.fixture
def wal(store, db):
    return create(store, f"{db}.wal", **{"table.changelog.image": "wal"})


def test_first_row_keeps_the_first_row_within_a_batch_and_across_batches(firsts):
    firsts.upsert(rows((1, 1, "first"), (1, 2, "second"), (2, 3, "x")))
    firsts.upsert(rows((1, 9, "late"), (3, 4, "y")))

    assert current(firsts) == [(1, 1, "first"), (2, 3, "x"), (3, 4, "y")]
    assert changes(firsts) == [("+I", 1, 1, "first"), ("+I", 2, 3, "x"), ("+I", 3, 4, "y")]


def test_versioned_keeps_the_row_whose_version_is_as_large_or_larger(versions):
    versions.upsert(rows((1, 5, "five"), (1, 4, "four"), (2, None, "unversioned")))
    versions.upsert(rows((1, 5, "five again"), (2, None, "never wins")))
    versions.upsert(rows((1, 3, "three"), (2, 0, "zero"), (1, None, "null")))

    assert current(versions) == [(1, 5, "five again"), (2, 0, "zero")]
    assert [change[0] for change in changes(versions)] == ["+I", "+I", "-U", "+U", "-U", "+U"]


def test_engines_of_whole_rows_ignore_deletes_and_refuse_partial_updates(firsts, versions):
    for table in (firsts, versions):
        table.upsert(rows((1, 1, "a")))

        table.delete({"id": [1]})
        with pytest.raises(UserError, match="takes no partial update"):
            table.upsert({"id": [1], "v": [2]}, columns=["id", "v"])

        assert current(table) == [(1, 1, "a")]


def test_a_wal_changelog_writes_whole_rows_blind_and_never_has_an_old_row(wal):
    wal.upsert(rows((1, 1, "a"), (2, 2, "b"), (1, 3, "c")))
    wal.upsert(rows((1, 3, "c")))
    wal.upsert({"id": [2, 3], "v": [5, 6]}, columns=["id", "v"])
    wal.delete({"id": [1, 7]})

    assert [change[:2] for change in changes(wal)] == [("+U", 1), ("+U", 2), ("+U", 1), ("+U", 2), ("+I", 3), ("-D", 1)]
    assert current(wal) == [(2, 5, "b"), (3, 6, None)]
    assert wal.count() == 2


def test_engines_and_images_hold_after_a_restart(own):
    made = {
        "first_row": create(own.store, "e.firsts", **{"table.merge-engine": "first_row"}),
        "versioned": create(own.store, "e.versions", **{"table.merge-engine": "versioned", "table.merge-engine.versioned.ver-column": "v"}),
        "wal": create(own.store, "e.wal", **{"table.changelog.image": "wal"}),
    }
    for table in made.values():
        table.upsert(rows((1, 5, "a"), (2, 5, "b")))

    own.restart()
    for name in ("firsts", "versions", "wal"):
        own.store.table(f"e.{name}").upsert(rows((1, 4, "older"), (2, 6, "newer")))

    assert current(own.store.table("e.firsts")) == [(1, 5, "a"), (2, 5, "b")]
    assert current(own.store.table("e.versions")) == [(1, 5, "a"), (2, 6, "newer")]
    assert current(own.store.table("e.wal")) == [(1, 4, "older"), (2, 6, "newer")]
