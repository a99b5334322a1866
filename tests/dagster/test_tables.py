"""The .sql files of a project: what is read from them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashlake.orchestration import read_file, read_project
from flashlake.orchestration.factory import _column_schema
from flashlake.orchestration.lineage import column_sources, tables_read
from storage_engine.errors import StatementRefused

REPOSITORY = Path(__file__).resolve().parents[2]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.sql"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_warehouse_reads_in_an_order_in_which_the_store_can_execute_it() -> None:
    definitions = read_project(REPOSITORY / "assets")

    names = [definition.name for definition in definitions]
    assert all(names.index(read) < names.index(definition.name) for definition in definitions for read in definition.reads)
    wide = next(definition for definition in definitions if definition.name == "dws.store_hour_wide")
    assert [pipeline.name for pipeline in wide.pipelines] == ["store_hour_orders", "store_hour_visits", "store_hour_exposures"]
    assert wide.reads == ("dwd.order_line", "dwd.page_visit", "dwd.exposure")


def test_a_lookup_of_itself_is_not_a_dependency() -> None:
    mapping = read_file(REPOSITORY / "assets/dwd/household_mapping.sql")

    assert mapping.reads == ("ods.transactions",)


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("ods/t", "CREATE TABLE ods.other (a BIGINT)", "Name it ods.t"),
        ("ods/t", "SET 'pipeline.name' = 'x';", "0 tables are created"),
        ("ods/t", "CREATE TABLE ods.t (a BIGINT); DROP TABLE ods.x;", "does not belong"),
        ("ods/t", "CREATE TABLE ods.t (a BIGINT); INSERT INTO ods.t SELECT a FROM ods.s;", "no pipeline name"),
        ("ods/t", "CREATE TABLE ods.t (a BIGINT); SET 'pipeline.name' = 'p'; INSERT INTO ods.u SELECT a FROM ods.s;", "writes ods.u"),
    ],
)
def test_a_file_that_is_not_the_definition_of_its_table_is_refused_with_file_and_line(
    tmp_path: Path, name: str, text: str, named: str
) -> None:
    path = write(tmp_path, name, text)

    with pytest.raises(StatementRefused, match=named) as refusal:
        read_file(path)

    assert f"{path}, line 1" in str(refusal.value)


def test_tables_that_read_each_other_are_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        text = f"CREATE TABLE x.{name} (i BIGINT); SET 'pipeline.name' = '{name}'; INSERT INTO x.{name} SELECT i FROM x.{other};"
        write(tmp_path, f"x/{name}", text)

    with pytest.raises(StatementRefused, match=r"x\.a, x\.b"):
        read_project(tmp_path)


def test_a_folder_without_definitions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StatementRefused, match="no table definition"):
        read_project(tmp_path)


def test_lineage_follows_expressions_subqueries_and_lookups_and_leaves_filters_out() -> None:
    sql = (
        "WITH big AS (SELECT id, a + b AS ab, `day` FROM ods.t WHERE c > 0) "
        "SELECT x.ab * 2 AS twice, p.name, COUNT(*) AS n FROM big AS x "
        "LEFT JOIN ods.p FOR SYSTEM_TIME AS OF PROCTIME() AS p ON x.id = p.id GROUP BY x.ab, p.name"
    )
    schemas = {"ods.t": dict.fromkeys(("id", "a", "b", "c", "day"), "BIGINT"), "ods.p": dict.fromkeys(("id", "name"), "STRING")}

    sources = column_sources(sql, schemas)

    assert tables_read(sql) == ["ods.t", "ods.p"]
    assert [(source.table, source.column) for source in sources["twice"]] == [("ods.t", "a"), ("ods.t", "b")]
    assert [(source.table, source.column) for source in sources["name"]] == [("ods.p", "name")]
    assert sources["n"] == []


def test_the_column_schema_of_a_materialization_is_what_the_store_has(tmp_path: Path) -> None:
    text = "CREATE TABLE a.t (k BIGINT NOT NULL COMMENT 'key', n INT COMMENT 'pieces', s STRING, PRIMARY KEY (k) NOT ENFORCED)"
    definition = read_file(write(tmp_path, "a/t", text))

    schema = _column_schema(definition, {"k": "BIGINT", "n": "BIGINT", "later": "STRING"})

    assert [(column.name, column.type, column.description) for column in schema.columns] == [
        ("k", "BIGINT", "key"), ("n", "BIGINT", "pieces"), ("later", "STRING", None),
    ]  # fmt: skip
    assert schema.columns[0].constraints.unique
    assert [column.name for column in _column_schema(definition, {}).columns] == ["k", "n", "s"]
