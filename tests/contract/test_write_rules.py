"""Contract: the rules of writes that Apache Fluss documents, and where this store decides otherwise on purpose."""

from __future__ import annotations

import pyarrow as pa
import pytest
from pyroaring import BitMap64

from storage_engine.errors import InvalidOption, SchemaMismatch, StatementRefused


def table(store, db, columns, options="", name="t"):
    store.execute(f"CREATE TABLE {db}.{name} ({columns}, PRIMARY KEY (k) NOT ENFORCED){f' WITH ({options})' if options else ''}")
    return store.table(f"{db}.{name}")


@pytest.mark.needs("partial_update")
def test_a_write_of_the_key_alone_makes_a_row_of_nulls_once_and_changes_no_row(store, db):
    items = table(store, db, "k BIGINT, v BIGINT")
    items.upsert({"k": [1], "v": [10]})
    before = sum(items.offsets().values())

    items.upsert({"k": [1]}, columns=["k"])
    items.upsert({"k": [2]}, columns=["k"])

    assert items.read().sort_by("k").to_pydict() == {"k": [1, 2], "v": [10, None]}
    assert items.scan(["k"]).read_all()["_change_type"].to_pylist()[before:] == ["+I"]


@pytest.mark.needs("partial_update")
@pytest.mark.parametrize(("columns", "why"), [(["v"], "key column k"), (["k", "v"], "NOT NULL and not written")])
def test_a_partial_update_names_the_key_and_every_column_that_cannot_be_null(store, db, columns, why):
    items = table(store, db, "k BIGINT, v BIGINT, must BIGINT NOT NULL")

    with pytest.raises(SchemaMismatch, match=why):
        items.upsert({name: [1] for name in columns}, columns=columns)


@pytest.mark.parametrize(("behavior", "rows"), [("allow", [2]), ("ignore", [1, 2])])
def test_a_delete_does_what_the_table_says(store, db, behavior, rows):
    items = table(store, db, "k BIGINT, v BIGINT", f"'table.delete.behavior' = '{behavior}'")
    items.upsert({"k": [1, 2], "v": [1, 2]})

    items.delete({"k": [1]})

    assert sorted(items.read()["k"].to_pylist()) == rows


def test_a_delete_is_refused_where_the_table_disables_it(store, db):
    items = table(store, db, "k BIGINT, v BIGINT", "'table.delete.behavior' = 'disable'")
    items.upsert({"k": [1], "v": [1]})

    with pytest.raises(StatementRefused, match=r"(?i)delete.* are disabled"):
        items.delete({"k": [1]})


@pytest.mark.needs("aggregation")
def test_an_aggregation_ignores_deletes_unless_it_allows_them(store, db):
    engine = "'table.merge-engine' = 'aggregation', 'fields.v.agg' = 'sum'"
    for name, options, left in (("a", engine, [1]), ("b", f"{engine}, 'table.delete.behavior' = 'allow'", [])):
        items = table(store, db, "k BIGINT, v BIGINT", options, name)
        items.upsert({"k": [1], "v": [5]})
        items.delete({"k": [1]})
        assert items.read()["k"].to_pylist() == left


@pytest.mark.parametrize("column", ["k", "best", "nope", "money"])
def test_the_column_that_says_zero_has_to_count(store, db, column):
    with pytest.raises(InvalidOption, match="names no column that counts"):
        store.execute(
            f"CREATE TABLE {db}.t (k BIGINT, best BIGINT, money DECIMAL(9, 2), PRIMARY KEY (k) NOT ENFORCED) WITH "
            f"('table.merge-engine' = 'aggregation', 'fields.money.agg' = 'sum', 'table.delete.on-zero' = '{column}')"
        )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("'table.merge-engine' = 'first_row', 'table.delete.behavior' = 'allow'", "does not go with the first_row engine"),
        ("'table.merge-engine' = 'aggregation', 'table.changelog.image' = 'wal'", "does not go with the aggregation engine"),
    ],
)
def test_what_contradicts_a_merge_engine_is_refused(store, db, options, why):
    with pytest.raises(InvalidOption, match=why):
        table(store, db, "k BIGINT, v BIGINT", options)


def test_rows_are_counted_from_the_indexes_under_image_wal_too(store, db):
    """Fluss refuses: it keeps no count there."""
    items = table(store, db, "k BIGINT, v BIGINT", "'table.changelog.image' = 'wal', 'bucket.num' = '2'")
    items.upsert({"k": [1, 2, 3], "v": [1, 2, 3]})
    items.upsert({"k": [1, 4], "v": [9, 9]})
    items.delete({"k": [2, 7]})

    assert items.count() == items.read().num_rows == 3


@pytest.mark.needs("aggregation")
def test_columns_without_a_function_keep_the_last_value_that_is_not_null(store, db):
    items = table(store, db, "k BIGINT, kept STRING, last STRING", "'table.merge-engine' = 'aggregation', 'fields.last.agg' = 'last_value'")
    items.upsert({"k": [1], "kept": ["a"], "last": ["a"]})

    items.upsert({"k": [1], "kept": [None], "last": [None]})

    assert items.read(["kept", "last"]).to_pylist() == [{"kept": "a", "last": None}]


@pytest.mark.needs("aggregation")
def test_texts_are_joined_by_a_comma_or_by_what_the_table_says_under_both_names(store, db):
    options = (
        "'table.merge-engine' = 'aggregation', 'fields.a.agg' = 'listagg', 'fields.b.agg' = 'string_agg', "
        "'fields.b.string_agg.delimiter' = ' / '"
    )
    items = table(store, db, "k BIGINT, a STRING, b STRING", options)

    for text in ("x", None, "", "y"):
        items.upsert({"k": [1], "a": [text], "b": [text]})

    assert items.read(["a", "b"]).to_pylist() == [{"a": "x,,y", "b": "x /  / y"}]


@pytest.mark.needs("aggregation")
def test_bitmaps_of_64_bits_are_kept_in_the_portable_format(store, db):
    """Fluss writes Java's own format, which nothing else reads."""
    items = table(store, db, "k BIGINT, users BYTES", "'table.merge-engine' = 'aggregation', 'fields.users.agg' = 'rbm64'")
    items.upsert({"k": [1], "users": [BitMap64([1, 2**40]).serialize()]})
    items.upsert(pa.table({"k": [1], "users": pa.array([BitMap64([2**63 + 1]).serialize()], pa.binary())}))

    (found,) = items.read()["users"].to_pylist()

    assert BitMap64.deserialize(found) == BitMap64([1, 2**40, 2**63 + 1])
    assert int.from_bytes(found[:8], "little") == 3  # buckets of 32 bits, as RoaringFormatSpec counts them
