"""Contract: tables are made, listed, described, changed and dropped by SQL; small named objects are kept beside them."""

from __future__ import annotations

import pytest

from storage_engine import Column, TableDescriptor
from storage_engine.errors import AlreadyExists, InvalidOption, StatementRefused, UnknownTable


def test_a_table_made_by_ddl_is_listed_and_described_as_written(store, db):
    store.execute(f"""
        CREATE TABLE {db}.shop_stat (
          shop_id BIGINT NOT NULL, stat_date STRING NOT NULL, gmv DECIMAL(12, 2) COMMENT 'money', seen TIMESTAMP(3),
          PRIMARY KEY (shop_id, stat_date) NOT ENFORCED
        ) COMMENT 'Shops by day' PARTITIONED BY (stat_date)
        WITH ('bucket.num' = '4', 'bucket.key' = 'shop_id', 'asset.owner' = 'team:trading')
    """)

    descriptor = store.table(f"{db}.shop_stat").descriptor

    assert f"{db}.shop_stat" in store.tables()
    assert descriptor.column_names == ("shop_id", "stat_date", "gmv", "seen")
    assert descriptor.primary_key == ("shop_id", "stat_date")
    assert descriptor.partition_keys == ("stat_date",)
    assert (descriptor.bucket_keys, descriptor.n_buckets) == (("shop_id",), 4)
    assert (descriptor.comment, descriptor.column("gmv").comment) == ("Shops by day", "money")
    assert descriptor.options["asset.owner"] == "team:trading"


def test_several_statements_run_in_order(store, db):
    store.execute(f"CREATE TABLE {db}.a (x BIGINT); CREATE TABLE {db}.b (x BIGINT); DROP TABLE {db}.a;")

    assert [name for name in store.tables() if name.startswith(f"{db}.")] == [f"{db}.b"]


def test_a_table_can_be_made_from_a_descriptor(store, db):
    columns = (Column("id", "BIGINT", nullable=False), Column("v", "STRING"))
    made = store.create_table(TableDescriptor(f"{db}.t", columns, primary_key=("id",), bucket_keys=("id",)))

    made.upsert({"id": [1], "v": ["one"]})

    assert store.table(f"{db}.t").read().to_pylist() == [{"id": 1, "v": "one"}]


def test_creating_a_table_twice_is_refused_unless_it_says_if_not_exists(store, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT)")

    with pytest.raises(AlreadyExists, match=rf"{db}\.t"):
        store.execute(f"CREATE TABLE {db}.t (x BIGINT)")
    store.execute(f"CREATE TABLE IF NOT EXISTS {db}.t (x BIGINT)")


def test_two_tables_do_not_differ_in_case_alone(store, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT)")

    with pytest.raises(AlreadyExists, match=rf"{db}\.T differs from table {db}\.t only in case"):
        store.execute(f"CREATE TABLE IF NOT EXISTS {db}.T (x BIGINT)")


@pytest.mark.needs("objects")
def test_a_view_and_a_table_do_not_share_a_name(store, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT); CREATE VIEW {db}.v AS SELECT x FROM {db}.t")

    with pytest.raises(AlreadyExists, match=rf"there is a table {db}\.t"):
        store.execute(f"CREATE VIEW {db}.t AS SELECT 666 AS x")
    with pytest.raises(AlreadyExists, match=rf"{db}\.T differs from table {db}\.t only in case"):
        store.execute(f"CREATE VIEW {db}.T AS SELECT 666 AS x")
    for sql in (f"CREATE TABLE {db}.v (x BIGINT)", f"CREATE TABLE IF NOT EXISTS {db}.v (x BIGINT)"):
        with pytest.raises(AlreadyExists, match=rf"there is a view {db}\.v"):
            store.execute(sql)
    with pytest.raises(AlreadyExists, match=rf"there is a view {db}\.v"):
        store.put_object("materialized_view", f"{db}.v", {})
    assert f"{db}.t" not in store.objects("view")
    assert f"{db}.v" not in store.tables()

    store.execute(f"DROP VIEW {db}.v; CREATE TABLE {db}.v (x BIGINT)")


def test_dropping_a_table_removes_it_and_its_rows(store, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT)")
    store.table(f"{db}.t").append({"x": [1]})

    store.execute(f"DROP TABLE {db}.t")
    store.execute(f"CREATE TABLE {db}.t (x BIGINT)")

    assert store.table(f"{db}.t").scan().read_all().num_rows == 0


def test_dropping_a_table_that_does_not_exist_is_refused_unless_it_says_if_exists(store, db):
    with pytest.raises(UnknownTable, match=rf"{db}\.none"):
        store.execute(f"DROP TABLE {db}.none")
    store.execute(f"DROP TABLE IF EXISTS {db}.none")


@pytest.mark.needs("alter_table")
def test_an_added_column_is_null_in_older_rows(store, db):
    store.execute(f"CREATE TABLE {db}.t (id BIGINT NOT NULL, v STRING, PRIMARY KEY (id) NOT ENFORCED)")
    store.table(f"{db}.t").upsert({"id": [1, 2], "v": ["a", "b"]})

    store.execute(f"ALTER TABLE {db}.t ADD note STRING")
    altered = store.table(f"{db}.t")
    altered.upsert({"id": [2], "v": ["b"], "note": ["new"]})

    assert altered.read().sort_by("id").to_pylist() == [{"id": 1, "v": "a", "note": None}, {"id": 2, "v": "b", "note": "new"}]
    assert altered.scan(columns=["note"]).read_all().to_pydict() == {
        "_change_type": ["+I", "+I", "-U", "+U"],
        "note": [None, None, None, "new"],
    }


@pytest.mark.needs("alter_table")
def test_a_column_added_to_a_log_table_is_null_in_older_rows(store, db):
    store.execute(f"CREATE TABLE {db}.log (x BIGINT)")
    store.table(f"{db}.log").append({"x": [1]})

    store.execute(f"ALTER TABLE {db}.log ADD y STRING")
    store.table(f"{db}.log").append({"x": [2], "y": ["two"]})

    assert store.table(f"{db}.log").scan().read_all().to_pylist() == [{"x": 1, "y": None}, {"x": 2, "y": "two"}]


@pytest.mark.needs("drop_partition")
def test_a_dropped_partition_is_gone_and_the_others_stay(store, db):
    store.execute(f"CREATE TABLE {db}.t (day STRING NOT NULL, x BIGINT) PARTITIONED BY (day)")
    table = store.table(f"{db}.t")
    table.append({"day": ["2017-01-01", "2017-01-02"], "x": [1, 2]})

    store.execute(f"ALTER TABLE {db}.t DROP PARTITION (day = '2017-01-01')")

    assert table.partitions() == ["2017-01-02"]
    assert table.scan(columns=["x"]).read_all().to_pylist() == [{"x": 2}]


def test_an_unknown_option_is_refused_by_its_name(store, db):
    with pytest.raises(InvalidOption, match=r"table\.datalake\.enabledd"):
        store.execute(f"CREATE TABLE {db}.t (x BIGINT) WITH ('table.datalake.enabledd' = 'true')")
    assert f"{db}.t" not in store.tables()


def test_malformed_sql_is_refused_with_its_line(store, db):
    with pytest.raises(StatementRefused, match=r"line 2"):
        store.execute(f"CREATE TABLE {db}.t (\n x NOTATYPE)")


@pytest.mark.needs("objects")
def test_objects_are_stored_listed_by_kind_and_dropped(store, db):
    store.put_object("view", f"{db}.v", {"sql": "SELECT 1", "n": 3})
    store.put_object("function", f"{db}.v", {"python": "m.f"})

    assert store.objects("view")[f"{db}.v"] == {"sql": "SELECT 1", "n": 3}
    store.drop_object("view", f"{db}.v")

    assert f"{db}.v" not in store.objects("view")
    assert f"{db}.v" in store.objects("function")


@pytest.mark.needs("objects", "journal")
def test_catalog_and_rows_are_there_after_a_restart(own):
    own.store.execute("CREATE TABLE a.t (id BIGINT NOT NULL, v STRING, PRIMARY KEY (id) NOT ENFORCED) WITH ('bucket.num' = '3')")
    own.store.table("a.t").upsert({"id": [1, 2, 3], "v": ["x", "y", "z"]})
    own.store.put_object("view", "a.v", {"sql": "SELECT 1"})
    version = own.store.version()

    own.restart()

    assert own.store.version() == version
    assert own.store.table("a.t").read().sort_by("id").to_pydict() == {"id": [1, 2, 3], "v": ["x", "y", "z"]}
    assert own.store.objects("view") == {"a.v": {"sql": "SELECT 1"}}
