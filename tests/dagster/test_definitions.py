"""Every asset of the code location keeps the rules of the house; the location loads the way Dagster's tools load it."""

from __future__ import annotations

import os
import subprocess
import sys
import typing
from pathlib import Path

import dagster as dg
import pytest

from definitions import defs
from flashlake.orchestration.factory import CHECK_NAME

REPOSITORY = Path(__file__).resolve().parents[2]
GRAPH = defs.resolve_asset_graph()
KEYS = sorted(GRAPH.get_all_asset_keys(), key=lambda key: key.path)
ASSETS = [asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition) and asset.is_executable]
SQL_TABLES = sorted((path.parent.name, path.stem) for path in (REPOSITORY / "assets").glob("*/*.sql"))


def names(keys: typing.Iterable[dg.AssetKey]) -> list[str]:
    return [key.to_user_string() for key in keys]


@pytest.mark.parametrize("key", KEYS, ids=names(KEYS))
def test_an_asset_has_an_owner_a_group_a_description_kinds_and_columns(key: dg.AssetKey) -> None:
    node = GRAPH.get(key)

    assert node.owners
    assert node.group_name == key.path[0]
    assert node.description
    assert node.kinds
    assert node.metadata["dagster/column_schema"] is not None


@pytest.mark.parametrize("key", [key for key in KEYS if GRAPH.get(key).is_partitioned and GRAPH.get(key).is_materializable], ids=str)
def test_a_partitioned_asset_that_can_run_has_a_backfill_policy_and_a_freshness_policy(key: dg.AssetKey) -> None:
    node = GRAPH.get(key)

    assert node.backfill_policy is not None
    assert node.freshness_policy is not None


@pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.key.to_user_string())
def test_an_asset_returns_results_and_never_a_value_for_an_io_manager(asset: dg.AssetsDefinition) -> None:
    returned = typing.get_type_hints(asset.op.compute_fn.decorated_fn)["return"]

    allowed = {type(None), dg.MaterializeResult, dg.AssetCheckResult}
    inner = typing.get_args(returned)[0] if typing.get_origin(returned) is not None and typing.get_args(returned) else returned
    assert set(typing.get_args(inner)) <= allowed if typing.get_args(inner) else inner in allowed


def test_every_derived_table_has_its_proof_and_no_source_has_one() -> None:
    checked = {check.asset_key for check in GRAPH.asset_check_keys if check.name == CHECK_NAME}

    executable = {dg.AssetKey(list(table)) for table in SQL_TABLES if GRAPH.get(dg.AssetKey(list(table))).is_materializable}
    assert checked == executable
    assert len(executable) == 9


def test_every_sql_file_is_an_asset_and_its_dependencies_are_the_tables_it_reads() -> None:
    assert {tuple(key.path) for key in KEYS} == {*SQL_TABLES, ("ods", "promotions"), ("dws", "promotion_line")}
    wide = GRAPH.get(dg.AssetKey(["dws", "store_hour_wide"]))
    assert names(sorted(wide.parent_keys)) == ["dwd/exposure", "dwd/order_line", "dwd/page_visit"]


def test_column_lineage_reaches_from_a_view_to_the_column_it_sums() -> None:
    lineage = GRAPH.get(dg.AssetKey(["views", "department_day"])).metadata["dagster/column_lineage"]

    (source,) = lineage.deps_by_column["sales_value"]
    assert (source.asset_key.to_user_string(), source.column_name) == ("dwd/order_line", "sales_value")


def test_the_daily_schedule_seals_yesterday_for_every_table_with_days() -> None:
    schedule = defs.resolve_schedule_def("seal_yesterday_schedule")
    context = dg.build_schedule_context(scheduled_execution_time=_at("2017-03-02T02:00:00+00:00"))

    request = schedule(context)

    assert request.partition_key == "2017-03-01"
    job = defs.resolve_job_def("seal_yesterday")
    assert len(job.asset_layer.executable_asset_keys) == 8
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


def test_the_code_location_imports_neither_spark_nor_duckdb() -> None:
    program = "import sys, definitions; print(sorted({'pyspark', 'duckdb', 'deltalake'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.dagster
@pytest.mark.parametrize("command", [("dagster", "definitions", "validate", "-w", "workspace.yaml"), ("dg", "check", "defs")], ids=" ".join)
def test_dagsters_own_tools_accept_the_code_location(command: tuple[str, ...], tmp_path: Path) -> None:
    tool = str(Path(sys.executable).parent / command[0])
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    done = subprocess.run([tool, *command[1:]], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def _at(text: str) -> object:
    from datetime import datetime

    return datetime.fromisoformat(text)
