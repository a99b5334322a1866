"""Tables and options: what may be, what is refused by name, and what a change may touch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as hs

from storage_engine.errors import InvalidOption, SchemaMismatch, StatementRefused
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.schema.options import KNOWN_OPTIONS, check_effective, delete_behavior, duration_ms, option_value
from storage_engine.schema.validate import check_targets, validate


def table(options: dict[str, str] | None = None, **changes) -> TableDescriptor:
    columns = (Column("k", "BIGINT"), Column("n", "INT"), Column("s", "STRING"), Column("b", "BYTES"), Column("ds", "STRING"))
    return validate(TableDescriptor("db.t", columns, **{"primary_key": ("k", "ds"), **changes}, options=options or {}))


def refused(options: dict[str, str], **changes) -> InvalidOption:
    with pytest.raises(InvalidOption) as caught:
        table(options, **changes)
    assert caught.value.where == "table db.t"
    return caught.value


def test_a_key_table_is_bucketed_by_its_key_without_the_partition_column():
    assert table(partition_keys=("ds",)).bucket_keys == ("k",)
    assert table().bucket_keys == ("k", "ds")
    assert table(primary_key=()).bucket_keys == ()


def test_key_columns_become_not_null_and_keep_their_ids():
    columns = table().columns

    assert [column.nullable for column in columns] == [False, True, True, True, False]
    assert [column.field_id for column in columns] == [0, 1, 2, 3, 4]


def test_buckets_of_the_with_clause_become_fields_and_leave_the_options():
    descriptor = table({"bucket.num": "16", "bucket.key": " k ", "table.merge-engine": "last_row"})

    assert (descriptor.n_buckets, descriptor.bucket_keys, descriptor.options) == (16, ("k",), {})


def test_option_values_have_one_spelling():
    descriptor = table({"table.datalake.enabled": "TRUE", "table.log.arrow.compression.type": "ZSTD", "table.delete.behavior": "Ignore"})

    assert descriptor.options == {
        "table.datalake.enabled": "true",
        "table.log.arrow.compression.type": "zstd",
        "table.delete.behavior": "ignore",
    }
    assert descriptor.is_tiered


def test_options_of_the_orchestration_are_kept_as_written():
    assert table({"asset.owner": "Team:Trading ", "asset.whatever": "X"}).options == {"asset.owner": "Team:Trading ", "asset.whatever": "X"}


@pytest.mark.parametrize(
    ("options", "what", "remedy"),
    [
        ({"table.datalake.enable": "true"}, "table.datalake.enable is not a known option", "Did you mean table.datalake.enabled?"),
        ({"wibble": "1"}, "wibble is not a known option", "asset."),
        ({"asset.": "1"}, "asset. is not a known option", "asset."),
        ({"bucket.num": "0"}, "bucket.num = '0' is out of range", "from 1 to 4096"),
        ({"bucket.num": "4097"}, "bucket.num = '4097' is out of range", "from 1 to 4096"),
        ({"bucket.num": "four"}, "bucket.num = 'four' is out of range", "from 1 to 4096"),
        ({"bucket.key": "s"}, "bucket.key column s is not in the primary key", "Choose from: k, ds"),
        ({"bucket.key": "x"}, "bucket.key names no column: x", "Columns are: k, n"),
        ({"bucket.key": "k,k"}, "bucket.key names k twice", "once"),
        ({"bucket.key": ""}, "bucket.key is empty", "Name columns"),
        ({"table.datalake.enabled": "yes"}, "table.datalake.enabled = 'yes' is neither true nor false", "'true'"),
        ({"table.datalake.freshness": "soon"}, "table.datalake.freshness = 'soon' is not a duration", "30s"),
        ({"table.merge-engine": "first_row", "table.delete.behavior": "allow"}, "does not go with the first_row engine", "'ignore'"),
        ({"table.merge-engine": "versioned"}, "the versioned engine needs table.merge-engine.versioned.ver-column", "Name one of: k, n"),
        ({"table.merge-engine": "versioned", "table.merge-engine.versioned.ver-column": "s"}, "s is a STRING", "BIGINT"),
        ({"table.merge-engine": "versioned", "table.merge-engine.versioned.ver-column": "x"}, "names no column: 'x'", "Name one of"),
        ({"table.merge-engine.versioned.ver-column": "n"}, "has no effect without the versioned engine", "'versioned'"),
        ({"table.merge-engine": "aggregation", "table.changelog.image": "WAL"}, "does not go with the aggregation engine", "Leave"),
        ({"table.merge-engine": "first_row", "auto-increment.fields": "n"}, "does not go with the first_row engine", "default"),
        ({"table.merge-engine": "best"}, "table.merge-engine = 'best' is not a choice", "aggregation"),
        ({"table.changelog.image": "OLD"}, "table.changelog.image = 'OLD' is not a choice", "full, wal"),
        ({"table.statistics.columns": "nope"}, "nope names no column", "Write * or some of"),
        ({"table.statistics.columns": "*, k"}, "* stands beside other names", "alone"),
        ({"fields.n.agg": "sum"}, "fields.n.agg has no effect without the aggregation engine", "'table.merge-engine' = 'aggregation'"),
        ({"fields.x.agg": "sum", "table.merge-engine": "aggregation"}, "fields.x.agg names no column: 'x'", "Columns are"),
        ({"fields.s.agg": "sum", "table.merge-engine": "aggregation"}, "'sum' does not fit type STRING", "last_value"),
        ({"fields.n.agg": "rbm32", "table.merge-engine": "aggregation"}, "'rbm32' does not fit type INT", "sum"),
        ({"fields.n.agg": "median", "table.merge-engine": "aggregation"}, "'median' is not a function", "sum"),
        ({"fields.n.agg": "listagg", "table.merge-engine": "aggregation"}, "'listagg' does not fit type", "product"),
        ({"fields.s.agg": "bool_or", "table.merge-engine": "aggregation"}, "'bool_or' does not fit type STRING", "listagg"),
        ({"fields.s.agg": "product", "table.merge-engine": "aggregation"}, "'product' does not fit type STRING", "listagg"),
        ({"fields.s.agg": "count", "table.merge-engine": "aggregation"}, "'count' does not fit type STRING", "listagg"),
        ({"fields.s.listagg.delimiter": ";", "table.merge-engine": "aggregation"}, "has no effect without listagg", "'listagg'"),
        ({"fields.s.listagg.limit": "1", "table.merge-engine": "aggregation"}, "fields.s.listagg.limit is not known", "delimiter"),
        ({"fields.k.agg": "sum", "table.merge-engine": "aggregation"}, "a key column is not aggregated", "Leave"),
        ({"fields.s.delimiter": ","}, "fields.s.delimiter is not known", "fields.s.agg"),
        ({"auto-increment.fields": "s"}, "auto-increment column s is a STRING", "INT or BIGINT"),
        ({"auto-increment.fields": "k"}, "auto-increment column k is in the primary key", "outside"),
        ({"auto-increment.fields": "n,k"}, "does not name one column", "Name one of"),
        ({"table.auto-increment.cache-size": "5"}, "needs auto-increment.fields", "Name the column"),
        ({"table.auto-partition.enabled": "true"}, "table.auto-partition.enabled needs a partitioned table", "PARTITIONED BY"),
        ({"table.log.arrow.compression.zstd.level": "23"}, "out of range", "from 1 to 22"),
        ({"table.log.ttl": "${TTL}"}, "is a placeholder", "Fill in"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_by_name_and_remedy(options, what, remedy):
    error = refused(options)

    assert what in error.what
    assert remedy in error.next_step


def test_string_agg_is_another_name_of_listagg():
    written = {"table.merge-engine": "aggregation", "fields.s.agg": "STRING_AGG", "fields.s.string_agg.delimiter": "; "}

    options = table(written).options

    assert options == {"table.merge-engine": "aggregation", "fields.s.agg": "listagg", "fields.s.listagg.delimiter": "; "}


def test_a_log_table_takes_no_options_of_key_tables():
    assert "needs a primary key" in refused({"table.merge-engine": "aggregation"}, primary_key=()).what
    assert "needs a primary key" in refused({"auto-increment.fields": "n"}, primary_key=()).what


def test_the_partition_key_of_auto_partition_is_the_partition_column():
    assert "is not the partition column" in refused({"table.auto-partition.key": "k"}, partition_keys=("ds",)).what
    assert "is the partition column" in refused({"bucket.key": "ds"}, partition_keys=("ds",)).what


def test_a_contradiction_between_field_and_option_is_refused():
    assert "contradicts" in refused({"bucket.num": "4"}, n_buckets=8).what
    assert "contradicts" in refused({"bucket.key": "k"}, bucket_keys=("ds",)).what


def test_a_table_without_columns_or_with_a_bad_name_is_refused():
    with pytest.raises(StatementRefused, match="needs a column"):
        validate(TableDescriptor("db.t", ()))
    for name in ("t", "db.t.u", "db/../x.t", "db.", "-a.t"):
        with pytest.raises(StatementRefused, match="cannot name a table"):
            validate(TableDescriptor(name, (Column("a", "INT"),)))


def test_typed_values_come_with_their_defaults():
    assert option_value({}, "table.datalake.freshness") == 180_000
    assert option_value({"bucket.key": "a, b"}, "bucket.key") == ("a", "b")
    assert option_value({}, "table.merge-engine") is None
    assert all(option_value({}, name) is not None or option.default is None for name, option in KNOWN_OPTIONS.items())


def test_deletes_are_ignored_by_default_under_every_merge_engine_but_the_last_row():
    assert delete_behavior({}) == "allow"
    assert delete_behavior({"table.merge-engine": "first_row"}) == delete_behavior({"table.merge-engine": "versioned"}) == "ignore"
    assert delete_behavior({"table.merge-engine": "aggregation"}) == "ignore"
    assert delete_behavior({"table.merge-engine": "aggregation", "table.delete.behavior": "disable"}) == "disable"


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("table.replication.factor", "3", "one machine, without replicas.*Write 1, or leave it out"),
        ("table.kv.format", "compacted", "rows as Arrow.*Leave it out"),
    ],
)
def test_an_option_that_would_have_no_effect_is_legal_and_refused_by_the_bundled_store(option, value, reason):
    descriptor = table({option: value})

    with pytest.raises(InvalidOption, match=f"{option} = '{value}' would have no effect: .*{reason}"):
        check_effective(descriptor.options, where="table db.t")
    check_effective(table({"table.replication.factor": "1"}).options, where="table db.t")


def test_an_option_that_needs_another_one_is_refused_without_it():
    level, kind = "table.log.arrow.compression.zstd.level", "table.log.arrow.compression.type"
    for options in ({level: "5"}, {level: "5", kind: "lz4_frame"}):
        with pytest.raises(InvalidOption, match=r"zstd\.level has no effect without zstd"):
            check_effective(table(options).options, where="table db.t")
    with pytest.raises(InvalidOption, match=r"freshness has no effect without table\.datalake\.enabled"):
        check_effective(table({"table.datalake.freshness": "30s"}).options, where="table db.t")
    check_effective(table({level: "5", kind: "zstd"}).options, where="table db.t")


@given(hs.integers(0, 10**9), hs.sampled_from([("ms", 1), ("s", 1000), ("min", 60_000), (" h", 3_600_000), (" days", 86_400_000), ("", 1)]))
def test_a_duration_is_its_number_of_units(number, unit):
    assert duration_ms(f"{number}{unit[0]}") == number * unit[1]


@pytest.mark.parametrize("text", ["", "s", "-1s", "1.5s", "1 fortnight", "1s 2s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidOption, match="is not a duration"):
        duration_ms(text)


def test_target_columns_hold_the_key_and_leave_only_nullable_columns_out():
    assert check_targets(table(), ("n", "ds", "k")) == ("k", "n", "ds")
    for targets, what in [(("n", "k"), "key column ds"), (("k", "ds", "x"), "unknown column x"), (("k", "ds", "k"), "named twice")]:
        with pytest.raises(SchemaMismatch, match=what):
            check_targets(table(), targets)
    strict = validate(TableDescriptor("db.t", (Column("k", "INT"), Column("m", "INT", nullable=False), Column("n", "INT")), ("k",)))
    with pytest.raises(SchemaMismatch, match="column m is NOT NULL and not written"):
        check_targets(strict, ("k", "n"))
    with pytest.raises(SchemaMismatch, match="needs a primary key"):
        check_targets(table(primary_key=()), ("k",))
