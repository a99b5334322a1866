"""Any order of appends, syncs, kills, power losses, full disks and reopenings leaves the log equal to a list."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from storage_engine.errors import WriteFailed
from storage_engine.log.frame import decode_batch
from storage_engine.log.stored_frame import FrameLocation
from tests.log.commits import SCHEMA, Commit, commit, encoded, open_log
from tests.log.faulty_disk import FATES, Fate, FaultyDisk


class LogMachine(RuleBasedStateMachine):
    """The model is the list of commits appended, and how many of them are durable."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="log-machine-"))
        self.n_lives = 0
        self.number = 0
        self.commits: list[Commit] = []
        self.locations: list[list[FrameLocation]] = []
        self.n_durable = 0

    @initialize()
    def begin(self) -> None:
        self.root = self.base / "0"
        self.root.mkdir()
        self._open()

    def _open(self) -> None:
        self.disk = FaultyDisk(self.root, seed=self.n_lives)
        self.log, found = open_log(self.disk, self.root)
        assert found in [self.commits[:n] for n in range(self.n_durable, len(self.commits) + 1)]
        self.commits = found
        self.locations = self.locations[: len(found)]
        self.n_durable = len(found)  # what recovery shows is durable

    def _append(self) -> None:
        value = commit(self.number)
        self.number += 1
        appended = self.log.append(encoded(value), value.record)
        self.commits.append(value)
        self.locations.append(appended.locations)

    @rule(n=st.integers(1, 3))
    def append(self, n: int) -> None:
        for _ in range(n):
            self._append()

    @rule()
    def sync(self) -> None:
        self.log.sync()
        self.n_durable = len(self.commits)

    @rule(space=st.integers(0, 2000))
    def append_on_a_full_disk(self, space: int) -> None:
        self.disk.space = sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file()) + space
        for _ in range(3):
            try:
                self._append()
            except WriteFailed:
                continue
        self.disk.space = None

    @rule()
    def close_and_reopen(self) -> None:
        self.log.close()
        self.n_durable = len(self.commits)
        self._open()

    @rule()
    def kill_and_reopen(self) -> None:
        self.n_durable = len(self.commits)  # the kernel has the bytes
        self._move("whole")

    @rule(unsynced=st.sampled_from(FATES))
    def lose_power_and_reopen(self, unsynced: Fate) -> None:
        self._move(unsynced)

    def _move(self, unsynced: Fate) -> None:
        self.n_lives += 1
        self.root = self.disk.after_power_loss(unsynced, self.base / f"{self.n_lives}")
        self._open()

    @invariant()
    def every_frame_reads_as_it_was_written(self) -> None:
        for value, locations in zip(self.commits, self.locations, strict=True):
            for (bucket, base, rows), location in zip(value.frames, locations, strict=True):
                stored = self.log.read(location)
                assert (stored.header.bucket, stored.header.base_offset) == (bucket, base)
                assert decode_batch(stored.message, SCHEMA).num_rows == len(rows)

    def teardown(self) -> None:
        self.log.close()
        shutil.rmtree(self.base)


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
