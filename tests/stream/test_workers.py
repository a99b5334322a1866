"""Several worker processes on one store: jobs are shared, never run by two at a time, and taken over when a worker is killed."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import storage_engine
from query_engine.verify import verify
from storage_engine import Store
from storage_engine.server import ServerProcess
from storage_engine.stream.run.worker_group import OWNER, share_of

TAKE_OVER_S_MAX = 15.0  # a session of 3 s, a grace of 1 s, planning; the rest is a busy machine
N_JOBS = 6


@pytest.mark.parametrize("seed", range(20))
def test_every_job_belongs_to_one_member_and_none_has_many_more_than_another(seed: int) -> None:
    rng = random.Random(seed)
    members = [f"m{n}" for n in rng.sample(range(100), rng.randrange(1, 8))]
    jobs = [f"j{n}" for n in range(rng.randrange(0, 50))]
    shares = [share_of(member, members, jobs) for member in members]
    assert sorted(job for share in shares for job in share) == sorted(jobs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    grown = [*jobs, "later"]
    assert all(share_of(member, members, grown) - {"later"} == share for member, share in zip(members, shares, strict=True))


class WorkerProcess:
    """One worker; its log says when it takes up and lets go of jobs."""

    def __init__(self, url: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as sink:
            self.child = subprocess.Popen([sys.executable, "-m", "storage_engine.stream", "--store", url], stdout=sink, stderr=sink)
        self.ended: float | None = None

    def kill(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait(30)
        self.ended = time.time() if self.ended is None else self.ended

    def spans(self) -> list[tuple[str, float, float]]:
        """(job, from, to) that it ran, in seconds since 1970."""
        began: dict[str, float] = {}
        done = []
        for line in self.log.read_text().splitlines():
            found = re.match(r"(\S+ \S+),(\d+) INFO job (\S+): (runs here|let go)", line)
            if found:
                at = dt.datetime.fromisoformat(found[1]).timestamp() + int(found[2]) / 1000
                if found[4] == "runs here":
                    began[found[3]] = at
                else:
                    done.append((found[3], began.pop(found[3]), at))
        return done + [(job, at, self.ended or time.time()) for job, at in began.items()]

    def runs(self) -> set[str]:
        return {job for job, _, to in self.spans() if to >= time.time() - 0.05}


def wait_for(store: Store, what: str, holds: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until it held."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s: {what}"
        store.await_version(store.version(), 0.05)
    return time.monotonic() - began


def overlaps(workers: Sequence[WorkerProcess]) -> list[str]:
    """Jobs that two workers ran at the same time."""
    spans = sorted(span for worker in workers for span in worker.spans())
    return [f"{a[0]}: {a[2] - b[1]:.3f} s" for a, b in itertools.pairwise(spans) if a[0] == b[0] and b[1] < a[2]]


@pytest.mark.crash
def test_jobs_are_spread_and_those_of_a_killed_worker_are_taken_over(tmp_path: Path) -> None:
    names = {f"job{n}" for n in range(N_JOBS)}
    workers: list[WorkerProcess] = []
    with ServerProcess(tmp_path / "store") as server, storage_engine.connect(server.url) as store:
        store.execute("CREATE TABLE db.events (id BIGINT, shop BIGINT)")
        for n in range(N_JOBS):
            store.execute(
                f"CREATE TABLE db.s{n} (shop BIGINT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED); SET 'pipeline.name' = 'job{n}'; "
                f"INSERT INTO db.s{n} SELECT shop, COUNT(*) FROM db.events GROUP BY shop"
            )

        def start() -> WorkerProcess:
            workers.append(WorkerProcess(server.url, tmp_path / f"worker{len(workers)}.log"))
            return workers[-1]

        def shares() -> list[set[str]]:
            return [worker.runs() for worker in workers if worker.ended is None]

        def write(base: int) -> None:
            store.table("db.events").append({"id": list(range(base, base + 100)), "shop": [i % 7 for i in range(100)]})

        def spread() -> bool:
            found = shares()
            return set().union(*found) == names and max(map(len, found)) - min(map(len, found)) <= 1

        def caught_up() -> bool:
            write_end = store.backend.offsets("db.events", "latest")
            return all(item.offsets.get("db.events") == write_end for item in store.progress("job:").values())

        try:
            start(), start(), start()
            wait_for(store, "three workers share six jobs", spread, 60)
            write(0)
            wait_for(store, "all jobs read", lambda: len(store.progress("job:")) == N_JOBS and caught_up(), 30)

            victim = workers[0]
            orphans = victim.runs()
            victim.kill()
            write(100)
            took_s = wait_for(store, "the others take over", lambda: spread() and caught_up(), TAKE_OVER_S_MAX)
            assert orphans
            sys.stderr.write(f"taken over in {took_s:.1f} s\n")

            start()
            wait_for(store, "a new worker gets its share", spread, 60)
            workers[1].child.terminate()  # a stopped one leaves the group: nobody waits for its session
            workers[1].child.wait(30)
            workers[1].ended = time.time()
            write(200)
            wait_for(store, "all jobs go on", lambda: spread() and caught_up(), TAKE_OVER_S_MAX)
            assert len(store.progress(OWNER)[OWNER].detail["members"]) == 2
            assert {row["worker"].split("-")[-2] for row in store.execute("SHOW JOBS")[-1].rows.to_pylist()} == {
                str(worker.child.pid) for worker in workers if worker.ended is None
            }
            assert [name for n in range(N_JOBS) for name in [f"db.s{n}"] if not verify(store, None, name)[0].holds] == []
            assert sum(store.table("db.s0").read(["n"])["n"].to_pylist()) == 300
        finally:
            for worker in workers:
                worker.kill()
    assert overlaps(workers) == [], os.linesep.join(worker.log.read_text() for worker in workers)
