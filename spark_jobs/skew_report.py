"""Skew report: runs the measurements of skew.py and says in words what the numbers mean. The words follow from the numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_jobs.skew import BYTES_MIN, FULL_KEY, PLANS, JoinRun, KeySkew, key_skew, measure_join, pair_skew
from spark_jobs.task_times import Spread, Task, stage_tasks, widest_shuffle_read

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TASK_MS_MEANINGFUL = 20.0
"""Below this median a task's processor time is start-up; its spread says little about the data."""


@dataclass(frozen=True)
class MeasuredRun:
    """A run of one plan, with adaptive skew handling on or off, and the spread of the join stage's tasks."""

    plan: str
    skew_handling: bool
    skew_bytes: int | None
    run: JoinRun
    run_ms: Spread
    cpu_ms: Spread
    shuffle_rows: Spread
    shuffle_bytes: Spread

    def to_json(self) -> dict[str, Any]:
        return {
            "plan": self.plan,
            "skew_handling": self.skew_handling,
            "skew_bytes": self.skew_bytes,
            "n_rows": self.run.n_rows,
            "checksum": str(self.run.checksum),
            "skew_markers": list(self.run.skew_markers),
            "task_ms": self.run_ms.to_json(),
            "task_cpu_ms": self.cpu_ms.to_json(),
            "task_rows": self.shuffle_rows.to_json(),
            "task_bytes": self.shuffle_bytes.to_json(),
        }


@dataclass(frozen=True)
class SkewReport:
    """Keys: how uneven the inputs are. Runs: what that did to the tasks, with and without adaptive skew handling."""

    n_partitions: int
    keys: tuple[KeySkew, ...]
    runs: tuple[MeasuredRun, ...]

    def run(self, plan: str, *, skew_handling: bool) -> MeasuredRun | None:
        return next((run for run in self.runs if run.plan == plan and run.skew_handling == skew_handling), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "n_partitions": self.n_partitions,
            "finding": finding(self),
            "keys": [keys.to_json() for keys in self.keys],
            "runs": [run.to_json() for run in self.runs],
            "plan_text": {f"{run.plan}, skew handling {'on' if run.skew_handling else 'off'}": run.run.plan_text for run in self.runs},
        }


def measure(session: SparkSession, lines: DataFrame, promotions: DataFrame, *, event_log: Path, n_partitions: int) -> SkewReport:
    """Count keys, then run each plan with adaptive skew handling on, and off where it did something; all runs give the same rows.

    lines, promotions  small enough to cache, or cached by the caller
    event_log          folder of the session's event log
    """
    keys = (
        key_skew(lines, "lines", FULL_KEY),
        key_skew(lines, "lines", ("product_id",)),
        pair_skew(lines, promotions),
    )

    def run(plan: str, n_partitions: int, skew_bytes: int | None) -> MeasuredRun:
        return _measured(session, lines, promotions, plan, skew_bytes, event_log, n_partitions)

    # The first join of a session pays for class loading and compilation; it only tells how large a row is.
    first = run("by_product", max(2, n_partitions // 8), None)
    skew_bytes = scaled_threshold(first, keys[0].n_rows, n_partitions)
    runs = []
    for plan in PLANS:
        on = run(plan, n_partitions, skew_bytes)
        if on.run.skew_markers or plan == "by_product":
            runs.append(run(plan, n_partitions, None))
        runs.append(on)
    assert len({(run.run.n_rows, run.run.checksum) for run in (first, *runs)}) == 1, "the runs disagree"
    return SkewReport(n_partitions, keys, tuple(runs))


def scaled_threshold(run: MeasuredRun, n_lines: int, n_partitions: int) -> int:
    """The size above which a partition of lines counts as large: the mean of that side, estimated by its share of the rows.

    Spark's own threshold of 256 MB never fires on data of this size; threshold and target size are scaled down together.
    """
    bytes_per_row = run.shuffle_bytes.total / max(run.shuffle_rows.total, 1.0)
    return max(BYTES_MIN, int(bytes_per_row * n_lines / n_partitions))


def finding(report: SkewReport) -> str:
    """What the numbers say, in a few sentences."""
    by_side: Mapping[tuple[str, tuple[str, ...]], KeySkew] = {(keys.side, keys.keys): keys for keys in report.keys}
    pairs = by_side[("pairs", ("product_id",))]
    sentences = [
        _of_key("By product, store and week", by_side[("lines", FULL_KEY)], report.n_partitions),
        _of_key("By product alone", by_side[("lines", ("product_id",))], report.n_partitions),
        f"Of {pairs.n_rows} pairs of a line and a promotion of its product, the heaviest product has {pairs.max} ({pairs.share:.2%}).",
    ]
    for plan, words in (("full_key", "Shuffled by the full key"), ("by_product", "Shuffled by product")):
        if (on := report.run(plan, skew_handling=True)) is not None:
            sentences.append(_of_runs(words, report.run(plan, skew_handling=False), on))
    return " ".join(sentences)


def _of_key(words: str, keys: KeySkew, n_partitions: int) -> str:
    """A key is heavy when it alone is more than a task's fair share, which is all rows over all tasks."""
    share = keys.max * n_partitions / max(keys.n_rows, 1)
    verdict = f"{share:.1f} times a task's fair share: skewed" if share > 1 else f"{share:.2f} of a task's fair share: not skewed"
    return f"{words} the heaviest of {keys.n_keys} keys has {keys.max} of {keys.n_rows} {keys.side}, {verdict}."


def _of_runs(words: str, off: MeasuredRun | None, on: MeasuredRun) -> str:
    """`off` is missing where skew handling split nothing: the plan without it is the same plan."""
    before = off or on
    cpu, rows = before.cpu_ms, before.shuffle_rows
    n_more = on.cpu_ms.n_tasks - cpu.n_tasks
    sentence = (
        f"{words}, the slowest of {cpu.n_tasks} tasks takes {cpu.ratio:g} times the median's processor time "
        f"({cpu.max:.0f} to {cpu.median:.0f} ms) and the largest reads {rows.ratio:g} times the median's rows; "
    )
    if n_more > 0:
        after = f"{on.cpu_ms.ratio:g} times ({on.cpu_ms.max:.0f} to {on.cpu_ms.median:.0f} ms)"
        sentence += f"adaptive skew handling splits partitions into {n_more} more tasks: {after}."
    else:
        sentence += "adaptive skew handling finds nothing to split."
    if cpu.median < TASK_MS_MEANINGFUL:
        sentence += f" Tasks of {cpu.median:.0f} ms are mostly start-up: read the rows here, not the times."
    return sentence


def _measured(
    session: SparkSession, lines: DataFrame, promotions: DataFrame, plan: str, skew_bytes: int | None, event_log: Path, n_partitions: int
) -> MeasuredRun:
    group = f"join-{plan}-{n_partitions}-{'off' if skew_bytes is None else 'on'}"
    run = measure_join(session, lines, promotions, plan, group=group, n_partitions=n_partitions, skew_bytes=skew_bytes)
    tasks = widest_shuffle_read(stage_tasks(_log_file(session, event_log), group))
    return MeasuredRun(plan, skew_bytes is not None, skew_bytes, run, *_spreads(tasks))


def _spreads(tasks: list[Task]) -> tuple[Spread, Spread, Spread, Spread]:
    return (
        Spread.of(task.run_ms for task in tasks),
        Spread.of(task.cpu_ms for task in tasks),
        Spread.of(task.shuffle_rows for task in tasks),
        Spread.of(task.shuffle_bytes for task in tasks),
    )


def _log_file(session: SparkSession, folder: Path) -> Path:
    """The event log of this application. Task ends are in it as soon as the job has ended."""
    name = str(session.conf.get("spark.app.id"))
    return next(path for path in folder.iterdir() if path.name.startswith(name))
