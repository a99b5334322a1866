"""verify, backfill: the proof that stream and batch agree, and recomputation through Dagster's queue."""

from __future__ import annotations

import argparse
import sys

import pyarrow as pa

from flashlake.cli.options import config_of
from flashlake.cli.output import progress_bars, say, write_rows
from flashlake.sql import open_store


def run_verify(options: argparse.Namespace) -> int:
    from flashlake.verify import EXAMPLE_SCHEMA, REPORT_SCHEMA, verify_tables

    config = config_of(options)
    with open_store(config, options.store) as store, progress_bars() as bars:
        task = bars.add_task("verify", total=None, note="")
        lines, examples = verify_tables(
            config, store, options.tables, options.partitions, repairs=options.repair,
            on_table=lambda name: bars.update(task, advance=1, note=name),
        )  # fmt: skip
    write_rows(pa.Table.from_pylist(lines, schema=REPORT_SCHEMA), options.format)
    if examples:
        write_rows(pa.Table.from_pylist(examples, schema=EXAMPLE_SCHEMA), "table", title="examples", out=sys.stderr)
    n_differing = sum(line["rows_differing"] for line in lines)
    if n_differing:
        say(f"flashlake: {n_differing} rows differ [verify]. `flashlake verify TABLE --repair` repairs them, or `flashlake backfill`.")
    unproved = [line["table"] for line in lines if not line["holds"] and not line["rows_differing"]]
    if unproved:
        say(f"flashlake: {', '.join(dict.fromkeys(unproved))} could not be proved [verify]. The notes say why; nothing was repaired.")
    return 0 if all(line["holds"] for line in lines) else 1


def run_backfill(options: argparse.Namespace) -> int:
    from flashlake.orchestration.backfill import BackfillState, backfill

    config = config_of(options)
    url = f"http://{config.dagster.host}:{config.dagster.port}"
    with progress_bars() as bars:
        task = bars.add_task(f"backfill {options.table}", total=None, note="")

        def show(state: BackfillState) -> None:
            bars.update(task, total=state.n_partitions, completed=state.n_done, note=state.status.lower())

        state = backfill(url, options.table, options.partitions, chunk=options.chunk, on_state=show)
    row = {
        "table": options.table,
        "backfill": state.backfill_id,
        "partitions": state.n_partitions,
        "done": state.n_done,
        "runs": len(state.runs),
    }
    write_rows(pa.Table.from_pylist([row]), options.format)
    return 0
