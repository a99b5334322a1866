"""Materializing days against a real store: what is proved, what is repaired, what cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pyarrow as pa

from flashlake.orchestration import load_definitions
from resources import StoreWarehouse
from storage_engine import Store, connect
from tests.dagster.shop import START, day, run_stream, sales

DAY = dg.AssetKey(["dws", "shop_day"])
LINE = dg.AssetKey(["dwd", "sale"])


@contextmanager
def opened(project: Path) -> Iterator[Store]:
    with connect(f"file://{project}/data/store") as store:
        yield store


def fill(project: Path) -> None:
    with opened(project) as store:
        for n in (1, 2, 3):
            store.table("ods.sales").append(sales(day(n), "1.50", "2.25"))
        run_stream(store)


def materialize(project: Path, key: dg.AssetKey, *days: str, checks_only: bool = False) -> dg.ExecuteInProcessResult:
    defs = load_definitions(project / "assets", start=START)
    asset = next(asset for asset in defs.assets if isinstance(asset, dg.AssetsDefinition) and key in asset.keys)
    tags = {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[-1]} if len(days) > 1 else {}
    selection = dg.AssetSelection.checks_for_assets(key) if checks_only else None
    with dg.instance_for_test() as instance:
        return dg.materialize(
            [asset],
            resources={"warehouse": StoreWarehouse(project=str(project))},
            partition_key=days[0] if len(days) == 1 else None,
            tags=tags,
            selection=selection,
            instance=instance,
            raise_on_error=False,
        )


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    (event,) = result.get_asset_materialization_events()
    return {name: value.value for name, value in event.materialization.metadata.items()}


def test_a_day_that_the_stream_wrote_right_is_proved_and_nothing_is_written(project: Path) -> None:
    fill(project)

    result = materialize(project, DAY, day(1))

    metadata = metadata_of(result)
    assert (metadata["dagster/row_count"], metadata["rows_compared"], metadata["rows_differing"], metadata["rows_repaired"]) == (1, 1, 0, 0)
    assert metadata["first_partition"] == metadata["last_partition"] == day(1)
    (check,) = result.get_asset_check_evaluations()
    assert check.passed
    with opened(project) as store:
        assert store.version() == metadata["store_version"]


def test_a_range_of_days_is_one_run_with_one_proof(project: Path) -> None:
    fill(project)

    result = materialize(project, DAY, day(3), day(2), day(1))

    events = [event.materialization for event in result.get_asset_materialization_events()]
    assert [(event.partition, event.metadata["dagster/row_count"].value) for event in events] == [(day(3), 1), (day(2), 1), (day(1), 1)]
    evaluations = result.get_asset_check_evaluations()
    assert [check.metadata["rows_compared"].value for check in evaluations] == [3]


def test_a_row_changed_behind_the_jobs_back_is_repaired_and_the_check_says_so(project: Path) -> None:
    fill(project)
    wrong = pa.table({"shop_id": [7], "ds": [day(1)], "sale_cnt": [99], "amount": pa.array([Decimal("0.01")], pa.decimal128(38, 2))})
    with opened(project) as store:
        store.table("dws.shop_day").upsert(wrong)

    result = materialize(project, DAY, day(1))

    assert metadata_of(result)["rows_repaired"] == 1
    (check,) = result.get_asset_check_evaluations()
    assert check.passed
    assert "after a repair of 1" in str(check.description)
    with opened(project) as store:
        (row,) = store.table("dws.shop_day").read(where=f"ds = '{day(1)}'").to_pylist()
    assert (row["sale_cnt"], row["amount"]) == (2, Decimal("3.75"))


def test_the_check_alone_finds_the_wrong_row_and_leaves_it(project: Path) -> None:
    fill(project)
    wrong = pa.table({"shop_id": [7], "ds": [day(1)], "sale_cnt": [99], "amount": pa.array([Decimal("0.01")], pa.decimal128(38, 2))})
    with opened(project) as store:
        store.table("dws.shop_day").upsert(wrong)

    result = materialize(project, DAY, checks_only=True)  # a check alone has no partition: it proves the whole table

    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert result.get_asset_materialization_events() == []
    assert check.metadata["rows_differing"].value == 1
    assert check.metadata["rows_compared"].value == 3
    assert "99" in str(check.metadata["sample"].value)


def test_a_row_too_many_in_a_log_stays_and_the_check_fails_with_the_reason(project: Path) -> None:
    fill(project)
    with opened(project) as store:
        store.table("dwd.sale").append(sales(day(1), "9.99"))

    result = materialize(project, LINE, day(1))

    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert "log table" in str(check.metadata["notes"].value)


def test_a_store_that_is_not_there_fails_the_run_with_the_remedy(tmp_path: Path, project: Path) -> None:
    (project / "flashlake.toml").write_text('[store]\nurl = "flashlake://127.0.0.1:1"\n')

    result = materialize(project, DAY, day(1))

    assert not result.success
    (failure,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    assert "127.0.0.1:1" in str(failure.step_failure_data.user_failure_data.description)


def test_a_day_whose_input_was_dropped_is_not_proved_and_stays_as_it_is(project: Path) -> None:
    fill(project)
    with opened(project) as store:
        before = store.table("dws.shop_day").read().to_pylist()
        store.execute(f"ALTER TABLE ods.sales DROP PARTITION (ds = '{day(2)}')")

    result = materialize(project, DAY, day(2))

    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert "2 rows that were read of ods.sales are gone" in (check.description or "")
    assert metadata_of(result)["rows_repaired"] == 0
    with opened(project) as store:
        assert store.table("dws.shop_day").read().to_pylist() == before
    (other,) = materialize(project, DAY, day(1)).get_asset_check_evaluations()
    assert other.passed


def test_days_written_without_dashes_are_proved_and_repaired(project: Path) -> None:
    compact = day(1).replace("-", "")
    with opened(project) as store:
        store.table("ods.sales").append(sales(compact, "1.50", "2.25"))
        run_stream(store)
        store.table("dws.shop_day").upsert({"shop_id": [7], "ds": [compact], "sale_cnt": [99], "amount": [Decimal(1)]})

    result = materialize(project, DAY, day(1))

    metadata = metadata_of(result)
    assert (metadata["dagster/row_count"], metadata["rows_compared"], metadata["rows_repaired"]) == (1, 1, 1)
    with opened(project) as store:
        (row,) = store.table("dws.shop_day").read().to_pylist()
    assert (row["sale_cnt"], row["amount"]) == (2, Decimal("3.75"))


def test_a_day_without_a_row_on_either_side_has_not_passed(project: Path) -> None:
    fill(project)

    (check,) = materialize(project, DAY, day(5)).get_asset_check_evaluations()

    assert not check.passed
    assert f"no row of {day(5)} on either side: nothing was compared" in (check.description or "")
