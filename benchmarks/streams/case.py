"""Case: one stream job that is measured, as SQL for both engines, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.processes import Usage


@dataclass(frozen=True)
class StreamCase:
    """One job. `sink`: its columns and options; `flink_rows_per_s`: the recorded rate of Flink 2.2 (with Fluss, where the case has a
    store's sink), to be beaten `factor` times; `flink_*`: what Flink is given instead, where its own text differs, and its settings.
    """

    name: str
    sink: str
    select: str
    flink_rows_per_s: float | None = None
    factor: float | None = None
    columns: str = ""
    is_nexmark: bool = False
    flink_sink: str = ""
    flink_select: str = ""
    flink_conf: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One run. Seconds count from the submission; a change is seen when it can be read from the sink.

    n_events      events in the inputs' logs
    n_first       events behind the first change that was seen
    first_s, last_s  when the first and the last change were seen
    n_sink        rows of the sink at the end
    """

    n_events: int
    n_first: float
    first_s: float
    last_s: float
    n_sink: int
    usage: Usage

    @property
    def submit_rate(self) -> float:
        """Events per second from the submission to the last change."""
        return self.n_events / self.last_s

    @property
    def steady_rate(self) -> float | None:
        """Events per second between the first and the last change: those behind the first were read before it and do not count.

        None when nearly all of them were: then there is no steady part to measure.

        >>> Measured(1000, 200, 1.0, 5.0, 1, Usage({}, {}, {})).steady_rate
        200.0
        """
        n = self.n_events - self.n_first
        return n / (self.last_s - self.first_s) if n >= 0.1 * self.n_events and self.last_s > self.first_s else None

    @property
    def rate(self) -> float:
        """The steady rate; without one, the rate from the submission."""
        return self.steady_rate or self.submit_rate


def shown_rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}"
