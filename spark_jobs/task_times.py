"""Task times: what each task of a stage read and how long it ran, from Spark's event log. Pure: a file in, values out.

The event log is the driver's own record; nothing is sampled. Only jobs with a session tag are looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any


@dataclass(frozen=True)
class Task:
    """One successful task: its time on the clock and on the processor, and what it read from shuffles."""

    run_ms: int
    cpu_ms: float
    shuffle_rows: int
    shuffle_bytes: int


@dataclass(frozen=True)
class Spread:
    """How uneven a quantity is over the tasks of one stage. ratio = max / median; cv = standard deviation / mean."""

    n_tasks: int
    total: float
    median: float
    max: float
    ratio: float
    cv: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of some values; zeros count. Nothing at all gives zeros.

        >>> Spread.of([1, 1, 4]).ratio
        4.0
        """
        numbers = [float(value) for value in values]
        if not numbers:
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        middle, average = median(numbers), mean(numbers)
        return cls(
            len(numbers),
            round(sum(numbers), 3),
            round(middle, 3),
            max(numbers),
            round(max(numbers) / middle, 2) if middle else 0.0,
            round(pstdev(numbers) / average, 3) if average else 0.0,
        )

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def stage_tasks(event_log: Path, group: str) -> dict[int, list[Task]]:
    """Tasks of every stage that ran under a session tag, by stage id, in order of their end."""
    stages: dict[int, list[Task]] = {}
    with event_log.open(encoding="utf-8") as lines:
        for line in lines:
            if '"SparkListenerJobStart"' not in line and '"SparkListenerTaskEnd"' not in line:
                continue
            event = json.loads(line)
            if event["Event"] == "SparkListenerJobStart":
                tags = event.get("Properties", {}).get("spark.job.tags", "").split(",")
                if any(tag.endswith(group) for tag in tags):  # Spark puts the session's id in front of a tag
                    stages.update({stage: [] for stage in event["Stage IDs"] if stage not in stages})
            elif event["Stage ID"] in stages and event["Task End Reason"]["Reason"] == "Success":
                stages[event["Stage ID"]].append(_task(event["Task Metrics"]))
    return {stage: tasks for stage, tasks in stages.items() if tasks}


def widest_shuffle_read(stages: dict[int, list[Task]]) -> list[Task]:
    """The tasks of the stage that read most rows from shuffles: in a job with one shuffled join, the join."""
    return max(stages.values(), key=lambda tasks: sum(task.shuffle_rows for task in tasks), default=[])


def _task(metrics: dict[str, Any]) -> Task:
    read = metrics["Shuffle Read Metrics"]
    cpu_ms = metrics["Executor CPU Time"] / 1e6
    return Task(metrics["Executor Run Time"], cpu_ms, read["Total Records Read"], read["Local Bytes Read"] + read["Remote Bytes Read"])
