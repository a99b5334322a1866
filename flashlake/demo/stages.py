"""Stages: what the demo does, one function per stage. Each may be repeated: it counts nothing twice.

A stage returns lines of the final table: a label and a StageResult. It raises a FlashlakeError when it cannot be done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.progress import Progress as Bars

from flashlake.config import Config
from flashlake.demo.truth import TABLES, answer_query, differing_rows, truth, weeks_of
from flashlake.deploy import deploy
from flashlake.generate import KINDS, BasketSeries, load_baskets, write_series
from flashlake.ingest import DIMENSIONS, EVENTS, ingest_dimension, ingest_events
from flashlake.sql import open_engine
from flashlake.supervisor.status import JOB_OWNER, TIER_OWNER, job_lines, tiering_lines
from flashlake.verify import verify_tables
from storage_engine import Store
from storage_engine.errors import StoreUnavailable, UserError

if TYPE_CHECKING:
    from query_engine import QueryEngine

STALLED_SECONDS_MAX = 90
POLL_SECONDS = 0.25
DAY_ASSETS = ("dwd.order_line", "dws.store_hour_wide", "dws.store_day_uv", "features.product_minute")
SPARK_ASSETS = ("ods.promotions", "dws.promotion_line")


@dataclass(frozen=True)
class StageResult:
    """One line of the final table.

    n_rows       rows the stage's result holds
    n_new        rows this run added or handled; None: the stage makes its result anew each time
    is_verified  None: nothing to verify
    where        where the result is
    seconds      when the stage's own time is not what counts
    has_rate     False where the work is not done by the stage itself, or rows are not what takes the time
    """

    n_rows: int | None
    n_new: int | None
    is_verified: bool | None
    where: str
    seconds: float | None = None
    has_rate: bool = True


Lines = list[tuple[str, StageResult]]


class Demo:
    """What the stages share: the store, the span of days, the query engine and the baskets (opened when first used)."""

    def __init__(self, config: Config, store: Store, first_day: date, days: int, bars: Bars, say: Callable[[str], None]) -> None:
        self.config = config
        self.store = store
        self.first_day = first_day
        self.days = days
        self.last_day = first_day + timedelta(days=days - 1)
        self.bars = bars
        self.say = say
        self.began = time.monotonic()
        self.covered_before = {owner: covered_rows(store, owner) for owner in (JOB_OWNER, TIER_OWNER)}

    @cached_property
    def engine(self) -> QueryEngine:
        return open_engine(self.config, self.store)

    @property
    def dagster_url(self) -> str:
        return f"http://{self.config.dagster.host}:{self.config.dagster.port}"

    @property
    def day_names(self) -> list[str]:
        return [(self.first_day + timedelta(days=number)).isoformat() for number in range(self.days)]


def covered_rows(store: Store, owner_prefix: str) -> int:
    """Rows that all owners of a prefix have covered: the sum of their recorded offsets."""
    return sum(sum(by_bucket.values()) for item in store.progress(owner_prefix).values() for by_bucket in item.offsets.values())


def definitions(demo: Demo) -> Lines:
    """Bring the project's tables, views and jobs into the store."""
    folder = demo.config.project / "assets"
    names = deploy(demo.store, folder)
    return [("definitions", StageResult(len(names), None, None, f"{folder}, tables and views with their jobs", has_rate=False))]


def dimensions(demo: Demo) -> Lines:
    """Load the dimension tables; proven by their number of rows."""
    lines = []
    for table in DIMENSIONS:
        task = demo.bars.add_task(table, total=None, note="")
        report = ingest_dimension(demo.store, table, on_rows=lambda _, n, task=task: demo.bars.advance(task, n))
        held = demo.store.table(table).count()
        lines.append((f"load {table}", StageResult(held, report.n_new, held >= report.n_source, table, report.seconds)))
    return lines


def transactions(demo: Demo) -> Lines:
    """Stream the real events of the days; proven by their number of rows."""
    lines = []
    for table in EVENTS:
        task = demo.bars.add_task(table, total=None, note="")
        report = ingest_events(
            demo.store, table, demo.first_day, demo.last_day, batch_rows=2_000, on_rows=lambda _, n, task=task: demo.bars.advance(task, n)
        )
        held = rows_of_days(demo, table)
        lines.append((f"stream {table}", StageResult(held, report.n_new, held == report.n_source, table, report.seconds)))
    return lines


def rows_of_days(demo: Demo, table: str) -> int:
    """Rows of the span's partitions of a log table, from its offsets."""
    days = set(demo.day_names)
    latest = demo.store.table(table).offsets("latest")
    return sum(offset for bucket, offset in latest.items() if bucket.partition in days)


def made_events(demo: Demo) -> Lines:
    baskets = load_baskets()
    lines = []
    for kind in KINDS:
        table = f"ods.{kind}"
        series = BasketSeries(baskets, kind, first_day=demo.first_day, days=demo.days, seed=demo.config.demo.seed)
        total = sum(series.n_events(part) for part in series.parts())
        task = demo.bars.add_task(table, total=total, note="made")
        report = write_series(series, demo.store, table, batch_rows=10_000, on_rows=lambda n, task=task: demo.bars.advance(task, n))
        demo.bars.update(task, completed=total)
        expected = np.concatenate(
            [batch.rows["event_id"].to_numpy() for part in series.parts() for batch in series.batches(part, 0, 100_000)]
        )
        ids = demo.store.table(table).scan(["event_id"]).read_all()["event_id"]
        held = pc.sum(pc.is_in(ids, value_set=pa.array(np.unique(expected)))).as_py() or 0
        result = StageResult(held, report.n_new, held == len(expected), f"{table}, late and repeated ones included", report.seconds)
        lines.append((f"stream {table} (made)", result))
    return lines


def stream_jobs(demo: Demo) -> Lines:
    """Wait until every job has consumed everything; its rows are counted over all jobs, since the demo began."""
    await_no_lag(demo, "stream jobs", job_lines)
    covered = covered_rows(demo.store, JOB_OWNER)
    n_jobs = len(job_lines(demo.store))
    result = StageResult(
        covered, covered - demo.covered_before[JOB_OWNER], None, f"{n_jobs} jobs, SHOW JOBS", time.monotonic() - demo.began
    )
    return [("stream jobs", result)]


def tiering(demo: Demo) -> Lines:
    """Wait until the lake has everything; then the lake alone must count what the store counts."""
    await_no_lag(demo, "tiering", tiering_lines)
    covered = covered_rows(demo.store, TIER_OWNER)
    tables = [line["name"] for line in tiering_lines(demo.store)]
    is_equal = all(lake_count(demo, table) == demo.store.table(table).count() for table in tables)
    where = f"{demo.config.lake.root}, {len(tables)} Delta tables"
    return [("tiering", StageResult(covered, covered - demo.covered_before[TIER_OWNER], is_equal, where, has_rate=False))]


def lake_count(demo: Demo, table: str) -> int:
    """Rows of a table in the lake alone."""
    database, _, name = table.partition(".")
    return demo.engine.query(f"SELECT COUNT(*) AS n FROM {database}.`{name}$lake`")["n"][0].as_py()


def await_no_lag(demo: Demo, label: str, lines_of: Callable[[Store], list[dict[str, object]]]) -> None:
    """Wait until all lags are 0 at one version of the store.

    Errors: UserError when a job has failed; StoreUnavailable when nothing moves for a while.
    """
    task = demo.bars.add_task(label, total=None, note="")
    lowest, moved_at, most = None, time.monotonic(), 0
    while True:
        version = demo.store.version()
        lines = lines_of(demo.store)
        failed = [line for line in lines if line["health"] == "failed"]
        if failed:
            raise UserError(
                f"job {failed[0]['name']} has failed: {failed[0]['detail']}",
                where=label,
                next_step="flashlake sql -e 'DESCRIBE JOB ...' shows it.",
            )
        lag = sum(int(str(line["lag_rows"])) if line["lag_rows"] is not None else 1 for line in lines)
        most = max(most, lag)
        demo.bars.update(task, total=most or 1, completed=(most - lag) if most else 1)
        if lag == 0 and demo.store.version() == version:
            return
        if lowest is None or lag != lowest:
            lowest, moved_at = lag, time.monotonic()
        elif time.monotonic() - moved_at > STALLED_SECONDS_MAX:
            behind = ", ".join(str(line["name"]) for line in lines if line["lag_rows"] != 0)
            raise StoreUnavailable(
                f"{behind}: {lag} rows behind, and nothing has moved for {STALLED_SECONDS_MAX} s",
                where=label,
                next_step=f"Read the logs in {demo.config.services.log_dir}.",
            )
        time.sleep(POLL_SECONDS)


def dagster_day(demo: Demo) -> Lines:
    """Materialize one day through Dagster's queue: batch over the recorded input, its asset checks included."""
    from flashlake.demo.dagster_run import run_assets

    demo.bars.add_task("dagster run", total=None, note=", ".join(DAY_ASSETS))
    await_dagster(demo)
    day = demo.first_day.isoformat()
    run = run_assets(demo.dagster_url, DAY_ASSETS, partition=day)
    where = f"{demo.dagster_url}/runs/{run.run_id}, {len(run.checks)} checks"
    return [(f"dagster {day}", StageResult(run.n_rows, None, bool(run.checks) and all(run.checks.values()), where))]


def await_dagster(demo: Demo) -> None:
    """Return when Dagster's web server and daemon are healthy. Errors: StoreUnavailable."""
    from flashlake.supervisor.control import await_healthy
    from flashlake.supervisor.records import RunDir

    await_healthy(demo.config, RunDir(demo.config.services.run_dir), ["webserver", "daemon"])


def spark_join(demo: Demo) -> Lines:
    """Promotions joined with transactions by Spark, launched from a Dagster asset; DuckDB reads what it wrote."""
    from flashlake.demo.dagster_run import run_assets

    await_no_lag(
        demo, "transactions in the lake", lambda store: [line for line in tiering_lines(store) if line["name"] == "ods.transactions"]
    )
    demo.bars.add_task("spark run", total=None, note=", ".join(SPARK_ASSETS))
    weeks = weeks_of(demo.first_day, demo.days)
    config = {"ops": {table.replace(".", "__"): {"config": {"weeks": weeks}} for table in SPARK_ASSETS}}
    run = run_assets(demo.dagster_url, SPARK_ASSETS, config=config)
    held = demo.engine.query("SELECT COUNT(*) AS n FROM dws.promotion_line")["n"][0].as_py()
    report = demo.config.lake.root / "reports" / "promotion_join.json"
    ((_, compared),) = compare(demo, ["promotions"])
    where = f"{demo.config.lake.root / 'dws' / 'promotion_line'}, skew in {report}"
    return [("spark dws.promotion_line", StageResult(held, None, compared.is_verified and all(run.checks.values()), where))]


def answers(demo: Demo) -> Lines:
    """The platform's answers, from stream, views and lake."""
    return compare(demo, ["hours", "departments", "households"])


def compare(demo: Demo, names: Sequence[str]) -> Lines:
    """Answers against the same questions put to the package's Parquet files, to the row and to the cent."""
    lines = []
    for name, expected in truth(demo.first_day, demo.days, names).items():
        started = time.monotonic()
        found = demo.engine.query(answer_query(name, demo.first_day, demo.days))
        seconds = time.monotonic() - started
        n_differing = differing_rows(expected, found)
        if n_differing:
            demo.say(f"{TABLES[name]}: {n_differing} rows differ from the Parquet files")
        lines.append(
            (
                f"query {TABLES[name]}",
                StageResult(found.num_rows, None, n_differing == 0, "equal to a query over the Parquet files", seconds),
            )
        )
    return lines


def proofs(demo: Demo) -> Lines:
    """The proof of every derived table: a batch over the recorded input gives what the stream wrote."""
    task = demo.bars.add_task("proofs", total=None, note="")
    lines: dict[str, list[Mapping[str, object]]] = {}
    starts: dict[str, float] = {}

    def on_table(table: str) -> None:
        starts[table] = time.monotonic()
        demo.bars.update(task, advance=1, note=table)

    for line in verify_tables(demo.config, demo.store, on_table=on_table)[0]:
        lines.setdefault(line["table"], []).append(line)
    ends = [*list(starts.values())[1:], time.monotonic()]
    seconds = {table: end - start for (table, start), end in zip(starts.items(), ends, strict=True)}
    return [
        (
            f"proof {table}",
            StageResult(
                sum(int(str(line["rows_compared"])) for line in found), None, all(line["holds"] for line in found),
                f"version {found[0]['version']}: batch = stream, {len(found)} jobs", seconds[table],
            ),
        )
        for table, found in lines.items()
    ]  # fmt: skip


STAGES: tuple[tuple[str, Callable[[Demo], Lines]], ...] = (
    ("definitions", definitions),
    ("dimensions", dimensions),
    ("transactions", transactions),
    ("made events", made_events),
    ("stream jobs", stream_jobs),
    ("dagster", dagster_day),
    ("spark", spark_join),
    ("tiering", tiering),
    ("answers", answers),
    ("proofs", proofs),
)
