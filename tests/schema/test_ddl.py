"""Statements: each one printed in the article parses, what is written comes back, and what is wrong is named with its line."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as hs

from storage_engine.errors import FlashlakeError, InvalidOption, StatementRefused
from storage_engine.schema import statements as st
from storage_engine.schema.ddl import parse_statements, render_create_table
from storage_engine.schema.descriptor import Column, TableBucket, TableDescriptor
from storage_engine.schema.validate import validate

ARTICLE = (Path(__file__).parents[1] / "vectors/seed/fluss_instant_commerce.sql").read_text()
FILLED = ARTICLE.replace("${BUCKET_NUM}", "4").replace("${REPLICATION_FACTOR}", "1").replace("${LOG_TTL}", "3d")


def one(sql: str, database: str = "db") -> st.Statement:
    (statement,) = parse_statements(sql, database)
    return statement


def refused(sql: str) -> FlashlakeError:
    with pytest.raises((StatementRefused, InvalidOption)) as caught:
        parse_statements(sql, "db")
    return caught.value


# the article


def test_each_statement_of_the_article_parses():
    kinds = [type(statement).__name__ for statement in parse_statements(FILLED, "db")]

    assert kinds.count("CreateTable") == 10
    assert kinds.count("InsertInto") == 7
    assert kinds.count("CreateView") == 2
    assert kinds.count("CreateFunction") == kinds.count("CreateMaterializedView") == 1
    assert len(kinds) == 21


def test_the_articles_tables_have_the_keys_and_buckets_that_are_printed():
    tables = {s.descriptor.name: s.descriptor for s in parse_statements(FILLED, "db") if isinstance(s, st.CreateTable)}

    order = tables["db.order_ri"]
    assert (order.primary_key, order.physical_primary_key) == (("user_id", "ds", "order_id"), ("user_id", "order_id"))
    assert (order.bucket_keys, order.n_buckets, order.partition_keys) == (("user_id",), 4, ("ds",))
    assert order.is_prefix_lookup_possible
    assert [c.name for c in order.columns if not c.nullable] == ["order_id", "user_id", "ds"]
    assert tables["db.order_dtm"].bucket_keys == ("mm", "order_source")
    assert tables["db.user_mapping_table"].auto_increment_column == "uid_int64"
    assert tables["db.ads_uv_agg"].merge_engine == "aggregation"
    assert tables["db.ads_uv_agg"].aggregate_function("uv_bitmap") == "rbm32"
    assert not tables["db.ads_uv_agg"].is_prefix_lookup_possible
    assert tables["db.ads_uv_detail"].bucket_keys == ("ds", "shard_id", "uid_int32")
    assert tables["db.log_page_ri"].bucket_keys == ()
    assert tables["db.log_page_ri"].is_tiered
    assert tables["db.shop_stat_wide"].columns[3] == Column("exp_cnt", "BIGINT", field_id=3)


def test_the_articles_tables_come_back_from_their_rendered_text():
    for statement in parse_statements(FILLED, "db"):
        if isinstance(statement, st.CreateTable):
            assert one(render_create_table(statement.descriptor)).descriptor == statement.descriptor


def test_the_articles_placeholders_must_be_filled_in():
    error = refused(ARTICLE)

    assert isinstance(error, InvalidOption)
    assert "bucket.num = '${BUCKET_NUM}' is a placeholder" in error.what
    assert "table db.order_ri, line 5" in error.where


def test_an_insert_keeps_its_select_untouched_and_its_hints():
    insert = [s for s in parse_statements(FILLED, "db") if isinstance(s, st.InsertInto)]

    assert insert[0].columns == ("shop_id", "stat_date", "stat_hour", "exp_cnt")
    assert insert[0].table == "db.shop_stat_wide"
    assert insert[0].select_sql.startswith("SELECT\nshop_id,")
    assert insert[0].select_sql.endswith("GROUP BY shop_id, stat_date, stat_hour")
    assert insert[3].hints == {"client.writer.enable-idempotence": "false"}
    assert insert[4].columns == ("user_id",)
    assert "/*+ REPLICATED_SHUFFLE_HASH(t2) */" in insert[4].select_sql


# other statements


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("DROP TABLE IF EXISTS a.t", st.DropTable("a.t", if_exists=True)),
        ("DROP TABLE t", st.DropTable("db.t")),
        ("ALTER TABLE t ADD z BIGINT COMMENT 'c'", st.AlterTableAddColumn("db.t", (Column("z", "BIGINT", comment="c"),))),
        ("ALTER TABLE t ADD COLUMN z BIGINT", st.AlterTableAddColumn("db.t", (Column("z", "BIGINT"),))),
        ("ALTER TABLE t ADD (y INT, z STRING)", st.AlterTableAddColumn("db.t", (Column("y", "INT"), Column("z", "STRING")))),
        ("ALTER TABLE t RENAME a TO `b c`", st.AlterTableRenameColumn("db.t", "a", "b c")),
        ("ALTER TABLE t RENAME COLUMN a TO b", st.AlterTableRenameColumn("db.t", "a", "b")),
        ("ALTER TABLE t DROP c", st.AlterTableDropColumns("db.t", ("c",))),
        ("ALTER TABLE t DROP COLUMN c", st.AlterTableDropColumns("db.t", ("c",))),
        ("ALTER TABLE t DROP (a, b)", st.AlterTableDropColumns("db.t", ("a", "b"))),
        ("ALTER TABLE t MODIFY c BIGINT", st.AlterTableModifyColumns("db.t", (Column("c", "BIGINT"),))),
        (
            "ALTER TABLE t MODIFY (a INT NOT NULL, b STRING)",
            st.AlterTableModifyColumns("db.t", (Column("a", "INT", nullable=False), Column("b", "STRING"))),
        ),
        ("ALTER TABLE t SET ('asset.owner' = 'x')", st.AlterTableSet("db.t", {"asset.owner": "x"})),
        ("ALTER TABLE t DROP PARTITION (ds = '20170101')", st.DropPartition("db.t", {"ds": "20170101"})),
        ("ALTER TABLE t DROP IF EXISTS PARTITION (day = 5)", st.DropPartition("db.t", {"day": "5"}, if_exists=True)),
        ("ALTER TABLE t ADD PARTITION (day = 5)", st.AddPartition("db.t", {"day": "5"})),
        ("ALTER TABLE t ADD IF NOT EXISTS PARTITION (ds = 'a')", st.AddPartition("db.t", {"ds": "a"}, if_not_exists=True)),
        ("SHOW CONSUMERS", st.ShowConsumers()),
        ("SHOW CONSUMERS ON t", st.ShowConsumers("db.t")),
        ("DESCRIBE CONSUMER c", st.DescribeConsumer("c")),
        ("DESC CONSUMER 'my.c' ON x.t", st.DescribeConsumer("my.c", "x.t")),
        ("DROP CONSUMER IF EXISTS c ON t", st.DropConsumer("c", "db.t", if_exists=True)),
        ("RESET CONSUMER c ON t TO EARLIEST", st.ResetConsumer("c", "db.t", "earliest")),
        ("RESET CONSUMER c ON t TO LATEST", st.ResetConsumer("c", "db.t", "latest")),
        (
            "RESET CONSUMER c ON t TO TIMESTAMP '2017-01-31 12:00:00+01:00'",
            st.ResetConsumer("c", "db.t", datetime(2017, 1, 31, 11, tzinfo=UTC)),
        ),
        ("RESET CONSUMER c ON t TO TIMESTAMP '2017-01-31'", st.ResetConsumer("c", "db.t", datetime(2017, 1, 31, tzinfo=UTC))),
        (
            "RESET CONSUMER c ON t TO OFFSETS ('a/0' = '42', '3' = '7')",
            st.ResetConsumer("c", "db.t", {TableBucket("a", 0): 42, TableBucket("", 3): 7}),
        ),
        ("CREATE DATABASE IF NOT EXISTS shop", st.CreateDatabase("shop", if_not_exists=True)),
        ("USE CATALOG fluss", st.Use("fluss", is_catalog=True)),
        ("SET 'pipeline.name' = 'shop_exposure'", st.SetOption("pipeline.name", "shop_exposure")),
        ("set execution.runtime-mode = batch", st.SetOption("execution.runtime-mode", "batch")),
        ("DROP VIEW IF EXISTS v", st.DropView("db.v", if_exists=True)),
        ("DROP MATERIALIZED VIEW v", st.DropView("db.v", materialized=True)),
        ("CREATE TEMPORARY FUNCTION f AS 'm.f' LANGUAGE PYTHON", st.CreateFunction("f", "m.f", "PYTHON", temporary=True)),
        ("DROP TEMPORARY FUNCTION IF EXISTS f", st.DropFunction("f", if_exists=True)),
        ("SHOW TABLES", st.ShowTables()),
        ("SHOW TABLES IN `ods`", st.ShowTables("ods")),
        ("SHOW JOBS", st.ShowJobs()),
        ("STOP JOB 'shop-exposure'", st.StopJob("shop-exposure")),
        ("DROP JOB IF EXISTS 'shop-exposure'", st.DropJob("shop-exposure", if_exists=True)),
        ("ALTER JOB j SET ('a' = 'b', 'c' = 'd')", st.AlterJobSet("j", {"a": "b", "c": "d"})),
        ("ALTER JOB 'my-j' RESET ('a', 'c')", st.AlterJobReset("my-j", ("a", "c"))),
        ("DESCRIBE JOB shop_exposure", st.DescribeJob("shop_exposure")),
        ("STOP JOB db.av", st.StopJob("db.av")),
        ("RESUME JOB insert-into_db.s", st.ResumeJob("insert-into_db.s")),
        ("PAUSE JOB nightly-1", st.PauseJob("nightly-1")),
        ("DROP JOB IF EXISTS insert-into_db.s(id, `v`)", st.DropJob("insert-into_db.s(id,v)", if_exists=True)),
        ("ALTER JOB db.av SET ('a' = 'b')", st.AlterJobSet("db.av", {"a": "b"})),
        ("DESC JOB `db.av`", st.DescribeJob("db.av")),
        ("DESC `c`.`d`.`t`", st.DescribeTable("d.t")),
        ("SHOW CREATE TABLE t", st.ShowCreateTable("db.t")),
        ("SHOW PARTITIONS t", st.ShowPartitions("db.t")),
        ("REFRESH MATERIALIZED VIEW v", st.RefreshMaterializedView("db.v")),
        ("INSERT INTO t VALUES (1, 'a;b')", st.InsertInto("db.t", None, "VALUES (1, 'a;b')")),
        ("INSERT INTO t (SELECT 1)", st.InsertInto("db.t", None, "(SELECT 1)")),
        ("CREATE VIEW v (a, b) COMMENT 'c' AS SELECT 1, 2", st.CreateView("db.v", "SELECT 1, 2", comment="c", columns=("a", "b"))),
        ("SELECT 1", st.Query()),
        ("WITH a AS (SELECT 1) SELECT * FROM a", st.Query()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_statement_reads_as_what_it_says(sql, expected):
    statement = one(sql)

    assert (statement.text, statement.line, statement.database) == (sql, 1, "db")
    assert statement == type(expected)(**{**vars(expected), "text": sql, "line": 1, "database": "db"})


@pytest.mark.parametrize(
    ("clause", "seconds"),
    [
        ("", None),
        ("REFRESH MANUAL", None),
        ("REFRESH ASYNC", 0.0),
        ("REFRESH ASYNC EVERY(INTERVAL 10 MINUTE)", 600.0),
        ("REFRESH ASYNC EVERY (INTERVAL 30 SECONDS)", 30.0),
        ("REFRESH IMMEDIATE ASYNC EVERY (INTERVAL '1' DAY)", 86400.0),
    ],
)
def test_a_materialized_view_refreshes_as_its_clause_says(clause, seconds):
    view = one(
        "CREATE MATERIALIZED VIEW v COMMENT \"a view\" PARTITION BY (ds, date_trunc('day', t))\n"
        f'{clause} PROPERTIES ("a" = "b") AS SELECT ds FROM t'
    )

    assert isinstance(view, st.CreateMaterializedView)
    assert view.refresh == seconds
    assert view.partition_by == ("ds", "date_trunc('day', t)")
    assert (view.comment, view.properties, view.sql) == ("a view", {"a": "b"}, "SELECT ds FROM t")


def test_use_changes_the_database_of_the_statements_after_it():
    names = [
        s.name
        for s in parse_statements("DROP TABLE a; USE x; DROP TABLE b; DROP TABLE y.c; USE CATALOG k; DROP TABLE d")
        if isinstance(s, st.DropTable)
    ]

    assert names == ["default.a", "x.b", "y.c", "x.d"]


def test_semicolons_quotes_and_comments_do_not_split_statements():
    sql = "-- it's a comment; really\nSELECT ';' AS `a;b` /* ; */, '--' FROM t;\n\n;\nSHOW JOBS -- end"

    assert [(s.text, s.line) for s in parse_statements(sql)] == [("SELECT ';' AS `a;b` /* ; */, '--' FROM t", 2), ("SHOW JOBS", 5)]


def test_a_text_without_statements_is_an_empty_list():
    assert parse_statements(" ;; -- nothing\n/* here */") == []


def test_every_type_has_one_spelling():
    types = (
        "BOOLEAN, TINYINT, SMALLINT, INTEGER, BIGINT, FLOAT, DOUBLE PRECISION, CHAR(2), VARCHAR(9), STRING, BYTES, BINARY(3), DATE, "
        "TIME(3), DECIMAL(12,2), NUMERIC(5), DECIMAL, TIMESTAMP, TIMESTAMP(3), TIMESTAMP_LTZ(3), TIMESTAMP(3) WITH LOCAL TIME ZONE, "
        "TIMESTAMP(6) WITHOUT TIME ZONE"
    )
    names = [part.strip() for part in types.replace("12,2", "12;2").split(",")]
    sql = ", ".join(f"c{i} {name.replace(';', ',')}" for i, name in enumerate(names))

    printed = [column.type for column in one(f"CREATE TABLE t ({sql})").descriptor.columns]

    assert printed == [
        "BOOLEAN", "TINYINT", "SMALLINT", "INT", "BIGINT", "FLOAT", "DOUBLE", "CHAR(2)", "VARCHAR(9)", "STRING", "BYTES", "BINARY(3)",
        "DATE", "TIME(3)", "DECIMAL(12, 2)", "DECIMAL(5, 0)", "DECIMAL(10, 0)", "TIMESTAMP(6)", "TIMESTAMP(3)", "TIMESTAMP_LTZ(3)",
        "TIMESTAMP_LTZ(3)", "TIMESTAMP(6)",
    ]  # fmt: skip


# what is wrong is named, with its line and a remedy


@pytest.mark.parametrize(
    ("sql", "what", "where"),
    [
        ("SELECT 1;\nSELEKT 2", "SELEKT does not begin a statement", "line 2"),
        ("CREATE TABLE t (a INT", "expected ), found the end of the statement", "line 1"),
        ("CREATE TABLE t (\n a INT,\n b WIBBLE)", "column b: type WIBBLE is not supported", "line 3"),
        ("CREATE TABLE t (a INT,)", "a column's name is missing, found )", "line 1"),
        ("CREATE TABLE t (a)", "column a has no type", "line 1"),
        ("CREATE TABLE t (a ARRAY<INT>)", "type ARRAY<...> is not supported", "line 1"),
        ("CREATE TABLE t (a DECIMAL(40, 2))", "type DECIMAL(40, 2) is out of range", "line 1"),
        ("CREATE TABLE t (a TIMESTAMP(9))", "instants are kept to the microsecond", "line 1"),
        ("CREATE TABLE t (a INT, b STRING METADATA)", "column b: metadata columns are not supported", "line 1"),
        ("CREATE TABLE t (a INT DEFAULT 1)", "column a: DEFAULT is not supported", "line 1"),
        ("CREATE TABLE t (a INT, PRIMARY KEY (a))", "PRIMARY KEY without NOT ENFORCED", "line 1"),
        ("CREATE TABLE t (a INT PRIMARY KEY NOT ENFORCED, PRIMARY KEY (a) NOT ENFORCED)", "PRIMARY KEY is written twice", "line 1"),
        ("CREATE TABLE t (a INT, PRIMARY KEY (b) NOT ENFORCED)", "PRIMARY KEY names no column: b", "table db.t, line 1"),
        ("CREATE TABLE t (a INT, a INT)", "column a is declared twice", "table db.t"),
        ("CREATE TABLE t (k INT, b INT, K INT)", "column K differs from column k only in case", "table db.t, line 1"),
        ("CREATE TABLE t (k INT, K AS k + 1)", "column K differs from column k only in case", "table db.t, line 1"),
        ("CREATE TABLE t (v VARCHAR(0))", "column v: VARCHAR(0) holds nothing", "table db.t, line 1"),
        ("CREATE TABLE t (v TIME WITH TIME ZONE)", "expected ), found WITH", "line 1"),
        ("CREATE DATABASE x COMMENT 'c'", "CREATE DATABASE ... COMMENT is not supported", "line 1"),
        ("CREATE DATABASE x WITH ('a' = '1')", "CREATE DATABASE ... WITH is not supported", "line 1"),
        ("DROP DATABASE IF EXISTS x", "DROP DATABASE is not supported", "line 1"),
        ("CREATE TABLE t (_change_type INT)", "column name '_change_type' is reserved", "table db.t"),
        ("CREATE TABLE t (__x INT)", "column name '__x' is reserved", "table db.t"),
        ("CREATE TABLE t (a INT) PARTITIONED BY (b)", "PARTITIONED BY names no column: b", "table db.t"),
        ("CREATE TABLE t (a DOUBLE) PARTITIONED BY (a)", "a DOUBLE cannot name a partition", "table db.t"),
        ("CREATE TABLE t (a INT, b INT) PARTITIONED BY (a, b)", "more than one column", "table db.t"),
        (
            "CREATE TABLE t (a INT, ds STRING, PRIMARY KEY (a) NOT ENFORCED) PARTITIONED BY (ds)",
            "partition column ds is not in the primary key",
            "table",
        ),
        ("CREATE TABLE t (ds STRING, PRIMARY KEY (ds) NOT ENFORCED) PARTITIONED BY (ds)", "only the partition column", "table db.t"),
        ("CREATE TABLE t (a INT) LIKE b", "LIKE is not a clause of CREATE TABLE", "line 1"),
        ("CREATE TABLE t (a INT) WITH ('a' = 'b', 'a' = 'c')", "'a' is written twice", "line 1"),
        ("CREATE TABLE t (a INT) WITH (a = 'b')", "needs a text in single quotes, found a", "line 1"),
        ("CREATE TABLE a.b.c.d (a INT)", "a.b.c.d has too many parts", "line 1"),
        ("CREATE TABLE `x y` (a INT)", "'db.x y' cannot name a table", "table"),
        ("CREATE TEMPORARY TABLE t (a INT)", "CREATE TEMPORARY TABLE is not supported", "line 1"),
        ("ALTER TABLE t RENAME TO u", "ALTER TABLE ... RENAME TO is not supported", "line 1"),
        ("ALTER TABLE t RENAME a u", "expected TO, found u", "line 1"),
        ("ALTER TABLE t DROP PRIMARY KEY", "DROP PRIMARY is not supported", "line 1"),
        ("ALTER TABLE t MODIFY c BIGINT FIRST", "MODIFY ... FIRST is not supported", "line 1"),
        ("ALTER TABLE t ADD IF NOT EXISTS z INT", "ADD IF NOT EXISTS needs PARTITION", "line 1"),
        ("DROP CONSUMER c", "expected ON, found the end", "line 1"),
        ("RESET CONSUMER c ON t", "expected TO, found the end", "line 1"),
        ("RESET CONSUMER c ON t TO OFFSETS ('a/b' = '1')", "'a/b' = '1' is not an offset of a bucket", "line 1"),
        ("ALTER TABLE t ADD z INT FIRST", "ADD ... FIRST is not supported", "line 1"),
        ("INSERT INTO t (a, a) SELECT 1, 2", "a is named twice", "line 1"),
        ("INSERT INTO t (a)", "expected SELECT, found the end", "line 1"),
        ("INSERT INTO t SELECT", "nothing follows SELECT", "line 1"),
        ("INSERT OVERWRITE t SELECT 1", "INSERT OVERWRITE is not supported", "line 1"),
        ("DELETE t", "expected FROM, found t", "line 1"),
        ("CREATE JOB j AS INSERT INTO t SELECT 1", "CREATE JOB is not a statement", "line 1"),
        ("CREATE TOPIC t", "CREATE TOPIC does not begin a statement", "line 1"),
        ("CREATE VIEW v AS DELETE", "expected SELECT, found DELETE", "line 1"),
        ("CREATE MATERIALIZED VIEW v REFRESH ASYNC EVERY (INTERVAL 0 MINUTE) AS SELECT 1", "INTERVAL 0 is not a positive number", "line 1"),
        ("CREATE MATERIALIZED VIEW v REFRESH ASYNC EVERY (INTERVAL 1 EON) AS SELECT 1", "EON is not a unit of time", "line 1"),
        ("CREATE MATERIALIZED VIEW v REFRESH DEFERRED ASYNC AS SELECT 1", "REFRESH DEFERRED is not supported", "line 1"),
        ("CREATE MATERIALIZED VIEW v REFRESH ASYNC START('2026-01-01') AS SELECT 1", "START (...) is not supported", "line 1"),
        ("CREATE MATERIALIZED VIEW v DISTRIBUTED BY x AS SELECT 1", "DISTRIBUTED is not a clause of a materialized view", "line 1"),
        ("SHOW JOBS NOW", "NOW is not understood here", "line 1"),
        ("STOP JOB a - b", "- is not understood here", "line 1"),
        ("STOP JOB .a", "the job's name is missing, found .", "line 1"),
        ("\nSELECT 'abc", "a string without its closing quote", "line 2"),
        ("SELECT `abc", "a name without its closing backquote", "line 1"),
        ("SELECT 1 /* abc", "a comment without its end", "line 1"),
        ("SELECT ’a’", "the character '’' is not SQL", "line 1"),
    ],
    ids=lambda value: value[:60],
)
def test_a_wrong_statement_is_refused_by_name_place_and_remedy(sql, what, where):
    error = refused(sql)

    assert what in error.what
    assert where in error.where
    assert error.next_step


@given(hs.text(alphabet="abt ();,'`\"-/*+=.1\n", max_size=40) | hs.text(max_size=20))
def test_any_text_is_parsed_or_refused(text):
    for sql in (text, "CREATE TABLE t (a INT " + text, "INSERT INTO t " + text):
        try:
            parsed = parse_statements(sql)
        except (StatementRefused, InvalidOption):
            continue
        assert all(statement.text in sql for statement in parsed)


# rendering


PLAIN_NAMES = hs.from_regex(r"[a-zA-Z]([a-zA-Z0-9_ ]{0,7}[a-zA-Z0-9_])?", fullmatch=True)
NAMES = PLAIN_NAMES | hs.sampled_from(["select", "a`b", "Größe", "date", "with space"])
TYPES = hs.sampled_from(
    ["INT", "BIGINT", "STRING", "DOUBLE", "DECIMAL(12, 2)", "TIMESTAMP(3)", "TIMESTAMP_LTZ(6)", "BYTES", "DATE", "BOOLEAN"]
)


@hs.composite
def descriptors(draw) -> TableDescriptor:
    names = draw(hs.lists(NAMES, min_size=1, max_size=6, unique_by=str.lower))
    columns = [Column(name, draw(TYPES), draw(hs.booleans()), draw(hs.text(max_size=10))) for name in names]
    primary_key = tuple(draw(hs.lists(hs.sampled_from(names), unique=True, max_size=3)))
    fitting = [c.name for c in columns if c.type in ("INT", "BIGINT", "STRING", "DATE") and (not primary_key or c.name in primary_key)]
    partition = (draw(hs.sampled_from(fitting)),) if fitting and len(primary_key) != 1 and draw(hs.booleans()) else ()
    buckets = [name for name in (primary_key or names) if name not in partition]
    bucket_keys = tuple(draw(hs.lists(hs.sampled_from(buckets), unique=True, max_size=2))) if buckets else ()
    options = {"asset.owner": draw(hs.text(max_size=10).filter(lambda text: "${" not in text))} if draw(hs.booleans()) else {}
    comment = draw(hs.text(max_size=10))
    return validate(TableDescriptor("db.t", tuple(columns), primary_key, partition, bucket_keys, draw(hs.integers(1, 9)), options, comment))


@given(descriptors())
def test_a_rendered_table_parses_back_to_the_same_descriptor(descriptor):
    assert one(render_create_table(descriptor)).descriptor == descriptor
    assert validate(descriptor) == descriptor
    assert TableDescriptor.from_json(descriptor.to_json()) == descriptor


def test_a_time_may_say_that_it_has_no_zone() -> None:
    assert one("CREATE TABLE t (a TIME WITHOUT TIME ZONE, b TIME(3) WITHOUT TIME ZONE)").descriptor.columns == (
        Column("a", "TIME", field_id=0),
        Column("b", "TIME(3)", field_id=1),
    )


def test_a_column_name_with_white_space_at_its_ends_is_refused() -> None:
    with pytest.raises(StatementRefused, match="white space"):
        parse_statements("CREATE TABLE db.t (`a ` INT)")
