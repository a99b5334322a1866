"""Report: what one run of a scenario measured and checked, as a table for people, JSON for the record and a figure for its page."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from assets.scenarios.comparing import Check
from assets.scenarios.latency import figure, histogram, quantiles

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How a scenario is run. rate in events per second, seconds of sending; `advance` is told the number of events sent."""

    rate: float
    seconds: float
    seed: int
    say: Say
    advance: Callable[[int], None] = lambda _: None

    @property
    def n_events(self) -> int:
        return int(self.rate * self.seconds)


@dataclass(frozen=True)
class Listing:
    """Figures that need rows and columns, as they are shown."""

    columns: list[str]
    rows: list[list[str]]

    def lines(self) -> list[str]:
        """Aligned to the right, under their columns."""
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        return ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in (self.columns, *self.rows)]

    def markdown(self) -> list[str]:
        return [f"| {' | '.join(row)} |" for row in (self.columns, ["---"] * len(self.columns), *self.rows)]


@dataclass
class Report:
    """One scenario's outcome.

    latencies_ms  what is measured -> milliseconds per event
    facts         other figures, named with their unit
    listings      what is listed -> its rows; figures: name -> SVG, beside that of the latencies
    """

    scenario: str
    n_events: int = 0
    rate: float = 0.0
    latencies_ms: dict[str, np.ndarray] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    listings: dict[str, Listing] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return bool(self.checks) and all(check.holds for check in self.checks)

    def lines(self) -> list[str]:
        """For people: one line per latency, per check, per fact."""
        found = [f"{self.scenario}: {self.n_events:,} events at {self.rate:,.0f}/s"]
        for name, values in self.latencies_ms.items():
            marks = quantiles(values)
            figures = "  ".join(f"{label} {ms:,.0f} ms" for label, ms in marks.items())
            found.append(f"  latency   {name:44}  {figures}  ({len(values):,})")
        for check in self.checks:
            verdict = "equal" if check.holds else f"{check.n_differing:,} DIFFERING"
            found.append(f"  equality  {check.name:44}  {check.n_found:,} rows of {check.n_expected:,}, {verdict}")
        for name, listing in self.listings.items():
            found += [f"  {name}", *(f"    {line}" for line in listing.lines())]
        found += [f"  fact      {name:44}  {value:,}" if isinstance(value, int) else f"  fact      {name:44}  {value}"
                  for name, value in self.facts.items()]  # fmt: skip
        return found

    def write(self, folder: Path, command: str) -> list[Path]:
        """SCENARIO.json, SCENARIO.svg, SCENARIO_FIGURE.svg in `folder`, and the measured part of SCENARIO.md if it is there; the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        marks = {name: quantiles(values) for name, values in self.latencies_ms.items()}
        bins = {name: histogram(values) for name, values in self.latencies_ms.items()}
        record = {
            "scenario": self.scenario, "events": self.n_events, "events_per_s": round(self.rate), "facts": self.facts,
            "latency_ms": {name: {label: round(ms, 1) for label, ms in found.items()} for name, found in marks.items()},
            "histogram_ms": {name: [[round(begin, 1), round(end, 1), n] for begin, end, n in found] for name, found in bins.items()},
            "listings": {name: vars(listing) for name, listing in self.listings.items()},
            "checks": [vars(check) for check in self.checks], "machine": machine(), "command": command,
        }  # fmt: skip
        paths = [folder / f"{self.scenario}.json", folder / f"{self.scenario}.svg"]
        paths[0].write_text(json.dumps(record, indent=1) + "\n")
        if bins:
            paths[1].write_text(figure(f"{self.scenario}, {round(self.rate):,} events/s", bins, marks))
        for name, drawn in self.figures.items():
            paths.append(folder / f"{self.scenario}_{name}.svg")
            paths[-1].write_text(drawn)
        page = folder / f"{self.scenario}.md"
        if page.exists():
            page.write_text(with_measured(page.read_text(encoding="utf-8"), self.markdown(command)), encoding="utf-8")
            paths.append(page)
        return paths

    def markdown(self, command: str) -> str:
        """What was measured and checked, as it stands in the scenario's page."""
        on = ", ".join(f"{name} {value}" for name, value in machine().items())
        lines = [f"![latency]({self.scenario}.svg)", "", f"`{command}`: {self.n_events:,} events at {self.rate:,.0f} per second. {on}.", ""]
        lines += ["| latency, ms | p50 | p90 | p99 | max | events |", "|---|---|---|---|---|---|"]
        for name, values in self.latencies_ms.items():
            lines.append(f"| {name} | " + " | ".join(f"{ms:,.0f}" for ms in quantiles(values).values()) + f" | {len(values):,} |")
        lines += ["", "| compared | rows expected | found | differing |", "|---|---|---|---|"]
        lines += [f"| {check.name} | {check.n_expected:,} | {check.n_found:,} | {check.n_differing:,} |" for check in self.checks]
        for name, listing in self.listings.items():
            lines += ["", f"{name[0].upper()}{name[1:]}:", "", *listing.markdown()]
        for name in self.figures:
            lines += ["", f"![{name}]({self.scenario}_{name}.svg)"]
        lines += ["", *(f"- {name}: {value:,}" if isinstance(value, int) else f"- {name}: {value}" for name, value in self.facts.items())]
        return "\n".join(lines)


BEGIN, END = "<!-- measured: written by python -m assets.scenarios --record -->", "<!-- /measured -->"


def with_measured(page: str, measured: str) -> str:
    """A page with its measured part replaced.

    >>> with_measured(f"a {BEGIN}old{END} b", "new").splitlines()[1]
    'new'
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no part between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{measured}\n{END}{after}"


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
