"""Series: which made events there are, and in which order they arrive. The same arguments give the same events, in any batches.

BasketSeries  the events that led to the real purchases of a span of days: their times follow the real ones
RateSeries    any number of events per second for any span: a load; who, where and what are still those of the next purchases
Both: every visit precedes the purchase it is drawn from (in a RateSeries that passes 2017, the year's purchases repeat).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Protocol

import numpy as np

from flashlake.generate.baskets import Baskets
from flashlake.generate.events import KINDS, Drawn, EventBatch
from flashlake.generate.randoms import exponential_ms, high_above, key_of, low_below, mixed
from storage_engine.errors import InvalidConfiguration

SLOTS_PER_LINE = {"page_visits": 4, "exposures": 8}
SLOT_SHARE = {"page_visits": 0.55, "exposures": 0.6}
LEAD_MS_MEAN, LEAD_MS_MAX = 15 * 60_000, 6 * 3_600_000
LATE_MS_MEAN, LATE_MS_MAX = 20 * 60_000, 12 * 3_600_000
DUPLICATE_MS_MEAN, DUPLICATE_MS_MAX = 60_000, 3_600_000
DUPLICATE_DISTANCE_MAX = 1_000
LOOKAHEAD_LINES = 4_096
ID_BITS = 40


@dataclass(frozen=True)
class Disorder:
    """How events misbehave, as shares of all events: `late` arrive after younger ones, `duplicated` arrive twice."""

    late: float = 0.02
    duplicated: float = 0.01

    def __post_init__(self) -> None:
        for name in ("late", "duplicated"):
            if not 0 <= getattr(self, name) < 0.5:
                raise InvalidConfiguration(
                    f"the share of {name} events is {getattr(self, name)}", where="generate", next_step="Use a share from 0 to below 0.5."
                )


class Series(Protocol):
    """What a sink writes: named parts (a day, or the whole), each a fixed sequence of events in order of arrival."""

    name: str
    kind: str

    def parts(self) -> list[str]: ...
    def n_events(self, part: str) -> int: ...
    def batches(self, part: str, start: int, batch_rows: int) -> Iterator[EventBatch]: ...


class BasketSeries:
    """The made events before the real purchases of `days` days from `first_day`. A part is the day of the purchases."""

    def __init__(self, baskets: Baskets, kind: str, *, first_day: date, days: int, seed: int, disorder: Disorder | None = None) -> None:
        self.kind = check_kind(kind)
        self.disorder = disorder or Disorder()
        self.name = f"{kind}:baskets:seed={seed}:late={self.disorder.late}:duplicated={self.disorder.duplicated}"
        self._baskets = baskets
        self._days = [(first_day + timedelta(days=number)).isoformat() for number in range(days)]
        self._seed = seed
        self._origin = f"made:{seed}"
        self._id_base = id_base(f"{kind}:baskets:{seed}")
        self._cached: tuple[str, EventArrays] | None = None

    def parts(self) -> list[str]:
        return self._days

    def n_events(self, part: str) -> int:
        return len(self._arrays(part).event_ids)

    def batches(self, part: str, start: int, batch_rows: int) -> Iterator[EventBatch]:
        """The events of one day from the start-th on, in order of arrival."""
        arrays = self._arrays(part)
        for begin in range(start, len(arrays.event_ids), batch_rows):
            yield arrays.batch(slice(begin, begin + batch_rows), KINDS[self.kind], self._baskets, self._origin)

    def _arrays(self, part: str) -> EventArrays:
        if self._cached is None or self._cached[0] != part:
            self._cached = part, self._draw(part)
        return self._cached[1]

    def _draw(self, part: str) -> EventArrays:
        """All events of a day: each line has a few slots, each slot holds an event or not; then disorder, then arrival."""
        start, stop = self._baskets.lines_of_day(int(np.datetime64(part, "ms").astype(np.int64)))
        n_slots = SLOTS_PER_LINE[self.kind]
        index = np.arange(start * n_slots, stop * n_slots, dtype=np.uint64)
        index = index[high_above(mixed(key_of(self._seed, f"{self.kind}/slot"), index), SLOT_SHARE[self.kind])]
        lines = (index // np.uint64(n_slots)).astype(np.int64)
        lead_ms = exponential_ms(mixed(key_of(self._seed, f"{self.kind}/lead"), index), LEAD_MS_MEAN, LEAD_MS_MAX)
        times_ms = self._baskets.times_ms[lines] - lead_ms
        drawn = Drawn(self._id_base + index.astype(np.int64), lines, times_ms, mixed(key_of(self._seed, f"{self.kind}/look"), index))

        late_bits = mixed(key_of(self._seed, f"{self.kind}/late"), index)
        is_late = high_above(late_bits, self.disorder.late)
        arrivals = times_ms + np.where(is_late, exponential_ms(late_bits, LATE_MS_MEAN, LATE_MS_MAX), 0)
        again_bits = mixed(key_of(self._seed, f"{self.kind}/again"), index)
        again = np.flatnonzero(high_above(again_bits, self.disorder.duplicated))
        positions = np.concatenate([np.arange(len(index)), again])
        arrivals = np.concatenate([arrivals, arrivals[again] + exponential_ms(again_bits[again], DUPLICATE_MS_MEAN, DUPLICATE_MS_MAX)])
        order = np.argsort(arrivals, kind="stable")
        return EventArrays.taken(drawn, positions[order], is_late[positions][order], order >= len(index))


@dataclass(frozen=True)
class EventArrays:
    """Drawn events in order of arrival. Shapes: all (n,)."""

    event_ids: np.ndarray
    lines: np.ndarray
    times_ms: np.ndarray
    bits: np.ndarray
    is_late: np.ndarray
    is_duplicate: np.ndarray

    @classmethod
    def taken(cls, drawn: Drawn, positions: np.ndarray, is_late: np.ndarray, is_duplicate: np.ndarray) -> EventArrays:
        return cls(
            drawn.event_ids[positions], drawn.lines[positions], drawn.times_ms[positions], drawn.bits[positions], is_late, is_duplicate
        )

    def batch(self, part: slice, make: object, baskets: Baskets, origin: str) -> EventBatch:
        drawn = Drawn(self.event_ids[part], self.lines[part], self.times_ms[part], self.bits[part])
        return EventBatch(make(baskets, drawn, origin), int(self.is_late[part].sum()), int(self.is_duplicate[part].sum()))  # type: ignore[operator]


class RateSeries:
    """`rate` events per second for `span` from `start`. One part, the whole; event i is made from i alone."""

    def __init__(
        self, baskets: Baskets, kind: str, *, rate: float, span: timedelta, start: datetime, seed: int, disorder: Disorder | None = None
    ) -> None:
        if rate <= 0 or span <= timedelta(0):
            raise InvalidConfiguration(
                f"rate {rate} and span {span} give no events",
                where="generate",
                next_step="Use a rate above 0 and a span such as 10s, 5m, 2h, 1d.",
            )
        self.kind = check_kind(kind)
        self.disorder = disorder or Disorder()
        shape = f"rate={rate:g}:start={start.isoformat()}:seed={seed}:late={self.disorder.late}:duplicated={self.disorder.duplicated}"
        self.name = f"{kind}:{shape}"
        self._baskets = baskets
        self._rate = rate
        self._n = round(rate * span.total_seconds())
        self._start_ms = int(np.datetime64(start, "ms").astype(np.int64))
        self._origin = f"made:{seed}"
        self._id_base = id_base(self.name)
        self._keys = {purpose: key_of(seed, f"{self.name}/{purpose}") for purpose in ("late", "again", "line", "look")}

    def parts(self) -> list[str]:
        return [""]

    def n_events(self, part: str) -> int:  # noqa: ARG002 - there is one part
        return self._n

    def batches(self, part: str, start: int, batch_rows: int) -> Iterator[EventBatch]:  # noqa: ARG002
        for begin in range(start, self._n, batch_rows):
            yield self._batch(begin, min(begin + batch_rows, self._n))

    def _batch(self, start: int, stop: int) -> EventBatch:
        index = np.arange(start, stop, dtype=np.uint64)
        original = self._original(index)
        times_ms = self._start_ms + (original.astype(np.float64) * (1000.0 / self._rate)).astype(np.int64)
        lines = self._next_purchases(times_ms, mixed(self._keys["line"], original))
        late_bits = mixed(self._keys["late"], original)
        late = np.flatnonzero(high_above(late_bits, self.disorder.late))
        times_ms[late] -= exponential_ms(late_bits[late], LATE_MS_MEAN, LATE_MS_MAX)
        drawn = Drawn(self._id_base + original.astype(np.int64), lines, times_ms, mixed(self._keys["look"], original))
        return EventBatch(KINDS[self.kind](self._baskets, drawn, self._origin), len(late), int((original != index).sum()))

    def _original(self, index: np.ndarray) -> np.ndarray:
        """Which event each position carries: its own, or, where it is a second delivery, one of the last thousand."""
        original = index.copy()
        pending = np.arange(len(index))
        while len(pending):
            bits = mixed(self._keys["again"], original[pending])
            is_again = high_above(bits, self.disorder.duplicated) & (original[pending] > 0)
            pending, bits = pending[is_again], bits[is_again]
            back = low_below(bits, DUPLICATE_DISTANCE_MAX).astype(np.uint64) + np.uint64(1)
            original[pending] -= np.minimum(back, original[pending])
        return original

    def _next_purchases(self, times_ms: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """For each time one of the next purchases; the year of purchases repeats. times_ms nearly ascends."""
        first, last = int(self._baskets.times_ms[0]), int(self._baskets.times_ms[-1])
        in_year = first + (times_ms - first) % (last - first)
        lines = np.searchsorted(self._baskets.times_ms, in_year) + low_below(bits, min(LOOKAHEAD_LINES, self._baskets.n_lines))
        lines -= self._baskets.n_lines * (lines >= self._baskets.n_lines)
        return lines


def check_kind(kind: str) -> str:
    """The kind, when events of it can be made. Errors: InvalidConfiguration."""
    if kind not in KINDS:
        raise InvalidConfiguration(
            f"there are no made events of kind {kind}", where="generate", next_step=f"Use one of: {', '.join(KINDS)}."
        )
    return kind


def id_base(name: str) -> int:
    """The first event id of a series: 22 bits name the series, 40 bits count its events; ids are positive BIGINTs."""
    return (int(key_of(0, name)) & ((1 << (62 - ID_BITS)) - 1)) << ID_BITS


__all__ = ["BasketSeries", "Disorder", "RateSeries", "Series"]
