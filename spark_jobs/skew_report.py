"""Skew report: runs the measurements of skew.py and says in words what the numbers mean. The words follow from the numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_jobs.skew import BYTES_MIN, FULL_KEY, JoinRun, KeySkew, key_skew, measure_join, pair_skew
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
    """Count keys, then run each plan with adaptive skew handling off and on; results of all runs must be equal.

    lines, promotions  small enough to cache, or cached by the caller
    event_log          folder of the session's event log
    """
    keys = (
        key_skew(lines, "lines", FULL_KEY),
        key_skew(lines, "lines", ("product_id",)),
        pair_skew(lines, promotions),
    )
    n_lines = keys[0].n_rows
    # The first join of a session pays for class loading and compilation; it is not counted.
    measure_join(session, lines, promotions, "by_product", group="warm-up", n_partitions=max(2, n_partitions // 8), skew_bytes=None)
    runs = []
    for plan in ("full_key", "by_product"):
        off = _measured(session, lines, promotions, plan, None, event_log, n_partitions)
        on = _measured(session, lines, promotions, plan, scaled_threshold(off, n_lines), event_log, n_partitions)
        assert (off.run.n_rows, off.run.checksum) == (on.run.n_rows, on.run.checksum), f"{plan}: skew handling changed the result"
        runs += [off, on]
    assert len({(run.run.n_rows, run.run.checksum) for run in runs}) == 1, "the two plans disagree"
    return SkewReport(n_partitions, keys, tuple(runs))


def scaled_threshold(off: MeasuredRun, n_lines: int) -> int:
    """The size above which a partition of lines counts as large: the mean of that side, estimated by its share of the rows.

    Spark's own threshold of 256 MB never fires on data of this size; threshold and target size are scaled down together.
    """
    bytes_per_row = off.shuffle_bytes.total / max(off.shuffle_rows.total, 1.0)
    return max(BYTES_MIN, int(bytes_per_row * n_lines / max(off.run_ms.n_tasks, 1)))


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
        off, on = report.run(plan, skew_handling=False), report.run(plan, skew_handling=True)
        if off is not None and on is not None:
            sentences.append(_of_runs(words, off, on))
    return " ".join(sentences)


def _of_key(words: str, keys: KeySkew, n_partitions: int) -> str:
    """A key is heavy when it alone is more than a task's fair share, which is all rows over all tasks."""
    share = keys.max * n_partitions / max(keys.n_rows, 1)
    verdict = f"{share:.1f} times a task's fair share: skewed" if share > 1 else f"{share:.2f} of a task's fair share: not skewed"
    return f"{words} the heaviest of {keys.n_keys} keys has {keys.max} of {keys.n_rows} {keys.side}, {verdict}."


def _of_runs(words: str, off: MeasuredRun, on: MeasuredRun) -> str:
    n_more = on.cpu_ms.n_tasks - off.cpu_ms.n_tasks
    did = f"split partitions into {n_more} more tasks" if n_more > 0 else "found nothing to split"
    hint = ""
    if off.cpu_ms.median < TASK_MS_MEANINGFUL:
        hint = f" (Tasks of {off.cpu_ms.median:g} ms are mostly start-up: read the rows here, not the times.)"
    return (
        f"{words}, the slowest of {off.cpu_ms.n_tasks} tasks takes {off.cpu_ms.ratio:g} times the median's processor time "
        f"({off.cpu_ms.max:.0f} to {off.cpu_ms.median:.0f} ms) and the largest reads {off.shuffle_rows.ratio:g} times the median's rows; "
        f"adaptive skew handling {did}: {on.cpu_ms.ratio:g} times ({on.cpu_ms.max:.0f} to {on.cpu_ms.median:.0f} ms).{hint}"
    )


def _measured(
    session: SparkSession, lines: DataFrame, promotions: DataFrame, plan: str, skew_bytes: int | None, event_log: Path, n_partitions: int
) -> MeasuredRun:
    group = f"join-{plan}-{'off' if skew_bytes is None else 'on'}"
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
    name = session.conf.get("spark.app.id")
    return next(path for path in folder.iterdir() if path.name.startswith(name))
