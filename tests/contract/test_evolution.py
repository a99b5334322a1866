"""Contract: columns are renamed, dropped and widened while tables, readers and writers are open; old rows read as they should."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest

from storage_engine.errors import SchemaMismatch, StatementRefused

pytestmark = pytest.mark.needs("alter_table")


def by_id(rows: pa.Table) -> list[dict]:
    return rows.sort_by("id").to_pylist()


@pytest.fixture
def orders(store, db):
    store.execute(f"""
        CREATE TABLE {db}.orders (
          shop BIGINT NOT NULL, id BIGINT NOT NULL, n INT, price DECIMAL(6, 2), note STRING, PRIMARY KEY (shop, id) NOT ENFORCED
        ) WITH ('bucket.key' = 'shop', 'bucket.num' = '3')
    """)
    table = store.table(f"{db}.orders")
    table.upsert({"shop": [1, 1, 2], "id": [1, 2, 3], "n": [10, 20, 30], "price": [Decimal("1.50")] * 3, "note": ["a", "b", None]})
    return table


def test_a_renamed_column_keeps_its_values_in_every_way_of_reading(store, orders):
    store.execute(f"ALTER TABLE {orders.name} RENAME n TO pieces")
    table = store.table(orders.name)
    table.upsert({"shop": [1], "id": [1], "pieces": [11], "price": [None], "note": ["c"]})

    assert by_id(table.read(["id", "pieces"])) == [{"id": 1, "pieces": 11}, {"id": 2, "pieces": 20}, {"id": 3, "pieces": 30}]
    assert table.lookup({"shop": [1, 2], "id": [2, 3]}, ["pieces"])["pieces"].to_pylist() == [20, 30]
    assert table.prefix_lookup({"shop": [1]})["pieces"].to_pylist() == [11, 20]
    changes = table.scan(["id", "pieces"], where="pieces = 10").read_all().to_pydict()
    assert changes == {"_change_type": ["+I", "-U"], "id": [1, 1], "pieces": [10, 10]}
    assert "n" not in table.scan().read_all().column_names


def test_a_renamed_key_routes_finds_and_merges_as_before(store, orders):
    store.execute(f"ALTER TABLE {orders.name} RENAME shop TO store_id; ALTER TABLE {orders.name} RENAME id TO no")
    table = store.table(orders.name)
    table.upsert({"store_id": [1], "no": [2], "n": [21]}, columns=["store_id", "no", "n"])
    table.delete({"store_id": [2], "no": [3]})

    assert table.descriptor.primary_key == ("store_id", "no")
    assert table.lookup({"store_id": [1, 2], "no": [2, 3]}, ["no", "n", "note"]).to_pylist() == [{"no": 2, "n": 21, "note": "b"}]
    assert sorted(table.prefix_lookup({"store_id": [1]})["no"].to_pylist()) == [1, 2]
    assert table.count() == 2


def test_a_dropped_column_is_gone_and_added_again_it_is_another_one(store, orders):
    store.execute(f"ALTER TABLE {orders.name} DROP note")
    store.table(orders.name).upsert({"shop": [1], "id": [2], "n": [22], "price": [None]})
    store.execute(f"ALTER TABLE {orders.name} ADD note INT")
    table = store.table(orders.name)
    table.upsert({"shop": [2], "id": [3], "n": [30], "price": [None], "note": [7]})

    assert [row["note"] for row in by_id(table.read())] == [None, None, 7]
    assert table.lookup({"shop": [1], "id": [1]}).to_pylist()[0]["note"] is None
    assert set(table.scan(["note"]).read_all()["note"].to_pylist()) == {None, 7}


def test_a_widened_column_reads_old_rows_and_takes_larger_values(store, orders):
    store.execute(f"ALTER TABLE {orders.name} MODIFY (n BIGINT, price DECIMAL(20, 2))")
    table = store.table(orders.name)
    table.upsert({"shop": [1], "id": [1], "n": [2**40], "price": [Decimal("123456789012.34")]}, columns=["shop", "id", "n", "price"])

    assert [(row["n"], row["price"]) for row in by_id(table.read())] == [
        (2**40, Decimal("123456789012.34")),
        (20, Decimal("1.50")),
        (30, Decimal("1.50")),
    ]
    assert table.lookup({"shop": [2], "id": [3]}, ["n"])["n"].to_pylist() == [30]
    assert table.prefix_lookup({"shop": [1]}, ["n"])["n"].to_pylist() == [2**40, 20]
    changes = table.scan(["n"], where="id = 1").read_all()
    assert (changes.schema.field("n").type, changes["n"].to_pylist()) == (pa.int64(), [10, 10, 2**40])


def test_rows_that_do_not_change_are_not_written_again_because_their_columns_did(store, orders):
    store.execute(f"ALTER TABLE {orders.name} MODIFY n BIGINT; ALTER TABLE {orders.name} RENAME note TO remark")
    table = store.table(orders.name)
    before = table.offsets()

    table.upsert({"shop": [1], "id": [1], "n": [10], "price": [Decimal("1.50")], "remark": ["a"]})

    assert table.offsets() == before


def test_a_log_table_reads_rows_of_every_schema_it_has_had(store, db):
    store.execute(f"CREATE TABLE {db}.log (a SMALLINT, b FLOAT, c VARCHAR(3), at TIMESTAMP(3))")
    name = f"{db}.log"
    store.table(name).append({"a": [1], "b": [0.5], "c": ["x"], "at": [1_000]})
    store.execute(f"ALTER TABLE {name} MODIFY (a INT, b DOUBLE)")
    store.table(name).append({"a": [70_000], "b": [0.1], "c": ["y"], "at": [2_000]})
    store.execute(f"ALTER TABLE {name} MODIFY (a BIGINT, c STRING, at TIMESTAMP(6)); ALTER TABLE {name} RENAME c TO a2; "
                  f"ALTER TABLE {name} DROP b; ALTER TABLE {name} ADD b STRING")  # fmt: skip
    table = store.table(name)
    table.append({"a": [2**40], "a2": ["longer"], "at": [3], "b": ["new"]})

    rows = table.scan(["a", "a2", "b"]).read_all().to_pylist()

    assert rows == [
        {"a": 1, "a2": "x", "b": None},
        {"a": 70_000, "a2": "y", "b": None},
        {"a": 2**40, "a2": "longer", "b": "new"},
    ]
    assert table.scan(["at"]).read_all()["at"].cast(pa.int64()).to_pylist() == [1_000_000, 2_000_000, 3]
    assert table.scan(["b"]).read_all()["b"].to_pylist() == [None, None, "new"]


def test_a_table_opened_before_columns_were_added_goes_on_reading_and_writing_its_own(store, orders):
    store.execute(f"ALTER TABLE {orders.name} ADD extra STRING")
    store.table(orders.name).upsert({"shop": [1], "id": [1], "extra": ["x"]}, columns=["shop", "id", "extra"])

    orders.upsert({"shop": [2], "id": [4], "n": [40], "price": [None], "note": [None]})
    orders.upsert({"shop": [1], "id": [1], "n": [12]}, columns=["shop", "id", "n"])

    assert orders.read().column_names == ["shop", "id", "n", "price", "note"]
    assert orders.lookup({"shop": [1], "id": [1]}).to_pylist() == [{"shop": 1, "id": 1, "n": 12, "price": Decimal("1.50"), "note": "a"}]
    assert orders.lookup({"shop": [9], "id": [9]}, missing="null").column_names[-2:] == ["note", "_found"]
    assert orders.prefix_lookup({"shop": [2]}).column_names == ["shop", "id", "n", "price", "note"]
    assert orders.scan().schema.names[1:] == ["shop", "id", "n", "price", "note"]
    assert store.table(orders.name).lookup({"shop": [1, 2], "id": [1, 4]})["extra"].to_pylist() == ["x", None]


def test_a_table_opened_before_a_type_was_widened_reads_what_fits_and_names_what_does_not(store, orders):
    store.execute(f"ALTER TABLE {orders.name} MODIFY n BIGINT")
    orders.upsert({"shop": [1], "id": [1], "n": [11]}, columns=["shop", "id", "n"])

    assert orders.read(["n"]).schema.field("n").type == pa.int32()
    assert sorted(orders.read(["n"])["n"].to_pylist()) == [11, 20, 30]
    assert orders.lookup({"shop": [1], "id": [1]}).schema.field("n").type == pa.int32()

    store.table(orders.name).upsert({"shop": [1], "id": [1], "n": [2**40]}, columns=["shop", "id", "n"])
    for read in (orders.read, lambda: orders.lookup({"shop": [1], "id": [1]}), lambda: orders.scan().read_all()):
        with pytest.raises(SchemaMismatch, match=r"does not fit int32.*column n.*open the table again"):
            read()


@pytest.mark.parametrize(("statement", "became"), [("RENAME n TO m", "renamed to m"), ("DROP n", "dropped")])
def test_a_name_that_is_gone_is_one_clear_error_for_those_who_opened_the_table_before(store, orders, statement, became):
    store.execute(f"ALTER TABLE {orders.name} {statement}")

    calls = {
        "read": orders.read,
        "lookup": lambda: orders.lookup({"shop": [1], "id": [1]}),
        "prefix lookup": lambda: orders.prefix_lookup({"shop": [1]}, ["n"]),
        "scan": lambda: orders.scan().read_all(),
        "upsert": lambda: orders.upsert({"shop": [1], "id": [1], "n": [1], "price": [None], "note": [None]}),
        "partial upsert": lambda: orders.upsert({"shop": [1], "id": [1], "n": [1]}, columns=["shop", "id", "n"]),
        "partial delete": lambda: orders.delete({"shop": [1], "id": [1]}, columns=["shop", "id", "n"]),
    }
    for call, run in calls.items():
        with pytest.raises(SchemaMismatch, match=rf"column n of {orders.name} was {became}"):
            pytest.fail(f"{call}: {run()}")
    assert orders.read(["id", "note"]).num_rows == 3


def test_a_renamed_key_is_one_clear_error_for_those_who_opened_the_table_before(store, orders):
    store.execute(f"ALTER TABLE {orders.name} RENAME shop TO store_id")

    for run in (lambda: orders.lookup({"shop": [1], "id": [1]}), lambda: orders.delete({"shop": [1], "id": [1]})):
        with pytest.raises(SchemaMismatch, match=r"column shop of .* was renamed to store_id"):
            run()


def test_a_scan_that_was_begun_before_the_change_ends_with_the_columns_it_began_with(store, db):
    store.execute(f"CREATE TABLE {db}.log (a INT, b STRING)")
    table = store.table(f"{db}.log")
    for i in range(5):
        table.append({"a": [i], "b": [str(i)]})
    reader = table.scan()
    first = reader.read_next_batch().to_pylist()

    store.execute(f"ALTER TABLE {table.name} RENAME a TO x; ALTER TABLE {table.name} DROP b; ALTER TABLE {table.name} MODIFY x BIGINT")

    assert first + reader.read_all().to_pylist() == [{"a": i, "b": str(i)} for i in range(5)]


@pytest.mark.needs("aggregation")
def test_a_function_follows_its_column_and_goes_on_adding(store, db):
    store.execute(f"""
        CREATE TABLE {db}.sums (k INT NOT NULL, n INT, texts STRING, PRIMARY KEY (k) NOT ENFORCED)
        WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'fields.texts.agg' = 'listagg',
              'fields.texts.listagg.delimiter' = '|')
    """)
    name = f"{db}.sums"
    store.table(name).upsert({"k": [1], "n": [2_000_000_000], "texts": ["a"]})
    store.execute(f"ALTER TABLE {name} RENAME n TO total; ALTER TABLE {name} MODIFY total BIGINT; ALTER TABLE {name} RENAME texts TO t")
    table = store.table(name)
    table.upsert({"k": [1], "total": [2_000_000_000], "t": ["b"]})

    assert table.read().to_pylist() == [{"k": 1, "total": 4_000_000_000, "t": "a|b"}]


def test_versions_and_ids_follow_their_columns(store, db):
    store.execute(f"""
        CREATE TABLE {db}.v (k INT NOT NULL, ver INT, s STRING, PRIMARY KEY (k) NOT ENFORCED)
        WITH ('table.merge-engine' = 'versioned', 'table.merge-engine.versioned.ver-column' = 'ver');
        CREATE TABLE {db}.ids (name STRING NOT NULL, no INT, PRIMARY KEY (name) NOT ENFORCED) WITH ('auto-increment.fields' = 'no')
    """)
    store.table(f"{db}.v").upsert({"k": [1], "ver": [5], "s": ["five"]})
    store.table(f"{db}.ids").lookup(["a"], insert_if_not_exists=True)
    store.execute(f"ALTER TABLE {db}.v RENAME ver TO version; ALTER TABLE {db}.v MODIFY version BIGINT")
    store.execute(f"ALTER TABLE {db}.ids RENAME no TO id; ALTER TABLE {db}.ids MODIFY id BIGINT")
    versioned, ids = store.table(f"{db}.v"), store.table(f"{db}.ids")
    versioned.upsert({"k": [1], "version": [4], "s": ["late"]})
    versioned.upsert({"k": [1], "version": [6], "s": ["six"]})

    assert versioned.read().to_pylist() == [{"k": 1, "version": 6, "s": "six"}]
    assert ids.lookup(["b", "a"], insert_if_not_exists=True).to_pydict() == {"name": ["b", "a"], "id": [2, 1]}


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("DROP shop", "column shop is in the primary key"),
        ("MODIFY id INT", "column id is BIGINT and cannot become INT"),
        ("MODIFY n STRING", "column n is INT and cannot become STRING"),
        ("RENAME n TO note", "there is a column note already"),
        ("DROP nothing", "there is no column nothing"),
    ],
)
def test_what_is_refused_leaves_the_table_as_it_was(store, orders, statement, what):
    with pytest.raises(StatementRefused, match=what):
        store.execute(f"ALTER TABLE {orders.name} {statement}")

    assert store.describe(orders.name) == orders.descriptor


@pytest.mark.needs("journal")
def test_older_versions_are_read_in_the_present_columns(store, orders):
    version = store.version()
    store.execute(
        f"ALTER TABLE {orders.name} RENAME n TO m; ALTER TABLE {orders.name} MODIFY m BIGINT; ALTER TABLE {orders.name} ADD x INT"
    )
    table = store.table(orders.name)
    table.upsert({"shop": [1], "id": [1], "m": [2**40], "x": [1]}, columns=["shop", "id", "m", "x"])

    assert by_id(table.read(["id", "m", "x"], at=version)) == [{"id": i, "m": 10 * i, "x": None} for i in (1, 2, 3)]


def test_changed_columns_are_there_after_a_restart(own):
    own.store.execute("CREATE TABLE a.t (k INT NOT NULL, n INT, s STRING, PRIMARY KEY (k) NOT ENFORCED)")
    own.store.table("a.t").upsert({"k": [1, 2], "n": [1, 2], "s": ["a", "b"]})
    own.store.execute("ALTER TABLE a.t RENAME n TO m; ALTER TABLE a.t DROP s; ALTER TABLE a.t MODIFY m BIGINT; ALTER TABLE a.t ADD s INT")
    own.store.table("a.t").upsert({"k": [2], "m": [2**40], "s": [5]})
    described = own.store.describe("a.t")

    own.restart()

    assert own.store.describe("a.t") == described
    assert own.store.table("a.t").read().sort_by("k").to_pydict() == {"k": [1, 2], "m": [1, 2**40], "s": [None, 5]}
    own.store.execute("ALTER TABLE a.t DROP s; ALTER TABLE a.t ADD s STRING")
    assert own.store.table("a.t").read(["s"])["s"].to_pylist() == [None, None]


def test_an_instant_that_microseconds_cannot_say_keeps_its_column_as_it_is(store, db):
    store.execute(f"CREATE TABLE {db}.far (at TIMESTAMP(3), x INT)")
    table = store.table(f"{db}.far")
    table.append({"at": pa.array([0, None], pa.timestamp("ms")), "x": [1, 2]})
    table.append({"at": pa.array([-(2**62)], pa.timestamp("ms")), "x": [3]})

    with pytest.raises(StatementRefused, match="column at holds an instant that microseconds cannot say"):
        store.execute(f"ALTER TABLE {table.name} MODIFY at TIMESTAMP(6)")

    assert table.scan(["at"]).read_all()["at"].cast(pa.int64()).to_pylist() == [0, None, -(2**62)]
