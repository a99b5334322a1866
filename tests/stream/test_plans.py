"""What is planned, what is read, where state is kept, and what is refused with which reason."""

from __future__ import annotations

import pytest

from storage_engine.errors import StatementRefused, UnknownTable
from storage_engine.schema.ddl import parse_statements
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.statements import CreateTable
from storage_engine.stream import JobPlan, plan_insert
from storage_engine.stream.functions.python_functions import FunctionDefinition
from storage_engine.stream.plan.tree import ViewDefinition, lookups, scans
from storage_engine.stream.planning.explain import explain

DDL = """
CREATE TABLE db.events (id BIGINT NOT NULL, shop BIGINT NOT NULL, kind STRING, amount DECIMAL(12,2), ts TIMESTAMP(3), ds STRING NOT NULL);
CREATE TABLE db.many (id BIGINT, amount DECIMAL(12,2)) WITH ('bucket.num' = '4');
CREATE TABLE db.orders (id BIGINT, shop BIGINT, amount DECIMAL(12,2), PRIMARY KEY (id) NOT ENFORCED);
CREATE TABLE db.shops (shop BIGINT, city STRING, PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.prices (shop BIGINT, item BIGINT, price INT, PRIMARY KEY (shop, item) NOT ENFORCED) WITH ('bucket.key' = 'shop');
CREATE TABLE db.log_sink (a BIGINT, b STRING);
CREATE TABLE db.wide (shop BIGINT, ds STRING, n BIGINT, total DECIMAL(38,2), best DECIMAL(12,2), mean DECIMAL(38,6), users BIGINT,
  PRIMARY KEY (shop, ds) NOT ENFORCED);
CREATE TABLE db.adding (shop BIGINT, n BIGINT, total DECIMAL(38,2), best DECIMAL(12,2), PRIMARY KEY (shop) NOT ENFORCED)
  WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'fields.total.agg' = 'sum', 'fields.best.agg' = 'max');
CREATE TABLE db.emptying (shop BIGINT, n BIGINT, total BIGINT, PRIMARY KEY (shop) NOT ENFORCED)
  WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'fields.total.agg' = 'sum', 'table.delete.on-zero' = 'n');
CREATE TABLE db.by_order (id BIGINT, amount DECIMAL(12,2), PRIMARY KEY (id) NOT ENFORCED);
CREATE TABLE db.by_shop (shop BIGINT, amount DECIMAL(38,2), PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.ids (user_id BIGINT, uid BIGINT, PRIMARY KEY (user_id) NOT ENFORCED) WITH ('auto-increment.fields' = 'uid');
"""


class MemoryCatalog:
    """The descriptors of a text of CREATE TABLE statements, and views."""

    def __init__(self, ddl: str, views: dict[str, str] | None = None) -> None:
        self.tables = {item.descriptor.name: item.descriptor for item in parse_statements(ddl) if isinstance(item, CreateTable)}
        self.views = {name: ViewDefinition(text, "db") for name, text in (views or {}).items()}

    def table(self, name: str) -> TableDescriptor | None:
        return self.tables.get(name)

    def view(self, name: str) -> ViewDefinition | None:
        return self.views.get(name)

    def function(self, name: str) -> FunctionDefinition | None:
        return None

    def names(self) -> list[str]:
        return list(self.tables)


def plan(sink: str, select: str, columns: str | None = None, views: dict[str, str] | None = None, **settings: str) -> JobPlan:
    catalog = MemoryCatalog(DDL, views)
    descriptor = catalog.table(sink)
    assert descriptor is not None
    named = {key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()}
    return plan_insert(catalog, descriptor, columns.split(",") if columns else None, select, job="j", default_database="db", settings=named)


def mode(of: JobPlan) -> str:
    return next(iter(of.placements.values())).mode


def test_a_scan_reads_only_the_columns_that_are_used() -> None:
    made = plan("db.log_sink", "SELECT id, kind FROM db.events WHERE amount > 1")
    assert scans(made.root)[0].columns == ("id", "kind", "amount")


def test_count_star_reads_one_narrow_column() -> None:
    made = plan("db.wide", "SELECT shop, ds, COUNT(*) FROM db.events GROUP BY shop, ds", "shop,ds,n")
    assert scans(made.root)[0].columns == ("shop", "ds")
    made = plan("db.by_shop", "SELECT 1 AS shop, COUNT(*) FROM db.events", "shop,amount")
    assert scans(made.root)[0].columns == ("id",)


def test_a_filter_on_the_stream_runs_before_the_lookup() -> None:
    made = plan(
        "db.log_sink",
        "SELECT e.id, s.city FROM db.events e JOIN db.shops FOR SYSTEM_TIME AS OF PROCTIME() AS s ON e.shop = s.shop "
        "WHERE e.kind = 'x' AND s.city <> 'y'",
    )
    text = "\n".join(explain(made))
    assert text.index("s.city\" <> 'y'") < text.index("LookupJoin") < text.index("e.kind\" = 'x'")


def test_an_outer_lookup_without_used_columns_is_not_made() -> None:
    made = plan(
        "db.log_sink", "SELECT e.id, e.kind FROM db.events e LEFT JOIN db.shops FOR SYSTEM_TIME AS OF PROCTIME() s ON e.shop = s.shop"
    )
    assert lookups(made.root) == []


def test_a_lookup_that_inserts_missing_keys_is_made_even_without_used_columns() -> None:
    made = plan(
        "db.ids",
        "SELECT /*+ REPLICATED_SHUFFLE_HASH(t2) */ t1.shop FROM `cat`.`db`.`events` t1 LEFT JOIN `cat`.`db`.`ids` "
        "/*+ OPTIONS('lookup.insert-if-not-exists' = 'true', 'lookup.cache' = 'PARTIAL') */ FOR SYSTEM_TIME AS OF PROCTIME() AS t2 "
        "ON t1.shop = t2.user_id GROUP BY t1.shop",
        "user_id",
    )
    assert [join.inserts_missing for join in lookups(made.root)] == [True]
    assert any("REPLICATED_SHUFFLE_HASH has no effect" in notice for notice in made.notices)
    assert any("lookup.cache" in notice for notice in made.notices)


def test_a_view_defines_a_processing_time_for_lookups() -> None:
    made = plan(
        "db.log_sink",
        "SELECT v.id, s.city FROM v LEFT JOIN db.shops FOR SYSTEM_TIME AS OF v.pt AS s ON v.shop = s.shop",
        views={"db.v": "SELECT id, shop, PROCTIME() AS pt FROM events"},
    )
    assert [join.table.name for join in lookups(made.root)] == ["db.shops"]


@pytest.mark.parametrize(
    ("sink", "columns", "select", "expected"),
    [
        ("db.wide", "shop,ds,n,total,best", "SELECT shop, ds, COUNT(*), SUM(amount), MAX(amount) FROM db.events GROUP BY shop, ds", "sink"),
        ("db.wide", "shop,ds,users", "SELECT shop, ds, COUNT(DISTINCT kind) FROM db.events GROUP BY 1, 2", "sink"),
        ("db.wide", "shop,ds,n,mean", "SELECT shop, ds, COUNT(*), AVG(amount) FROM db.events GROUP BY shop, ds", "table"),
        ("db.wide", "shop,ds,n", "SELECT shop, ds, COUNT(*) FROM db.events GROUP BY shop, ds HAVING COUNT(*) > 1", "table"),
        ("db.adding", None, "SELECT shop, COUNT(*), SUM(amount), MAX(amount) FROM db.events GROUP BY shop", "merge"),
        ("db.by_shop", None, "SELECT shop, SUM(amount) FROM db.orders GROUP BY shop", "table"),
        ("db.wide", "shop,ds,n", "SELECT shop, 'x', COUNT(*) FROM db.orders GROUP BY shop", "sink"),
    ],
)
def test_state_is_kept_where_the_result_allows(sink: str, columns: str | None, select: str, expected: str) -> None:
    assert mode(plan(sink, select, columns)) == expected


def test_group_by_takes_expressions_positions_and_aliases() -> None:
    texts = ["DATE_FORMAT(ts, 'yyyy-MM-dd')", "2", "d"]
    plans = [
        plan("db.wide", f"SELECT shop, DATE_FORMAT(ts, 'yyyy-MM-dd') AS d, COUNT(*) FROM db.events GROUP BY shop, {key}", "shop,ds,n")
        for key in texts
    ]
    assert len({"\n".join(explain(item)) for item in plans}) == 1


@pytest.mark.parametrize(
    ("sink", "columns", "select", "reason"),
    [
        ("db.log_sink", None, "SELECT id, kind FROM db.events ORDER BY id", "ORDER BY: a stream has no end"),
        ("db.log_sink", None, "SELECT id, kind FROM db.events LIMIT 3", "LIMIT"),
        ("db.log_sink", None, "SELECT id, ROW_NUMBER() OVER (ORDER BY id) FROM db.events", "has no bound"),
        ("db.log_sink", None, "SELECT id, RANK() OVER (ORDER BY id) FROM db.events", "RANK is not kept over a window"),
        ("db.log_sink", None, "SELECT e.id, e.kind FROM db.events e JOIN db.orders o ON e.id = o.id", "cannot take back rows"),
        ("db.log_sink", None, "SELECT id, kind FROM db.events EXCEPT ALL SELECT id, kind FROM db.events", "EXCEPT ALL counts"),
        ("db.log_sink", None, "SELECT id, kind FROM db.events UNION ALL SELECT id FROM db.events", "2 and 1 columns"),
        ("db.log_sink", None, "SELECT id, kind FROM db.events UNION ALL SELECT id, ts FROM db.events", "column kind of the UNION is"),
        ("db.log_sink", None, "SELECT id, CAST(NOW() AS STRING) FROM db.events", "NOW gives another value"),
        ("db.log_sink", None, "SELECT id FROM db.events", "takes 2 columns"),
        ("db.log_sink", None, "SELECT kind, id FROM db.events", "column a of db.log_sink is BIGINT, the query gives it STRING"),
        ("db.log_sink", None, "SELECT idd, kind FROM db.events", "column idd is not known .*Did you mean id"),
        ("db.log_sink", None, "SELECT x.id, kind FROM db.events", "no table in FROM is called x"),
        ("db.log_sink", None, "SELECT shop, CAST(COUNT(*) AS STRING) FROM db.events GROUP BY shop", "log table: it cannot take back rows"),
        ("db.log_sink", None, "SELECT id, 'x' FROM db.orders", "log table: it cannot take back rows"),
        ("db.wide", "shop,ds,n", "SELECT shop, kind, COUNT(*) FROM db.events GROUP BY shop, kind, ds", "does not contain the query's key"),
        ("db.wide", "shop,ds,n", "SELECT shop, kind, COUNT(*) FROM db.events GROUP BY shop", "kind is neither in GROUP BY"),
        ("db.wide", "shop,n", "SELECT shop, COUNT(*) FROM db.events GROUP BY shop", "ds of db.wide is the primary key"),
        ("db.by_order", None, "SELECT shop, amount FROM db.orders", "does not contain the query's key"),
        ("db.adding", None, "SELECT shop, COUNT(*), SUM(amount), SUM(amount) FROM db.events GROUP BY shop", "merges with max"),
        ("db.adding", "shop,n", "SELECT shop, COUNT(*) FROM db.orders GROUP BY shop", "nothing says when a group is empty"),
        ("db.emptying", None, "SELECT shop, COUNT(*), SUM(CAST(amount AS INT)) FROM db.orders GROUP BY shop", "null again when its last"),
        ("db.emptying", None, "SELECT shop, SUM(id), COUNT(*) FROM db.orders GROUP BY shop", "does not count its rows in it"),
        ("db.emptying", None, "SELECT shop, SUM(id), COUNT(*) FROM db.events GROUP BY shop", "does not count its rows in it"),
        ("db.emptying", "shop,total", "SELECT shop, SUM(id) FROM db.orders GROUP BY shop", "does not count its rows in it"),
        ("db.adding", "shop,n", "SELECT id, shop FROM db.orders", "cannot be un-merged"),
        ("db.wide", "shop,ds,users", "SELECT shop, 'x', MAX(x) FROM (SELECT shop, LAST_VALUE(id) AS x FROM db.orders GROUP BY shop) GROUP "
         "BY shop", "order in which rows arrive"),
        ("db.ids", None, "SELECT shop, id FROM db.events", "uid is assigned by the table"),
        ("db.events", None, "SELECT * FROM db.events", "feed itself"),
        ("db.log_sink", None, "SELECT e.id, p.city FROM db.events e JOIN db.shops FOR SYSTEM_TIME AS OF e.ts AS p ON e.shop = p.shop",
         "PROCTIME"),
        ("db.log_sink", None, "SELECT e.id, p.city FROM db.events e JOIN db.shops FOR SYSTEM_TIME AS OF PROCTIME() AS p ON e.kind = "
            "p.city", "does not give its key"),
        ("db.log_sink", None, "SELECT e.id, p.kind FROM db.events e JOIN db.events FOR SYSTEM_TIME AS OF PROCTIME() AS p ON e.id = "
            "p.id", "log table; a lookup needs"),
        ("db.log_sink", None, "SELECT id, kind FROM db.events /*+ OPTIONS('scan.fast' = '1') */", "hint 'scan.fast'"),
        ("db.log_sink", None, "SELECT /*+ GO_FASTER(x) */ id, kind FROM db.events", "hint GO_FASTER"),
        ("db.by_order", None, "SELECT o.id, o.amount FROM db.orders o JOIN db.shops FOR SYSTEM_TIME AS OF PROCTIME() s ON o.shop = "
            "s.shop", "could find other values"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_its_reason(sink: str, columns: str | None, select: str, reason: str) -> None:
    with pytest.raises(StatementRefused, match=reason):
        plan(sink, select, columns)


def test_an_unknown_table_is_named_with_what_looks_like_it() -> None:
    with pytest.raises(UnknownTable, match=r"Did you mean db\.events"):
        plan("db.log_sink", "SELECT id, kind FROM db.event")


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(StatementRefused, match="line 2"):
        plan("db.log_sink", "SELECT id,\n kind kind kind FROM db.events")


def test_a_prefix_lookup_needs_the_bucket_key() -> None:
    made = plan(
        "db.log_sink",
        "SELECT e.id, CAST(p.price AS STRING) FROM db.events e JOIN db.prices FOR SYSTEM_TIME AS OF PROCTIME() p ON e.shop = p.shop",
    )
    assert [join.is_prefix for join in lookups(made.root)] == [True]


def test_planning_twice_gives_the_same_plan() -> None:
    text = "SELECT shop, ds, COUNT(*), AVG(amount) FROM db.events GROUP BY shop, ds"
    assert explain(plan("db.wide", text, "shop,ds,n,mean")) == explain(plan("db.wide", text, "shop,ds,n,mean"))


def test_a_key_that_may_come_from_several_buckets_is_announced() -> None:
    from_many = plan("db.by_order", "SELECT id, amount FROM db.many")
    assert any("which of them is last is not defined" in notice for notice in from_many.notices)
    assert plan("db.by_order", "SELECT id, amount FROM db.events").notices == ()


def test_explain_says_how_a_delta_join_finds_its_rows():
    ddl = f"{DDL} CREATE TABLE db.priced (shop BIGINT, item BIGINT, city STRING, PRIMARY KEY (shop, item) NOT ENFORCED)"
    catalog = MemoryCatalog(ddl)
    select = "SELECT p.shop, p.item, s.city FROM db.prices p JOIN db.shops s ON p.shop = s.shop"

    plan = plan_insert(catalog, catalog.tables["db.priced"], None, select, job="j")

    assert any("a change looks up db.prices by prefix (shop) and db.shops by (shop)" in line for line in explain(plan))
