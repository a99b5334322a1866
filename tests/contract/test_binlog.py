"""Contract: a changelog as one row per change, with the row before and the row after it."""

from __future__ import annotations

import pytest

from storage_engine import TableBucket
from storage_engine.errors import SchemaMismatch, UserError


def made(store, db, options=""):
    store.execute(f"CREATE TABLE {db}.t (k BIGINT, v BIGINT, s STRING, PRIMARY KEY (k) NOT ENFORCED){options}")
    table = store.table(f"{db}.t")
    table.upsert({"k": [1, 2], "v": [10, 20], "s": ["a", "b"]})
    table.upsert({"k": [1], "v": [11], "s": ["c"]})
    table.delete({"k": [2]})
    return table


def test_each_change_is_one_row_and_an_update_takes_the_offset_of_its_new_row(store, db):
    rows = made(store, db).binlog(["k", "v"]).read_all().to_pylist()

    assert [(row["_change_type"], row["_log_offset"], row["before"], row["after"]) for row in rows] == [
        ("insert", 0, None, {"k": 1, "v": 10}),
        ("insert", 1, None, {"k": 2, "v": 20}),
        ("update", 3, {"k": 1, "v": 10}, {"k": 1, "v": 11}),
        ("delete", 4, {"k": 2, "v": 20}, None),
    ]


@pytest.mark.parametrize(
    ("start", "stop", "offsets"),
    [(0, 5, [0, 1, 3, 4]), (2, 5, [3, 4]), (3, 5, [3, 4]), (4, 5, [4]), (0, 3, [0, 1]), (3, 4, [3]), (5, 5, [])],
)
def test_a_range_has_the_changes_whose_offsets_lie_in_it_with_their_old_rows(store, db, start, stop, offsets):
    bucket = TableBucket("", 0)

    rows = made(store, db).binlog(["v"], start={bucket: start}, stop={bucket: stop}).read_all().to_pylist()

    assert [row["_log_offset"] for row in rows] == offsets
    assert all(row["before"] == {"v": 10} for row in rows if row["_change_type"] == "update")


def test_a_binlog_of_several_buckets_has_every_change_once(store, db):
    table = made(store, db, " WITH ('bucket.num' = '3')")
    for i in range(10):
        table.upsert({"k": list(range(20)), "v": [i] * 20, "s": [None] * 20})

    rows = table.binlog(["k", "v"]).read_all().to_pylist()

    changes = table.scan(["k", "v"]).read_all().to_pylist()
    assert sorted((row["after"]["k"], row["after"]["v"]) for row in rows if row["after"]) == sorted(
        (row["k"], row["v"]) for row in changes if row["_change_type"] in ("+I", "+U")
    )
    assert sorted((row["before"]["k"], row["before"]["v"]) for row in rows if row["before"]) == sorted(
        (row["k"], row["v"]) for row in changes if row["_change_type"] in ("-U", "-D")
    )


def test_without_old_rows_in_the_changelog_an_update_has_no_before(store, db):
    rows = made(store, db, " WITH ('table.changelog.image' = 'wal')").binlog().read_all().to_pylist()

    assert [row["_change_type"] for row in rows] == ["update", "update", "update", "delete"]  # blind writes do not look
    assert [row["before"] for row in rows[:3]] == [None] * 3


def test_a_log_table_has_no_binlog_and_an_unknown_column_is_refused(store, db):
    store.execute(f"CREATE TABLE {db}.log (x BIGINT)")
    with pytest.raises(UserError, match=r"has no \$binlog"):
        store.table(f"{db}.log").binlog()
    table = made(store, db)
    with pytest.raises(SchemaMismatch, match="no column nope"):
        table.binlog(["nope"])


@pytest.mark.parametrize(("suffix", "hint"), [("changelog", "metadata=True"), ("binlog", "binlog()"), ("lake", "lake_read")])
def test_a_virtual_table_asked_for_as_a_table_says_what_to_use(store, db, suffix, hint):
    made(store, db)

    with pytest.raises(UserError, match=hint.replace("(", r"\(").replace(")", r"\)")):
        store.table(f"{db}.t${suffix}")
