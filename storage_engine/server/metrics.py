"""Metrics: what a server counts, and the page that Prometheus reads.

Owner of: the HTTP listener of the page. Counts of calls belong to one thread each (CallCounts) and are added up when the page is
read: a call costs no lock and loses no count. What the store knows of itself comes from its plain function `metrics()`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from storage_engine.errors import StoreUnavailable

BOUNDS_S: Final = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds of the latency histogram, in seconds."""

OK: Final = "ok"


class CallCounts:
    """Calls of one lane, counted by one thread at a time: per (method, outcome) calls, bytes and a latency histogram."""

    def __init__(self, lane: str) -> None:
        self.lane = lane
        self.rows: dict[tuple[str, str], list[float]] = {}
        """[seconds, bytes in, bytes out, calls below each bound ..., calls above the last]."""

    def add(self, method: str, outcome: str, seconds: float, n_in: int, n_out: int) -> None:
        row = self.rows.get((method, outcome))
        if row is None:
            row = self.rows[method, outcome] = [0.0] * (4 + len(BOUNDS_S))
        row[0] += seconds
        row[1] += n_in
        row[2] += n_out
        row[3 + bisect_left(BOUNDS_S, seconds)] += 1

    def merge(self, other: CallCounts) -> None:
        for key, row in list(other.rows.items()):
            mine = self.rows.setdefault(key, [0.0] * len(row))
            for index, value in enumerate(list(row)):
                mine[index] += value


class Metrics(Collector):
    """Everything on the page. `gauges`: name -> (help, function), read with the page; `counters` likewise, which only grow.
    `sources`: functions that give whole families.
    """

    def __init__(self, store_metrics: Callable[[], Iterable[Metric]] = lambda: ()) -> None:
        self.sources: list[Callable[[], Iterable[Metric]]] = [store_metrics]
        self._lock = threading.Lock()
        self._live: set[CallCounts] = set()
        self._ended = {lane: CallCounts(lane) for lane in ("flight", "socket")}
        self.gauges: dict[str, tuple[str, Callable[[], float | Mapping[str, float]]]] = {}
        self.counters: dict[str, tuple[str, Callable[[], float | Mapping[str, float]]]] = {}

    def open(self, lane: str) -> CallCounts:
        """Counts for a thread that serves calls; give them back with close()."""
        counts = CallCounts(lane)
        with self._lock:
            self._live.add(counts)
        return counts

    def close(self, counts: CallCounts) -> None:
        with self._lock:
            self._live.discard(counts)
            self._ended[counts.lane].merge(counts)

    def one(self, lane: str, method: str, outcome: str, seconds: float, n_in: int, n_out: int) -> None:
        """Count a call that has no thread of its own."""
        with self._lock:
            self._ended[lane].add(method, outcome, seconds, n_in, n_out)

    def totals(self) -> dict[str, CallCounts]:
        with self._lock:
            totals = {lane: CallCounts(lane) for lane in self._ended}
            for counts in (*self._ended.values(), *self._live):
                totals[counts.lane].merge(counts)
        return totals

    def serve(self, host: str, port: int) -> int:
        """Answer GET /metrics there, in threads of its own; the port it got. Errors: StoreUnavailable."""
        registry = CollectorRegistry()
        registry.register(self)
        try:
            server, _ = start_http_server(port, host, registry)
        except OSError as error:
            raise StoreUnavailable(
                f"the metrics' port cannot be listened on: {error}", where=f"{host}:{port}", next_step="Choose another --metrics-port."
            ) from error
        return server.server_port

    # Prometheus

    def describe(self) -> Iterable[Metric]:
        return ()  # names depend on what was called: asking for them would be reading the page

    def collect(self) -> Iterator[Metric]:
        yield from self._calls()
        for kind, held in ((GaugeMetricFamily, self.gauges), (CounterMetricFamily, self.counters)):
            for name, (text, read) in held.items():
                value = read()
                if isinstance(value, Mapping):
                    family = kind(f"flashlake_{name}", text, labels=["of"])
                    for label, number in sorted(value.items()):
                        family.add_metric([label], number)
                else:
                    family = kind(f"flashlake_{name}", text)
                    family.add_metric([], value)
                yield family
        for source in self.sources:
            yield from source()

    def _calls(self) -> Iterator[Metric]:
        text = "Calls by outcome: ok, or the error's class."
        requests = CounterMetricFamily("flashlake_requests", text, labels=["lane", "method", "outcome"])
        text = "Seconds from a whole request to its whole answer."
        seconds = HistogramMetricFamily("flashlake_request_seconds", text, labels=["lane", "method"])
        received = CounterMetricFamily("flashlake_received_bytes", "Bytes of requests.", labels=["lane"])
        sent = CounterMetricFamily("flashlake_sent_bytes", "Bytes of answers.", labels=["lane"])
        for lane, counts in self.totals().items():
            by_method: dict[str, list[float]] = {}
            for (method, outcome), row in sorted(counts.rows.items()):
                requests.add_metric([lane, method, outcome], sum(row[3:]))
                kept = by_method.setdefault(method, [0.0] * len(row))
                by_method[method] = [a + b for a, b in zip(kept, row, strict=True)]
            received.add_metric([lane], sum(row[1] for row in by_method.values()))
            sent.add_metric([lane], sum(row[2] for row in by_method.values()))
            for method, row in by_method.items():
                below, buckets = 0.0, []
                for bound, n_calls in zip([*map(repr, BOUNDS_S), "+Inf"], row[3:], strict=True):
                    below += n_calls
                    buckets.append((bound, below))
                seconds.add_metric([lane, method], buckets, row[0])
        yield from (requests, seconds, received, sent)


def store_metrics(backend: object) -> Callable[[], Iterator[Metric]]:
    """What the store says of itself (`metrics()`: engine/metrics.py), as Prometheus has it; nothing for a backend without it."""

    def read() -> Iterator[Metric]:
        for item in getattr(backend, "metrics", list)():
            kind = CounterMetricFamily if item.is_counter else GaugeMetricFamily
            family = kind(f"flashlake_{item.name}", item.text, labels=[item.label] if item.label else [])
            for value, number in item.values.items():
                family.add_metric([value] if item.label else [], number)
            yield family

    return read
