"""Latency: event to visible result in scenario 2. A feeder process appends every 20 ms; a reader follows the sink's changelog.

A result carries MAX(ts_ms), the time at which its newest event was made. Its age when the reader has it is the latency, so that both
clients, the server, the worker's micro-batch and the sync to disk are inside.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import storage_engine
from benchmarks.processes import Watch
from benchmarks.streams import ours

RATES = (5_000, 20_000)
FLINK_MS = {5_000: (818, 1_077), 20_000: (525, 960)}
"""p50 and p99 of Flink 2.2 with Fluss 0.9 with stock settings, checkpoints every 10 s; recorded under the same protocol."""
ASKED_MS = (100, 300)
TICK_S = 0.020
WARM_SHARE = 0.3
_LOG = "CREATE TABLE bench.log (shop_id BIGINT, stat_date STRING, stat_hour STRING, cnt BIGINT, ts_ms BIGINT) WITH ('bucket.num' = '1')"
_WIDE = (
    "CREATE TABLE bench.wide (shop_id BIGINT, stat_date STRING, stat_hour STRING, exp_cnt BIGINT, page_cnt BIGINT, last_ts BIGINT, "
    "PRIMARY KEY (shop_id, stat_date, stat_hour) NOT ENFORCED) WITH ('bucket.num' = '1', 'bucket.key' = 'shop_id')"
)
_INSERT = (
    "INSERT INTO bench.wide (shop_id, stat_date, stat_hour, exp_cnt, last_ts) SELECT shop_id, stat_date, stat_hour, SUM(cnt), MAX(ts_ms) "
    "FROM bench.log GROUP BY shop_id, stat_date, stat_hour"
)
HEADER = (
    "| events/s | sent/s | results | p5 ms | p50 ms | p90 ms | p99 ms | max ms | asked p50 / p99 | Flink + Fluss, recorded p50 / p99 "
    "| peak MiB worker + server |\n" + "|---" * 11 + "|"
)


def report(seconds: float) -> int:
    print(HEADER)
    for rate in RATES:
        with tempfile.TemporaryDirectory(prefix="flashlake-latency-") as name:
            print(_line(Path(name), rate, seconds), flush=True)
    return 0


def _line(root: Path, rate: int, seconds: float) -> str:
    with ours.server(root / "store") as server, storage_engine.connect(server.url) as store:
        store.execute(f"{_LOG}; {_WIDE}; SET 'pipeline.name' = 'bench'; {_INSERT}")
        with ours.worker(server.url) as pid, Watch({"worker": pid, "server": server.pid}) as watch:
            command = [sys.executable, "-m", __name__, server.url, str(rate), str(seconds)]
            feeder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                ages = _ages(store, feeder, seconds)
                assert feeder.stdout is not None
                sent = int(feeder.stdout.read())
            finally:
                feeder.terminate()
                feeder.wait(10)
            usage = watch.usage()
    p5, p50, p90, p99, most = (float(np.percentile(ages, q)) for q in (5, 50, 90, 99, 100))
    flink = FLINK_MS[rate]
    memory = " + ".join(f"{usage.own_mb[of] + usage.mapped_mb[of]:.0f}" for of in ("worker", "server"))
    return (
        f"| {rate:,} | {sent / seconds:,.0f} | {len(ages):,} | {p5:.0f} | **{p50:.0f}** | {p90:.0f} | **{p99:.0f}** | {most:.0f} "
        f"| {ASKED_MS[0]} / {ASKED_MS[1]} | {flink[0]:,} / {flink[1]:,} | {memory} |"
    )


def _ages(store: storage_engine.Store, feeder: subprocess.Popen[str], seconds: float) -> np.ndarray:
    """Ages in ms of the results, those of the first part of the run left out. Errors: TimeoutError when the results stay behind."""
    sink, log = store.table("bench.wide"), store.table("bench.log")
    start = sink.offsets("earliest")
    ages: list[np.ndarray] = []
    began_ms: float | None = None
    newest_ms = 0.0
    version = store.version()
    deadline = time.monotonic() + seconds + 60
    while True:
        stop = sink.offsets("latest")
        if stop != start:
            rows = sink.scan(["last_ts"], start=start, stop=stop).read_all()
            now_ms = time.time() * 1000
            made_ms = rows.filter(pc.is_in(rows["_change_type"], pa.array(["+I", "+U"])))["last_ts"].to_numpy()
            if len(made_ms):
                began_ms = began_ms or float(made_ms.min())
                newest_ms = max(newest_ms, float(made_ms.max()))
                ages.append((now_ms - made_ms)[made_ms > began_ms + WARM_SHARE * seconds * 1000])
            start = stop
        elif feeder.poll() is not None and newest_ms == _newest_ms(log):
            return np.concatenate(ages)
        if time.monotonic() > deadline:
            raise TimeoutError("results did not keep up with the events")
        version = store.backend.await_version(version, 0.05)


def _newest_ms(log: storage_engine.Table) -> float:
    return float(pc.max(log.scan(["ts_ms"]).read_all()["ts_ms"]).as_py())


def _feed(url: str, rate: int, seconds: float) -> int:
    """Append `rate` events a second, one batch a tick; the number sent. A late tick is not made up for by a larger one."""
    n = round(rate * TICK_S)
    draws = np.random.default_rng(1)
    n_sent = 0
    with storage_engine.connect(url) as store:
        log = store.table("bench.log")
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            now_ms = int(time.time() * 1000)
            days, hours = pa.repeat("20171125", n), pa.repeat("10", n)
            shops, ones = draws.integers(0, 1000, n), np.ones(n, np.int64)
            columns = [shops, days, hours, ones, np.full(n, now_ms)]
            log.append(pa.record_batch(columns, ["shop_id", "stat_date", "stat_hour", "cnt", "ts_ms"]))
            n_sent += n
            time.sleep(max(0.0, (passed // TICK_S + 1) * TICK_S - (time.monotonic() - began)))
    return n_sent


if __name__ == "__main__":
    print(_feed(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
