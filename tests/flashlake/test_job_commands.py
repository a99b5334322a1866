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
from storage_engine.stream import Worker, load_jobs

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


def test_verify_does_not_end_well_where_input_is_gone_and_repairs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = (tmp_path / "store").as_uri()
    with storage_engine.connect(url) as store:
        store.execute(
            "CREATE TABLE shop.days (n BIGINT, ds STRING) PARTITIONED BY (ds);"
            "CREATE TABLE shop.sums (ds STRING, n BIGINT, PRIMARY KEY (ds) NOT ENFORCED);"
            "SET 'pipeline.name' = 'sums'; INSERT INTO shop.sums SELECT ds, SUM(n) FROM shop.days GROUP BY ds"
        )
        store.table("shop.days").append({"n": [1, 2], "ds": ["a", "b"]})
        Worker(store).run_until_idle()
        store.execute("ALTER TABLE shop.days DROP PARTITION (ds = 'a')")

    for options in ((), ("shop.sums", "--repair")):
        status, (line,), said = verify(url, capsys, *options)
        assert (status, line["holds"], line["rows_repaired"]) == (1, False, 0)
        assert "partition a was dropped" in str(line["notes"])
        assert "shop.sums could not be proved" in said
    with storage_engine.connect(url) as store:
        assert store.table("shop.sums").count() == 2


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


def said(capsys: pytest.CaptureFixture[str], url: str, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["jobs", *words, "--store", url])
    out, err = capsys.readouterr()
    return status, out, err


def test_jobs_are_listed_changed_and_dropped_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = (tmp_path / "store").as_uri()
    with storage_engine.connect(url) as store:
        fill(store)

    _, out, _ = said(capsys, url, "list", "--format", "json")
    assert [(row["job"], row["state"], row["n_rows_in"]) for row in json.loads(out)] == [("numbers", "RUNNING", 4), ("sums", "RUNNING", 4)]
    for action, message in (("pause", "paused job sums"), ("resume", "resumed job sums, which was PAUSED"), ("stop", "stopped job sums")):
        assert said(capsys, url, action, "sums") == (0, "", f"{message}\n")
    assert said(capsys, url, "set", "sums", "table.exec.mini-batch.size=7", "pipeline.micro-batch.min=50 ms")[0] == 0
    assert said(capsys, url, "reset", "sums", "pipeline.micro-batch.min")[0] == 0
    _, out, _ = said(capsys, url, "describe", "sums", "--format", "json")
    described = {row["property"]: row["value"] for row in json.loads(out)}
    assert (described["state"], described["set table.exec.mini-batch.size"]) == ("STOPPED", "7")
    assert "set pipeline.micro-batch.min" not in described

    assert said(capsys, url, "drop", "sums") == (0, "", "dropped job sums; its rows stay in table shop.totals\n")
    assert said(capsys, url, "drop", "sums", "--if-exists") == (0, "", "there is no job sums\n")
    with storage_engine.connect(url) as store:
        assert list(store.objects("job")) == ["numbers"]
        assert list(store.progress("job:")) == ["job:numbers"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["drop", "numbers"], "job numbers is RUNNING"),
        (["drop", "nobody"], "there is no job nobody"),
        (["stop"], "Write flashlake jobs stop JOB."),
        (["list", "numbers"], "Write flashlake jobs list."),
        (["set", "numbers"], "Write flashlake jobs set JOB KEY=VALUE ..."),
        (["set", "numbers", "pipeline.poison-row"], "is not KEY=VALUE"),
        (["set", "numbers", "a=1", "a=2"], "a is given twice"),
        (["set", "numbers", "a=1"], "ALTER JOB knows table.exec.mini-batch.allow-latency"),
        (["stop", "numbers", "--if-exists"], "--if-exists is of drop"),
    ],
)
def test_a_change_of_a_job_that_cannot_be_is_refused_with_what_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    url = (tmp_path / "store").as_uri()
    with storage_engine.connect(url) as store:
        fill(store)
        before = load_jobs(store)
    status, out, err = said(capsys, url, *words)
    assert (status, out) == (1, "")
    assert says in err
    with storage_engine.connect(url) as store:
        assert load_jobs(store) == before
