"""One life of a store on a simulated disk: runs a workload with its faults, and after each fault holds the store to the model.

Holds, or raises Broken: every acknowledged commit is there once, whole, in order; nothing unacknowledged is half there (the commit under
way at a crash may be there whole); offsets are dense; rows, lookups, scans, counts and progress equal the model; a store that met an error
goes on by itself and takes writes once the disk does; flipped bits are named with file and offset and never returned as data; fsck agrees.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storage_engine import TableBucket, TableDescriptor
from storage_engine.connection import wrap
from storage_engine.engine.backup import restore
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.cleaner import CleaningPolicy
from storage_engine.engine.embedded import EmbeddedBackend, SyncMode
from storage_engine.engine.fsck import check_store
from storage_engine.engine.progress import COMMITTED_MS
from storage_engine.errors import DamageError, FlashlakeError, OffsetOutOfRange, UserError, WriteFailed
from storage_engine.log.frame import CHANGE_TYPE_NAMES, HEADER_BYTES, decode_batch
from storage_engine.schema.descriptor import Offsets
from tests.torture.model import KINDS, LOG_TTL_MS, MOVED, Model, ModelTable, Refused, same
from tests.torture.operations import REGISTRY, Operation
from tests.torture.simulated_disk import CHANGES, FATES, READS, Counts, Fate, Fault, PowerLost, SimulatedDisk

STORE = Path("/store")
POLICIES = (
    CheckpointPolicy(commits=3, log_bytes=1 << 40, rows=4, rows_at_close=1, is_inline=True),
    CheckpointPolicy(commits=7, log_bytes=4096, rows=1 << 40, rows_at_close=5, is_inline=True),
    CheckpointPolicy(commits=1 << 40, log_bytes=1 << 40, rows=1 << 40, rows_at_close=1 << 40, is_inline=True),
)
CLEANING = CleaningPolicy(chunk_bytes=2048, bytes_min=1, compact_bytes_min=1)
CLOCK_BEGIN_MS = 1_700_000_000_000
SLACK_MS = 60_000
N_STEPS = 26
FILE_BYTES = (2048, 8192, 1 << 20)


class Broken(AssertionError):
    """The store broke a promise."""


@dataclass
class Tally:
    """What a campaign did."""

    seeds: int = 0
    commits: int = 0
    refused: int = 0
    reopens: int = 0
    flips: int = 0
    backups: int = 0
    compared: int = 0
    looks: int = 0
    cleanings: int = 0
    expired: int = 0
    outlived: int = 0
    disk: Counts = field(default_factory=Counts)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        for name in (counter.name for counter in fields(self) if counter.type == "int"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.disk.faults.update(other.disk.faults)
        self.disk.calls.update(other.disk.calls)
        self.outcomes.update(other.outcomes)


def generate(seed: int, n_steps: int = N_STEPS) -> list[Operation]:
    """The workload of a seed: tables first, then operations with faults between them. Plain values, so that it can be cut and run again."""
    chance = random.Random(seed)
    tables = chance.sample(sorted(KINDS), chance.choice([2, 3, 4]))
    steps = [Operation("create_table", {"name": name}) for name in tables]
    names = sorted(REGISTRY)
    weights = [REGISTRY[name].weight for name in names]
    while len(steps) < n_steps:
        if chance.random() < 0.22:
            steps.append(_draw_fault(chance))
            continue
        name = chance.choices(names, weights)[0]
        args = REGISTRY[name].draw(chance, tables)
        if args is not None:
            steps.append(Operation(name, args))
    steps.append(Operation("finish", {}))
    return _with_row_ttl(random.Random(seed ^ 0x77C), tables, steps)


def _with_row_ttl(chance: random.Random, tables: list[str], steps: list[Operation]) -> list[Operation]:
    """The same workload, the rows of some of its tables with a time to live."""
    columns = {name: chance.choice(["", "", "", "written", "written", "at"]) for name in tables if KINDS[name].has_primary_key}
    lives = {name: by if by in ("", *KINDS[name].column_names) else "written" for name, by in columns.items()}
    return [
        Operation(name, args | {"row_ttl": lives[args["name"]]}) if name == "create_table" and lives.get(args["name"]) else step
        for step in steps
        for name, args in [step]
    ]


def _draw_fault(chance: random.Random) -> Operation:
    what = chance.choices(["cut", "error", "full", "repair", "flip", "cut_now"], [40, 30, 8, 12, 7, 12])[0]
    if what in ("cut", "cut_now"):
        fate = chance.choice([*FATES, "torn", "killed"])
        args = {"after": chance.choice([0, 0, 1, 1, 2, 3, 5, 8, 13]), "fate": fate, "again": chance.random() < 0.3}
        return Operation(what, args | {"operations": chance.choice(["any", "any", *CHANGES[:8]])})
    if what == "error":
        operations = chance.choice(["any", "any", "reads", *CHANGES[:8]])
        times = chance.choice([1, 1, 1, 2, 3, 1000])
        return Operation(what, {"after": chance.choice([0, 0, 0, 1, 2, 4]), "operations": operations, "times": times,
                                "code": chance.choice([errno.EIO, errno.ENOSPC])})  # fmt: skip
    if what == "full":
        return Operation(what, {"free": chance.choice([0, 100, 1000, 3000])})
    if what == "flip":
        args = {"where": chance.random(), "file": chance.random(), "bit": chance.randrange(8)}
        return Operation(what, args | {"is_closed": chance.random() < 0.5})
    return Operation(what, {})


def _operations(name: str) -> frozenset[str]:
    return frozenset({"any": CHANGES, "reads": READS}.get(name, (name,)))


class World:
    """A store, its disk and its model."""

    def __init__(self, seed: int, tally: Tally | None = None, disk: SimulatedDisk | None = None) -> None:
        chance = random.Random(seed * 31 + 7)
        self.tally = tally or Tally()
        self.disk = disk or SimulatedDisk(seed, sector_bytes=chance.choice([64, 512]), counts=self.tally.disk)
        self.model = Model()
        self.history: list[Model] = [Model()]
        self.maybe: list[Model] = []
        """The store as it may be after a restart, because a commit failed in a way that does not say whether it will be there."""
        self.said = 0
        """The newest version that a later commit says to have been durable: what lies behind it cannot be told from a torn write."""
        self.now_ms = CLOCK_BEGIN_MS
        self._known: dict[int, TableDescriptor] = {}
        self._sync: SyncMode = chance.choice(["commit", "commit", "commit", "none"])
        self._policy = chance.choice(POLICIES)
        self._file_bytes = chance.choice(FILE_BYTES)
        self._chance = chance
        self._fate: Fate | str = "lost"
        self._again = False
        self._n_backups = 0
        self._is_lenient = False
        self.disk.make_directory(STORE)
        self.disk.sync_directory(Path("/"))
        self.store: EmbeddedBackend = self._open()

    def _open(self) -> EmbeddedBackend:
        return EmbeddedBackend.open(
            STORE, sync=self._sync, disk=self.disk, now_ms=self._tick, checkpoints=self._policy, maintenance=False,
            log_file_bytes_max=self._file_bytes, cleaning=CLEANING,
        )  # fmt: skip

    def _tick(self) -> int:
        self.now_ms += 7
        return self.now_ms

    # steps

    def step(self, operation: Operation) -> None:
        """Run one operation or plan one fault."""
        plan = getattr(self, f"_plan_{operation.name}", None)
        if plan is not None:
            plan(operation.args)
            return
        kind = REGISTRY[operation.name]
        if "table" in operation.args and operation.args["table"] not in self.model.tables:
            return
        before = sum(self.disk.counts.faults.values())
        self._begin_faults = before
        self.model.now_ms = self.now_ms
        try:
            kind.run(self, operation.args)
        except PowerLost:
            self._restart(operation)
            return
        except UserError as error:
            self._was_refused(operation, error)
            return
        except FlashlakeError as error:
            self._has_failed(operation, error, is_faulty=sum(self.disk.counts.faults.values()) > before or self.disk.is_failing)
            return
        if kind.apply is not None:
            version = self.model.version
            if self._sync == "none":
                self.history += [stage.copy() for stage in self._after(operation) if stage.version > version]
            kind.apply(self.model, operation.args)
            self.tally.commits += self.model.version - version
            if self.model.version > version:
                for table in self.model.tables.values():
                    table.unsure.clear()
                self.said = version if operation.name == "pipeline" else self.model.version - 1
                self.maybe = []  # what comes later in the log than a cut does not come without it

    def _after(self, operation: Operation) -> list[Model]:
        """The model after each commit of the operation; none when the store must refuse it, or it is a reader."""
        kind = REGISTRY[operation.name]
        if kind.apply is None:
            return []
        candidate = self.model.copy()
        candidate.now_ms = max(self.now_ms, self.model.now_ms)
        try:
            if kind.stages is not None:
                return kind.stages(candidate, operation.args)
            kind.apply(candidate, operation.args)
        except Refused:
            return []
        return [candidate]

    def _was_refused(self, operation: Operation, error: UserError) -> None:
        apply = REGISTRY[operation.name].apply
        expected = ""
        try:
            if apply is not None:
                apply(self.model.copy(), operation.args)
        except Refused as refused:
            expected = refused.error
        self.require(expected == type(error).__name__, f"{operation} was refused: {error!r}")

    def _has_failed(self, operation: Operation, error: FlashlakeError, *, is_faulty: bool) -> None:
        """The disk failed an operation. Nothing of it is there, and reads go on without a restart."""
        self.require(is_faulty, f"{operation} failed on a sound disk: {error!r}")
        self.tally.refused += 1
        self.tally.outcomes[type(error).__name__ + ("" if getattr(error, "is_absent", True) else ", unknown")] += 1
        after = self._after(operation)
        if not isinstance(error, WriteFailed):
            # the answer could not be read after the write: it is there or not, whole
            self.disk.clear_plans()
            history = [*self.history, *(stage.copy() for stage in after)]
            self._adopt([self.model, *after, *self.maybe])
            self.history = history  # nothing says that any of it is durable
            self._burn(after)
            return
        before = self.model
        if REGISTRY[operation.name].stages is not None:  # those of its commits that were durable are there
            version = self.store.version()
            self.model = next((stage for stage in [self.model, *after] if stage.version == version), self.model)
            if self._sync == "none":
                self.history += [stage.copy() for stage in after if before.version < stage.version <= version]
        self._burn(after)
        if not error.is_absent:
            self.maybe = self.maybe or [stage for stage in after if stage.version > self.model.version]
        elif self.model.version > before.version:
            self.maybe = []
        if operation.name == "pass_time_and_clean":  # which rows it let go must be seen before the next commit builds on it
            self.disk.clear_plans()
        if not self.disk.is_failing_reads:
            self.compare()

    def _burn(self, after: list[Model]) -> None:
        """The store may know of commits that changed nothing: their sequences are not used again."""
        for model in after[-1:]:
            self.model.used = dict(model.used)

    # faults

    def _plan_cut(self, args: dict[str, Any]) -> None:
        self._fate, self._again = args["fate"], args["again"]
        self.disk.plan(Fault("cut", args["after"], _operations(args["operations"])))

    def _plan_cut_now(self, args: dict[str, Any]) -> None:
        self._fate, self._again = args["fate"], args["again"]
        self.disk.counts.faults["power cut or kill between calls"] += 1
        self.disk.is_off = True
        self._restart(None)

    def _plan_error(self, args: dict[str, Any]) -> None:
        self.disk.plan(Fault("error", args["after"], _operations(args["operations"]), args["code"], args["times"]))

    def _plan_full(self, args: dict[str, Any]) -> None:
        self.disk.space = self.disk.n_bytes + args["free"]

    def _plan_repair(self, args: dict[str, Any]) -> None:
        self.disk.clear_plans()

    def _plan_finish(self, args: dict[str, Any]) -> None:
        """The faults are over: the store works as if there had been none."""
        self.disk.clear_plans()
        self.compare()
        name = next((name for name in KINDS if name not in self.model.tables), None)
        if name is not None:  # whatever was, a sound disk takes writes
            self.step(Operation("create_table", {"name": name}))
        self.close_and_reopen()
        self.store.close()
        report = self._fsck(self.disk)
        self.require(not report.findings, f"fsck of a sound store: {report.findings[:3]}")

    def _restart(self, operation: Operation | None) -> None:
        """Power is back, or the process starts again; the store opens by itself, or fails again while it does."""
        candidates = [self.model, *(self._after(operation) if operation is not None else []), *self.maybe]
        if self._sync == "none" and self._fate != "killed":
            candidates += self.history
        while True:
            fate = self._fate
            self.disk.restart(fate)  # type: ignore[arg-type]
            if self._again:
                self._again = False
                self.disk.plan(Fault("cut", self._chance.randrange(12), _operations("any")))
            elif self._chance.random() < 0.4:
                report = self._fsck(self.disk)
                self.require(not report.damages, f"fsck after a {fate} crash: {report.damages[:3]}")
            try:
                self.store = self._open()
                break
            except PowerLost:
                self._fate = self._chance.choice([*FATES, "killed"])
                if self._sync == "none" and self._fate != "killed":
                    candidates += self.history
        self.disk.clear_plans()
        self.tally.reopens += 1
        self._adopt(candidates)

    def _adopt(self, candidates: list[Model]) -> None:
        """Go on from the candidate that the store is. The store says its version, the rest is compared."""
        version = self.store.version()
        fitting = [candidate for candidate in candidates if candidate.version == version]
        held = sorted({candidate.version for candidate in candidates})
        self.require(bool(fitting), f"the store is at version {version}, it must be at one of {held}")
        failures = []
        for candidate in fitting:
            self.model = candidate
            try:
                self.compare()
                break
            except Broken as broken:
                failures.append(broken)
        else:
            raise failures[0]
        self.maybe = []
        self.history = [self.model.copy()]

    def close_and_reopen(self) -> None:
        """A clean restart; with an error of the disk while closing, the next start finds what was there."""
        before = sum(self.disk.counts.faults.values())
        try:
            self.store.close()
        except WriteFailed as error:
            self.require(self._sync == "none", f"closing failed though all that was acknowledged was durable: {error!r}")
        is_faulty = sum(self.disk.counts.faults.values()) > before or self.disk.is_failing
        self.disk.clear_plans()
        candidates = [self.model, *self.maybe]
        if not is_faulty and self._chance.random() < 0.3:
            report = self._fsck(self.disk)
            self.require(not report.damages, f"fsck of a closed store: {report.damages[:3]}")
        self.store = self._open()
        self.tally.reopens += 1
        self._adopt(candidates)

    def _fsck(self, disk: SimulatedDisk) -> Any:
        return check_store(STORE, keys=True, disk=disk)

    # bit flips

    def _plan_flip(self, args: dict[str, Any]) -> None:
        """Flip a bit at rest on a copy of the disk. What is read is right, or damage that names the file; fsck names it too."""
        disk = self.disk.clone()
        disk.restart("killed")
        if args["is_closed"]:
            try:
                self._opened_on(disk).close()
            except FlashlakeError:
                return
        files = {path: file for path, file in disk.files(STORE).items() if file.size and path.name != "LOCK" and path.suffix != ".tmp"}
        # the log has most of the promises
        paths = sorted(files, key=lambda path: (path.suffix != ".log", path))
        path = paths[int(args["file"] ** 2 * len(paths))]
        offset = int(args["where"] * files[path].size)
        files[path].data[offset] ^= 1 << args["bit"]
        self.tally.flips += 1
        self.tally.disk.faults[f"bit flip in {path.suffix.removeprefix('.') or path.name}"] += 1
        is_derived = path.suffix != ".log" and path.name != "FORMAT"
        report = self._fsck(disk)
        named = [finding for finding in report.findings if finding.file == str(path) and finding.offset <= offset]
        last = max((p for p in files if p.suffix == ".log"), default=path)
        is_seal = path == last and offset >= files[path].size - HEADER_BYTES  # says only that what is before it is durable
        self.require(bool(named) or is_seal, f"fsck does not name {path}, byte {offset}")
        try:
            store = self._opened_on(disk)
        except DamageError as damage:
            self._names(damage, path, offset, is_derived=is_derived)
            return
        world = _Bystander(self, store, damaged=path, offset=offset)
        world.compare_damaged(is_derived=is_derived)

    def _opened_on(self, disk: SimulatedDisk) -> EmbeddedBackend:
        return EmbeddedBackend.open(STORE, sync=self._sync, disk=disk, now_ms=lambda: 1, checkpoints=POLICIES[2], maintenance=False)

    def _names(self, damage: DamageError, path: Path, offset: int, *, is_derived: bool) -> None:
        self.require(not is_derived, f"a flip in {path}, which is derived, is {damage!r}")
        is_named = str(path) in damage.where and getattr(damage, "offset", 0) <= offset
        self.require(is_named, f"flip at {path}:{offset}, named {damage!r}")

    # copies

    def backup(self, *, links: bool) -> None:
        self._n_backups += 1
        target = Path(f"/backup{self._n_backups}")
        before = self.model.copy()
        self.store.backup(str(target), links=links)
        self.tally.backups += 1
        if self._chance.random() < 0.5 and not self.disk.is_failing:
            self._judge_backup(target, before)

    def _judge_backup(self, target: Path, model: Model) -> None:
        copied = self.disk.clone()
        restore(target, Path("/restored"), disk=copied)
        store = EmbeddedBackend.open(Path("/restored"), disk=copied, now_ms=lambda: 1, maintenance=False)
        world = _Bystander(self, store)
        world.model = model
        world.compare()
        store.close()

    # comparing

    def require(self, is_so: bool, what: str) -> None:
        if not is_so:
            raise Broken(what)

    def compare(self) -> None:
        """Everything the store answers against the model."""
        self.tally.compared += 1
        store, model = self.store, self.model
        self._equal("version", store.version(), model.version)
        self._equal("tables", sorted(descriptor.name for descriptor in store.tables()), sorted(model.tables))
        progress = {owner: (item.offsets, _without_time(item.detail)) for owner, item in store.progress("").items()}
        self._equal("progress", progress, {owner: (item.offsets, item.detail) for owner, item in model.progress.items()})
        self._equal("objects", store.objects("view"), model.objects)
        for name in model.tables:
            self.compare_table(name)
        self._compare_journal()

    def compare_table(self, name: str) -> None:
        store, table = self.store, self.model.tables[name]
        descriptor = table.descriptor
        if descriptor.partition_keys:
            self._equal(f"partitions of {name}", list(store.partitions(name)), sorted(table.partitions))
        starts, ends = self._starts(name, table), store.offsets(name, "latest")
        expected = {bucket: len(log) for bucket, log in table.logs.items() if log}
        self._equal(f"offsets of {name}", {bucket: n for bucket, n in ends.items() if n}, expected)
        found = self.scan(name, starts, ends)
        for bucket, log in table.logs.items():
            seen = enumerate(log[starts.get(bucket, 0) :], starts.get(bucket, 0))
            changes = {offset: (kind, same(descriptor, row)) for offset, (kind, row) in seen if (kind, row) != MOVED}
            self._equal(f"log of {name} {bucket}", found.get(bucket, {}), changes)
        self._equal(f"late rows of {name}", store.late_rows(name), table.n_late)
        if not descriptor.has_primary_key:
            self._equal(f"count of {name}", store.count(name), sum(n - starts.get(bucket, 0) for bucket, n in expected.items()))
            return
        self._follow_row_ttl(name, table)
        rows = [same(descriptor, row) for row in table.rows]
        self._equal(f"count of {name}", store.count(name), len(rows))
        read = [same(descriptor, row) for row in store.read(name, None, None, None).to_pylist()]
        self._equal(f"rows of {name}", sorted(read, key=str), sorted(rows, key=str))
        self._compare_lookups(name, table)

    def _follow_row_ttl(self, name: str, table: ModelTable) -> None:
        """Let the rows go that the store let go: their time was over. They do not come back."""
        if "table.kv.ttl" not in table.descriptor.options:
            return
        n_before = len(table.outlived)
        found = {table.key_of(row): row for row in self.store.read(name, None, None, None).to_pylist()}
        early, back = table.follow(found, self.now_ms + SLACK_MS, is_lenient=self._is_lenient)
        self.require(not early, f"rows of {name} went before their time: {_short(early)}")
        self.require(not back, f"rows of {name} that had outlived their time are back: {_short(back)}")
        self.tally.outlived += max(0, len(table.outlived) - n_before)

    def _starts(self, name: str, table: ModelTable) -> dict[TableBucket, int]:
        """Where the log of each bucket begins for its readers. What is gone was old enough."""
        starts = self.store.offsets(name, "earliest")
        for bucket, start in starts.items():
            young = [at for _, at in table.stamps.get(bucket, [])[:start] if at > self.now_ms - LOG_TTL_MS + SLACK_MS]
            self.require(not young, f"rows of {name} {bucket} below {start} have expired, {len(young)} of them too early")
        self.tally.expired += sum(1 for start in starts.values() if start)
        return starts

    def look(self, name: str, stages: Sequence[Model]) -> None:
        """A lookup of all keys while commits are on their way finds what the newest says; after a fault, perhaps what one before says."""
        if name not in stages[-1].tables or not KINDS[name].has_primary_key:
            return
        keys = sorted({tuple(row[key] for key in KINDS[name].primary_key) for stage in stages for row in stage.tables[name].rows}, key=str)
        if not keys:
            return
        asked = pa.Table.from_pylist([dict(zip(KINDS[name].primary_key, key, strict=True)) for key in keys], schema=KINDS[name].key_schema)
        rows = self.store.lookup(name, asked, None, insert_if_not_exists=False).to_pylist()
        self.tally.looks += 1
        descriptor = stages[-1].tables[name].descriptor
        names = descriptor.primary_key
        found = {key: same(descriptor, row) for key, row in zip(keys, rows, strict=True) if row["_found"]}
        is_sound = sum(self.disk.counts.faults.values()) == self._begin_faults and not self.disk.is_failing
        fitting = stages[-1:] if is_sound else stages
        expected = [{tuple(row[key] for key in names): same(descriptor, row) for row in stage.tables[name].rows} for stage in fitting]
        self.require(found in expected, f"a lookup in {name} beside commits on their way finds {_short(found)}, not {_short(expected)}")

    def pass_time_and_clean(self, ms: int) -> None:
        """Time passes, then a round of cleaning."""
        self.now_ms += ms
        self.store.clean()
        self.tally.cleanings += 1
        for name, table in self.model.tables.items():
            self._follow_row_ttl(name, table)
            table.unsure.clear()

    def known(self, name: str, *, is_now: bool) -> TableDescriptor:
        """A table as a client knows it: as it is now, or as it was when somebody first looked (with the buckets of now)."""
        current = next(descriptor for descriptor in self.store.tables() if descriptor.name == name)
        first = self._known.setdefault(current.table_id, current)
        if not set(first.columns) <= set(current.columns):  # a column it knew went with a commit that was not durable
            first = self._known[current.table_id] = current
        return current if is_now or first.n_buckets != current.n_buckets else first

    def _compare_lookups(self, name: str, table: ModelTable) -> None:
        descriptor = table.descriptor
        keys = [{key: row[key] for key in descriptor.primary_key} for row in table.rows]
        absent = {key: {"k1": 77, "k2": "none", "id": 77, "ds": "d1"}[key] for key in descriptor.primary_key}
        asked = [*keys, absent]
        keyed = pa.Table.from_pylist(asked, schema=descriptor.key_schema)
        found = self.store.lookup(name, keyed, None, insert_if_not_exists=False).to_pylist()
        self._equal(f"found in {name}", [row["_found"] for row in found], [True] * len(keys) + [False])
        rows = [same(descriptor, row) for row in found[: len(keys)]]
        points = wrap(self.store).table(name)
        for key in self._chance.sample(asked, min(2, len(asked))):
            row = points.lookup_one(key)
            expected = next((row for row in table.rows if all(row[name] == value for name, value in key.items())), None)
            self._equal(f"the row of one key in {name}", row and same(descriptor, row), expected and same(descriptor, expected))
        self._equal(f"lookup in {name}", rows, [same(descriptor, row) for row in table.rows])
        if descriptor.is_prefix_lookup_possible and descriptor.bucket_keys == ("k1",):
            schema = pa.schema([descriptor.key_schema.field("k1")])
            under = self.store.prefix_lookup(name, pa.table({"k1": pa.array([0, 1, 2], pa.int32())}, schema=schema), None, None)
            got = sorted((row["k1"], row["k2"]) for row in under.to_pylist())
            self._equal(f"prefixes in {name}", got, sorted((row["k1"], row["k2"]) for row in table.rows))

    def scan(self, name: str, starts: Offsets, ends: Offsets) -> dict[TableBucket, dict[int, tuple[str, Any]]]:
        """Every row of a table's log with its change type, by offset, in order."""
        descriptor = self.model.tables[name].descriptor
        found: dict[TableBucket, dict[int, tuple[str, Any]]] = {}
        for frame in self.store.fetch(name, {bucket: (starts[bucket], end) for bucket, end in ends.items() if end}, None):
            rows = found.setdefault(frame.bucket, {})
            self.require(frame.base_offset > max(rows, default=-1), f"offset {frame.base_offset} of {name} {frame.bucket} comes late")
            schema = pa.schema([descriptor.arrow_schema.field(column) for column in frame.columns])
            batch = decode_batch(frame.message, schema)
            codes = np.frombuffer(frame.change_types, np.uint8) if frame.change_types else np.zeros(batch.num_rows, np.uint8)
            kinds = [CHANGE_TYPE_NAMES[code] for code in codes[: batch.num_rows]]
            changes = ((kind, same(descriptor, row)) for kind, row in zip(kinds, batch.to_pylist(), strict=True))
            rows.update(enumerate(changes, frame.base_offset))
        return found

    def compare_older_version(self, name: str) -> None:
        """The rows at a version some commits ago are what the changelog's rows below it leave."""
        table = self.model.tables[name]
        if not table.descriptor.has_primary_key or table.descriptor.is_wal:
            return
        version = max(0, self.store.version() - self._chance.randrange(4))
        has_expired = any(self._starts(name, table).values())
        try:
            ends = self.store.offsets(name, "latest", version)
            read = self.store.read(name, None, None, version).to_pylist()
        except OffsetOutOfRange:
            self.require(has_expired, f"rows of {name} at version {version} are refused, and nothing of it has expired")
            return
        rows: dict[Any, Any] = {}
        changes = [
            (*stamp, change)
            for bucket, end in ends.items()
            for stamp, change in zip(table.stamps.get(bucket, [])[:end], table.logs.get(bucket, []), strict=False)
            if change != MOVED
        ]
        for _, at, (kind, row) in sorted(changes, key=itemgetter(0)):  # a key's changes lie in two buckets once its row has moved
            rows.pop(table.key_of(row), None)
            if kind in ("+I", "+U"):
                rows[table.key_of(row)] = at, row
        found = {table.key_of(row): same(table.descriptor, row) for row in read}
        self.require(len(found) == len(read), f"a key of {name} has two rows at version {version}")
        expected = {
            key: same(table.descriptor, row)
            for key, (at, row) in rows.items()
            if key in found or not table.has_outlived(row, at, self.now_ms + SLACK_MS)
        }
        self._equal(f"rows of {name} at version {version}", sorted(found.items(), key=str), sorted(expected.items(), key=str))

    def _compare_journal(self) -> None:
        """The journal's ranges of all tables add up to their logs."""
        left: dict[tuple[str, TableBucket], list[int]] = {}
        for name, table in self.model.tables.items():
            starts = self._starts(name, table)
            for bucket, log in table.logs.items():
                left[name, bucket] = [at for at in range(starts.get(bucket, 0), len(log)) if log[at] != MOVED]
        listed: dict[tuple[str, TableBucket], list[int]] = {key: [] for key in left}
        for commit in self.store.commits(0, 1_000_000):
            for name, ranges in commit.ranges.items():
                for bucket, (start, stop) in ranges.items():
                    listed[name, bucket] += range(start, stop)
        self._equal("journal", listed, left)

    def _equal(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise Broken(f"{what}: the store has {_short(found)}, it must have {_short(expected)}")


class _Bystander(World):
    """Another store held to a model: a restored backup, or a copy with a flipped bit."""

    def __init__(self, world: World, store: EmbeddedBackend, *, damaged: Path | None = None, offset: int = -1) -> None:
        self.tally = world.tally
        self.disk = world.disk
        self.model = world.model.copy()
        self.store = store
        self.now_ms = world.now_ms
        self._maybe_before = world.maybe
        self._said = min(world.said, world.model.version - 1)
        self._sync = world._sync
        self._chance = world._chance
        self._damaged, self._offset = damaged, offset
        self._is_lenient = damaged is not None and damaged.suffix == ".log"  # what was cut off may be a move that let rows go

    def compare_damaged(self, *, is_derived: bool) -> None:
        assert self._damaged is not None, "a flip is where it is"
        version = self.store.version()
        self.model = next((maybe for maybe in [self.model, *self._maybe_before] if maybe.version == version), self.model).copy()
        if version != self.model.version and not is_derived:
            # a flip in the last commit of a log without a seal, or in those that shared its sync, looks like a torn write: it is cut off
            if self._sync == "none" and version < self.model.version:  # nothing in the log says yet that these commits were durable
                return
            is_last = self._said <= version < self.model.version
            self.require(is_last, f"a flip in {self._damaged} costs more than what no later commit calls durable: version {version}")
            return
        for name in list(self.model.tables):
            try:
                self.compare_table(name)
            except DamageError as damage:
                self._names(damage, self._damaged, self._offset, is_derived=is_derived)
        if is_derived:
            self.compare()


def _without_time(detail: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the store adds for a consumer: when it committed."""
    return {name: value for name, value in detail.items() if name != COMMITTED_MS}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 1500 else f"{text[:700]} ... {text[-700:]}"


def run(operations: list[Operation], seed: int, tally: Tally | None = None, disk: SimulatedDisk | None = None) -> Tally:
    """Run a workload; raises Broken, or whatever the store raises that it must not."""
    tally = tally or Tally()
    tally.seeds += 1
    world = World(seed, tally, disk)
    for operation in operations:
        world.step(operation)
    return tally


def fails(operations: list[Operation], seed: int) -> BaseException | None:
    """What goes wrong with a workload; None: nothing."""
    try:
        run(operations, seed)
    except (Exception, PowerLost) as error:  # noqa: BLE001 - anything is a finding
        return error
    return None


def shrink(seed: int, operations: list[Operation] | None = None, *, runs_max: int = 400) -> tuple[list[Operation], BaseException]:
    """The shortest workload found that still fails the same way (by the type of the error), by leaving out runs of steps."""
    operations = list(operations or generate(seed))
    failure = fails(operations, seed)
    assert failure is not None, f"seed {seed} does not fail"
    n_runs, width = 0, max(1, len(operations) // 2)
    while width:
        at = 0
        while at < len(operations) and n_runs < runs_max:
            shorter = operations[:at] + operations[at + width :]
            n_runs += 1
            other = fails(shorter, seed)
            if other is not None and type(other) is type(failure):
                operations, failure = shorter, other
            else:
                at += width
        width //= 2
    return operations, failure


def report_of(seed: int, n_steps: int = N_STEPS) -> str:
    """The text for a seed that fails: the shrunk list of operations and what went wrong."""
    operations, failure = shrink(seed, generate(seed, n_steps))
    lines = [f"seed {seed}: {type(failure).__name__}: {failure}", "shrunk to:"]
    return "\n".join([*lines, *(f"    {operation.name} {operation.args}" for operation in operations)])
