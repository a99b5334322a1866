"""Expressions mean what Flink says they mean; every difference is listed here with its reason."""

from __future__ import annotations

import datetime
import decimal
import functools
import json
import math
from pathlib import Path
from typing import Any

import duckdb
import pytest
from sqlglot import exp

from storage_engine.errors import FlashlakeError, StatementRefused
from storage_engine.stream import open_connection
from storage_engine.stream.dialect import sqltypes as types
from storage_engine.stream.dialect.render import column, sql
from storage_engine.stream.dialect.syntax import parse_select
from storage_engine.stream.functions.builtins import Value
from storage_engine.stream.functions.expressions import ExpressionBinder

VECTORS = Path(__file__).parents[1] / "vectors" / "flink_semantics"

DECIDED = {
    "PRINTF('%5d|%s|%.2f',3,'x',2.5)": "Flink gives NULL for %f of a DECIMAL",
    "TYPEOF('a')": "text has no length",
    "CAST(UNHEX('123') AS STRING)": "Flink loses the first of an odd number of digits",
    "MAP_FROM_ARRAYS(ARRAY['a','b'],ARRAY[1,2])['b']": "Flink fails on literals",
    "MAP_UNION(MAP['a',1],MAP['a',2,'b',3])['a']": "Flink fails on literals",
    "MAP_UNION(MAP['a',1],MAP['a',2,'b',3])['b']": "Flink fails on literals",
    "PERCENTILE(1,0.5)": "no aggregate here",
    **dict.fromkeys(("SHA224('a')", "SHA384('a')", "SHA512('a')", "SHA2('a',224)", "SHA2('a',512)"), "the engine has SHA-256 alone"),
    **dict.fromkeys(("ARRAY_APPEND(CAST(NULL AS ARRAY<INT>),1)", "ARRAY_CONCAT(ARRAY[1],CAST(NULL AS ARRAY<INT>))"), "no CAST to an array"),
    "CAST(TIMESTAMP '2021-01-02 03:04:05.678' AS STRING)": "a literal prints microseconds",
    "CAST(TIMESTAMP '2021-01-02 03:04:05' AS STRING)": "a literal prints microseconds",
    "2147483647+1": "overflow is an error, not another number",
    "CAST(300 AS TINYINT)": "overflow is an error, not another number",
    **dict.fromkeys(
        (
            "CAST(CAST(0.00001 AS DOUBLE) AS STRING)",
            "CAST(1e20 AS STRING)",
            "CAST(CAST(1.0E7 AS DOUBLE) AS STRING)",
            "CAST(CAST(123456789.125 AS DOUBLE) AS STRING)",
        ),
        "DuckDB's text of a double",
    ),
    "CONCAT(1,'a')": "numbers are taken as text",
    "LPAD('abc',5,'')": "NULL, which Flink computes too and then refuses: it took the result for NOT NULL",
    **dict.fromkeys(
        (
            "CAST(1 AS DOUBLE)/0",
            "CAST(0 AS DOUBLE)/0",
            "CAST(1 AS DOUBLE)/CAST(0 AS DOUBLE)",
            "CAST(1 AS FLOAT)/CAST(0 AS FLOAT)",
        ),
        "infinite or no number, as Flink computes it over columns; only its folding of constants fails",
    ),
    "CAST('2021-01-02T03:04:05' AS TIMESTAMP)": "read, where Flink fails",
    "CAST('2021-01-02 03:04' AS TIMESTAMP)": "read, where Flink fails",
    "DATE_FORMAT(DATE '2021-01-02','yyyy')": "a DATE is taken",
    "DATE '2021-01-31' + INTERVAL '1' HOUR": "the hour is not lost",
    "MAP['a',1]['b']": "NULL, as in docs/sql.md",
    "OVERLAY('abc' PLACING 'XY' FROM 2 FOR 0)": "the rest is not lost",
    ".5": "read as 0.5",
    "ISNULL(1)": "written IS NULL",
    "CASE 3 WHEN 1,2 THEN 'low' WHEN 3 THEN 'mid' END": "one value per WHEN",
    "UUID() IS NOT NULL": "refused: it gives another value at each evaluation",
    "CAST(9223372036854775807 AS BIGINT)+1": "overflow is an error, not another number",
    "v*2000000000": "overflow is an error, not another number",
    "CAST(1e20 AS INT)": "overflow is an error, not the largest number",
    "CAST(1e10 AS STRING)": "large doubles print without an exponent",
    "CAST(CAST(0.1 AS FLOAT) AS DOUBLE)": "a FLOAT keeps its binary value",
    "UPPER('ß')": "Unicode's capital sharp s",
    "CONCAT('a', NULL)": "a bare NULL is accepted",
    "CONCAT_WS(',','a',NULL,'b')": "a bare NULL is accepted",
    "JSON_VALUE('{\"a\":1.5}', '$.a' RETURNING INTEGER)": "cut to an integer, where Flink fails",
}


def vectors() -> list[Any]:
    found = []
    for name in ("expressions.json", "expressions_runtime.json", "functions.json"):
        found += [pytest.param(vector, id=vector["name"]) for vector in json.loads((VECTORS / name).read_text())]
    assert {vector.id for vector in found} >= set(DECIDED), "each difference is one that a vector shows"
    return [vector for vector in found if vector.id not in DECIDED]


def resolve(node: exp.Column) -> Value:
    kinds = {"v": types.INT, "x": types.INT, "y": types.INT, "uid": types.BIGINT, "k": types.STRING, "s": types.STRING}
    return Value(column(node.name), kinds[node.name])


@functools.cache
def connection() -> duckdb.DuckDBPyConnection:
    con = open_connection()
    con.execute("CREATE TABLE ev AS SELECT 7 AS id, 'a' AS k, 7::INT AS v")
    return con


def evaluate(statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    select = parse_select(statement)
    bound = [ExpressionBinder(resolve, where="test").bind(item) for item in select.expressions]
    source = select.args.get("from_")
    text = "SELECT " + ", ".join(sql(value.ast) for value in bound)
    if source is not None:
        text += " FROM ev" if source.this.name == "ev" else f" {source.sql('duckdb')}"
    return [str(value.type) for value in bound], connection().execute(text).fetchall()


def as_printed_by_flink(ours: Any, flinks: Any) -> Any:
    """Our value in the form of the vector: decimals and times are text there, infinities too."""
    if isinstance(ours, decimal.Decimal) and isinstance(flinks, str):
        return str(ours.quantize(decimal.Decimal(flinks)))
    if isinstance(ours, datetime.datetime | datetime.date | datetime.time) or (isinstance(ours, float) and not math.isfinite(ours)):
        return str(ours)
    if isinstance(ours, tuple) and str(flinks).startswith("<Row"):
        return f"<Row{ours}>"
    if isinstance(ours, list) and isinstance(flinks, list) and len(ours) == len(flinks):
        return [as_printed_by_flink(*pair) for pair in zip(ours, flinks, strict=True)]
    if isinstance(ours, bytes):
        return f"hex:{ours.hex()}"
    return ours


@pytest.mark.parametrize("vector", vectors())
def test_an_expression_gives_what_flink_gives(vector: dict[str, Any]) -> None:
    if "error" in vector:
        with pytest.raises((FlashlakeError, duckdb.Error)):  # refused, or an error of the computation
            evaluate(vector["sql"])
        return
    kinds, rows = evaluate(vector["sql"])
    wanted = [tuple(row[1:]) for row in vector["rows"]]
    assert [
        tuple(as_printed_by_flink(*pair) for pair in zip(row, other, strict=True)) for row, other in zip(rows, wanted, strict=True)
    ] == wanted
    for ours, flinks in zip(kinds, vector["types"], strict=True):
        flinks = flinks.replace(" NOT NULL", "").replace("CHAR(1)", "STRING") if "<" in flinks else flinks.removesuffix(" NOT NULL")
        if not flinks.startswith(("CHAR", "VARCHAR", "TIME")):
            assert ours == flinks


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("CAST(11 AS BIGINT) / 4", 2),
        ("CAST(CAST(-11 AS BIGINT) / 4 AS INT)", -2),
        ("KEYVALUE('a=1,release_type=grey,b=', ',', '=', 'release_type')", "grey"),
        ("KEYVALUE('a=1', ',', '=', 'b')", None),
        ("CASE 2 WHEN 1 THEN 'a' WHEN 2 THEN 'b' END", "b"),
        ("DATE_FORMAT(TIMESTAMP '2017-01-02 03:04:05', 'yyyy-MM-dd''T''HH')", "2017-01-02T03"),
        ("EXTRACT(HOUR FROM TIMESTAMP '2017-01-02 03:04:05')", 3),
        ("CAST(DATE '2017-01-02' AS STRING)", "2017-01-02"),
        ("TIMESTAMP '2017-01-02 00:00:00' > '2017-01-01'", True),
        ("RB_CARDINALITY(RB_OR(TO_BITMAP(1), TO_BITMAP(7)))", 2),
        ("RB_CONTAINS(TO_BITMAP(7), 7)", True),
        ("LPAD('abc', -1, 'x')", None),
        ("RPAD('abc', -1, 'x')", None),
        ("LPAD('abc', 5, '')", None),
        ("RPAD('abc', 2, '')", None),
        ("LPAD('abc', 0, 'x')", ""),
        ("RPAD('abc', 2, 'x')", "ab"),
        ("LPAD('abc', 5, 'xy')", "xyabc"),
        ("RPAD('abc', 5, CAST(NULL AS STRING))", None),
    ],
)
def test_an_expression_has_its_value(expression: str, expected: Any) -> None:
    assert evaluate(f"SELECT {expression}")[1] == [(expected,)]


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("NOW()", "NOW"),
        ("CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP"),
        ("RAND()", "RAND"),
        ("UPER('a')", "Did you mean UPPER"),
        ("DATE_FORMAT(TIMESTAMP '2017-01-01 00:00:00', 'QQQ')", "QQQ"),
        ("'a' + 1", "does not take"),
        ("'a' = 1", "compares STRING with INT"),
        ("ROW_NUMBER() OVER (ORDER BY 1)", "window function"),
        ("UPPER('a', 'b')", "takes 1 arguments"),
    ],
)
def test_what_cannot_be_bound_is_refused_by_name(expression: str, names: str) -> None:
    with pytest.raises(StatementRefused, match=names.replace("(", r"\(")):
        evaluate(f"SELECT {expression}")
