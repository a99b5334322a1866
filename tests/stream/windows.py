"""Windows: which windows a moment lies in, and what is counted in each, row by row in Python. The oracle of both kinds of time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable

from tests.stream.comparing import Rows

EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001  # as a TIMESTAMP is: without a zone

Windows = Callable[[int], list[tuple[int, int]]]
Groups = dict[tuple[str, int, int], list[int]]


def tumbling(width_ms: int) -> Windows:
    return lambda ms: [(ms // width_ms * width_ms, ms // width_ms * width_ms + width_ms)]


def hop(ms: int) -> list[tuple[int, int]]:
    """Every 3 s, 9 s long."""
    last = ms // 3000 * 3000
    return [(start, start + 9000) for start in (last, last - 3000, last - 6000)]


def cumulate(ms: int) -> list[tuple[int, int]]:
    """Every 2 s, up to 8 s long."""
    start, step = ms // 8000 * 8000, ms // 2000 * 2000
    return [(start, end) for end in range(step + 2000, start + 8001, 2000)]


def moment(ms: int) -> dt.datetime:
    return EPOCH + dt.timedelta(milliseconds=ms)


def grouped(rows: Iterable[tuple[int, str, int]], windows: Windows) -> Groups:
    """(key, window) -> values, of rows (moment, key, value). A negative value is one that the query leaves out."""
    groups: Groups = {}
    for ms, key, value in rows:
        for start, end in windows(ms):
            if value >= 0:
                groups.setdefault((key, start, end), []).append(value)
    return groups


def aggregated(groups: Groups) -> Rows:
    """Key, window, and of its values: how many, sum, least, how many different ones."""
    rows = [(k, moment(start), moment(end), len(v), sum(v), min(v), len(set(v))) for (k, start, end), v in groups.items()]
    return sorted(rows, key=repr)
