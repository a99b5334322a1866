"""Run: the order of the demo's stages, their clock, the services around them, and the final table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date

import pyarrow as pa
from rich.progress import Progress

from flashlake.config import Config
from flashlake.demo.stages import STAGES, Demo, StageResult
from flashlake.sql import open_store
from flashlake.supervisor import SERVICE_NAMES, start_services, stop_services
from flashlake.supervisor.records import RunDir
from storage_engine.errors import FlashlakeError

SCHEMA = pa.schema(
    [
        ("stage", pa.string()), ("rows", pa.int64()), ("new", pa.int64()), ("seconds", pa.float64()),
        ("rows_per_s", pa.int64()), ("verified", pa.string()), ("where", pa.string()),
    ]
)  # fmt: skip


@dataclass
class Outcome:
    """The final table, and whether every stage was done and every result verified."""

    lines: list[dict[str, object]] = field(default_factory=list)
    where_to_look: list[str] = field(default_factory=list)
    is_success: bool = True

    @property
    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.lines, schema=SCHEMA)

    def add(self, stage: str, result: StageResult, seconds: float) -> None:
        """One line. rows_per_s is over the rows that this run handled."""
        handled = result.n_rows if result.n_new is None else result.n_new
        rate = round(handled / seconds) if handled and seconds > 0 and result.has_rate else None
        verified = {True: "yes", False: "NO", None: ""}[result.is_verified]
        self.is_success &= result.is_verified is not False
        figures = {"rows": result.n_rows, "new": result.n_new, "seconds": round(seconds, 2), "rows_per_s": rate}
        self.lines.append({"stage": stage, **figures, "verified": verified, "where": result.where})


def run_demo(
    config: Config, *, first_day: date, days: int, keep: bool, skip: frozenset[str], bars: Progress, say: Callable[[str], None]
) -> Outcome:
    """Run all stages; a stage that fails ends the run, and its line says why. Services that ran before stay as they were."""
    outcome = Outcome()
    with services_of(config, keep=keep, skip=skip, outcome=outcome, say=say), open_store(config) as store:
        demo = Demo(config, store, first_day, days, bars, say)
        total = bars.add_task("demo", total=len(STAGES), note="")
        for name, stage in STAGES:
            if name in skip:
                continue
            bars.update(total, note=name)
            started = time.monotonic()
            try:
                results = stage(demo)
            except FlashlakeError as error:
                outcome.add(name, StageResult(None, None, is_verified=False, where=str(error)), time.monotonic() - started)
                say(f"flashlake: {error}")
                break
            seconds = time.monotonic() - started
            for label, result in results:
                outcome.add(label, result, result.seconds if result.seconds is not None else seconds)
            bars.advance(total)
        bars.update(total, note="")
    return outcome


@contextmanager
def services_of(config: Config, *, keep: bool, skip: frozenset[str], outcome: Outcome, say: Callable[[str], None]) -> Iterator[None]:
    """Start what is not running yet; at the end stop what this started, unless `keep`."""
    run_dir = RunDir(config.services.run_dir)
    needed = [name for name in SERVICE_NAMES if name not in ("webserver", "daemon") or "dagster" not in skip]
    fresh = [name for name in needed if not run_dir.service(name).is_running]
    started = time.monotonic()
    records = start_services(config, needed, say=say, await_names=[name for name in needed if name not in ("webserver", "daemon")])
    outcome.add("services", StageResult(None, None, None, f"logs in {config.services.log_dir}"), time.monotonic() - started)
    try:
        yield
    finally:
        if keep:
            outcome.where_to_look += [f"{record.name}: {record.address}" for record in records if record.address]
            outcome.where_to_look.append("stop them with `flashlake down`")
        else:
            stop_services(config, fresh)
            outcome.where_to_look.append(
                f"`flashlake up` starts everything again, with Dagster at http://{config.dagster.host}:{config.dagster.port}"
            )
