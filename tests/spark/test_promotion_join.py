"""The promotion join, run as Dagster runs it: in a process of its own, with Pipes between."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from assets import LAKE_ASSETS, LAKE_CHECKS, promotion_line
from flashlake.completejourney import data_file
from resources import Lake, Spark
from storage_engine.lake.duck import connect_delta

pytestmark = pytest.mark.spark

WEEKS = (1,)
MEASURE_PARTITIONS = 16
START_FAST = '"spark.driver.extraJavaOptions" = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"'  # a JVM of a minute compiles for nothing
MONEY = "sales_value::DECIMAL(12, 2) AS sales_value"
LINES = f"SELECT * REPLACE ({MONEY}, week::INT AS week), strftime(transaction_timestamp, '%Y-%m-%d') AS ds"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose lake holds the transactions of some real weeks."""
    folder = tmp_path_factory.mktemp("project")
    jars = Path(__file__).resolve().parents[2] / "jars"
    (folder / "flashlake.toml").write_text(f'[spark]\njars = "{jars}"\nshuffle_partitions = 4\n[spark.conf]\n{START_FAST}\n')
    lines = duckdb.sql(f"{LINES} FROM '{data_file('transactions')}' WHERE week IN {(*WEEKS, 0)}").arrow()
    write_deltalake(str(folder / "data/lake/ods/transactions"), pa.table(lines), partition_by=["ds"])
    return folder


@pytest.fixture(scope="module")
def report(project: Path) -> dict:
    """Both assets, materialized in one run; the report that the job wrote."""
    resources = {"lake": Lake(project=str(project)), "spark": Spark(project=str(project))}
    run_config = {
        "ops": {
            "ods__promotions": {"config": {"weeks": list(WEEKS)}},
            "dws__promotion_line": {"config": {"measure_partitions": MEASURE_PARTITIONS}},
        }
    }
    with dg.instance_for_test() as instance:
        result = dg.materialize([*LAKE_ASSETS, *LAKE_CHECKS], resources=resources, run_config=run_config, instance=instance)
        assert result.success
        checks = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
        event = instance.get_latest_materialization_event(dg.AssetKey(["dws", "promotion_line"]))
    report = json.loads((project / "data/lake/reports/promotion_join.json").read_text())
    return {**report, "metadata": event.asset_materialization.metadata, "checks": checks}


def test_every_line_with_units_is_in_the_result_once_with_the_promotion_that_duckdb_finds(project: Path, report: dict) -> None:
    con = connect_delta()
    keys = "product_id, store_id, week"
    largest = "max(display_location) AS d, max(mailer_location) AS m"
    con.execute(f"CREATE VIEW lines AS SELECT * FROM '{data_file('transactions')}' WHERE week IN {(*WEEKS, 0)} AND quantity <> 0")
    con.execute(f"CREATE VIEW promos AS SELECT {keys}, {largest} FROM '{data_file('promotions')}' WHERE week IN {(*WEEKS, 0)} GROUP BY ALL")
    codes = "coalesce(d, '0') AS d, coalesce(m, '0') AS m"
    expected = f"SELECT basket_id, product_id, {codes}, {MONEY} FROM lines LEFT JOIN promos USING ({keys})"
    written = f"delta_scan('{project}/data/lake/dws/promotion_line')"
    actual = f"SELECT basket_id, product_id, display_location, mailer_location, sales_value FROM {written}"

    (differing,) = con.execute(
        f"SELECT count(*) FROM (({expected} EXCEPT ALL {actual}) UNION ALL ({actual} EXCEPT ALL {expected}))"
    ).fetchone()
    (n_rows,) = con.execute(f"SELECT count(*) FROM ({actual})").fetchone()

    assert differing == 0
    assert n_rows == report["rows"] > 3000


def test_a_delete_adds_deletion_vectors_and_rewrites_no_file(project: Path, report: dict) -> None:
    assert report["rows_deleted"] > 0
    assert report["deletion_vectors_added"] >= 1
    assert report["files_rewritten"] == 0
    assert len(list((project / "data/lake/dws/promotion_line").rglob("deletion_vector*.bin"))) >= 1
    assert "deletionVectors" in (DeltaTable(str(project / "data/lake/dws/promotion_line")).protocol().reader_features or [])


def test_the_report_measures_both_plans_and_skew_handling_where_it_does_something_and_all_agree(report: dict) -> None:
    runs = report["skew"]["runs"]

    assert [(run["plan"], run["skew_handling"]) for run in runs] == [("full_key", True), ("by_product", False), ("by_product", True)]
    assert len({(run["n_rows"], run["checksum"]) for run in runs}) == 1
    assert report["skew"]["n_partitions"] == MEASURE_PARTITIONS
    assert all(run["task_ms"]["n_tasks"] >= MEASURE_PARTITIONS for run in runs)
    assert runs[0]["skew_markers"] == []
    assert "fair share: not skewed" in report["skew"]["finding"]


def test_the_asset_check_finds_that_duckdb_computes_the_same(report: dict) -> None:
    assert report["checks"] == {"duckdb_computes_the_same": True}


def test_dagster_knows_rows_versions_and_the_finding(report: dict) -> None:
    metadata = report["metadata"]

    assert metadata["dagster/row_count"].value == report["rows"]
    assert metadata["delta_version"].value == report["target_version"]
    assert metadata["finding"].value == report["skew"]["finding"]


def test_a_second_run_writes_the_same_rows_again_and_doubles_nothing(project: Path, report: dict) -> None:
    resources = {"lake": Lake(project=str(project)), "spark": Spark(project=str(project))}
    run_config = {"ops": {"dws__promotion_line": {"config": {"report": False}}}}

    result = dg.materialize([promotion_line], resources=resources, run_config=run_config)

    metadata = result.asset_materializations_for_node("dws__promotion_line")[0].metadata
    assert metadata["dagster/row_count"].value == report["rows"]
    assert metadata["delta_version"].value > report["target_version"]
