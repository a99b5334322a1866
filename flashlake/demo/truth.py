"""Truth: what the results must be, straight from the package's Parquet files by DuckDB, without any part of the platform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa

from flashlake.completejourney import data_file

LINES = "transaction_timestamp >= $start AND transaction_timestamp < $stop"
QUERIES = {
    "hours": f"""SELECT store_id, strftime(transaction_timestamp, '%Y-%m-%d') AS stat_date,
                   strftime(transaction_timestamp, '%H') AS stat_hour,
                   COUNT(*) AS line_cnt, COUNT(DISTINCT basket_id) AS basket_cnt,
                   CAST(SUM(quantity) AS BIGINT) AS quantity,
                   SUM(CAST(sales_value AS DECIMAL(12, 2))) AS sales_value
                 FROM transactions WHERE {LINES} GROUP BY ALL ORDER BY ALL""",
    "departments": f"""SELECT COALESCE(department, 'UNKNOWN') AS department, strftime(transaction_timestamp, '%Y-%m-%d') AS day,
                         COUNT(*) AS lines, SUM(CAST(sales_value AS DECIMAL(12, 2))) AS sales_value
                       FROM transactions LEFT JOIN products USING (product_id) WHERE {LINES} GROUP BY ALL ORDER BY ALL""",
    "households": f"""SELECT store_id, strftime(transaction_timestamp, '%Y-%m-%d') AS day, COUNT(DISTINCT household_id) AS unique_households
                      FROM transactions WHERE {LINES} GROUP BY ALL ORDER BY ALL""",
    "promotions": f"""WITH published AS (
                       SELECT product_id, store_id, week, MAX(display_location) AS display, MAX(mailer_location) AS mailer
                       FROM promotions WHERE week IN (SELECT week FROM transactions WHERE {LINES}) GROUP BY ALL)
                     SELECT COALESCE(display, '0') AS display_location, COALESCE(mailer, '0') AS mailer_location,
                       COUNT(*) AS lines, SUM(CAST(sales_value AS DECIMAL(12, 2))) AS sales_value
                     FROM transactions LEFT JOIN published USING (product_id, store_id, week)
                     WHERE {LINES} AND quantity <> 0 GROUP BY ALL ORDER BY ALL""",
}
ANSWERS = {
    "hours": """SELECT store_id, stat_date, stat_hour, line_cnt, basket_cnt, quantity, sales_value FROM dws.store_hour_wide
                WHERE line_cnt IS NOT NULL AND stat_date >= '{first}' AND stat_date <= '{last}'""",
    "departments": "SELECT department, day, lines, sales_value FROM views.department_day WHERE day >= '{first}' AND day <= '{last}'",
    "households": "SELECT store_id, day, unique_households FROM views.store_day_uv WHERE day >= '{first}' AND day <= '{last}'",
    "promotions": """SELECT display_location, mailer_location, COUNT(*) AS lines, SUM(CAST(sales_value AS DECIMAL(12, 2))) AS sales_value
                     FROM dws.promotion_line
                     WHERE ds >= '{first}' AND ds <= '{last}' GROUP BY display_location, mailer_location""",
}
TABLES = {
    "hours": "dws.store_hour_wide",
    "departments": "views.department_day",
    "households": "views.store_day_uv",
    "promotions": "dws.promotion_line",
}


def truth(first_day: date, days: int, names: Sequence[str]) -> dict[str, pa.Table]:
    """The named answers for the span: by store and hour, by department and day, unique households, lines by promotion."""
    with duckdb.connect() as connection:
        for name in ("transactions", "products", "promotions"):
            path = str(data_file(name)).replace("'", "''")
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{path}')")
        span = {"start": first_day, "stop": first_day + timedelta(days=days)}
        return {name: connection.execute(query, span).to_arrow_table() for name, query in QUERIES.items() if name in names}


def weeks_of(first_day: date, days: int) -> list[int]:
    """The promotion weeks that the span's transactions fall into."""
    with duckdb.connect() as connection:
        path = str(data_file("transactions")).replace("'", "''")
        span = {"start": first_day, "stop": first_day + timedelta(days=days)}
        found = connection.execute(f"SELECT DISTINCT week FROM read_parquet('{path}') WHERE {LINES} ORDER BY week", span).fetchall()
    return [int(week) for (week,) in found]


def answer_query(name: str, first_day: date, days: int) -> str:
    """The same question put to the platform."""
    return ANSWERS[name].format(first=first_day.isoformat(), last=(first_day + timedelta(days=days - 1)).isoformat())


def differing_rows(expected: pa.Table, found: pa.Table) -> int:
    """Rows that are in one and not in the other, as multisets; values compared as numbers and text, decimals exactly."""
    assert expected.column_names == found.column_names, f"{expected.column_names} against {found.column_names}"
    left, right = _counted(expected), _counted(found)
    return sum(abs(left.get(row, 0) - right.get(row, 0)) for row in left.keys() | right.keys())


def _counted(rows: pa.Table) -> Mapping[tuple[Any, ...], int]:
    counted: dict[tuple[Any, ...], int] = {}
    for row in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        key = tuple(value.normalize() if isinstance(value, Decimal) else value for value in row)
        counted[key] = counted.get(key, 0) + 1
    return counted
