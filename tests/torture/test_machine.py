"""Any order of operations, restarts and crashes that Hypothesis thinks of leaves the store equal to the plain model, all engines included.

The operations, their model and the judge are those of the torture; here Hypothesis chooses, and shrinks what fails.
"""

from __future__ import annotations

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.torture.harness import World
from tests.torture.model import KINDS
from tests.torture.operations import REGISTRY, Operation
from tests.torture.simulated_disk import FATES

WRITES = sorted(name for name, kind in REGISTRY.items() if kind.apply is not None)
seeds = st.integers(0, 2**32)


class StoreMachine(RuleBasedStateMachine):
    """A store with every kind of table; each rule is one operation or one fault of the torture."""

    @initialize(seed=seeds)
    def begin(self, seed: int) -> None:
        self.world = World(seed)
        for name in sorted(KINDS):
            self.world.step(Operation("create_table", {"name": name}))

    def _step(self, name: str, seed: int, tables: list[str]) -> None:
        args = REGISTRY[name].draw(random.Random(seed), tables)
        if args is not None:
            self.world.step(Operation(name, args))

    @rule(table=st.sampled_from(sorted(KINDS)), seed=seeds)
    def write_to_one_table(self, table: str, seed: int) -> None:
        self._step("commit", seed, [table])

    @rule(seed=seeds)
    def write_to_several_tables(self, seed: int) -> None:
        self._step("commit", seed, sorted(KINDS))

    @rule(name=st.sampled_from(WRITES), seed=seeds)
    def change_anything(self, name: str, seed: int) -> None:
        self._step(name, seed, sorted(KINDS))

    @rule()
    def restart(self) -> None:
        self.world.step(Operation("close_and_reopen", {}))

    @rule(fate=st.sampled_from([*FATES, "killed"]))
    def crash(self, fate: str) -> None:
        self.world.step(Operation("cut_now", {"fate": fate, "again": False}))

    @rule(table=st.sampled_from(sorted(KINDS)))
    def read_an_older_version(self, table: str) -> None:
        self._step("read_version", 0, [table])

    @invariant()
    def the_journal_and_progress_agree(self) -> None:
        if hasattr(self, "world"):
            assert self.world.store.version() == self.world.model.version

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.step(Operation("finish", {}))


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))
