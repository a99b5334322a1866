"""Contract: an aggregation table takes rows back out of sums and counts, and what cannot be undone is refused by name."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest

from storage_engine import WriteOp
from storage_engine.errors import SchemaMismatch, UserError

pytestmark = pytest.mark.needs("aggregation", "retract")


@pytest.fixture
def sales(store, db):
    store.execute(f"""
        CREATE TABLE {db}.sales (shop BIGINT, n BIGINT, total DECIMAL(12, 2), q INT, ratio DOUBLE, best INT, note STRING,
          PRIMARY KEY (shop) NOT ENFORCED)
        WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'count', 'fields.total.agg' = 'sum', 'fields.q.agg' = 'sum',
              'fields.ratio.agg' = 'sum', 'fields.best.agg' = 'max', 'bucket.num' = '2')
    """)
    return store.table(f"{db}.sales")


@pytest.fixture
def emptying(store, db):
    store.execute(f"""
        CREATE TABLE {db}.emptying (k BIGINT, n BIGINT, total BIGINT, best BIGINT, PRIMARY KEY (k) NOT ENFORCED)
        WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'fields.total.agg' = 'sum', 'fields.best.agg' = 'max',
              'table.delete.on-zero' = 'n')
    """)
    return store.table(f"{db}.emptying")


def row(shop, n=None, total=None, q=None, ratio=None, best=None, note=None):
    total = None if total is None else Decimal(total)
    return {"shop": shop, "n": n, "total": total, "q": q, "ratio": ratio, "best": best, "note": note}


def changes(table, columns):
    rows = table.scan(columns).read_all()
    return [tuple(line.values()) for line in rows.to_pylist()]


def test_taking_a_row_back_leaves_what_was_there_before_it(sales):
    sales.upsert([row(1, 1, "10.00", 3, 0.5, 9, "a")])
    before = sales.read().to_pylist()
    sales.upsert([row(1, 1, "0.25", None, 0.25)])

    sales.retract([row(1, 1, "0.25", None, 0.25)])

    assert sales.read().to_pylist() == before
    assert changes(sales, ["n", "total"])[-2:] == [("-U", 2, Decimal("10.25")), ("+U", 1, Decimal("10.00"))]


def test_rows_of_one_key_in_a_batch_are_all_taken_back(sales):
    sales.upsert([row(1, 1, "1.00", 1)] * 5)

    sales.retract([row(1, 1, "1.00", 1), row(1, None, "1.00"), row(1, 1, None, 1)])

    (found,) = sales.read().to_pylist()
    assert (found["n"], found["total"], found["q"]) == (3, Decimal("3.00"), 3)


def test_null_takes_nothing_back_and_a_sum_of_which_all_was_taken_is_zero(sales):
    sales.upsert([row(1, 1, "1.00")])
    sales.retract([row(1)])
    assert sales.read(["n", "total", "q"]).to_pylist() == [{"n": 1, "total": Decimal("1.00"), "q": None}]

    sales.retract([row(1, 1, "1.00")])

    assert sales.read(["n", "total", "q"]).to_pylist() == [{"n": 0, "total": Decimal("0.00"), "q": None}]


def test_a_row_may_be_taken_back_before_it_has_come(sales):
    sales.retract([row(7, 1, "5.00", 2)])
    assert sales.read(["n", "total", "q"]).to_pylist() == [{"n": -1, "total": Decimal("-5.00"), "q": -2}]

    sales.upsert([row(7, 1, "5.00", 2)])

    assert sales.read(["n", "total", "q"]).to_pylist() == [{"n": 0, "total": Decimal("0.00"), "q": 0}]


def test_taking_back_nothing_writes_nothing(sales):
    sales.upsert([row(1, 1, "1.00", 2)])
    before = sales.offsets()

    sales.retract([row(1, None, "0.00", 0)])

    assert sales.offsets() == before


def test_one_commit_takes_an_old_row_back_and_adds_the_new_one_in_order(store, sales):
    sales.upsert([row(1, 1, "10.00", 3)])

    schema = sales.descriptor.arrow_schema
    old, new = (pa.Table.from_pylist([item], schema) for item in (row(1, 1, "10.00", 3), row(1, 1, "12.00", 4)))
    store.commit([WriteOp(sales.name, "upsert", new), WriteOp(sales.name, "retract", old)])

    assert sales.read(["n", "total", "q"]).to_pylist() == [{"n": 1, "total": Decimal("12.00"), "q": 4}]
    assert [change for change, *_ in changes(sales, ["n"])] == ["+I", "-U", "+U", "-U", "+U"]


def test_a_function_that_cannot_be_undone_is_refused_by_name_unless_its_column_is_null_or_left_out(sales):
    sales.upsert([row(1, 1, "1.00", 1, best=5, note="x")])
    version = sales._backend.version()

    with pytest.raises(SchemaMismatch, match="column best merges with max"):
        sales.retract([row(1, 1, "1.00", best=5)])
    with pytest.raises(SchemaMismatch, match="column note merges with last_value_ignore_nulls"):
        sales.retract([row(1, note="x")])
    assert sales._backend.version() == version

    sales.retract({"shop": [1], "q": [1]}, columns=["shop", "q"])
    assert sales.read(["q", "best", "note"]).to_pylist() == [{"q": 0, "best": 5, "note": "x"}]


def test_a_sum_that_would_leave_its_type_is_refused_and_nothing_is_written(sales):
    sales.upsert([row(1, q=-(2**31))])

    with pytest.raises(SchemaMismatch, match="does not fit int32"):
        sales.retract([row(1, q=1)])
    sales.retract([row(1, q=-(2**31))])

    assert sales.read(["q"]).to_pylist() == [{"q": 0}]


def test_only_aggregation_tables_take_rows_back(store, db):
    store.execute(f"CREATE TABLE {db}.plain (k BIGINT, v BIGINT, PRIMARY KEY (k) NOT ENFORCED); CREATE TABLE {db}.log (k BIGINT)")

    with pytest.raises(UserError, match="is no aggregation table"):
        store.table(f"{db}.plain").retract({"k": [1], "v": [1]})
    with pytest.raises(UserError, match="retract does not fit"):
        store.table(f"{db}.log").retract({"k": [1]})


# 'table.delete.on-zero'


def test_a_row_whose_count_comes_to_zero_is_removed_with_its_last_values(emptying):
    emptying.upsert({"k": [1, 2], "n": [2, 1], "total": [30, 5], "best": [20, 5]})
    emptying.retract({"k": [1], "n": [1], "total": [10]}, columns=["k", "n", "total"])
    assert emptying.read().sort_by("k").to_pydict() == {"k": [1, 2], "n": [1, 1], "total": [20, 5], "best": [20, 5]}

    emptying.retract({"k": [1, 2], "n": [1, 0], "total": [20, 0], "best": [None, None]})

    assert emptying.read()["k"].to_pylist() == [2]
    assert emptying.count() == 1
    assert changes(emptying, ["k", "n", "total", "best"])[-1] == ("-D", 1, 1, 20, 20)
    assert emptying.lookup({"k": [1]}).num_rows == 0


def test_a_row_that_would_begin_at_zero_is_not_made_and_a_removed_one_begins_anew(emptying):
    emptying.upsert({"k": [1], "n": [0], "total": [5]}, columns=["k", "n", "total"])
    assert emptying.count() == 0
    assert emptying.scan().read_all().num_rows == 0

    emptying.upsert({"k": [1], "n": [1], "total": [5], "best": [9]})
    emptying.upsert({"k": [1], "n": [-1], "total": [-5], "best": [None]})
    emptying.upsert({"k": [1], "n": [1], "total": [7], "best": [1]})

    assert emptying.read().to_pylist() == [{"k": 1, "n": 1, "total": 7, "best": 1}]
    assert [change for change, *_ in changes(emptying, ["n"])] == ["+I", "-D", "+I"]


def test_removed_rows_stay_removed_after_a_restart(own):
    own.store.execute(
        "CREATE TABLE a.t (k BIGINT, n BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ('table.merge-engine' = 'aggregation', "
        "'fields.n.agg' = 'sum', 'table.delete.on-zero' = 'n')"
    )
    own.store.table("a.t").upsert({"k": [1, 2], "n": [1, 1]})
    own.store.table("a.t").retract({"k": [1], "n": [1]})

    own.restart()

    assert own.store.table("a.t").read().to_pydict() == {"k": [2], "n": [1]}
