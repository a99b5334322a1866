"""What a workload may do to a store: each kind of operation draws plain arguments, runs them on the store, and applies them to the model.

Add a kind with operation(): `draw` returns arguments (plain values: they are printed when a seed fails), `run` does it and raises what
the store raises, `apply` says what a store that did it holds; `stages` of one with several commits: the model after each of them.
An operation on a table that is not there is skipped.
Readers (`apply` None) compare what the store answers with the model themselves.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from storage_engine import Progress, TableBucket, TableDescriptor, WriteId, WriteOp
from storage_engine.api import CommitRequest
from storage_engine.client.encoding import encode_append
from storage_engine.errors import FlashlakeError, WriteFailed
from storage_engine.schema.descriptor import Column
from tests.kv.model import Row, bitmap, bitmap64, money
from tests.torture.model import DAY_MS, KINDS, Model, Op, kind_of

if TYPE_CHECKING:
    from tests.torture.harness import World

Args = dict[str, Any]
Chance = random.Random


class Operation(NamedTuple):
    """One step of a workload."""

    name: str
    args: Args


@dataclass(frozen=True)
class Kind:
    weight: int
    draw: Callable[[Chance, list[str]], Args | None]
    run: Callable[[World, Args], None]
    apply: Callable[[Model, Args], None] | None
    stages: Callable[[Model, Args], list[Model]] | None = None


REGISTRY: dict[str, Kind] = {}


def operation(name: str, weight: int, draw: Any, run: Any, apply: Any = None, stages: Any = None) -> None:
    """Register a kind of operation; of two kinds, one with twice the weight is drawn twice as often."""
    assert name not in REGISTRY, f"{name} is there already"
    REGISTRY[name] = Kind(weight, draw, run, apply, stages)


def _last_of(stages: Callable[[Model, Args], list[Model]]) -> Callable[[Model, Args], None]:
    """What is left when all commits of an operation are done."""

    def apply(model: Model, args: Args) -> None:
        for stage in stages(model.copy(), args):
            vars(model).update(vars(stage))

    return apply


# rows

DAYS = ("20231106", "20231110", "20231112", "20231113", "20231114", "20231115", "20231123", "20231124")
"""Around the day on which the clock begins, and the days that it jumps to."""
_BY_TYPE: dict[str, Callable[[Chance], Any]] = {
    "BIGINT": lambda chance: chance.randint(-3, 3),
    "INT": lambda chance: chance.randint(-3, 3),
    "STRING": lambda chance: chance.choice(["", "x", "y", "yy", "a longer text " * 3]),
    "DECIMAL(12, 2)": lambda chance: money(chance.randint(-500, 500)),
    "DOUBLE": lambda chance: chance.choice([0.0, 0.5, -1.25, 8.0]),
    "BOOLEAN": lambda chance: chance.random() < 0.5,
    "DATE": lambda chance: date(2017, 1, chance.randint(1, 5)),
    "TIMESTAMP_LTZ(3)": lambda chance: datetime(2017, 1, 1, chance.randint(1, 5), tzinfo=UTC),
    "BYTES": lambda chance: bitmap(*chance.sample(range(8), chance.randint(0, 3))),
}
_BY_NAME: dict[str, Callable[[Chance], Any]] = {
    "k1": lambda chance: chance.randint(0, 2),
    "k2": lambda chance: chance.choice(["", "a", "ab", "é"]),
    "id": lambda chance: chance.randint(0, 6),
    "ds": lambda chance: chance.choice(["d1", "d2", "d3"]),
    "factor": lambda chance: chance.choice([-1, 1, 1, -1, 0]),
    "scale": lambda chance: money(chance.choice([-100, 100, 99, 33, 50, -67])),
    "gain": lambda chance: chance.choice([1.0, -1.0, 0.5]),
    "rb64": lambda chance: bitmap64(*chance.sample([0, 1, 2, 3, 2**63 + 1], chance.randint(0, 3))),
}


def draw_rows(chance: Chance, descriptor: TableDescriptor, names: list[str] | None = None) -> list[Row]:
    columns = [descriptor.column(name) for name in names or descriptor.column_names]
    return [{column.name: _value(chance, descriptor, column) for column in columns} for _ in range(chance.choice([1, 1, 2, 3, 8]))]


def _value(chance: Chance, descriptor: TableDescriptor, column: Column) -> Any:
    if descriptor.name == "t.late" and column.name == "ds":
        return chance.choice(DAYS)
    if column.name == descriptor.auto_increment_column:
        return None
    routing = (*descriptor.primary_key, *descriptor.partition_keys, *descriptor.bucket_keys)
    if column.nullable and column.name not in routing and chance.random() < 0.15:
        return None
    return (_BY_NAME.get(column.name) or _BY_TYPE[column.type])(chance)


def draw_op(chance: Chance, table: str) -> Op:
    """An append, upsert, delete, or partial update or delete that fits the table."""
    descriptor = KINDS[table]
    if not descriptor.has_primary_key:
        return Op(table, "append", draw_rows(chance, descriptor), encoded=chance.choice(["", "", "now", "before"]))
    keys = list(descriptor.primary_key)
    serial = descriptor.auto_increment_column
    others = [name for name in descriptor.column_names if name not in keys and name != serial]
    is_partial = chance.random() < 0.3
    if chance.random() < 0.7:
        if is_partial and descriptor.merge_engine not in ("first_row", "versioned"):
            targets = keys + chance.sample(others, chance.randint(0, len(others)))
            return Op(table, "upsert", draw_rows(chance, descriptor, targets), targets)
        return Op(table, "upsert", draw_rows(chance, descriptor))
    targets = keys + chance.sample(others, chance.randint(0, len(others))) if is_partial else None
    return Op(table, "delete", draw_rows(chance, descriptor, keys), targets)


def request_op(descriptor: TableDescriptor, op: Op) -> WriteOp:
    """The operation as the store takes it: Arrow."""
    names = op.targets if op.kind == "upsert" and op.targets else descriptor.primary_key if op.kind == "delete" else None
    schema = descriptor.arrow_schema if names is None else pa.schema([descriptor.arrow_schema.field(name) for name in names])
    rows = [{name: row.get(name) for name in schema.names} for row in op.rows]
    return WriteOp(op.table, op.kind, pa.Table.from_pylist(rows, schema=schema), tuple(op.targets) if op.targets else None)  # type: ignore[arg-type]


# commits


def _draw_commit(chance: Chance, tables: list[str]) -> Args:
    chosen = chance.sample(tables, min(len(tables), chance.choice([1, 1, 1, 2, 3])))
    ops = [draw_op(chance, table) for table in chosen]
    if chance.random() < 0.2:
        ops.append(draw_op(chance, chosen[0]))
    progress = None
    if chance.random() < 0.3:
        offsets = {table: {bucket: chance.randint(0, 9) for bucket in _buckets(chance, table)} for table in chosen[:1]}
        progress = (chance.choice(["job:a", "job:b", "consumer:c"]), offsets, chance.choice(["right", "right", "none", "wrong"]))
    writer = (chance.choice(["w1", "w2"]), chance.choice(["next", "next", "next", "again"])) if chance.random() < 0.5 else None
    return {"ops": ops, "progress": progress, "writer": writer}


def _buckets(chance: Chance, table: str) -> list[TableBucket]:
    descriptor = KINDS[table]
    names = DAYS[3:5] if table == "t.late" else ("d1", "d2")
    return [TableBucket(chance.choice(names) if descriptor.partition_keys else "", n) for n in range(descriptor.n_buckets)]


def _commit_values(model: Model, args: Args) -> tuple[list[Op], list[Progress], WriteId | None]:
    """What the arguments mean for a store as the model says it is."""
    progress = []
    if args["progress"]:
        owner, offsets, which = args["progress"]
        recorded = model.progress[owner].offsets if owner in model.progress else {}
        expected = {"right": recorded, "none": None, "wrong": {"t.log": {TableBucket("", 0): 1_000_000}}}[which]
        progress = [Progress(owner, offsets, expected, {"n": model.version})]
    write_id = None
    if args["writer"]:
        writer, which = args["writer"]
        last = model.writers.get(writer, (0, 0))[0]
        is_again = which == "again" and last > 0
        write_id = WriteId(writer, last if is_again else max(last, model.used.get(writer, 0)) + 1)
    return [op for op in args["ops"] if op.table in model.tables], progress, write_id


def _request(world: World, model: Model, args: Args) -> CommitRequest:
    ops, progress, write_id = _commit_values(model, args)
    requests = []
    for op in ops:
        request = request_op(model.tables[op.table].descriptor, op)
        if op.encoded:
            descriptor = world.known(op.table, is_now=op.encoded == "now")
            request = encode_append(descriptor, request.rows.select(descriptor.column_names))
        requests.append(request)
    return CommitRequest(tuple(requests), tuple(progress), write_id)


def _run_commit(world: World, args: Args) -> None:
    world.store.commit(_request(world, world.model, args))


def _apply_commit(model: Model, args: Args) -> None:
    ops, progress, write_id = _commit_values(model, args)
    model.commit(ops, progress, write_id)


operation("commit", 60, _draw_commit, _run_commit, _apply_commit)


def _draw_pipeline(chance: Chance, tables: list[str]) -> Args:
    commits = [_draw_commit(chance, tables) for _ in range(chance.choice([2, 3, 5]))]
    for commit in commits:
        commit["progress"] = None
    return {"commits": commits, "in_flight": chance.choice([2, 3, 8]), "look": [chance.random() < 0.4 for _ in commits]}


def _pipeline_stages(model: Model, args: Args) -> list[Model]:
    stages = []
    for commit in args["commits"]:
        _apply_commit(model, commit)
        stages.append(model.copy())
    return stages


def _run_pipeline(world: World, args: Args) -> None:
    """Commits that share a sync, and lookups that see them before it: what a lookup answers is durable then."""
    stages = [world.model, *_pipeline_stages(world.model.copy(), args)]
    stream = world.store.commit_stream(args["in_flight"])
    failure = None
    try:
        for number, commit in enumerate(args["commits"]):
            stream.send(_request(world, stages[number], commit))
            if args["look"][number]:
                world.look(commit["ops"][0].table, stages[: number + 2])
    except FlashlakeError as error:
        failure = error
    try:
        stream.finish()
    except WriteFailed:
        stream.close()
        raise
    if failure is not None:
        raise failure


operation("pipeline", 12, _draw_pipeline, _run_pipeline, _last_of(_pipeline_stages), _pipeline_stages)


def _with_keys(tables: list[str], *kinds: str) -> list[str]:
    return [name for name in tables if name in kinds]


def _draw_insert(chance: Chance, tables: list[str]) -> Args | None:
    fitting = _with_keys(tables, "t.ids", "t.last", "t.days", "t.totals")
    if not fitting:
        return None
    table = chance.choice(fitting)
    return {"table": table, "keys": draw_rows(chance, KINDS[table], list(KINDS[table].primary_key))}


def _run_insert(world: World, args: Args) -> None:
    descriptor = world.model.tables[args["table"]].descriptor
    keys = pa.Table.from_pylist(args["keys"], schema=descriptor.key_schema)
    found = world.store.lookup(args["table"], keys, None, insert_if_not_exists=True)
    assert all(found["_found"].to_pylist()), "an insert-if-not-exists lookup found nothing"


operation("insert_if_not_exists", 8, _draw_insert, _run_insert, lambda model, args: model.insert_missing(args["table"], args["keys"]))


# the catalog


def _draw_table(chance: Chance, tables: list[str]) -> Args:
    return {"table": chance.choice(tables)}


def _run_create(world: World, args: Args) -> None:
    world.store.create_table(kind_of(**args), if_not_exists=False)


operation("create_table", 3, lambda chance, tables: {"name": chance.choice(tables)}, _run_create,
          lambda model, args: model.create_table(kind_of(**args)))  # fmt: skip
operation("drop_table", 1, _draw_table, lambda world, args: world.store.drop_table(args["table"], if_exists=False),
          lambda model, args: model.drop_table(args["table"]))  # fmt: skip


def _draw_partition(chance: Chance, tables: list[str]) -> Args | None:
    fitting = _with_keys(tables, "t.parts", "t.days")
    return {"table": chance.choice(fitting), "partition": chance.choice(["d1", "d2", "d3"])} if fitting else None


operation("add_partition", 3, _draw_partition,
          lambda world, args: world.store.create_partition(args["table"], args["partition"], if_not_exists=False),
          lambda model, args: model.add_partition(args["table"], args["partition"]))  # fmt: skip
operation("drop_partition", 4, _draw_partition,
          lambda world, args: world.store.drop_partition(args["table"], args["partition"], if_exists=False),
          lambda model, args: model.drop_partition(args["table"], args["partition"]))  # fmt: skip


def _new_column(model: Model, args: Args) -> Column:
    return Column(f"added{len(model.tables[args['table']].descriptor.columns)}", args["type"])


def _draw_column(chance: Chance, tables: list[str]) -> Args | None:
    plain = [name for name in tables if name not in ("t.totals", "t.totals_allow")]
    return {"table": chance.choice(plain), "type": chance.choice(["BIGINT", "STRING"])} if plain else None


def _run_add_column(world: World, args: Args) -> None:
    current = next(descriptor for descriptor in world.store.tables() if descriptor.name == args["table"])
    world.store.alter_table(current.with_options(columns=(*current.columns, _new_column(world.model, args))))


operation("add_column", 3, _draw_column, _run_add_column, lambda model, args: model.add_column(args["table"], _new_column(model, args)))


def _draw_rescale(chance: Chance, tables: list[str]) -> Args:
    return {"table": chance.choice(tables), "n_buckets": chance.randint(1, 4)}


def _run_rescale(world: World, args: Args) -> None:
    world.store.alter_table(world.known(args["table"], is_now=True).with_options(n_buckets=args["n_buckets"]))


def _rescale_stages(model: Model, args: Args) -> list[Model]:
    return model.rescale(args["table"], args["n_buckets"])


operation("rescale", 4, _draw_rescale, _run_rescale, _last_of(_rescale_stages), _rescale_stages)
operation("put_object", 2,
          lambda chance, tables: {"name": chance.choice("ab"), "value": chance.choice([None, {"sql": "SELECT 1"}, {"n": 2}])},
          lambda world, args: world.store.put_object("view", args["name"], args["value"]),
          lambda model, args: model.put_object(args["name"], args["value"]))  # fmt: skip


# readers

operation("read_some", 12, _draw_table, lambda world, args: world.compare_table(args["table"]))
operation("read_version", 4, _draw_table, lambda world, args: world.compare_older_version(args["table"]))
operation("read_everything", 4, lambda chance, tables: {}, lambda world, args: world.compare())


# copies

operation("backup", 3, lambda chance, tables: {"links": chance.random() < 0.7}, lambda world, args: world.backup(links=args["links"]))


# lives


operation("pass_time_and_clean", 7, lambda chance, tables: {"ms": chance.choice([0, 700_000, 700_000, DAY_MS, 9 * DAY_MS])},
          lambda world, args: world.pass_time_and_clean(args["ms"]))  # fmt: skip
operation("compact", 0, lambda chance, tables: None, lambda world, args: world.compact(args["table"], args["ms"]))  # see workload.generate
operation("close_and_reopen", 5, lambda chance, tables: {}, lambda world, args: world.close_and_reopen())
