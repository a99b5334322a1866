"""EXPLAIN says what runs, what is kept where, what a change costs and what is not reproducible; statement sets are all or nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, load_jobs
from tests.stream.comparing import sink_rows

TABLES = """CREATE TABLE db.clicks (id BIGINT NOT NULL, shop BIGINT NOT NULL, kind STRING, weight DOUBLE);
CREATE TABLE db.shops (shop BIGINT, city STRING, PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.by_shop (shop BIGINT, n BIGINT, kinds BIGINT, PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.out (id BIGINT, city STRING);
CREATE TABLE db.top (shop BIGINT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.means (shop BIGINT, w DOUBLE, kind STRING, PRIMARY KEY (shop) NOT ENFORCED);
SET 'pipeline.name' = 'j'; USE db;"""

PLANS = {
    "a sum in the sink": (
        "EXPLAIN INSERT INTO by_shop SELECT shop, COUNT(*), COUNT(DISTINCT kind) FROM clicks GROUP BY shop",
        """
        Sink: upsert into db.by_shop (shop, n, kinds), key (shop)
          Calc shop = "clicks.shop", n = "c0", kinds = "c1" [retracting]
            Aggregate by "clicks.shop": COUNT(*), COUNT(DISTINCT kind) [retracting]
              Scan log of db.clicks as clicks: shop, kind [append-only]
        State: groups by ("clicks.shop") in db.by_shop: the result columns are the state, key (shop)
        State: distinct values in db.by_shop__state_j_d0: one row per group and value
        Cost: groups by ("clicks.shop"): one point read per touched group of a micro-batch, and one per touched value for DISTINCT
        Reproducible: yes: the batch over the recorded offsets gives the same rows""",
    ),
    "a lookup and a function": (
        "EXPLAIN PLAN FOR INSERT INTO out SELECT c.id, shout(s.city) FROM clicks c "
        "LEFT JOIN shops FOR SYSTEM_TIME AS OF PROCTIME() AS s ON c.shop = s.shop",
        """
        Sink: append to db.out (id, city)
          Calc id = "c.id", city = UDF("s.city") [append-only]
            LookupJoin left db.shops as s on shop = "c.shop": city [append-only]
              Scan log of db.clicks as c: id, shop [append-only]
        Cost: a point read of db.shops per distinct key of a micro-batch
        Function: shout(STRING) STRING = explained.shout, called per row; by contract it gives equal results for equal arguments
        Reproducible: only while looked-up rows stay: db.shops is read as it is when a row is processed, and again when recomputed""",
    ),
    "a subquery and the first three": (
        "EXPLAIN INSERT INTO top SELECT shop, COUNT(*) AS n FROM clicks WHERE shop NOT IN (SELECT shop FROM shops WHERE city = 'x') "
        "GROUP BY shop ORDER BY n DESC LIMIT 3",
        """
        Sink: upsert into db.top (shop, n), key (shop)
          Calc shop = "shop", n = "n" [retracting]
            Rank first 3 by nothing in order of n desc: a change looks up rows kept by () [retracting]
              Calc shop = "clicks.shop", n = "c0" [retracting]
                Aggregate by "clicks.shop": COUNT(*) [retracting]
                  DeltaJoin anti on clicks.shop = $q2.shop: a change looks up rows kept by (clicks.shop) and db.shops by (shop) [retracting]
                    Scan log of db.clicks as clicks: shop [append-only]
                    Calc $q2.shop = "shops.shop" [retracting]
                      Calc shops.shop = "shops.shop" where "shops.city" = 'x' [retracting]
                        Scan changelog of db.shops as shops: shop, city [retracting]
        State: rows kept in db.top__rows_j_8 by (nothing: all are one partition): one row per key of the input, 2 columns
        State: groups by ("clicks.shop") in db.top__state_j_7: one row per group, key (g0), 1 values (the aggregate feeds another operator)
        State: rows kept in db.top__rows_j_5 by (clicks.shop): one row per row of the log, 5 columns
        Cost: reads every row of the one partition: all rows, each time, and ranks them before and after
        Cost: groups by ("clicks.shop"): one point read per touched group of a micro-batch
        Cost: a change of the left reads db.shops by (shop) with its key; one of the right reads the kept rows of (clicks.shop) too, """
        """and decides them before and after
        Reproducible: yes: the batch over the recorded offsets gives the same rows""",
    ),
    "an order of rows, and a sum of doubles": (
        "EXPLAIN CHANGELOG_MODE INSERT INTO means SELECT shop, SUM(weight), LAST_VALUE(kind) FROM clicks GROUP BY shop",
        """
        Sink: upsert into db.means (shop, w, kind), key (shop)
          Calc shop = "clicks.shop", w = "c0", kind = "c1" [retracting]
            Aggregate by "clicks.shop": SUM(weight), LAST_VALUE(kind), a touched group is computed anew from its kept rows [retracting]
              Scan log of db.clicks as clicks: shop, kind, weight [append-only]
        State: rows kept in db.means__rows_j_2 by (clicks.shop): one row per row of the log, 7 columns
        Cost: groups by ("clicks.shop"): every row of a touched group is read, and the group computed anew
        Reproducible: up to the order of additions: SUM(weight) adds up FLOAT or DOUBLE""",
    ),
    "a query with a scalar subquery": (
        "EXPLAIN SELECT c.id, s.city FROM clicks c JOIN shops s ON c.shop = s.shop WHERE c.id > (SELECT MIN(id) FROM clicks)",
        """
        Sink: append to result (id, city)
          Calc id = "c.id", city = "s.city" [retracting]
            Calc c.id = "c.id", s.city = "s.city" where "c.id" > "$q5.EXPR$0" [retracting]
              DeltaJoin left on $k9 = $k10: a change looks up rows kept by ($k9) and rows kept by ($k10) [retracting]
                Calc c.id = "c.id", s.city = "s.city", $k9 = CAST(1 AS INT) [retracting]
                  DeltaJoin inner on c.shop = s.shop: a change looks up rows kept by (c.shop) and db.shops by (shop) [retracting]
                    Scan log of db.clicks as c: id, shop [append-only]
                    Scan changelog of db.shops as s: shop, city [retracting]
                Calc $q5.EXPR$0 = "$q5.EXPR$0", $k10 = CAST(1 AS INT) [retracting]
                  Calc $q5.EXPR$0 = "c0" [retracting]
                    Aggregate by nothing: MIN(id) [retracting]
                      Scan log of db.clicks as clicks: id [append-only]
        State: rows kept in result__rows_query_11 by ($k9): equal rows once, with their number, 3 columns
        State: rows kept in result__rows_query_12 by ($k10): one row per key of the input, 2 columns
        State: rows kept in result__rows_query_3 by (c.shop): one row per row of the log, 6 columns
        State: the one group in result__state_query_8: one row per group, key (g_all), 1 values (the aggregate feeds another operator)
        Cost: a change of the left reads one row; when the subquery's answer changes, all of the kept rows of ($k9) are read and """
        """decided anew
        Cost: a change of the left reads db.shops by (shop) with its key, one of the right reads the kept rows of (c.shop)
        Cost: the one group: one point read per touched group of a micro-batch
        Reproducible: yes: the batch over the recorded offsets gives the same rows
        Notice: the columns that identify a row of the result are not selected: no table could hold it""",
    ),
}


@pytest.fixture
def db(session: SqlSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SqlSession:
    (tmp_path / "explained.py").write_text("def shout(text: str) -> str: return text.upper()")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("explained", None)
    session.execute(f"CREATE TEMPORARY FUNCTION shout AS 'explained.shout' LANGUAGE PYTHON; {TABLES}")
    return session


@pytest.mark.parametrize("name", list(PLANS))
def test_a_plan_says_what_is_kept_what_it_costs_and_what_can_be_proved(db: SqlSession, name: str) -> None:
    statement, expected = PLANS[name]
    rows = db.execute(f"USE db; {statement}")[-1].rows
    assert rows is not None
    shown = [line if "UDF_SHOUT" not in line.upper() else line[: line.upper().index("UDF_SHOUT")] + 'UDF("s.city") [append-only]'
             for line in rows["plan"].to_pylist()]  # fmt: skip
    assert shown == [line.removeprefix(" " * 8) for line in expected.strip("\n").splitlines()]


def test_explain_stores_nothing_and_refuses_what_cannot_run(store: Store, db: SqlSession) -> None:
    db.execute("USE db; EXPLAIN INSERT INTO top SELECT shop, COUNT(*) FROM clicks GROUP BY shop")
    assert load_jobs(store) == {}
    assert not [name for name in store.tables() if "__" in name]
    with pytest.raises(StatementRefused, match="has no equality between its sides"):
        db.execute("USE db; EXPLAIN SELECT * FROM clicks a JOIN clicks b ON a.id < b.id")
    with pytest.raises(StatementRefused, match="EXPLAIN takes INSERT INTO"):
        db.execute("EXPLAIN SHOW TABLES")


SET = """{} INSERT INTO by_shop (shop, n) SELECT shop, COUNT(*) FROM clicks GROUP BY shop;
INSERT INTO top SELECT shop, COUNT(*) FROM clicks {} GROUP BY shop;
END;"""


@pytest.mark.parametrize("opening", ["EXECUTE STATEMENT SET BEGIN", "BEGIN STATEMENT SET;", "execute statement set\nbegin"])
def test_a_statement_set_becomes_its_jobs(store: Store, db: SqlSession, opening: str) -> None:
    message = db.execute(f"USE db; {SET.format(opening, '')} SHOW JOBS")[1].message
    assert message == "job j-1 runs; job j-2 runs"
    store.table("db.clicks").append({"id": [1, 2], "shop": [7, 7], "kind": ["a", "b"], "weight": [1.0, 2.0]})
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.by_shop") == [(7, 2, None)]
    assert sink_rows(store, "db.top") == [(7, 2)]
    assert db.execute(f"USE db; {SET.format(opening, '')}")[1].message == "job j-1 runs already; job j-2 runs already"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SET.format("BEGIN STATEMENT SET;", "WHERE nothing = 1"), "column nothing is not known"),
        (
            SET.format("BEGIN STATEMENT SET;", "").replace("INSERT INTO top", "INSERT INTO by_shop (shop, n)"),
            "column n of db.by_shop is kept by job j-1",
        ),
        ("BEGIN STATEMENT SET; INSERT INTO top SELECT shop, COUNT(*) FROM clicks GROUP BY shop;", "has no END"),
        ("BEGIN STATEMENT SET; END;", "is empty"),
        ("BEGIN STATEMENT SET; DROP TABLE top; END;", "DROP in a statement set"),
    ],
)
def test_of_a_statement_set_that_cannot_run_nothing_runs(store: Store, db: SqlSession, text: str, reason: str) -> None:
    with pytest.raises(StatementRefused, match=reason):
        db.execute(f"USE db; {text}")
    assert load_jobs(store) == {}
    assert not [name for name in store.tables() if "__" in name]
