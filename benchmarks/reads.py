"""Read benchmarks: scans that skip frames by statistics, what writing statistics costs, and a changelog read as Arrow over the wire.

Run: make bench, or python -m benchmarks.reads [--quick]. Every result is checked before it counts.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

import storage_engine
from benchmarks.measure import HEADER, Case, in_turn
from benchmarks.rows import wide_batch, wide_ddl
from benchmarks.server import Server

FRAME_ROWS = 16_384
WHERE = "id >= {low} AND id < {high}"
PYFLUSS_CHANGELOG_ROWS_S = 1.1e6  # Apache Fluss 0.9.1 through pyfluss 1.0.0, recorded on this kind of machine


def filtered_scan(root: Path, n_frames: int, runs: int) -> list[Case]:
    """A scan of one hundredth of a sorted log over the wire: server CPU and bytes of frames read, with statistics against without."""
    for name, options in (("with", " WITH ('table.statistics.columns' = '*')"), ("without", "")):
        shutil.rmtree(root / name, ignore_errors=True)
        with storage_engine.connect(f"file://{root / name}", sync="none") as store:
            store.execute(f"CREATE TABLE bench.t (id BIGINT, a BIGINT, b DOUBLE, s STRING){options}")
            table = store.table("bench.t")
            for i in range(n_frames):
                table.append(_sorted_batch(i))
    low = n_frames * FRAME_ROWS // 2
    where = WHERE.format(low=low, high=low + n_frames * FRAME_ROWS // 100)
    counted = {}
    for name in ("with", "without"):
        with storage_engine.connect(f"file://{root / name}") as store:
            assert store.table("bench.t").scan(where=where).read_all().num_rows == n_frames * FRAME_ROWS // 100
            counted[name] = store.backend.fetched
    servers = {name: Server(root / name) for name in ("with", "without")}
    try:

        def cost(name: str, times: int) -> float:
            with storage_engine.connect(servers[name].url) as store:
                table = store.table("bench.t")
                before = servers[name].cpu_s()
                for _ in range(times):
                    assert table.scan(where=where).read_all().num_rows == n_frames * FRAME_ROWS // 100
                return (servers[name].cpu_s() - before) / times

        mine, other = in_turn(lambda _: cost("with", 40), lambda _: cost("without", 10), runs)
    finally:
        for server in servers.values():
            server.stop()
    bytes_mb = [[counted[name].n_bytes_read / 1e6] for name in ("with", "without")]
    frames = f"{counted['with'].n_frames_read} of {counted['without'].n_frames_read} frames"
    return [
        Case("filtered scan over the wire, 1 % of a sorted log, server CPU", "s per scan", mine, "without statistics", other, "-",
             higher_is_better=False),
        Case(f"the same, bytes of frames read ({frames})", "MB", bytes_mb[0], "without statistics", bytes_mb[1], "-",
             higher_is_better=False),
    ]  # fmt: skip


def append_with_statistics(root: Path, n_batches: int, runs: int) -> Case:
    """Append of 12-column batches of 64 k rows with statistics of all columns against without, neither synced."""
    batches = [wide_batch(65_536, 12, i) for i in range(n_batches)]

    def rate(options: str) -> float:
        shutil.rmtree(root / "append", ignore_errors=True)
        with storage_engine.connect(f"file://{root / 'append'}", sync="none") as store:
            store.execute(wide_ddl(12) + options)
            table = store.table("bench.wide")
            started = time.process_time()
            for batch in batches:
                table.append(batch)
            seconds = time.process_time() - started
            assert table.count() == n_batches * 65_536
        return n_batches * 65_536 / seconds

    mine, other = in_turn(lambda _: rate(" WITH ('table.statistics.columns' = '*')"), lambda _: rate(""), runs)
    return Case("append, 12 columns, statistics of all of them", "rows per CPU s", mine, "without statistics", other, "-")


def changelog_read(root: Path, n_batches: int, runs: int) -> Case:
    """A FULL changelog of upserts in batches of 10,000, read as Arrow with change types, 4 of 6 columns, over the wire."""
    rng = np.random.default_rng(1)
    shutil.rmtree(root / "changelog", ignore_errors=True)
    with storage_engine.connect(f"file://{root / 'changelog'}", sync="none") as store:
        store.execute("CREATE TABLE bench.t (k BIGINT, a BIGINT, v DOUBLE, s STRING, x BIGINT, y BIGINT, PRIMARY KEY (k) NOT ENFORCED)")
        table = store.table("bench.t")
        texts = pa.array([f"v{i % 97:05d}" for i in range(10_000)])
        for _ in range(n_batches):
            k = rng.integers(0, 5_000 * n_batches, 10_000)
            table.upsert(pa.table({"k": k, "a": rng.integers(0, 1 << 30, 10_000), "v": rng.random(10_000), "s": texts, "x": k, "y": k}))
        total = sum(table.offsets().values())
    server = Server(root / "changelog")
    try:
        with storage_engine.connect(server.url) as store:
            table = store.table("bench.t")

            def rate(_: int) -> float:
                started = time.perf_counter()
                n_rows = sum(batch.num_rows for batch in table.scan(["k", "a", "v", "s"]))
                seconds = time.perf_counter() - started
                assert n_rows == total
                return n_rows / seconds

            mine = [rate(i) for i in range(3 * runs + 1)][1:]
    finally:
        server.stop()
    name = f"changelog read over the wire, {total / 1e6:.1f} M rows, 4 columns and change types"
    return Case(name, "rows/s", mine, "Fluss changelog through pyfluss (recorded)", [PYFLUSS_CHANGELOG_ROWS_S], "10x")


def _sorted_batch(number: int) -> pa.Table:
    rng = np.random.default_rng(number)
    ids = np.arange(number * FRAME_ROWS, (number + 1) * FRAME_ROWS)
    texts = pa.array([f"value-{i:05d}" for i in range(997)]).take(pa.array(rng.integers(0, 997, FRAME_ROWS)))
    return pa.table({"id": ids, "a": rng.integers(0, 1 << 40, FRAME_ROWS), "b": rng.random(FRAME_ROWS), "s": texts})


def cases(root: Path, scale: int, runs: int) -> list[Case]:
    """All cases at 1/scale of their size."""
    return [
        *filtered_scan(root, 200 // min(scale, 4), runs),
        append_with_statistics(root, 32 // min(scale, 4), runs),
        changelog_read(root, 100 // min(scale, 4), runs),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.reads --quick")
    parser.add_argument("--quick", action="store_true", help="a quarter of the rows, one run: for a look, not for the record")
    scale, runs = (4, 1) if parser.parse_args().quick else (1, 3)
    with tempfile.TemporaryDirectory() as name:
        print(HEADER)
        for case in cases(Path(name), scale, runs):
            print(case.row())
    return 0


if __name__ == "__main__":
    sys.exit(main())
