"""Random queries and histories: a seed makes a statement, its twin for plain DuckDB, and inserts, updates, deletes, late and repeated rows.

The twin is written beside the statement, piece by piece, from what the pieces mean; it shares no code with the planner. Every statement
is run over random cuts into commits and micro-batches, with restarts and pauses in between, and must leave in its sink what the twin says
of the rows that are there at the end, and what the recomputation from the recorded offsets says.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, load_job
from tests.stream.comparing import differing_jobs, query_rows, sink_rows
from tests.stream.test_stream_equals_batch import EVENTS, KEYED, event, event_table

SHOPS = "CREATE TABLE db.shops (shop BIGINT, city STRING, size INT, PRIMARY KEY (shop) NOT ENFORCED)"
ORDER_COLUMNS = ["id", "shop", "kind", "qty", "amount"]


@dataclass(frozen=True)
class Relation:
    """A FROM item in both dialects, without alias. `columns`: name -> type; `key`: what tells rows apart, () for a log."""

    flink: str
    duck: str
    columns: dict[str, str]
    key: tuple[str, ...] = ()
    is_log: bool = False


@dataclass(frozen=True)
class Case:
    """One statement. `sink`: DDL; `flink` runs as a job, `duck` says what it must leave."""

    shape: str
    sink: str
    flink: str
    duck: str


EVENT_COLUMNS = {
    "id": "BIGINT", "shop": "BIGINT", "kind": "STRING", "qty": "INT", "amount": "DECIMAL(12,2)", "uid": "BIGINT", "ts": "TIMESTAMP(3)",
}  # fmt: skip


def base(rng: random.Random, *, log: bool | None = None) -> Relation:
    if log if log is not None else rng.random() < 0.5:
        return Relation("db.events", "events", EVENT_COLUMNS, is_log=True)
    return Relation("db.orders", "orders", {name: EVENT_COLUMNS[name] for name in ORDER_COLUMNS}, ("id",))


def condition(rng: random.Random, prefix: str = "") -> tuple[str, str]:
    """A condition over the columns that events and orders share."""
    p = prefix
    n = rng.randrange(10)
    same = [
        f"{p}qty > {n}", f"{p}shop IS NOT NULL", f"{p}kind IN ('a', 'c')", f"{p}amount BETWEEN -2 AND {n * 5}", f"{p}id % 3 <> 1",
        f"NOT ({p}qty = {n} OR {p}kind = 'b')", f"COALESCE({p}qty, 3) < 7", f"{p}kind LIKE 'a%' OR {p}shop < 3", f"{p}qty IS NULL",
    ]  # fmt: skip
    choices = [(text, text) for text in same] + [(f"{p}qty / 2 = {n // 3}", f"{p}qty // 2 = {n // 3}")]
    one = rng.choice(choices)
    if rng.random() < 0.3:
        two = rng.choice(choices)
        word = rng.choice(["AND", "OR"])
        return f"({one[0]}) {word} ({two[0]})", f"({one[1]}) {word} ({two[1]})"
    return one


def filtered(rng: random.Random, of: Relation) -> Relation:
    flink, duck = condition(rng)
    return Relation(f"(SELECT * FROM {of.flink} WHERE {flink})", f"(SELECT * FROM {of.duck} WHERE {duck})", of.columns, of.key, of.is_log)


def computed(of: Relation) -> Relation:
    """Expressions in place of columns, of the same types."""
    flink = ("SELECT id, shop, CASE WHEN qty > 4 THEN UPPER(kind) ELSE kind END AS kind, CAST(qty * 2 AS INT) AS qty, "
             "CAST(COALESCE(amount, 1.5) AS DECIMAL(12,2)) AS amount FROM ")  # fmt: skip
    return Relation(f"({flink}{of.flink})", f"({flink}{of.duck})", {name: EVENT_COLUMNS[name] for name in ORDER_COLUMNS}, of.key)


def united(rng: random.Random) -> Relation:
    listed = ", ".join(ORDER_COLUMNS)
    parts = [narrow(rng) for _ in range(rng.choice([2, 2, 3]))]
    return Relation(
        "(" + " UNION ALL ".join(f"SELECT {listed} FROM {part.flink}" for part in parts) + ")",
        "(" + " UNION ALL ".join(f"SELECT {listed} FROM {part.duck}" for part in parts) + ")",
        {name: EVENT_COLUMNS[name] for name in ORDER_COLUMNS},
    )


def narrow(rng: random.Random) -> Relation:
    of = base(rng)
    return filtered(rng, of) if rng.random() < 0.7 else of


def joined(rng: random.Random) -> Relation:
    """Rows of events or orders with the shop's row, inner or left; or with orders of the same id."""
    left = narrow(rng)
    kind = rng.choice(["JOIN", "LEFT JOIN"])
    if rng.random() < 0.6:
        body = "SELECT l.id, l.shop, COALESCE(r.city, l.kind) AS kind, l.qty, l.amount, r.size AS uid "
        body += f"FROM {{}} l {kind} {{}} r ON l.shop = r.shop"
        other = Relation("db.shops", "shops", {})
    else:
        body = f"SELECT l.id, r.shop, l.kind, r.qty, l.amount, r.qty AS uid FROM {{}} l {kind} {{}} r ON l.id = r.id AND l.shop = r.shop"
        other = Relation("db.orders", "orders", {})
    columns = {**{name: EVENT_COLUMNS[name] for name in ORDER_COLUMNS}, "uid": "INT"}
    return Relation(f"({body.format(left.flink, other.flink)})", f"({body.format(left.duck, other.duck)})", columns, left.key)


def topped(rng: random.Random) -> Relation:
    """The first rows of each shop. The order is total: ids differ but for rows that are the same in all columns used."""
    of = base(rng, log=False)
    of = filtered(rng, of) if rng.random() < 0.5 else of
    n, down = rng.randrange(1, 4), rng.choice(["DESC", "ASC"])
    nulls = "LAST" if down == "DESC" else "FIRST"
    numbered = "SELECT *, ROW_NUMBER() OVER (PARTITION BY shop ORDER BY amount {}, id) AS rn FROM {}"
    head = f"SELECT id, shop, kind, qty, amount, rn FROM ({numbered}) WHERE rn <= {{}}"
    columns = {**{name: EVENT_COLUMNS[name] for name in ORDER_COLUMNS}, "rn": "BIGINT"}
    return Relation(f"({head.format(down, of.flink, n)})", f"({head.format(f'{down} NULLS {nulls}', of.duck, n)})", columns, ("shop", "rn"))


def windowed(rng: random.Random) -> Relation:
    of = base(rng, log=True)
    size, step = rng.choice([(12, 12), (24, 12), (24, 6)])
    kind = "TUMBLE" if size == step else "HOP"
    spans = f"INTERVAL '{size}' HOUR" if kind == "TUMBLE" else f"INTERVAL '{step}' HOUR, INTERVAL '{size}' HOUR"
    flink = f"TABLE({kind}(TABLE {of.flink}, DESCRIPTOR(ts), {spans}))"
    first = f"time_bucket(INTERVAL '{step} hours', ts, TIMESTAMP '1970-01-01')"
    starts = f"unnest([{first} - to_hours(CAST(i AS INT)) FOR i IN range(0, {size}, {step})])"
    return Relation(flink, f"(SELECT *, {starts} AS window_start FROM {of.duck})", {**EVENT_COLUMNS, "window_start": "TIMESTAMP(3)"})


def rows_of_any(rng: random.Random) -> Relation:
    made = rng.choice([base, narrow, narrow, lambda r: computed(narrow(r)), united, joined, joined, topped])(rng)
    return made


# results

AGGREGATES: list[Callable[[random.Random, dict[str, str]], tuple[str, str, str]]] = [
    lambda _r, _c: ("COUNT(*)", "count(*)", "BIGINT"),
    lambda _r, _c: ("COUNT(qty)", "count(qty)", "BIGINT"),
    lambda _r, _c: ("SUM(qty)", "CAST(sum(qty) AS INT)", "INT"),
    lambda _r, _c: ("SUM(amount)", "sum(amount)", "DECIMAL(38,2)"),
    lambda _r, _c: ("MIN(amount)", "min(amount)", "DECIMAL(12,2)"),
    lambda _r, _c: ("MAX(qty)", "max(qty)", "INT"),
    lambda _r, _c: ("AVG(qty)", "CAST(trunc(sum(qty) / count(qty)) AS INT)", "INT"),
    lambda _r, _c: ("COUNT(DISTINCT kind)", "count(DISTINCT kind)", "BIGINT"),
    lambda _r, _c: ("SUM(DISTINCT qty)", "CAST(sum(DISTINCT qty) AS INT)", "INT"),
    lambda r, _c: (f"COUNT(*) FILTER (WHERE qty > {(n := r.randrange(9))})", f"count(*) FILTER (qty > {n})", "BIGINT"),
    lambda _r, _c: ("SUM(CASE WHEN kind = 'a' THEN 1 ELSE 0 END)", "CAST(sum(CASE WHEN kind = 'a' THEN 1 ELSE 0 END) AS INT)", "INT"),
    lambda _r, _c: ("CAST(SUM(id) AS DOUBLE) / COUNT(*)", "sum(id)::DOUBLE / count(*)", "DOUBLE"),
]
KEYS = [
    ("COALESCE(shop, -1)", "coalesce(shop, -1)", "BIGINT"), ("COALESCE(kind, '-')", "coalesce(kind, '-')", "STRING"),
    ("id % 4", "id % 4", "BIGINT"), ("COALESCE(qty / 3, -1)", "coalesce(qty // 3, -1)", "INT"),
]  # fmt: skip


def aggregate(rng: random.Random, of: Relation, shape: str) -> Case:
    keys = rng.sample(KEYS, rng.choice([1, 1, 2]))
    if "window_start" in of.columns:
        keys = [("window_start", "window_start", "TIMESTAMP(3)"), *keys[:1]]
    calls = [make(rng, of.columns) for make in rng.sample(AGGREGATES, rng.randrange(1, 5))]
    having = ("", "")
    if rng.random() < 0.3:
        n = rng.randrange(1, 6)
        having = (f" HAVING COUNT(*) > {n}", f" HAVING count(*) > {n}")
    where = condition(rng) if rng.random() < 0.3 else None
    names = [f"k{i}" for i in range(len(keys))] + [f"v{i}" for i in range(len(calls))]
    columns = ", ".join(f"{name} {item[2]}" for name, item in zip(names, [*keys, *calls], strict=True))
    sink = f"CREATE TABLE db.s ({columns}, PRIMARY KEY ({', '.join(names[: len(keys)])}) NOT ENFORCED)"
    # Flink has no GROUP BY of an alias: a subquery names the keys
    flink, duck = (
        f"SELECT {', '.join(k[side] for k in keys)}, {', '.join(c[side] for c in calls)} FROM {of.flink if side == 0 else of.duck}"
        f"{f' WHERE {where[side]}' if where else ''} GROUP BY {', '.join(k[side] for k in keys)}{having[side]}"
        for side in (0, 1)
    )
    return Case(shape, sink, flink, duck)


def two_levels(rng: random.Random) -> Case:
    of = rows_of_any(rng)
    of = of if "kind" in of.columns else base(rng)
    inner = "(SELECT shop, kind, COUNT(*) AS n, MAX(qty) AS high FROM {} GROUP BY shop, kind)"
    sink = "CREATE TABLE db.s (n BIGINT, groups BIGINT, top INT, PRIMARY KEY (n) NOT ENFORCED)"
    text = f"SELECT n, COUNT(*), MAX(high) FROM {inner} GROUP BY n"
    return Case("two levels", sink, text.format(of.flink), text.format(of.duck))


def rows_as_they_are(rng: random.Random) -> Case:
    of = rng.choice([lambda r: narrow(r), lambda r: computed(narrow(r)), joined, topped])(rng)
    columns = {name: kind for name, kind in of.columns.items() if name in (*ORDER_COLUMNS, "rn")}
    listed = ", ".join(columns)
    if of.key == ("shop", "rn"):
        columns = {"shop": "BIGINT", "rn": "BIGINT", "id": "BIGINT", "amount": "DECIMAL(12,2)"}
        listed = ", ".join(columns)
        given = f"{listed} FROM {{}} WHERE shop IS NOT NULL"
    else:
        given = f"{listed} FROM {{}}"
    ddl = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    key = f", PRIMARY KEY ({', '.join(of.key)}) NOT ENFORCED" if of.key else ""
    return Case("rows", f"CREATE TABLE db.s ({ddl}{key})", f"SELECT {given.format(of.flink)}", f"SELECT {given.format(of.duck)}")


def distinct(rng: random.Random) -> Case:
    of = rows_of_any(rng)
    keys = rng.sample(KEYS, rng.choice([1, 2]))
    names = [f"k{i}" for i in range(len(keys))]
    columns = ", ".join(f"{name} {item[2]}" for name, item in zip(names, keys, strict=True))
    sink = f"CREATE TABLE db.s ({columns}, PRIMARY KEY ({', '.join(names)}) NOT ENFORCED)"
    flink, duck = (f"SELECT DISTINCT {', '.join(k[side] for k in keys)} FROM {(of.flink, of.duck)[side]}" for side in (0, 1))
    return Case("distinct", sink, flink, duck)


def pairs(rng: random.Random) -> Case:
    left, right = base(rng, log=False), filtered(rng, base(rng, log=False))
    sink = "CREATE TABLE db.s (a BIGINT, b BIGINT, q INT, PRIMARY KEY (a, b) NOT ENFORCED)"
    text = "SELECT a.id, b.id AS b, a.qty FROM {} a JOIN {} b ON a.shop = b.shop AND a.id < b.id"
    return Case("pairs", sink, text.format(left.flink, right.flink), text.format(left.duck, right.duck))


def shared(rng: random.Random) -> Case:
    """One aggregate twice, with its keys in another order and under other names: it is kept once."""
    of = windowed(rng) if rng.random() < 0.5 else rows_of_any(rng)
    of = of if "kind" in of.columns else base(rng)
    first = "window_start" if "window_start" in of.columns else "id % 5"
    kind = of.columns.get("window_start", "BIGINT")
    inner = (
        f"(SELECT {first} AS g, COALESCE(kind, '-') AS kind, COUNT(*) AS n, SUM(qty) AS q FROM {{0}} GROUP BY {first}, COALESCE(kind, '-'))"
    )
    again = (
        f"(SELECT MAX(m) AS high, h FROM (SELECT COUNT(*) AS m, {first} AS h, COALESCE(kind, '-') AS t FROM {{0}} "
        f"GROUP BY COALESCE(kind, '-'), {first}) x GROUP BY h)"
    )
    sink = f"CREATE TABLE db.s (g {kind}, kind STRING, n BIGINT, q INT, high BIGINT, PRIMARY KEY (g, kind) NOT ENFORCED)"
    text = f"SELECT a.g, a.kind, a.n, {{1}}, b.high FROM {inner} a JOIN {again} b ON a.g = b.h{rng.choice(['', ' AND a.n >= b.high'])}"
    return Case("shared", sink, text.format(of.flink, "a.q"), text.format(of.duck, "CAST(a.q AS INT)"))


def make_case(seed: int) -> Case:
    """The statement of a seed."""
    rng = random.Random(seed)
    shape = rng.choice(["aggregate", "aggregate", "aggregate", "windows", "rows", "rows", "distinct", "two levels", "pairs", "shared"])
    if shape == "aggregate":
        return aggregate(rng, rows_of_any(rng), shape)
    if shape == "windows":
        return aggregate(rng, windowed(rng), shape)
    return {"rows": rows_as_they_are, "distinct": distinct, "two levels": two_levels, "pairs": pairs, "shared": shared}[shape](rng)


# histories


class History:
    """What happens to the sources: appends with late and repeated rows; upserts and deletes of orders and shops."""

    def __init__(self, store: Store, seed: int) -> None:
        self._store = store
        self._rng = random.Random(seed)
        self.events: list[dict[str, Any]] = []
        self.orders: dict[int, dict[str, Any]] = {}
        self.shops: dict[int, dict[str, Any]] = {}

    def step(self) -> None:
        rng = self._rng
        if rng.random() < 0.8:
            rows = [event(rng, len(self.events) + i) for i in range(rng.randrange(1, 25))]
            if self.events and rng.random() < 0.3:
                rows += rng.sample(self.events, min(3, len(self.events)))  # delivered twice, and late
            self.events += rows
            self._store.table("db.events").append(event_table(rows))
        if rng.random() < 0.8:
            rows_by_id = {number: event(rng, number) for number in (rng.randrange(25) for _ in range(rng.randrange(1, 12)))}
            self.orders.update(rows_by_id)
            self._store.table("db.orders").upsert(event_table(list(rows_by_id.values())).select(ORDER_COLUMNS))
        if rng.random() < 0.4:
            gone = [number for number in self.orders if rng.random() < 0.2]
            if gone:
                self._store.table("db.orders").delete({"id": gone})
                self.orders = {number: row for number, row in self.orders.items() if number not in gone}
        if rng.random() < 0.5:
            shop = rng.randrange(1, 6)
            if shop in self.shops and rng.random() < 0.3:
                self._store.table("db.shops").delete({"shop": [shop]})
                del self.shops[shop]
            else:
                self.shops[shop] = {"shop": shop, "city": rng.choice(["x", "y"]), "size": rng.randrange(4)}
                self._store.table("db.shops").upsert([self.shops[shop]])

    def tables(self) -> dict[str, Any]:
        shops = pa.table(
            {
                "shop": pa.array([row["shop"] for row in self.shops.values()], pa.int64()),
                "city": pa.array([row["city"] for row in self.shops.values()], pa.string()),
                "size": pa.array([row["size"] for row in self.shops.values()], pa.int32()),
            }
        )
        return {"events": event_table(self.events), "orders": event_table(list(self.orders.values())), "shops": shops}


def check_seed(store: Store, seed: int) -> str:
    """Run one seed on an empty store: "equal", "equal, and empty", or "refused: ..." for a statement that the planner does not take.

    Errors: AssertionError with seed and statements when a result is another one.
    """
    case = make_case(seed)
    about = f"seed {seed} ({case.shape})\n{case.sink}\n{case.flink}\n{case.duck}"
    session = SqlSession(store)
    session.execute(f"{EVENTS}; {KEYED}; {SHOPS}; {case.sink}; SET 'pipeline.name' = 'job'")
    try:
        session.execute(f"INSERT INTO db.s {case.flink}")
    except StatementRefused as error:
        return f"refused: {error.what}"
    rng = random.Random(seed + 1)
    history = History(store, seed + 2)
    worker = Worker(store, n_rows_max=rng.choice([5, 37, 100_000]))
    for _ in range(rng.randrange(3, 9)):
        history.step()
        if rng.random() < 0.6:
            worker.run_until_idle()
        if rng.random() < 0.2:
            worker.close()
            worker = Worker(store, n_rows_max=rng.choice([5, 37, 100_000]))
        if rng.random() < 0.1:
            session.execute("PAUSE JOB job")
            history.step()
            worker.run_until_idle()
            session.execute("RESUME JOB job")
    worker.run_until_idle()
    worker.close()
    job = load_job(store, "job")
    assert job.state == "RUNNING", f"{about}\n{job.last_error}"
    got, expected = sink_rows(store, "db.s"), query_rows(case.duck, **history.tables())
    assert got == expected, f"{about}\nonly in the sink: {_surplus(got, expected)}\nmissing: {_surplus(expected, got)}"
    assert differing_jobs(store) == [], f"{about}\nthe recomputation from the recorded offsets differs"
    return "equal" if expected else "equal, and empty"


def _surplus(left: list[Any], right: list[Any]) -> list[Any]:
    return [row for row in left if row not in right][:5]
