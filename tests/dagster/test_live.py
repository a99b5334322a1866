"""Dagster as it runs: web server, daemon, queue. The stream writes, the journal is followed, a schedule seals, a backfill repairs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flashlake.orchestration import prepare_home
from flashlake.orchestration.backfill import BackfillState, backfill, graphql
from storage_engine import Store, connect
from storage_engine.errors import InvalidPartition, UnknownTable, UserError
from storage_engine.server import ServerProcess
from tests.dagster.shop import START, create_tables, day, run_stream, sales, write_files
from tests.waiting import await_true

pytestmark = pytest.mark.dagster

LOCATION = f"""
from pathlib import Path
import dagster as dg
from flashlake.orchestration import load_definitions
from resources import project_resources

HERE = Path(__file__).resolve().parent
defs = dg.Definitions.merge(
    load_definitions(HERE / "assets", start={START!r}, journal_interval_s=1, journal_quiet_s=1.0),
    dg.Definitions(resources=project_resources(HERE), executor=dg.in_process_executor),
)
"""
WORKSPACE = "load_from: [{python_module: {module_name: shop_location, working_directory: .}}]\n"
_EVENTS = """query($key: AssetKeyInput!, $days: [String!]) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
  assetMaterializations(partitions: $days, limit: 20) { runId partition metadataEntries { label ... on IntMetadataEntry { intValue } } }
  assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization { runId status } } } } } } }"""


@dataclass(frozen=True)
class Live:
    """A running Dagster over a running store."""

    url: str
    store: Store

    def events(self, table: str, ds: str) -> list[dict[str, Any]]:
        """Materializations of a day, newest first, with numbers of their metadata under "numbers"."""
        node = self.asset(table, ds)
        numbers = [{item["label"]: item.get("intValue") for item in event["metadataEntries"]} for event in node["assetMaterializations"]]
        return [{**event, "numbers": found} for event, found in zip(node["assetMaterializations"], numbers, strict=True)]

    def asset(self, table: str, ds: str) -> dict[str, Any]:
        return graphql(self.url, _EVENTS, {"key": {"path": table.split(".")}, "days": [ds]})["assetNodeOrError"]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = write_files(tmp_path_factory.mktemp("shop"))
    home = folder / "data" / "dagster"
    prepare_home(home)
    (folder / "shop_location.py").write_text(LOCATION)
    (folder / "workspace.yaml").write_text(WORKSPACE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with ServerProcess(folder / "data" / "store") as server:
        (folder / "flashlake.toml").write_text(f'[store]\nurl = "{server.url}"\n')
        with connect(server.url) as store:
            create_tables(store, folder)
            store.table("ods.sales").append(sales(day(1), "4.00", "5.50"))
            run_stream(store)
            children = [
                start(folder, home, "dagster-webserver", "-h", "127.0.0.1", "-p", str(port), "-w", "workspace.yaml"),
                start(folder, home, "dagster-daemon", "run", "-w", "workspace.yaml"),
            ]
            try:
                await_true(lambda: answers(url), "the web server", timeout_s=120, every_s=0.5)
                yield Live(url, store)
            finally:
                for child in children:
                    os.killpg(child.pid, signal.SIGTERM)
                for child in children:
                    stop(child)


def start(folder: Path, home: Path, tool: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(folder)}
    with (folder / f"{tool}.log").open("wb") as log:
        command = [str(Path(sys.executable).parent / tool), *arguments]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def stop(child: subprocess.Popen[bytes]) -> None:
    """Dagster leaves children of its own behind: end the whole process group."""
    try:
        child.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(20)


def test_the_journal_sensor_reports_a_day_that_the_stream_has_filled(live: Live) -> None:
    live.store.table("ods.sales").append(sales(day(2), "1.00", "2.00", "3.00"))
    run_stream(live.store)

    (source,) = await_true(lambda: live.events("ods.sales", day(2)), "ods.sales sealed by the journal sensor", timeout_s=120, every_s=0.5)
    (line,) = await_true(lambda: live.events("dwd.sale", day(2)), "dwd.sale sealed by the journal sensor", timeout_s=60, every_s=0.5)

    assert source["numbers"]["log_rows"] == line["numbers"]["log_rows"] == 3
    assert source["runId"] == ""  # reported, not run


def test_a_backfill_goes_through_the_queue_honours_the_policy_and_repairs(live: Live) -> None:
    for n in (3, 4, 5, 6):
        live.store.table("ods.sales").append(sales(day(n), "1.00", f"{n}.00"))
    run_stream(live.store)
    wrong = pa.table({"shop_id": [7], "ds": [day(4)], "sale_cnt": [99], "amount": pa.array([Decimal("0.01")], pa.decimal128(38, 2))})
    live.store.table("dws.shop_day").upsert(wrong)
    seen: list[BackfillState] = []

    with ThreadPoolExecutor(2) as pool:
        days = f"{day(6)}..{day(3)}"
        single = pool.submit(backfill, live.url, "dws.shop_day", days, timeout_s=240, on_state=seen.append)
        multi = pool.submit(backfill, live.url, "dws.shop_best", days, timeout_s=240)
        one, two = single.result(), multi.result()

    assert (one.n_done, one.n_partitions, len(one.runs)) == (4, 4, 1)  # single_run
    assert (two.n_done, two.n_partitions, len(two.runs)) == (4, 4, 2)  # multi_run(2)
    assert seen[-1] == one
    (row,) = live.store.table("dws.shop_day").read(where=f"ds = '{day(4)}'").to_pylist()
    assert (row["sale_cnt"], row["amount"]) == (2, Decimal("5.00"))
    tags = graphql(
        live.url, "query($id: ID!) { runOrError(runId: $id) { ... on Run { tags { key value } } } }", {"id": next(iter(one.runs))}
    )
    assert {"key": "lane", "value": "backfill"} in tags["runOrError"]["tags"]
    (event, *_) = [event for event in live.events("dws.shop_day", day(4)) if event["runId"] in one.runs]
    assert event["numbers"]["rows_repaired"] == 1


@pytest.mark.parametrize(
    ("table", "days", "refusal", "named"),
    [
        ("dws.nothing", "2017-01-01", UnknownTable, "no asset for dws.nothing"),
        ("ods.sales", "2017-01-01", UserError, "filled from outside"),
        ("dws.shop_day", "1999-01-01..1999-01-02", InvalidPartition, "1999-01-01"),
        ("dws.shop_day", f"{day(1)}..{day(2)}", InvalidPartition, "earlier partition first"),
    ],
)
def test_a_backfill_that_cannot_be_is_refused_before_it_starts(live: Live, table: str, days: str, refusal: type, named: str) -> None:
    with pytest.raises(refusal, match=named):
        backfill(live.url, table, days)


def test_the_schedule_seals_yesterday_and_its_check_proves_it(live: Live) -> None:
    """The last test of the module: the schedule's minute has passed meanwhile."""

    def sealed() -> list[dict[str, Any]]:
        return [event for event in live.events("dws.shop_day", day(1)) if event["runId"]]

    (event, *_) = await_true(sealed, "dws.shop_day materialized by the schedule", timeout_s=180, every_s=0.5)

    assert (event["numbers"]["dagster/row_count"], event["numbers"]["rows_compared"], event["numbers"]["rows_differing"]) == (1, 1, 0)

    def executed() -> list[str]:
        checks = live.asset("dws.shop_day", day(1))["assetChecksOrError"]["checks"]
        states = [(check["executionForLatestMaterialization"] or {"status": "IN_PROGRESS"})["status"] for check in checks]
        return [] if "IN_PROGRESS" in states else states

    assert await_true(executed, "the check of the latest materialization", timeout_s=60, every_s=0.5) == ["SUCCEEDED"]
