"""Python functions in SQL: signatures, calls per row and per batch, restarts, errors, and who may bring code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

import storage_engine
from query_engine import QueryEngine
from query_engine.verify import verify
from storage_engine import Store
from storage_engine.errors import AlreadyExists, StatementRefused, UnknownTable
from storage_engine.stream import SqlSession, Worker, load_job
from storage_engine.stream.functions import python_functions as udfs
from tests.stream.comparing import sink_rows

MODULE = """
import datetime
import decimal
import pyarrow as pa
import pyarrow.compute as pc
from storage_engine.stream import udf

CALLS = []

def shout(text: str) -> str:
    return text.upper() + "!"

def or_nothing(text: str | None, n: int) -> str:
    return f"{text}/{n}"

def ratio(a: pa.DoubleArray, b: pa.DoubleArray) -> pa.DoubleArray:
    CALLS.append(len(a))
    return pc.divide(a, b)

@udf(inputs=["DECIMAL(12, 2)", "INT"], result="DECIMAL(14, 2)")
def times(amount, n):
    return amount * n

@udf(inputs=["INT"], result="INT", vectorised=True)
def inverse(n):
    return pa.array([None if v is None else 12 // v for v in n.to_pylist()])

def next_day(day: datetime.date) -> datetime.date:
    return day + datetime.timedelta(days=1)

def reciprocal(n: int) -> float:
    return 1 / n

def lies(n: int) -> int:
    return "seven"

def too_short(n: pa.Int64Array) -> pa.Int64Array:
    return n[:1]

def unsure(n):
    return n

def mixed(n: int) -> pa.Int64Array: ...
def untyped(n: pa.Array) -> pa.Array: ...
def many(*n: int) -> int: ...
def none() -> int: ...
CONSTANT = 5
"""
TABLES = """CREATE TABLE db.events (id BIGINT, name STRING, a INT, amount DECIMAL(12,2), day DATE);
CREATE TABLE db.s (id BIGINT, loud STRING, PRIMARY KEY (id) NOT ENFORCED);"""
SHOUT = "CREATE FUNCTION shout AS 'shop_functions.shout' LANGUAGE PYTHON;"


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "shop_functions.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("shop_functions", None)


def created(session: SqlSession, *names: str) -> None:
    session.execute(";".join(f"CREATE TEMPORARY FUNCTION {name} AS 'shop_functions.{name}' LANGUAGE PYTHON" for name in names))


def add(store: Store, *rows: tuple[int, str | None, int | None]) -> None:
    names = ("id", "name", "a", "amount", "day")
    filled = [(*row, Decimal("2.50"), date(2017, 1, 31)) for row in rows]
    store.table("db.events").append([dict(zip(names, row, strict=True)) for row in filled])


def test_a_job_calls_functions_per_row_and_per_batch_and_its_proof_holds(store: Store, session: SqlSession) -> None:
    session.execute(
        f"{TABLES} CREATE TABLE db.w (id BIGINT, r DOUBLE, t DECIMAL(14,2), i INT, d DATE, o STRING, PRIMARY KEY (id) NOT ENFORCED)"
    )
    created(session, "shout", "or_nothing", "ratio", "times", "inverse", "next_day")
    session.execute(
        """SET 'pipeline.name' = 'loud'; INSERT INTO db.s SELECT id, SHOUT(name) FROM db.events WHERE shout(name) <> 'B!' OR name IS NULL;
        SET 'pipeline.name' = 'wide';
        INSERT INTO db.w SELECT id, ratio(a, 4), times(amount, a), inverse(a), next_day(day), or_nothing(name, a) FROM db.events"""
    )
    add(store, (1, "a", 3), (2, "b", 4), (3, None, 6))
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.s") == [(1, "A!"), (3, None)]
    day = date(2017, 2, 1)
    assert sink_rows(store, "db.w") == [
        (1, 0.75, Decimal("7.50"), 4, day, "a/3"),
        (2, 1.0, Decimal("10.00"), 3, day, "b/4"),
        (3, 1.5, Decimal("15.00"), 2, day, "None/6"),
    ]
    assert sys.modules["shop_functions"].CALLS == [3]
    assert [report.holds for table in ("db.s", "db.w") for report in verify(store, None, table)] == [True, True]


def test_a_query_calls_functions_of_the_store_and_of_the_session(store: Store, tmp_path: Path) -> None:
    with closing(QueryEngine(store, tmp_path / "lake")) as engine:
        session = SqlSession(store, engine.query)
        session.execute(TABLES + SHOUT)
        created(session, "ratio")
        add(store, (1, "a", 3), (2, "b", 4))
        rows = session.execute("SELECT shout(name) AS s, SUM(ratio(a, 2)) AS r FROM db.events GROUP BY shout(name) ORDER BY 1")[0].rows
        assert rows is not None
        assert rows.to_pylist() == [{"s": "A!", "r": 1.5}, {"s": "B!", "r": 2.0}]
        session.execute("CREATE VIEW db.v AS SELECT id, shout(name) AS s FROM db.events")
        assert session.execute("SELECT s FROM db.v WHERE id = 2")[0].rows.to_pylist() == [{"s": "B!"}]  # type: ignore[union-attr]


def test_a_worker_process_finds_the_function_after_a_restart(tmp_path: Path, module: Path) -> None:
    url = (tmp_path / "store").as_uri()
    with storage_engine.connect(url) as store:
        session = SqlSession(store)
        session.execute(TABLES)
        created(session, "shout")  # gone with the session: the job records it
        session.execute("SET 'pipeline.name' = 'loud'; INSERT INTO db.s SELECT id, shout(name) FROM db.events")
    for number in (1, 2):
        with storage_engine.connect(url) as store:
            add(store, (number, f"n{number}", 1))
        script = (
            "import sys, threading; from storage_engine.stream import __main__ as m; from storage_engine.stream.run.worker import Worker\n"
            "Worker.run_forever = lambda self, stop: self.run_until_idle()\nsys.exit(m.main())"
        )
        command = [sys.executable, "-c", script, "--store", url, "--python-path", str(module)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path != str(module))}
        subprocess.run(command, check=True, timeout=60, env=environment, capture_output=True)
    with storage_engine.connect(url) as store:
        assert sink_rows(store, "db.s") == [(1, "N1!"), (2, "N2!")]
        (module / "shop_functions.py").unlink()
        sys.modules.pop("shop_functions")
        add(store, (3, "n3", 1))
        Worker(store).run_until_idle()
        assert "module shop_functions cannot be imported" in load_job(store, "loud").last_error


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("reciprocal(a)", r"function reciprocal \(shop_functions.reciprocal\) failed on the row reciprocal\(0\): ZeroDivisionError"),
        ("CAST(lies(a) AS DOUBLE)", r"failed on the row lies\(4\): "),
        ("CAST(inverse(a) AS DOUBLE)", r"failed on the row inverse\(0\): ZeroDivisionError"),
        ("CAST(too_short(a) AS DOUBLE)", r"\(of 2 rows together\): ValueError: it returned 1 values for 2 rows"),
    ],
)
def test_an_error_names_function_job_and_row(store: Store, session: SqlSession, call: str, says: str) -> None:
    session.execute(f"{TABLES} CREATE TABLE db.r (id BIGINT, r DOUBLE)")
    created(session, "reciprocal", "lies", "inverse", "too_short")
    session.execute(f"SET 'pipeline.name' = 'broken'; INSERT INTO db.r SELECT id, {call} FROM db.events")
    add(store, (1, "a", 4), (2, "b", 0))
    Worker(store).run_until_idle()
    job = load_job(store, "broken")
    assert job.state == "FAILED"
    assert "job broken" in job.last_error
    with pytest.raises(udfs.FunctionFailed, match=says):
        raise udfs.FunctionFailed(job.last_error, where="", next_step="")
    assert sink_rows(store, "db.r") == []


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module.f", "module no_such_module cannot be imported: ModuleNotFoundError"),
        ("shop_functions.absent", "does not exist"),
        ("shop_functions.CONSTANT", "is no function"),
        ("lonely", "names no module"),
        ("shop_functions.unsure", "has no annotation for n"),
        ("shop_functions.mixed", "mixes Arrow arrays with single values"),
        ("shop_functions.untyped", "has no element type"),
        ("shop_functions.many", "takes \\*args"),
        ("shop_functions.none", "takes no parameters"),
    ],
)
def test_what_cannot_be_a_function_is_refused_with_the_reason(session: SqlSession, target: str, reason: str) -> None:
    with pytest.raises(StatementRefused, match=reason):
        session.execute(f"CREATE FUNCTION f AS '{target}' LANGUAGE PYTHON")


@pytest.mark.parametrize(
    ("select", "reason"),
    [
        ("SELECT id, shout(name, 'x') FROM db.events", r"shout\(STRING\) STRING takes 1 arguments, not 2"),
        ("SELECT id, shout(id) FROM db.events", r"argument 1 of shout\(STRING\) STRING is BIGINT.*CAST it AS STRING"),
        ("SELECT id, shaut(name) FROM db.events", "function SHAUT is not known"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(session: SqlSession, select: str, reason: str) -> None:
    with pytest.raises(StatementRefused, match=reason):
        session.execute(f"{TABLES}{SHOUT} INSERT INTO db.s {select}")


def test_functions_are_listed_dropped_and_not_silently_replaced(store: Store, session: SqlSession) -> None:
    session.execute(SHOUT + SHOUT + "CREATE FUNCTION IF NOT EXISTS shout AS 'shop_functions.ratio' LANGUAGE PYTHON")
    created(session, "ratio")
    rows = session.execute("SHOW USER FUNCTIONS")[0].rows
    assert rows is not None
    assert [tuple(row.values()) for row in rows.to_pylist()] == [
        ("ratio", "ratio(DOUBLE, DOUBLE) DOUBLE", "shop_functions.ratio", "temporary"),
        ("shout", "shout(STRING) STRING", "shop_functions.shout", "stored"),
    ]
    assert session.execute("SHOW FUNCTIONS")[0].rows.num_rows > 60  # type: ignore[union-attr]
    with pytest.raises(AlreadyExists, match="exists as shout"):
        session.execute("CREATE FUNCTION shout AS 'shop_functions.ratio' LANGUAGE PYTHON")
    with pytest.raises(StatementRefused, match="UPPER is a function of SQL"):
        session.execute("CREATE FUNCTION UPPER AS 'shop_functions.shout' LANGUAGE PYTHON")
    session.execute("DROP FUNCTION shout; DROP FUNCTION IF EXISTS shout; DROP TEMPORARY FUNCTION ratio")
    with pytest.raises(UnknownTable, match="there is no function shout"):
        session.execute("DROP FUNCTION shout")
    assert SqlSession(store).execute("SHOW USER FUNCTIONS")[0].rows.num_rows == 0  # type: ignore[union-attr]


def test_a_java_name_is_looked_up_in_the_configuration(store: Store, session: SqlSession) -> None:
    with pytest.raises(StatementRefused, match=r"'com.example.Shout' is JAVA.*\[functions\] of flashlake.toml"):
        session.execute("CREATE TEMPORARY FUNCTION shout AS 'com.example.Shout'")
    udfs.configure(udfs.FunctionSources(names={"com.example.Shout": "shop_functions.shout"}))
    session.execute(
        f"{TABLES} CREATE TEMPORARY FUNCTION shout AS 'com.example.Shout'; INSERT INTO db.s SELECT id, shout(name) FROM db.events"
    )
    add(store, (1, "a", 3))
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.s") == [(1, "A!")]


def test_a_process_takes_functions_only_from_where_it_is_told(store: Store, session: SqlSession) -> None:
    """A job in the store cannot make a worker import what its operator did not allow."""
    session.execute(f"{TABLES}{SHOUT} SET 'pipeline.name' = 'loud'; INSERT INTO db.s SELECT id, shout(name) FROM db.events")
    udfs.configure(udfs.FunctionSources(modules=("shop_models",), names={"com.x.Y": "other.f"}))
    with pytest.raises(StatementRefused, match=r"os.system is in no module .* \(allowed: shop_models, other.f\)"):
        session.execute("CREATE FUNCTION run AS 'os.system' LANGUAGE PYTHON")
    add(store, (1, "a", 3))
    Worker(store).run_until_idle()
    assert "is in no module that functions may come from here" in load_job(store, "loud").last_error
    udfs.configure(udfs.FunctionSources(modules=("shop_functions",)))
    session.execute("SET 'pipeline.name' = 'loud'; INSERT INTO db.s SELECT id, shout(name) FROM db.events")
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.s") == [(1, "A!")]


def test_a_changed_signature_stops_the_job_instead_of_changing_its_meaning(store: Store, session: SqlSession, module: Path) -> None:
    session.execute(f"{TABLES}{SHOUT} SET 'pipeline.name' = 'loud'; INSERT INTO db.s SELECT id, shout(name) FROM db.events")
    (module / "shop_functions.py").write_text("def shout(text: str, n: int) -> str: ...")
    sys.modules.pop("shop_functions")
    add(store, (1, "a", 3))
    Worker(store).run_until_idle()
    assert "shout(STRING, BIGINT) STRING now, and shout(STRING) STRING was recorded" in load_job(store, "loud").last_error
