"""Random queries: a seed makes a statement, its twin for plain DuckDB, and what happens to the sources (random_histories.py).

The twin is written beside the statement, piece by piece, from what the pieces mean; it shares no code with the planner. Every statement
is run over random cuts into commits and micro-batches, with restarts and pauses in between, and must leave in its sink what the twin says
of the rows that are there at the end, and what the recomputation from the recorded offsets says.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker, load_job
from tests.engine.cleaning import Clock, opened
from tests.stream.cases import EVENTS, KEYED
from tests.stream.comparing import differing_jobs, query_rows, sink_rows
from tests.stream.random_histories import DIMENSIONS, ORDER_COLUMNS, SHOPS, History


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
        f"{p}kind NOT LIKE 'a%'", f"{p}kind NOT IN ('a', 'd')", f"{p}qty NOT BETWEEN 2 AND {n}", f"({p}qty > {n}) IS NOT TRUE",
        f"{p}kind IS DISTINCT FROM 'b'", f"NOT {p}shop = 2",
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


ARRAYS = [  # an array of texts in both dialects; the second may be NULL, the third empty
    ("ARRAY[l.kind, 'z', CAST(l.qty AS STRING)]", "[l.kind, 'z', CAST(l.qty AS VARCHAR)]"),
    ("SPLIT(CONCAT(l.kind, ',z,', l.kind), ',')", "CASE WHEN l.kind IS NOT NULL THEN [l.kind, 'z', l.kind] END"),
    ("ARRAY_REMOVE(ARRAY[l.kind], 'a')", "list_filter([l.kind], x -> x IS DISTINCT FROM 'a')"),
]


def unnested(rng: random.Random) -> Relation:
    """Rows with the elements of an array, or the entries of a map, in place of their kind; and their positions."""
    left = narrow(rng)
    columns = {**{name: EVENT_COLUMNS[name] for name in ORDER_COLUMNS}, "uid": "INT"}
    if rng.random() < 0.25:
        flink = f"SELECT l.id, l.shop, u.k AS kind, u.v AS qty, l.amount, 1 AS uid FROM {left.flink} l "
        flink += "CROSS JOIN UNNEST(MAP['x', l.qty, 'y', 3]) AS u(k, v)"
        entries = "unnest([{'k': 'x', 'v': l.qty}, {'k': 'y', 'v': 3}])"
        duck = f"SELECT id, shop, e.k AS kind, e.v AS qty, amount, 1 AS uid FROM (SELECT *, {entries} AS e FROM {left.duck} l)"
        return Relation(f"({flink})", f"({duck})", columns, (*left.key, "kind") if left.key else ())
    flink_array, duck_array = rng.choice(ARRAYS)
    is_left = rng.random() < 0.4
    flink = f"SELECT l.id, l.shop, u.x AS kind, l.qty, l.amount, u.n AS uid FROM {left.flink} l "
    flink += f"{'LEFT' if is_left else 'CROSS'} JOIN UNNEST({flink_array}) WITH ORDINALITY AS u(x, n){' ON TRUE' if is_left else ''}"
    lists = f"SELECT *, {duck_array} AS a FROM {left.duck} l"
    if is_left:
        lists = f"SELECT *, CASE WHEN len(a) > 0 THEN range(1, len(a) + 1) ELSE [NULL] END AS ns FROM ({lists})"
    else:
        lists = f"SELECT *, range(1, len(a) + 1) AS ns FROM ({lists})"
    duck = f"SELECT id, shop, a[n] AS kind, qty, amount, CAST(n AS INT) AS uid FROM (SELECT *, unnest(ns) AS n FROM ({lists}))"
    return Relation(f"({flink})", f"({duck})", columns, (*left.key, "uid") if left.key and not is_left else ())


def merged(rng: random.Random) -> Relation:
    """Rows joined by columns of one name: with the shop's row, or orders with orders of the same id; ON says the same to DuckDB."""
    columns = {**{name: EVENT_COLUMNS[name] for name in ORDER_COLUMNS}, "uid": "INT"}
    kind = rng.choice(["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "FULL JOIN"])
    if rng.random() < 0.5:
        left = narrow(rng)
        using = rng.random() < 0.5
        shops = "db.shops" if using else "(SELECT shop, city, size FROM db.shops)"
        by = "USING (shop)" if using else ""
        head = "SELECT COALESCE(l.id, -1) AS id, {}, COALESCE(r.city, l.kind) AS kind, l.qty, l.amount, r.size AS uid FROM "
        flink = f"{head.format('shop')}{left.flink} l {'' if using else 'NATURAL '}{kind} {shops} r {by}"
        duck = f"{head.format('COALESCE(l.shop, r.shop) AS shop')}{left.duck} l {kind} shops r ON l.shop = r.shop"
        return Relation(f"({flink})", f"({duck})", columns, left.key if kind in ("JOIN", "LEFT JOIN") else ())
    sides = [base(rng, log=False), base(rng, log=False)]
    sides = [filtered(rng, side) if rng.random() < 0.7 else side for side in sides]
    third = rng.random() < 0.4
    head = "SELECT {} AS id, l.shop, r.kind, r.qty, l.amount, r.qty AS uid FROM "
    flink = f"{head.format('id')}{sides[0].flink} l {kind} {sides[1].flink} r USING (id)"
    duck = f"{head.format('COALESCE(l.id, r.id)')}{sides[0].duck} l {kind} {sides[1].duck} r ON l.id = r.id"
    if third:
        flink += f" {kind} (SELECT id, shop AS of FROM db.orders WHERE qty > 2) t USING (id)"
        duck = duck.replace("COALESCE(l.id, r.id)", "COALESCE(l.id, r.id, t.id)")
        duck += f" {kind} (SELECT id, shop AS of FROM orders WHERE qty > 2) t ON COALESCE(l.id, r.id) = t.id"
    return Relation(f"({flink})", f"({duck})", columns, ("id",))


def looked_up(rng: random.Random) -> Relation:
    """Rows with what a lookup finds. The tables looked into do not change during the run: only then is a lookup join reproducible."""
    left = narrow(rng)
    kind, more = rng.choice(["JOIN", "LEFT JOIN"]), rng.choice(["", " AND r.size > 1", " AND l.qty > r.size"])
    is_prefix = rng.random() < 0.4
    table = "parts" if is_prefix else "fixed"
    time = rng.choice(["PROCTIME()", "l.pt"])
    body = "SELECT l.id, l.shop, COALESCE(r.city, l.kind) AS kind, l.qty, l.amount, r.size AS uid "
    body += f"FROM {{}} l {kind} {{}} r ON l.shop = r.shop{more}"
    timed = f"(SELECT *, PROCTIME() AS pt FROM {left.flink})" if time == "l.pt" else left.flink
    columns = {**{name: EVENT_COLUMNS[name] for name in ORDER_COLUMNS}, "uid": "INT"}
    return Relation(
        f"({body.format(timed, f'db.{table} FOR SYSTEM_TIME AS OF {time} AS')})",
        f"({body.format(left.duck, table)})",
        columns,
        () if is_prefix else left.key,
    )


def windowed(rng: random.Random) -> Relation:
    """Rows in windows of their own time, or of their processing time: when they were committed, which the history knows."""
    return rng.choice([_by_event_time, _cumulated, _by_commit])(rng)


def _cumulated(rng: random.Random) -> Relation:
    of = base(rng, log=True)
    size, step = rng.choice([(24, 6), (24, 8), (48, 12)])
    flink = f"TABLE(CUMULATE(TABLE {of.flink}, DESCRIPTOR(ts), INTERVAL '{step}' HOUR, INTERVAL '{size}' HOUR))"
    return _in_cumulating_windows(of, flink, "ts", size * 3600, step * 3600)


def _in_cumulating_windows(of: Relation, flink: str, time: str, size_s: int, step_s: int) -> Relation:
    started = f"(SELECT *, time_bucket(INTERVAL '{size_s} seconds', {time}, TIMESTAMP '1970-01-01') AS window_start FROM {of.duck})"
    ends = f"[window_start + to_seconds(i) FOR i IN range({step_s}, {size_s + 1}, {step_s})]"
    duck = f"(SELECT * FROM (SELECT *, unnest({ends}) AS window_end FROM {started}) WHERE window_end > {time})"
    return Relation(flink, duck, {**EVENT_COLUMNS, "window_end": "TIMESTAMP(3)"})


def _by_commit(rng: random.Random) -> Relation:
    of = base(rng, log=True)
    of = filtered(rng, of) if rng.random() < 0.5 else of
    data = f"(SELECT *, PROCTIME() AS pt FROM {of.flink}), DESCRIPTOR(pt)"
    if rng.random() < 0.3:
        flink = f"TABLE(CUMULATE({data}, INTERVAL '5' SECOND, INTERVAL '20' SECOND))"
        return _in_cumulating_windows(of, flink, "committed", 20, 5)
    size, step = rng.choice([(10, 10), (20, 5), (9, 3)])
    spans = f"INTERVAL '{size}' SECOND" if size == step else f"INTERVAL '{step}' SECOND, INTERVAL '{size}' SECOND"
    flink = f"TABLE({'TUMBLE' if size == step else 'HOP'}({data}, {spans}))"
    first = f"time_bucket(INTERVAL '{step} seconds', committed, TIMESTAMP '1970-01-01')"
    starts = f"unnest([{first} - to_seconds(i) FOR i IN range(0, {size}, {step})])"
    return Relation(flink, f"(SELECT *, {starts} AS window_start FROM {of.duck})", {**EVENT_COLUMNS, "window_start": "TIMESTAMP(3)"})


def _by_event_time(rng: random.Random) -> Relation:
    of = base(rng, log=True)
    size, step = rng.choice([(12, 12), (24, 12), (24, 6)])
    kind = "TUMBLE" if size == step else "HOP"
    spans = f"INTERVAL '{size}' HOUR" if kind == "TUMBLE" else f"INTERVAL '{step}' HOUR, INTERVAL '{size}' HOUR"
    flink = f"TABLE({kind}(TABLE {of.flink}, DESCRIPTOR(ts), {spans}))"
    first = f"time_bucket(INTERVAL '{step} hours', ts, TIMESTAMP '1970-01-01')"
    starts = f"unnest([{first} - to_hours(CAST(i AS INT)) FOR i IN range(0, {size}, {step})])"
    return Relation(flink, f"(SELECT *, {starts} AS window_start FROM {of.duck})", {**EVENT_COLUMNS, "window_start": "TIMESTAMP(3)"})


def rows_of_any(rng: random.Random) -> Relation:
    some = [
        base,
        narrow,
        narrow,
        lambda r: computed(narrow(r)),
        united,
        joined,
        joined,
        topped,
        looked_up,
        unnested,
        unnested,
        merged,
        merged,
    ]
    made = rng.choice(some)(rng)
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


def window_of(of: Relation) -> str | None:
    """The column that says which window a row lies in."""
    return next((name for name in ("window_start", "window_end") if name in of.columns), None)


def aggregate(rng: random.Random, of: Relation, shape: str) -> Case:
    keys = rng.sample(KEYS, rng.choice([1, 1, 2]))
    if window := window_of(of):
        keys = [(window, window, "TIMESTAMP(3)"), *keys[:1]]
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
    of = rng.choice([lambda r: narrow(r), lambda r: computed(narrow(r)), joined, topped, looked_up, unnested, merged])(rng)
    columns = {name: kind for name, kind in of.columns.items() if name in (*ORDER_COLUMNS, *of.key, "rn")}
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
    window = window_of(of)
    first, kind = (window, "TIMESTAMP(3)") if window is not None else ("id % 5", "BIGINT")
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


def check_seed(directory: Path, seed: int) -> str:
    """Run one seed on a new store: "equal", "equal, and empty", or "refused: ..." for a statement that the planner does not take.

    Errors: AssertionError with seed and statements when a result is another one.
    """
    case = make_case(seed)
    about = f"seed {seed} ({case.shape})\n{case.sink}\n{case.flink}\n{case.duck}"
    clock = Clock()
    with opened(directory, clock) as store:
        return _checked(store, clock, case, seed, about)


def _checked(store: Store, clock: Clock, case: Case, seed: int, about: str) -> str:
    session = SqlSession(store)
    session.execute(f"{EVENTS}; {KEYED}; {SHOPS}; {DIMENSIONS}; {case.sink}; SET 'pipeline.name' = 'job'")
    session.execute("SET 'table.optimizer.non-deterministic-update.strategy' = 'IGNORE'")  # what is looked into does not change
    history = History(store, clock, seed + 2)
    try:
        session.execute(f"INSERT INTO db.s {case.flink}")
    except StatementRefused as error:
        return f"refused: {error.what}"
    rng = random.Random(seed + 1)
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
