"""The demo, with its real processes: every line verified, and the second run counts nothing twice."""

import csv
import io
import os
import socket
import subprocess
import sys
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from flashlake.demo.truth import differing_rows, truth, weeks_of

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment_of(folder: Path) -> dict[str, str]:
    """This repository as the project, with everything that it keeps in `folder`, on free ports."""
    places = {
        "STORE__DIR": "store", "LAKE__ROOT": "lake", "DAGSTER__HOME": "dagster", "SERVICES__RUN_DIR": "run",
        "SERVICES__LOG_DIR": "logs", "QUERY__SPILL_DIR": "spill",
    }  # fmt: skip
    environment = {**os.environ, **{f"FLASHLAKE__{key}": str(folder / name) for key, name in places.items()}}
    return environment | {"FLASHLAKE__STORE__PORT": str(free_port()), "FLASHLAKE__DAGSTER__PORT": str(free_port())}


def flashlake(environment: dict[str, str], command: str, *arguments: str) -> str:
    words = [sys.executable, "-m", "flashlake", command, "--project", str(REPOSITORY), *arguments]
    shown = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=400)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return shown.stdout


def run_demo(environment: dict[str, str], *options: str) -> dict[str, dict[str, str]]:
    shown = flashlake(environment, "demo", "--days", "1", "--skip", "spark", "--format", "csv", *options)
    return {row["stage"]: row for row in csv.DictReader(io.StringIO(shown))}


def services(environment: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Name -> health and pid of each service."""
    rows = csv.DictReader(io.StringIO(flashlake(environment, "status", "--format", "csv")))
    return {row["name"]: (row["health"], row["pid"]) for row in rows if row["kind"] == "service"}


@pytest.mark.dagster
def test_the_demo_verifies_every_result_and_a_second_run_counts_nothing_twice(tmp_path):
    """Between the two runs store, stream and tiering start anew over their data; what ran before a run stays as it was."""
    environment = environment_of(tmp_path)
    try:
        first = run_demo(environment, "--keep")
        kept = services(environment)
        flashlake(environment, "down", "store", "stream", "tiering")
        second = run_demo(environment)
        left = services(environment)
    finally:
        flashlake(environment, "down")

    for lines in (first, second):
        assert all(line["verified"] == "yes" for stage, line in lines.items() if stage not in ("services", "definitions", "stream jobs"))
        assert lines["query dws.store_hour_wide"]["rows"] == str(truth(date(2017, 1, 1), 1, ["hours"])["hours"].num_rows)
        assert "dagster 2017-01-01" in lines
    assert {stage: line["rows"] for stage, line in second.items()} == {stage: line["rows"] for stage, line in first.items()}
    assert {line["new"] for line in second.values()} <= {"", "0"}
    assert first["stream ods.transactions"]["new"] == "3098"
    assert {health for health, _ in kept.values()} == {"healthy"}
    assert {name: line for name, line in left.items() if name in ("webserver", "daemon")} == {
        name: line for name, line in kept.items() if name in ("webserver", "daemon")
    }
    assert {health for name, (health, _) in left.items() if name not in ("webserver", "daemon")} == {"stopped"}


def test_the_truth_counts_every_line_of_the_span_once():
    found = truth(date(2017, 1, 1), 2, ["hours", "departments"])

    assert sum(found["hours"]["line_cnt"].to_pylist()) == sum(found["departments"]["lines"].to_pylist()) == 3098 + 4077
    assert sum(found["hours"]["sales_value"].to_pylist()) == sum(found["departments"]["sales_value"].to_pylist())


def test_weeks_are_those_of_the_span():
    assert weeks_of(date(2017, 1, 1), 1) == [1]
    assert weeks_of(date(2017, 1, 1), 9) == [1, 2, 3]


@pytest.mark.parametrize(
    ("found", "n"),
    [({"a": [1, 2]}, 0), ({"a": [2, 1]}, 0), ({"a": [1]}, 1), ({"a": [1, 2, 2]}, 1), ({"a": [1, 3]}, 2), ({"a": [1, None]}, 2)],
)
def test_rows_that_differ_are_counted_as_multisets(found, n):
    assert differing_rows(pa.table({"a": [1, 2]}), pa.table(found)) == n
