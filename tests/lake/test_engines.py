"""A tiered table in the hands of other engines: each reads the same values, may compact it, and may not change a row unnoticed.

The feature budget of a tiered table: protocol (1,2), or (3,7) with exactly `timestampNtz` when it has a TIMESTAMP column.
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from deltalake import DeltaTable

import storage_engine
from storage_engine.errors import LakeChanged
from storage_engine.lake import Limits, Tierer, table_path
from storage_engine.lake.columns import quoted_list
from storage_engine.schema.descriptor import Column, TableDescriptor

TIERED = {"table.datalake.enabled": "true"}
TYPES = {
    "c_bool": "BOOLEAN",
    "c_tiny": "TINYINT",
    "c_small": "SMALLINT",
    "c_int": "INT",
    "c_float": "FLOAT",
    "c_double": "DOUBLE",
    "c_text": "STRING",
    "c_date": "DATE",
    "c_dec": "DECIMAL(12, 2)",
    "c_wide": "DECIMAL(38, 9)",
    "c_ts3": "TIMESTAMP(3)",
    "c_ts6": "TIMESTAMP(6)",
    "c_ltz": "TIMESTAMP_LTZ(3)",
}
AT = dt.datetime.fromisoformat("1969-12-31T23:59:59.999")
VALUES = {
    "c_bool": True,
    "c_tiny": -8,
    "c_small": -300,
    "c_int": 2**31 - 1,
    "c_float": 0.5,
    "c_double": 0.125,
    "c_text": "ü'\"",
    "c_date": dt.date(2026, 2, 28),
    "c_dec": Decimal("-1.10"),
    "c_wide": Decimal("12345678901234567890123456789.123456789"),
    "c_ts3": AT,
    "c_ts6": AT.replace(microsecond=999999),
    "c_ltz": AT.replace(tzinfo=dt.UTC),
}
KEYED = TableDescriptor(
    name="shop.types",
    columns=(
        Column("k", "BIGINT", nullable=False),
        Column("p", "DATE", nullable=False),
        *(Column(name, kind) for name, kind in TYPES.items()),
    ),
    primary_key=("k", "p"),
    partition_keys=("p",),
    options=TIERED,
)


def spark(path: Path, *statements: str) -> list[list[list[str | None]]]:
    from flashlake.setup.java import find_java, spark_environment

    command = [sys.executable, str(Path(__file__).with_name("spark_process.py")), str(path), *statements]
    done = subprocess.run(command, capture_output=True, text=True, env=spark_environment(find_java()))
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


@pytest.fixture
def store(tmp_path):
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as opened:
        yield opened


def fill(store, lake: Path) -> Tierer:
    """A table that was appended to, merged and compacted, in two partitions."""
    table = store.create_table(KEYED)
    tierer = Tierer(store, lake, Limits(compact_commits=3))
    for round_number in range(4):
        rows = [{"k": k, "p": dt.date(2026, 1, 1 + k % 2), **VALUES, "c_int": round_number} for k in range(round_number, round_number + 3)]
        table.upsert([*rows, {"k": 99, "p": dt.date(2026, 1, 1), **dict.fromkeys(VALUES)}])
        tierer.run_once(force=True)
    table.delete({"k": [0], "p": [dt.date(2026, 1, 1)]})
    tierer.run_once(force=True)
    return tierer


@pytest.mark.spark
def test_spark_reads_what_duckdb_reads_and_its_compaction_does_not_disturb_tiering(store, tmp_path, duck, lake_rows):
    tierer = fill(store, tmp_path / "lake")
    path = table_path(tmp_path / "lake", "shop.types")
    texts = ", ".join(f"CAST({quoted_list([name])} AS VARCHAR)" for name in KEYED.column_names)
    by_duckdb = [
        [None if v is None else str(v).removesuffix("+00") for v in row]
        for row in duck.execute(f"SELECT {texts} FROM delta_scan('{path}') ORDER BY k").fetchall()
    ]

    names = ", ".join(f"CAST(`{name}` AS STRING)" for name in KEYED.column_names)
    filtered = "SELECT count(*) FROM {table} WHERE c_ts3 %s timestamp_ntz'1969-12-31 23:59:59.999'"
    rows, equal, above, by_day, _, after = spark(
        path,
        f"SELECT {names} FROM {{table}} ORDER BY k",
        filtered % "=",
        filtered % ">",
        "SELECT count(*) FROM {table} WHERE p = '2026-01-02'",
        "OPTIMIZE {table}",
        "SELECT count(*) FROM {table}",
    )

    assert rows == by_duckdb
    assert (equal, above, by_day, after) == ([["5"]], [["0"]], [["3"]], [["6"]])
    store.table("shop.types").delete({"k": [99], "p": [dt.date(2026, 1, 1)]})
    tierer.run_once(force=True)
    assert lake_rows(path, "k") == [(1,), (2,), (3,), (4,), (5,)]


def test_a_row_inserted_by_duckdb_is_noticed(store, tmp_path, duck):
    tierer = fill(store, tmp_path / "lake")
    path = table_path(tmp_path / "lake", "shop.types")
    duck.execute(f"ATTACH '{path}' AS foreign_lake (TYPE delta)")
    try:
        duck.execute("INSERT INTO foreign_lake SELECT * REPLACE (1000 AS k) FROM foreign_lake LIMIT 1")
    finally:
        duck.execute("DETACH foreign_lake")
    store.table("shop.types").delete({"k": [1], "p": [dt.date(2026, 1, 2)]})

    with pytest.raises(LakeChanged, match="DuckDB"):
        tierer.run_once(force=True)


@pytest.mark.parametrize(
    ("kind", "protocol", "features"),
    [("TIMESTAMP(3)", (3, 7), ["timestampNtz"]), ("TIMESTAMP_LTZ(3)", (1, 2), None), ("DATE", (1, 2), None)],
)
def test_a_tiered_table_uses_no_table_feature_but_timestamp_ntz(store, tmp_path, kind, protocol, features):
    store.create_table(TableDescriptor(name="a.b", columns=(Column("k", "INT", nullable=False), Column("x", kind)), options=TIERED))
    store.table("a.b").append({"k": [1], "x": [None]})
    Tierer(store, tmp_path / "lake").run_once(force=True)

    found = DeltaTable(str(table_path(tmp_path / "lake", "a.b"))).protocol()

    assert (found.min_reader_version, found.min_writer_version) == protocol
    assert found.reader_features == features
    assert found.writer_features == features
