"""demo, init, bench: the whole path on real data, a new project, and the ratios."""

from __future__ import annotations

import argparse
import subprocess
import sys

from flashlake.cli.options import config_of
from flashlake.cli.output import progress_bars, say, write_rows
from storage_engine.errors import InvalidConfiguration


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
