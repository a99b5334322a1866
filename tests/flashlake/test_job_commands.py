"""What people at a terminal, and Prometheus, see of jobs: verify with examples and repair, status lines, the page of numbers."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import storage_engine
from flashlake.cli import main
from flashlake.supervisor.status import job_lines
from storage_engine.server import ServerProcess
from storage_engine.stream import Worker

JOBS = """
CREATE TABLE shop.sales (id BIGINT, dept STRING, n BIGINT, text STRING);
CREATE TABLE shop.totals (dept STRING, cnt BIGINT, users BIGINT, PRIMARY KEY (dept) NOT ENFORCED);
CREATE TABLE shop.numbers (id BIGINT, value_of BIGINT);
SET 'pipeline.poison-row' = 'quarantine';
SET 'pipeline.name' = 'sums'; INSERT INTO shop.totals SELECT dept, COUNT(*), COUNT(DISTINCT id) FROM shop.sales GROUP BY dept;
SET 'pipeline.name' = 'numbers'; INSERT INTO shop.numbers SELECT id, CAST(text AS BIGINT) FROM shop.sales;
"""


def fill(store: storage_engine.Store) -> None:
    store.execute(JOBS)
    rows = {"id": [1, 2, 3, 4], "dept": ["a", "b", "a", "b"], "n": [1, 2, 3, 4], "text": ["1", "x", "3", "4"]}
    store.table("shop.sales").append(rows)
    Worker(store).run_until_idle()


def verify(url: str, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[dict[str, object]], str]:
    capsys.readouterr()
    status = main(["verify", "--store", url, "--format", "json", *options])
    said = capsys.readouterr()
    return status, json.loads(said.out), said.err


def test_verify_names_the_rows_that_differ_and_repairs_them_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = (tmp_path / "store").as_uri()
    with storage_engine.connect(url) as store:
        fill(store)
        store.table("shop.totals").upsert({"dept": ["a", "ghost"], "cnt": [99, 1], "users": [2, 1]})

    status, lines, said = verify(url, capsys)
    assert status == 1
    found = {line["table"]: line for line in lines}
    assert (found["shop.totals"]["rows_compared"], found["shop.totals"]["rows_differing"]) == (3, 2)
    assert (found["shop.numbers"]["rows_differing"], found["shop.numbers"]["rows_quarantined"]) == (0, 1)
    for piece in ("differs", "extra", "dept=ghost", "cnt=2", "cnt=99", "--repair"):
        assert piece in said

    status, (line,), _ = verify(url, capsys, "shop.totals", "--repair")
    assert (status, line["rows_repaired"], line["rows_differing"]) == (0, 2, 0)
    status, lines, _ = verify(url, capsys)
    assert (status, [line["holds"] for line in lines]) == (0, [True, True])


def test_status_and_the_page_of_numbers_say_how_each_job_is_doing(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "s", options=["--metrics-port", "0"]) as server, storage_engine.connect(server.url) as store:
        fill(store)
        store.table("shop.sales").append({"id": [5], "dept": ["c"], "n": [5], "text": ["5"]})
        store.execute("PAUSE JOB numbers")

        lines = {line["name"]: line for line in job_lines(store)}
        assert (lines["sums"]["health"], lines["sums"]["lag_rows"]) == ("running", 1)
        assert "state: 4 rows" in lines["sums"]["detail"]
        assert lines["numbers"]["health"] == "paused"
        assert "1 rows in quarantine" in lines["numbers"]["detail"]

        page = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    samples = {
        (sample.name, sample.labels.get("job")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["flashlake_job_lag_rows", "sums"] == 1
    assert samples["flashlake_job_rows_in_total", "sums"] == 4
    assert samples["flashlake_job_state_rows", "sums"] == 4
    assert samples["flashlake_job_quarantined_rows_total", "numbers"] == 1
    assert (samples["flashlake_job_running", "sums"], samples["flashlake_job_running", "numbers"]) == (1, 0)
    assert samples["flashlake_job_rows_per_second", "sums"] > 0
