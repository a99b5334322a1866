"""demo, init, bench: the whole path on real data, a new project, and the ratios."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from flashlake.cli.options import a_count, a_day, command, config_of, with_format
from flashlake.cli.output import progress_bars, say, write_rows
from storage_engine.errors import InvalidConfiguration


def add_to(found: Any) -> None:
    parser = command(
        found, "demo", run_demo_command, summary="run the whole path on real data and print what came of it",
        more="It starts what it needs under data/, streams days of real transactions with made visits and exposures, tiers them,\n"
        "materializes a day in Dagster, runs the Spark job and the views, and proves every result.\n"
        "Repeating it counts nothing twice. Exit status 1 when a stage fails or a result differs.",
        example="flashlake demo\nflashlake demo --days 31 --keep",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="first_day", type=a_day, metavar="DAY", help="first day (default: demo.first_day of the configuration)"
    )
    parser.add_argument("--days", type=a_count, metavar="N", help="number of days (default: demo.days of the configuration)")
    parser.add_argument("--keep", action="store_true", help="leave the services running at the end")
    parser.add_argument("--skip", nargs="+", choices=["dagster", "spark"], default=[], help="stages to leave out")
    with_format(parser)
    parser = command(found, "init", run_init, summary="make a new project", example="flashlake init shop\ncd shop && flashlake up")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the new project; made when it does not exist")
    parser = command(
        found, "bench", run_bench, summary="compare with sqlite and plain Parquet, and print the ratios",
        more="Everything after `bench` is passed on to the benchmarks of the project.", example="flashlake bench",
    )  # fmt: skip
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on")


def run_demo_command(options: argparse.Namespace) -> int:
    from datetime import date

    from flashlake.demo import run_demo

    config = config_of(options)
    first_day = options.first_day or date.fromisoformat(config.demo.first_day)
    with progress_bars() as bars:
        outcome = run_demo(
            config,
            first_day=first_day,
            days=options.days or config.demo.days,
            keep=options.keep,
            skip=frozenset(options.skip) | ({"spark"} if "dagster" in options.skip else set()),
            bars=bars,
            say=say,
        )
    write_rows(outcome.table, options.format, title="flashlake demo", thousands=True)
    for line in outcome.where_to_look:
        say(line)
    return 0 if outcome.is_success else 1


def run_init(options: argparse.Namespace) -> int:
    from flashlake.new_project import make_project

    for path in make_project(options.folder):
        say(f"wrote {path}")
    say(f"next: cd {options.folder} && flashlake up")
    return 0


def run_bench(options: argparse.Namespace) -> int:
    config = config_of(options)
    if not (config.project / "benchmarks" / "__main__.py").exists():
        raise InvalidConfiguration(
            "this project has no benchmarks", where=str(config.project), next_step="Run it in a checkout of flashlake."
        )
    return 1 if subprocess.run([sys.executable, "-m", "benchmarks", *options.arguments], cwd=config.project, check=False).returncode else 0
