"""Measure: run ours and the peer in turn, after a warm-up; medians and the ratio of medians, with spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One row of the results: figures of ours and of the peer in `unit`, and how they compare."""

    name: str
    unit: str
    ours: list[float]
    peer_name: str
    peer: list[float]
    target: str
    higher_is_better: bool = True

    @property
    def ratio(self) -> float:
        return statistics.median(self.ours) / statistics.median(self.peer)

    def row(self) -> str:
        return (
            f"| {self.name} | {_figure(self.ours)} | {self.peer_name} | {_figure(self.peer)} | {self.unit} "
            f"| **{self.ratio:.3g}** | {self.target} | {len(self.ours)} |"
        )


def _figure(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:,.4g} ({min(values):,.4g}-{max(values):,.4g})"


def in_turn(ours: Callable[[int], float], peer: Callable[[int], float], runs: int) -> tuple[list[float], list[float]]:
    """Both measured alternately, the first pair thrown away as warm-up."""
    mine: list[float] = []
    other: list[float] = []
    for i in range(runs + 1):
        mine.append(ours(i))
        other.append(peer(i))
    return mine[1:], other[1:]


HEADER = "| case | ours | peer | peer's figure | unit | ratio | asked | runs |\n|---|---|---|---|---|---|---|---|"
