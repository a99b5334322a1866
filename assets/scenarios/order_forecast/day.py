"""Day: how the forecasts of a day ran against that day, out of the rows that the jobs wrote; and the figure of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.scenarios.order_forecast.events import MINUTE_NAMES, SOURCES
from assets.scenarios.order_forecast.model import MINUTES

HOURS = (6, 9, 12, 15, 18, 21)
"""The times of day at which the forecast of the day is held against the day."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 320, 62, 20, 56, 32
_FORECAST, _ACTUAL, _SO_FAR, _INK, _GRID = "#4472a8", "#b03a2e", "#6b8e23", "#222222", "#dddddd"


@dataclass(frozen=True)
class Day:
    """One day. so_far, forecast: what was there and what was forecast for the whole day after each minute, all sources together.

    NaN before every source has a row. Shapes: (1440,) each.
    """

    so_far: np.ndarray
    forecast: np.ndarray

    @classmethod
    def of(cls, rows: pa.Table, so_far: str, forecast: str) -> Day:
        """Of rows with mm, order_source and these two columns, one day's: of each source the row of the last minute that has one."""
        return cls(*(_by_minute(rows, column) for column in (so_far, forecast)))

    @property
    def actual(self) -> float:
        """What the day came to."""
        return float(self.so_far[-1])

    def at(self, hour: int) -> float:
        """The forecast that was known at this full hour."""
        return float(self.forecast[hour * 60 - 1])

    def error_at(self, hour: int) -> float:
        """How far it is from the day, as a share of it; above 0: too much."""
        return self.at(hour) / self.actual - 1


def _by_minute(rows: pa.Table, column: str) -> np.ndarray:
    """The last known value of each source at each minute, summed over the sources. Shapes: -> (1440,)."""
    known = np.full((len(SOURCES), MINUTES), np.nan)
    sources = pc.index_in(rows["order_source"], pa.array(SOURCES)).to_numpy()
    minutes = pc.index_in(rows["mm"], MINUTE_NAMES).to_numpy()
    known[sources, minutes] = rows[column].cast(pa.float64()).to_numpy()
    has_row = np.zeros(known.shape, np.int64)
    has_row[sources, minutes] = minutes
    last = np.maximum.accumulate(has_row, axis=1)
    return np.take_along_axis(known, last, axis=1).sum(axis=0)


def figure(title: str, day: Day, marks: Mapping[int, str]) -> str:
    """An SVG: forecast of the day and what was there so far by the time of day, and what the day came to.

    marks  minute -> what happened then
    """
    top = 1.05 * float(np.nanmax(np.maximum(day.forecast, day.actual)))
    base, room = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - _TOP

    def x(minute: float) -> float:
        return _LEFT + minute / MINUTES * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return base - value / top * room

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="15" fill="{_INK}">{escape(title)}</text>',
    ]
    step = 10.0 ** np.floor(np.log10(top))
    for value in np.arange(0.0, top, step if top / step > 3 else step / 2):
        parts.append(f'<line x1="{_LEFT}" y1="{y(value):.1f}" x2="{_WIDTH - _RIGHT}" y2="{y(value):.1f}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="{_INK}">{value / 1e6:g} M</text>')
    for hour in range(0, 25, 3):
        parts.append(f'<line x1="{x(hour * 60):.1f}" y1="{base}" x2="{x(hour * 60):.1f}" y2="{base + 4}" stroke="{_INK}"/>')
        parts.append(f'<text x="{x(hour * 60):.1f}" y="{base + 18}" text-anchor="middle" fill="{_INK}">{hour:02}:00</text>')
    for minute, text in marks.items():
        parts.append(f'<line x1="{x(minute):.1f}" y1="{_TOP}" x2="{x(minute):.1f}" y2="{base}" stroke="{_INK}" stroke-dasharray="2 3"/>')
        parts.append(f'<text x="{x(minute) + 4:.1f}" y="{base - 6}" fill="{_INK}">{escape(text)}</text>')
    parts.append(
        f'<line x1="{_LEFT}" y1="{y(day.actual):.1f}" x2="{_WIDTH - _RIGHT}" y2="{y(day.actual):.1f}" stroke="{_ACTUAL}" '
        'stroke-width="1.5" stroke-dasharray="6 4"/>'
    )
    for values, colour in ((day.so_far, _SO_FAR), (day.forecast, _FORECAST)):
        points = " ".join(f"{x(minute + 1):.1f},{y(values[minute]):.1f}" for minute in np.flatnonzero(np.isfinite(values)).tolist())
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    legend = (("forecast of the day", _FORECAST), (f"the day came to {day.actual:,.0f}", _ACTUAL), ("so far", _SO_FAR))
    for place, (text, colour) in enumerate(legend):
        at = _LEFT + 210 * place
        parts.append(f'<line x1="{at}" y1="38" x2="{at + 22}" y2="38" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{at + 28}" y="42" fill="{_INK}">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
