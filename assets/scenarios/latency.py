"""Latency: quantiles and a histogram of measured milliseconds, and the figure of them. Pure, but for nothing: values in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

import numpy as np

_EDGES_PER_DECADE = 12
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 760, 220, 62, 34, 40
_BAR, _MARK, _INK, _GRID = "#4472a8", "#b03a2e", "#222222", "#dddddd"


def quantiles(values_ms: np.ndarray) -> dict[str, float]:
    """p50, p90, p99 and max, in milliseconds. Shapes: (n,), n at least 1.

    >>> quantiles(np.arange(1, 101))["p50"]
    50.5
    """
    p50, p90, p99 = np.percentile(values_ms, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "max": float(np.max(values_ms))}


def histogram(values_ms: np.ndarray) -> list[tuple[float, float, int]]:
    """(from ms, to ms, count) in twelve steps per decade, from the first step that has values to the last.

    >>> [(round(a), round(b), n) for a, b, n in histogram(np.array([100.0, 110.0, 130.0]))]
    [(100, 121, 2), (121, 147, 1)]
    """
    steps = np.floor(np.log10(np.maximum(values_ms, 0.1)) * _EDGES_PER_DECADE + 1e-9).astype(int)
    first, counts = int(steps.min()), np.bincount(steps - steps.min())
    edges = 10.0 ** ((first + np.arange(len(counts) + 1)) / _EDGES_PER_DECADE)
    return [(float(edges[i]), float(edges[i + 1]), int(n)) for i, n in enumerate(counts)]


def figure(title: str, series: Mapping[str, list[tuple[float, float, int]]], marks: Mapping[str, Mapping[str, float]]) -> str:
    """An SVG with one histogram under another: share of events over milliseconds (logarithmic), p50 and p99 marked.

    series  name -> what histogram() gives; marks: name -> quantiles
    """
    height = _TOP + _HEIGHT * len(series)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="15" fill="{_INK}">{escape(title)}</text>',
    ]
    for row, (name, bins) in enumerate(series.items()):
        parts += _panel(name, bins, marks[name], top=_TOP + row * _HEIGHT)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(name: str, bins: list[tuple[float, float, int]], marks: Mapping[str, float], *, top: int) -> list[str]:
    low, high = np.floor(np.log10(bins[0][0])), np.ceil(np.log10(bins[-1][1]))
    total, tallest = sum(n for *_, n in bins), max(n for *_, n in bins)
    base, room = top + _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - 34

    def x(ms: float) -> float:
        return _LEFT + (np.log10(ms) - low) / (high - low) * (_WIDTH - _LEFT - 20)

    parts = [f'<text x="{_LEFT}" y="{top + 16}" fill="{_INK}">{escape(name)}: {total:,} events</text>']
    for share in (0.5, 1.0):
        y = base - share * room
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - 20}" y2="{y:.1f}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="{_INK}">{share * tallest / total:.1%}</text>')
    for begin, end, n in bins:
        tall = n / tallest * room
        parts.append(f'<rect x="{x(begin):.1f}" y="{base - tall:.1f}" width="{x(end) - x(begin):.1f}" height="{tall:.1f}" fill="{_BAR}"/>')
    parts.append(f'<line x1="{_LEFT}" y1="{base}" x2="{_WIDTH - 20}" y2="{base}" stroke="{_INK}"/>')
    for decade in range(int(low), int(high) + 1):
        at = x(10.0**decade)
        parts.append(f'<line x1="{at:.1f}" y1="{base}" x2="{at:.1f}" y2="{base + 4}" stroke="{_INK}"/>')
        parts.append(f'<text x="{at:.1f}" y="{base + 17}" text-anchor="middle" fill="{_INK}">{10.0**decade:g} ms</text>')
    for place, label in enumerate(("p50", "p99")):
        at = x(marks[label])
        parts.append(f'<line x1="{at:.1f}" y1="{top + 22}" x2="{at:.1f}" y2="{base}" stroke="{_MARK}" stroke-dasharray="4 3"/>')
        parts.append(f'<text x="{at + 4:.1f}" y="{top + 32 + 13 * place}" fill="{_MARK}">{label} {marks[label]:,.0f} ms</text>')
    return parts
