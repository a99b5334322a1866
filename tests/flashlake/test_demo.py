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


def run_demo(folder: Path, ports: tuple[int, int]) -> dict[str, dict[str, str]]:
    places = {
        "STORE__DIR": "store", "LAKE__ROOT": "lake", "DAGSTER__HOME": "dagster", "SERVICES__RUN_DIR": "run",
        "SERVICES__LOG_DIR": "logs", "QUERY__SPILL_DIR": "spill",
    }  # fmt: skip
    environment = {**os.environ, **{f"FLASHLAKE__{key}": str(folder / name) for key, name in places.items()}}
    environment |= {"FLASHLAKE__STORE__PORT": str(ports[0]), "FLASHLAKE__DAGSTER__PORT": str(ports[1])}
    command = [sys.executable, "-m", "flashlake", "demo", "--project", str(REPOSITORY), "--days", "1", "--skip", "spark", "--format", "csv"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return {row["stage"]: row for row in csv.DictReader(io.StringIO(shown.stdout))}


@pytest.mark.dagster
def test_the_demo_verifies_every_result_and_a_second_run_counts_nothing_twice(tmp_path):
    ports = (free_port(), free_port())

    first, second = (run_demo(tmp_path, ports) for _ in range(2))

    for lines in (first, second):
        assert all(line["verified"] == "yes" for stage, line in lines.items() if stage not in ("services", "definitions", "stream jobs"))
        assert lines["query dws.store_hour_wide"]["rows"] == str(truth(date(2017, 1, 1), 1, ["hours"])["hours"].num_rows)
        assert "dagster 2017-01-01" in lines
    assert {stage: line["rows"] for stage, line in second.items()} == {stage: line["rows"] for stage, line in first.items()}
    assert {line["new"] for line in second.values()} <= {"", "0"}
    assert first["stream ods.transactions"]["new"] == "3098"


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
