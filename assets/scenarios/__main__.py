"""python -m assets.scenarios: runs the scenarios end to end and prints latency, rows and equality.

Exit status: 0 every answer is equal, 1 an inequality or a failure, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from assets.scenarios.report import Options, Report
from assets.scenarios.stage import open_stage
from storage_engine.errors import FlashlakeError

NAMES = ("conversion_attribution", "wide_table", "order_forecast", "canary_monitoring", "unique_visitors")


def main(arguments: list[str] | None = None) -> int:
    """Run the named scenarios, or all five."""
    parser = argparse.ArgumentParser(
        prog="python -m assets.scenarios",
        description="Run the five scenarios end to end, on a store, workers and a lake of their own each.",
        epilog="example: python -m assets.scenarios unique_visitors --seconds 30 --record docs/scenarios",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; none: all")
    parser.add_argument("--rate", type=float, default=20_000, help="events per second (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="seconds of sending per scenario (default %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the made events (default %(default)s)")
    parser.add_argument(
        "--record", type=Path, metavar="DIR", help="also write NAME.json, NAME.svg and the measured part of NAME.md in this folder"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep stores, lakes and logs below this folder (default: a temporary one)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in NAMES]
    if unknown or options.rate <= 0 or options.seconds <= 0:
        parser.error(f"there is no scenario {unknown[0]}" if unknown else "--rate and --seconds are above 0")
    with tempfile.TemporaryDirectory(prefix="flashlake-scenarios-") as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        reports = [run_one(name, folder / name, options) for name in options.names or NAMES]
    for report in reports:
        sys.stdout.write("\n".join(report.lines()) + "\n")
        if options.record:
            report.write(
                options.record, f"python -m assets.scenarios {report.scenario} --rate {options.rate:g} --seconds {options.seconds:g}"
            )
    return 0 if all(report.holds for report in reports) else 1


def run_one(name: str, folder: Path, options: argparse.Namespace) -> Report:
    """One scenario in `folder`. What fails is told and is a report that does not hold."""
    scenario = importlib.import_module(f"assets.scenarios.{name}.scenario")
    console = Console(stderr=True, markup=False)  # a message may have brackets
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    started = time.monotonic()
    with Progress(*columns, console=console, refresh_per_second=2) as bars:
        chosen = Options(options.rate, options.seconds, options.seed, say=console.print)
        bar = bars.add_task(name, total=chosen.n_events)
        chosen = Options(options.rate, options.seconds, options.seed, console.print, lambda n: bars.advance(bar, n))
        try:
            with open_stage(folder, console.print, getattr(scenario, "FUNCTIONS", None)) as stage:
                report: Report = scenario.run(stage, chosen)
        except (FlashlakeError, RuntimeError, TimeoutError) as error:
            console.print(f"{name}: {error}")
            report = Report(name, facts={"failed": str(error)})
    report.facts["seconds, start and checks included"] = round(time.monotonic() - started, 1)
    return report


if __name__ == "__main__":
    sys.exit(main())
