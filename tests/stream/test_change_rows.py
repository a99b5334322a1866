"""UPDATE and DELETE FROM: all rows that are meant change in one commit, jobs see it, and what cannot be changed is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import storage_engine
from storage_engine.client.store import Store
from storage_engine.errors import StatementRefused, UserError
from storage_engine.stream import Worker

TABLES = """
CREATE TABLE db.orders (id BIGINT, shop INT NOT NULL, amt DECIMAL(10, 2), note STRING, PRIMARY KEY (id) NOT ENFORCED);
CREATE TABLE db.shops (shop INT, open BOOLEAN, PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.total (shop INT, n BIGINT, amt DECIMAL(38, 2), PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.events (id BIGINT, x INT);
CREATE TABLE db.merged (k INT, n BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum');
CREATE TABLE db.firsts (k INT, n BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ('table.merge-engine' = 'first_row');
INSERT INTO db.orders VALUES (1, 1, 10, 'a'), (2, 1, 20, 'b'), (3, 2, 30, CAST(NULL AS STRING));
INSERT INTO db.shops VALUES (1, TRUE), (2, FALSE);
INSERT INTO db.total SELECT shop, COUNT(*), SUM(amt) FROM db.orders GROUP BY shop;
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as store:
        store.execute(TABLES)
        yield store


def rows(store: Store, table: str) -> list[tuple[object, ...]]:
    found = store.table(table).read().to_pylist()
    return sorted((tuple(row.values()) for row in found), key=lambda row: row[0])  # type: ignore[arg-type, return-value]


def message(store: Store, sql: str) -> str:
    (result,) = store.execute(sql)
    return result.message


def test_update_sets_the_rows_that_the_condition_holds_for_from_their_own_values(store: Store) -> None:
    before = store.version()
    assert message(store, "UPDATE db.orders SET amt = amt * 2 + shop, note = COALESCE(note, 'x, y') WHERE amt >= 20") == (
        "updated 2 rows of db.orders"
    )
    assert [(row[0], str(row[2]), row[3]) for row in rows(store, "db.orders")] == [
        (1, "10.00", "a"),
        (2, "41.00", "b"),
        (3, "62.00", "x, y"),
    ]
    assert [commit.ranges.keys() for commit in store.commits(before)] == [{"db.orders"}], "one commit"


def test_update_without_condition_and_with_a_subquery_over_another_table(store: Store) -> None:
    store.execute("UPDATE db.orders SET note = 'all'")
    assert {row[3] for row in rows(store, "db.orders")} == {"all"}
    store.execute("USE db; UPDATE orders SET note = NULL WHERE shop IN (SELECT shop FROM shops WHERE open)")
    assert [row[3] for row in rows(store, "db.orders")] == [None, None, "all"]


def test_delete_takes_the_rows_away_and_says_how_many(store: Store) -> None:
    assert message(store, "DELETE FROM db.orders WHERE note IS NULL OR id = 1") == "deleted 2 rows of db.orders"
    assert [row[0] for row in rows(store, "db.orders")] == [2]
    assert message(store, "DELETE FROM db.orders WHERE id = 99") == "deleted 0 rows of db.orders"
    assert message(store, "DELETE FROM db.orders") == "deleted 1 rows of db.orders"
    assert rows(store, "db.orders") == []


def test_a_running_job_follows_updates_and_deletes(store: Store) -> None:
    worker = Worker(store)
    worker.run_until_idle()
    store.execute("UPDATE db.orders SET shop = 2, amt = 5 WHERE id = 1; DELETE FROM db.orders WHERE id = 2")
    worker.run_until_idle()
    worker.close()
    assert [(row[0], row[1], str(row[2])) for row in rows(store, "db.total")] == [(2, 2, "35.00")]


def test_a_statement_may_read_the_table_it_writes_when_it_runs_once(store: Store) -> None:
    store.execute("SET 'execution.runtime-mode' = 'batch'; INSERT INTO db.orders SELECT id, shop, amt + id, note FROM db.orders")
    assert [str(row[2]) for row in rows(store, "db.orders")] == ["11.00", "22.00", "33.00"]


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("UPDATE db.events SET x = 1", "db.events is a log: its rows are not changed"),
        ("DELETE FROM db.events", "db.events is a log: its rows are not changed"),
        ("UPDATE db.orders SET id = 7", "id is part of the primary key of db.orders"),
        ("UPDATE db.orders SET amt = 1, amt = 2", "column amt is set twice"),
        ("UPDATE db.orders SET price = 1", "db.orders has no column price"),
        ("UPDATE db.orders SET amt = 'dear'", "amt"),
        ("UPDATE db.orders SET amt = 1 WHERE colour = 'red'", "colour"),
        ("UPDATE db.orders SET amt =", "an expression is missing"),
        ("UPDATE db.orders WHERE id = 1", "expected SET, found WHERE"),
        ("UPDATE db.merged SET n = 1", "db.merged merges the rows it is given (aggregation engine)"),
        ("UPDATE db.firsts SET n = 1", "db.firsts merges the rows it is given (first_row engine)"),
        ("DELETE FROM db.firsts", "db.firsts ignores deletes ('table.delete.behavior' = 'ignore')"),
        ("DELETE FROM db.orders WHERE id > 0 GROUP BY id", "near 'GROUP BY'"),
        ("DELETE FROM db.orders WHERE id = 1 UNION ALL SELECT shop FROM db.shops", "near 'UNION'"),
        ("DELETE FROM db.orders WHERE id = 1) OR (TRUE", "a ) closes nothing"),
        ("UPDATE db.orders SET amt = 1) AS x, (2 WHERE id = 1", "a ) closes nothing"),
        ("DELETE db.orders", "expected FROM, found db"),
        ("UPDATE db.nothing SET a = 1", "there is no table db.nothing"),
    ],
)
def test_what_cannot_be_changed_is_refused_and_nothing_is(store: Store, sql: str, what: str) -> None:
    before = store.version()
    with pytest.raises((StatementRefused, UserError)) as refused:
        store.execute(sql)
    assert what in str(refused.value)
    assert store.version() == before


def test_a_value_that_does_not_fit_changes_nothing(store: Store) -> None:
    before = rows(store, "db.orders")
    with pytest.raises(UserError):
        store.execute("UPDATE db.orders SET amt = 99999999999.0 WHERE id = 1")
    with pytest.raises(UserError):
        store.execute("UPDATE db.orders SET shop = CAST(NULL AS INT) WHERE id = 1")
    assert rows(store, "db.orders") == before
