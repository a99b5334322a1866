"""Options: how a job is run: settings that are stored with it and may change without changing what it computes.

    table.exec.mini-batch.allow-latency  Flink's name: how long rows may wait for more rows while there is traffic (100 ms). An idle job
                                         takes what arrives at once
    table.exec.mini-batch.size           Flink's name: rows of input of one micro-batch at most (262144); bounds the job's memory
    pipeline.micro-batch.min             the least time between the beginnings of two micro-batches (0 s): fewer, larger commits
    pipeline.poison-row                  fail (default): a row on which the job's expressions fail stops it; quarantine: the row is written
                                         to DATABASE.job_quarantine, and the job goes on without it

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from storage_engine.errors import InvalidOption
from storage_engine.schema.options import duration_ms

LATENCY_OPTION = "table.exec.mini-batch.allow-latency"
SIZE_OPTION = "table.exec.mini-batch.size"
INTERVAL_OPTION = "pipeline.micro-batch.min"
POISON_OPTION = "pipeline.poison-row"
OPERATING_OPTIONS = (LATENCY_OPTION, SIZE_OPTION, INTERVAL_OPTION, POISON_OPTION)

UPGRADE_OPTION = "pipeline.upgrade"
UPGRADE_TIMESTAMP_OPTION = "pipeline.upgrade.timestamp"

JOB_SETTINGS: dict[str, tuple[str, ...] | None] = {
    LATENCY_OPTION: None,
    SIZE_OPTION: None,
    INTERVAL_OPTION: None,
    POISON_OPTION: ("fail", "quarantine"),
    UPGRADE_OPTION: ("refuse", "keep-position", "replay", "latest", "timestamp"),
    UPGRADE_TIMESTAMP_OPTION: None,
}
"""Settings of a session that concern the running of jobs, and their values (None: checked by parse_options)."""

LATENCY_S = 0.1
_LATENCY_S_MAX = 3600.0
_SIZE_MAX = 4_194_304


@dataclass(frozen=True)
class JobOptions:
    """How a job is run. Times in seconds, from the beginning of one micro-batch to that of the next; n_rows_max None: the worker's."""

    interval_s_min: float = 0.0
    interval_s_max: float = LATENCY_S
    n_rows_max: int | None = None
    quarantines: bool = False


def check_value(key: str, value: str, allowed: tuple[str, ...] | None, where: str) -> None:
    """Errors: InvalidOption for a value that is none of `allowed`, whatever its case; None: any text."""
    if allowed is not None and value.upper() not in (item.upper() for item in allowed):
        raise InvalidOption(f"'{key}' = '{value}'", where=where, next_step=f"Use {' or '.join(allowed)}.")


def parse_options(settings: Mapping[str, str], where: str = "SET") -> JobOptions:
    """What the settings say. Errors: InvalidOption for a value that is not understood, out of range, or bounds that contradict."""
    shortest = _seconds(settings, INTERVAL_OPTION, 0.0, where)
    longest = _seconds(settings, LATENCY_OPTION, max(LATENCY_S, shortest), where)
    if shortest > longest:
        raise InvalidOption(
            f"'{INTERVAL_OPTION}' = '{settings[INTERVAL_OPTION]}' is longer than '{LATENCY_OPTION}' = '{settings[LATENCY_OPTION]}'",
            where=where,
            next_step="Raise the second, or lower the first.",
        )
    return JobOptions(shortest, longest, _size(settings, where), settings.get(POISON_OPTION, "fail").lower() == "quarantine")


def _seconds(settings: Mapping[str, str], key: str, default: float, where: str) -> float:
    if key not in settings:
        return default
    seconds = duration_ms(settings[key], name=f"'{key}'", where=where) / 1000
    if not 0 <= seconds <= _LATENCY_S_MAX:
        raise InvalidOption(f"'{key}' = '{settings[key]}'", where=where, next_step="Give a time from 0 s to 1 h.")
    return seconds


def _size(settings: Mapping[str, str], where: str) -> int | None:
    if SIZE_OPTION not in settings:
        return None
    text = settings[SIZE_OPTION].strip()
    if not text.isdecimal() or not 1 <= int(text) <= _SIZE_MAX:
        raise InvalidOption(f"'{SIZE_OPTION}' = '{text}'", where=where, next_step=f"Give a number of rows from 1 to {_SIZE_MAX}.")
    return int(text)


def pause_s(n_rows: int, seconds: float, n_rows_max: int, options: JobOptions) -> float:
    """How long a job waits after a micro-batch of `n_rows` that took `seconds`, before it looks for more rows.

    A full micro-batch leaves rows behind: the next follows at once, as large as may be. Else the job rests as long as it worked, within
    its bounds: under traffic it is busy half of the time at most and its micro-batches grow with the traffic, while what arrives after a
    lull finds it at rest and is taken at once.

    >>> options = JobOptions(0.0, 0.1)
    >>> pause_s(10, 0.02, 1000, options), pause_s(900, 5.0, 1000, options), pause_s(1000, 5.0, 1000, options)
    (0.02, 0.1, 0.0)
    """
    if n_rows >= n_rows_max:
        return max(options.interval_s_min - seconds, 0.0)
    rest = min(seconds, options.interval_s_max)
    return max(rest, options.interval_s_min - seconds)
