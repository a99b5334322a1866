"""SIGKILL of a process that writes to an embedded store, at many random moments: in a commit, a checkpoint, a recovery.

A longer campaign: CRASH_ROUNDS=500 CRASH_SEED=7 python -m pytest tests/crash
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import storage_engine
from tests.crash import workload
from tests.crash.survivor import judge

pytestmark = pytest.mark.crash

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "6"))
SEED = int(os.environ.get("CRASH_SEED", "1"))


def acknowledgements_until_killed(directory: Path, n_acks: int, grace_s: float) -> dict[int, int]:
    """Run the workload, kill it after `n_acks` acknowledgements and then `grace_s` more; the last sequence acknowledged to each writer."""
    command = [sys.executable, workload.__file__, str(directory), str(SEED)]
    acknowledged: dict[int, int] = {}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
    assert child.stdout is not None, "opened as a pipe"
    lines = b""
    deadline = time.monotonic() + 60
    try:
        while lines.count(b"\n") < n_acks:
            assert select.select([child.stdout], [], [], max(deadline - time.monotonic(), 0))[0], "no acknowledgement in time"
            received = os.read(child.stdout.fileno(), 1 << 16)
            assert received, f"the writer ended by itself, status {child.wait()}"
            lines += received
        end = time.monotonic() + grace_s
        while (left_s := end - time.monotonic()) > 0 and select.select([child.stdout], [], [], left_s)[0]:
            lines += os.read(child.stdout.fileno(), 1 << 16)
    finally:
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readall()
        child.stdout.close()
        child.wait()
    for line in lines.decode().split("\n")[:-1]:
        writer, seq = map(int, line.split())
        acknowledged[writer] = max(acknowledged.get(writer, 0), seq)
    return acknowledged


def test_every_acknowledged_commit_is_there_whole_and_once_after_each_kill(tmp_path):
    chance = random.Random(SEED)
    directory = tmp_path / "store"
    acknowledged: dict[int, int] = {}
    n_held = 0
    for _ in range(ROUNDS):
        # few acknowledgements: the kill meets opening and recovery; many: commits, and closing with its checkpoint
        n_acks = chance.choice([0, 1, 10, 60, 150])
        acknowledged |= acknowledgements_until_killed(directory, n_acks, grace_s=chance.random() * 0.05)

        with storage_engine.connect(directory.as_uri()) as store:
            workload.make_tables(store)
            n_now = judge(store, SEED, acknowledged)
        assert n_now >= n_held, "commits of an earlier run are gone"
        n_held = n_now

    assert n_held > ROUNDS, "the campaign killed too early to attack anything"
