"""The workload of a seed, drawn before anything runs: operations with faults between them; and what is left of one that fails.

Plain values all through, so that a workload can be printed, cut and run again.
"""

from __future__ import annotations

import errno
import random

from tests.torture.harness import run
from tests.torture.model import DAY_MS, KINDS
from tests.torture.operations import REGISTRY, Operation
from tests.torture.simulated_disk import CHANGES, FATES, PowerLost

N_STEPS = 26


def generate(seed: int, n_steps: int = N_STEPS, *, with_compactions: bool = True) -> list[Operation]:
    """The workload of a seed: tables first, then operations with faults between them. Plain values, so that it can be cut and run again.

    Without compactions, it is the workload that the seed had before there were any.
    """
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
    steps = _with_row_ttl(random.Random(seed ^ 0x77C), tables, steps)
    return _with_compactions(random.Random(seed ^ 0xC04), tables, steps) if with_compactions else steps


def _with_row_ttl(chance: random.Random, tables: list[str], steps: list[Operation]) -> list[Operation]:
    """The same workload, the rows of some of its tables with a time to live."""
    columns = {name: chance.choice(["", "", "", "written", "written", "at"]) for name in tables if KINDS[name].has_primary_key}
    lives = {name: by if by in ("", *KINDS[name].column_names) else "written" for name, by in columns.items()}
    return [
        Operation(name, args | {"row_ttl": lives[args["name"]]}) if name == "create_table" and lives.get(args["name"]) else step
        for step in steps
        for name, args in [step]
    ]


def _with_compactions(chance: random.Random, tables: list[str], steps: list[Operation]) -> list[Operation]:
    """The same workload, and single tables compacted on demand in between."""
    more: list[Operation] = []
    for step in steps[:-1]:
        more.append(step)
        if chance.random() < 0.06:
            more.append(Operation("compact", {"table": chance.choice(tables), "ms": chance.choice([0, 700_000, DAY_MS])}))
    return [*more, steps[-1]]


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
