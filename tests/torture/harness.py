"""One life of a store on a simulated disk: runs a workload with its faults, and after each fault holds the store to the model.

Holds, or raises Broken: every acknowledged commit is there once, whole, in order; nothing unacknowledged is half there (the commit under
way at a crash may be there whole); offsets are dense; rows, lookups, scans, counts and progress equal the model; a store that met an error
goes on by itself and takes writes once the disk does; flipped bits are named with file and offset and never returned as data; fsck agrees.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from storage_engine import TableDescriptor
from storage_engine.engine.backup import restore
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.cleaner import CleaningPolicy
from storage_engine.engine.embedded import EmbeddedBackend, SyncMode
from storage_engine.engine.fsck import check_store
from storage_engine.errors import DamageError, FlashlakeError, UserError, WriteFailed
from storage_engine.log.frame import HEADER_BYTES
from tests.torture.judge import Broken, Judged, Tally
from tests.torture.model import KINDS, Model, Refused
from tests.torture.operations import REGISTRY, Operation
from tests.torture.simulated_disk import CHANGES, FATES, READS, Fate, Fault, PowerLost, SimulatedDisk

STORE = Path("/store")
POLICIES = (
    CheckpointPolicy(commits=3, log_bytes=1 << 40, rows=4, rows_at_close=1, is_inline=True),
    CheckpointPolicy(commits=7, log_bytes=4096, rows=1 << 40, rows_at_close=5, is_inline=True),
    CheckpointPolicy(commits=1 << 40, log_bytes=1 << 40, rows=1 << 40, rows_at_close=1 << 40, is_inline=True),
)
CLEANING = CleaningPolicy(chunk_bytes=2048, bytes_min=1, compact_bytes_min=1)
CLOCK_BEGIN_MS = 1_700_000_000_000
FILE_BYTES = (2048, 8192, 1 << 20)


def _operations(name: str) -> frozenset[str]:
    return frozenset({"any": CHANGES, "reads": READS}.get(name, (name,)))


class World(Judged):
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
        if operation.name in ("pass_time_and_clean", "compact"):  # which rows it let go must be seen before the next commit builds on it
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

    # space

    def pass_time_and_clean(self, ms: int) -> None:
        """Time passes, then a round of cleaning."""
        self.now_ms += ms
        self.store.clean()
        self.tally.cleanings += 1
        self._see_what_went()

    def compact(self, name: str, ms: int) -> None:
        """Time passes, then one table gives back what it can."""
        self.now_ms += ms
        info = self.store.compact(name)
        self.tally.compactions += 1
        self.tally.compacted_bytes += info.n_bytes_reclaimed
        self._see_what_went()

    def _see_what_went(self) -> None:
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


def run(operations: list[Operation], seed: int, tally: Tally | None = None, disk: SimulatedDisk | None = None) -> Tally:
    """Run a workload; raises Broken, or whatever the store raises that it must not."""
    tally = tally or Tally()
    tally.seeds += 1
    world = World(seed, tally, disk)
    for operation in operations:
        world.step(operation)
    return tally
