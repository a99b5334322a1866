"""Some hundred seeds of the torture, those that once failed, and the proof that it finds what it is made to find."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable

import pyarrow as pa
import pytest
from rich.console import Console

from storage_engine.log import commit_log, log_file
from storage_engine.log.commit_log import CommitLog
from tests.torture.campaign import campaign
from tests.torture.harness import run
from tests.torture.judge import Broken
from tests.torture.operations import Operation
from tests.torture.simulated_disk import SimulatedDisk
from tests.torture.workload import generate, shrink

SEEDS = 300
SEEDS_MAX = 60
"""So many seeds may a broken promise get through unnoticed."""
ONCE_FAILED = (34, 64, 313, 405, 492, 501, 591, 596, 788, 793, 870, 922, 963, 2111, 3000, 38, 237, 50286,
               936, 3077, 3877, 3909, 5115, 7791, 8179, 20248, 20339, 722, 1023)  # fmt: skip
"""Seeds that found something: wrong rows for repeated keys, an endless wait, a backup that could not be restored, ..."""


def test_hundreds_of_seeds_of_faults_leave_the_store_equal_to_the_model() -> None:
    console = Console(file=io.StringIO())
    tally, reports = campaign(1_000_000, SEEDS, os.cpu_count() or 1, console, n_steps=12)

    assert reports == []
    assert tally.seeds == SEEDS
    assert min(tally.commits, tally.reopens, tally.refused, tally.flips, tally.backups, tally.compactions, tally.compacted_bytes) > 20
    kinds = " ".join(tally.disk.faults)
    assert all(word in kinds for word in ("power cut", "EIO from fdatasync", "EIO from write", "ENOSPC from write", "bit flip in log"))


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_seeds_that_once_failed_pass(seed: int) -> None:
    run(generate(seed, with_compactions=False), seed)


# the harness attacks: a store with one promise broken does not get through


class _NeverSyncing(SimulatedDisk):
    """fdatasync answers, and does nothing."""

    def fdatasync(self, fd: int) -> None:
        self._enter("fdatasync")


class _NamelessDirectories(SimulatedDisk):
    """Names are never made durable."""

    def sync_directory(self, directory) -> None:
        self._enter("sync_directory")


class _FlippingReads(SimulatedDisk):
    """Every 25th read returns another bit than is there."""

    n_reads = 0

    def read(self, path, offset, n_bytes):
        found = super().read(path, offset, n_bytes)
        self.n_reads += 1
        if self.n_reads % 25 or not found.size:
            return found
        data = bytearray(found.to_pybytes())
        data[-1] ^= 1
        return pa.py_buffer(bytes(data))


@pytest.mark.parametrize("kind", [_NeverSyncing, _NamelessDirectories, _FlippingReads])
def test_a_disk_that_lies_is_found(kind: type[SimulatedDisk]) -> None:
    _first_seed_that_fails(lambda seed: kind(seed, sector_bytes=512))


def _first_seed_that_fails(
    disk_of: Callable[[int], SimulatedDisk] | None = None, is_apt: Callable[[list[Operation]], bool] = lambda operations: True
) -> int:
    """How many seeds whose workload is apt pass before one fails; at most SEEDS_MAX."""
    n_run = 0
    for seed in itertools.count():
        operations = generate(seed)
        if not is_apt(operations):
            continue
        try:
            run(operations, seed, disk=disk_of(seed) if disk_of else None)
        except (TypeError, AttributeError, NameError):
            raise  # the mutant itself is wrong: it no longer fits what it replaces
        except Exception:  # noqa: BLE001 - any failure is a finding
            return seed
        n_run += 1
        assert n_run < SEEDS_MAX, "nothing found"
    raise AssertionError


def _syncs_fail_then_power(operations: list[Operation]) -> bool:
    """A sync fails once, and the power is cut some operations later."""
    failing = [
        n for n, (name, args) in enumerate(operations) if name == "error" and args["operations"] == "fdatasync" and args["times"] == 1
    ]
    cuts = [n for n, (name, args) in enumerate(operations) if name in ("cut", "cut_now") and args["fate"] in ("lost", "torn")]
    return any(1 < cut - fail < 6 for fail in failing for cut in cuts)


def _flips(operations: list[Operation]) -> bool:
    return sum(name == "flip" for name, _ in operations) > 1


def _skip_checksum(data, offset, header, file="", data_at=0) -> None:
    return


def _forget_to_write_again(self, data, durable, end) -> None:
    self._disk.truncate(self._fd, end - self._set.files[-1].start)
    self._disk.fdatasync(self._fd)


def _answer_before_sync(self, upto=None) -> None:
    return


@pytest.mark.parametrize(
    ("owner", "name", "mutant", "is_apt"),
    [
        (log_file, "verify_payload", _skip_checksum, _flips),
        (CommitLog, "_write_again", _forget_to_write_again, _syncs_fail_then_power),
        (CommitLog, "sync", _answer_before_sync, lambda operations: True),
        (commit_log, "is_acknowledged", lambda data, file, position: False, _flips),
    ],
    ids=["no checksums", "no second write after a failed sync", "no sync before the answer", "all damage is a torn tail"],
)
def test_an_engine_with_one_promise_broken_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, mutant: object, is_apt: Callable[[list[Operation]], bool]
) -> None:
    monkeypatch.setattr(owner, name, mutant)

    _first_seed_that_fails(is_apt=is_apt)


def test_a_failing_seed_is_shrunk_to_the_operations_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommitLog, "sync", _answer_before_sync)
    seed = _first_seed_that_fails()
    whole = generate(seed)

    shorter, failure = shrink(seed, runs_max=60)

    assert len(shorter) < len(whole) / 2
    assert isinstance(failure, Broken)


def test_a_seed_repeats_itself() -> None:
    first, second = run(generate(7), 7), run(generate(7), 7)

    assert first.disk.calls == second.disk.calls
    assert first.disk.faults == second.disk.faults
    assert first.commits == second.commits
