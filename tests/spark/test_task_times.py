"""Task times from an event log, without a JVM."""

from __future__ import annotations

import json
from pathlib import Path

from spark_jobs.session import EngineConfig
from spark_jobs.task_times import Spread, stage_tasks, widest_shuffle_read


def job(group: str, stages: list[int]) -> dict:
    return {"Event": "SparkListenerJobStart", "Stage IDs": stages, "Properties": {"spark.job.tags": group}}


def task(stage: int, run_ms: int, rows: int, reason: str = "Success") -> dict:
    read = {"Total Records Read": rows, "Local Bytes Read": rows * 10, "Remote Bytes Read": 0}
    return {
        "Event": "SparkListenerTaskEnd",
        "Stage ID": stage,
        "Task End Reason": {"Reason": reason},
        "Task Metrics": {"Executor Run Time": run_ms, "Executor CPU Time": run_ms * 500_000, "Shuffle Read Metrics": read},
    }


def write_log(path: Path, events: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(event) for event in events))
    return path


def test_only_successful_tasks_of_the_group_count_and_the_stage_with_most_rows_is_the_join(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log",
        [
            job("a", [1, 2]),
            job("b", [3]),
            task(1, 5, 0),
            task(2, 10, 100),
            task(2, 40, 300),
            task(2, 99, 900, "TaskKilled"),
            task(3, 7, 9000),
        ],
    )

    stages = stage_tasks(log, "a")

    assert sorted(stages) == [1, 2]
    join = widest_shuffle_read(stages)
    assert [task.run_ms for task in join] == [10, 40]
    assert [task.cpu_ms for task in join] == [5.0, 20.0]


def test_a_spread_is_the_largest_over_the_median() -> None:
    assert Spread.of([10, 10, 10, 50]).ratio == 5.0
    assert Spread.of([]).n_tasks == 0
    assert Spread.of([0, 0, 3]).ratio == 0.0  # a median of zero has no ratio


def test_an_engine_without_jars_leaves_them_to_the_cluster_and_own_settings_win() -> None:
    settings = EngineConfig(master="spark://host:7077", conf={"spark.sql.shuffle.partitions": "9"}).settings()

    assert "spark.jars" not in settings
    assert settings["spark.sql.shuffle.partitions"] == "9"
