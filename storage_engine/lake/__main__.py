"""python -m storage_engine.lake: the tiering worker as a process. One ready line on standard output; SIGTERM ends it after the round.

Exit status: 0 stopped, 1 refused or failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading

from storage_engine.errors import FlashlakeError
from storage_engine.lake.tiering import Tierer
from storage_engine.no_pandas import go_without_pandas


def main(arguments: list[str] | None = None) -> int:
    """Run the worker until SIGTERM or SIGINT."""
    from storage_engine.connection import connect  # a process wires rooms together; the room itself does not depend on it

    parser = argparse.ArgumentParser(
        prog="python -m storage_engine.lake",
        description="Tier the store's tables to Delta Lake, within each table's 'table.datalake.freshness'.",
        epilog="example: python -m storage_engine.lake --store flashlake://127.0.0.1:9650 --lake ./data/lake",
    )
    parser.add_argument("--store", required=True, help="store address: flashlake://host:port, or file:///path when no other process has it")
    parser.add_argument("--lake", required=True, help="lake root: a table db.t lives in LAKE/db/t")
    parser.add_argument("--once", action="store_true", help="tier everything that is in the store now, then end")
    parser.add_argument(
        "--undo", metavar="TABLE", help="set a lake table that somebody else changed back to the tierer's last commit, then end"
    )
    parser.add_argument("--forget", metavar="TABLE", help="forget a lake table that was moved away: the next run tiers it afresh; then end")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with connect(options.store) as store, Tierer(store, options.lake) as tierer:
            if options.undo:
                tierer.undo(options.undo)
            elif options.forget:
                tierer.forget(options.forget)
            elif options.once:
                tierer.run_once(force=True)
            else:
                sys.stdout.write(f"tiering {options.store} to {tierer.lake_root}\n")
                sys.stdout.flush()
                tierer.run(stop)
    except FlashlakeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    go_without_pandas()
    sys.exit(main())
