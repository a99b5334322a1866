"""The stream worker as a process: python -m storage_engine.stream --store URL."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from contextlib import ExitStack

from storage_engine.errors import FlashlakeError
from storage_engine.stream.functions.python_functions import FunctionSources, configure
from storage_engine.stream.run.runner import N_ROWS_MAX
from storage_engine.stream.run.worker import N_LANES, Worker
from storage_engine.stream.run.worker_group import WorkerGroup


def main() -> int:
    """Run jobs until SIGTERM or SIGINT; 0 when stopped, 1 when the store cannot be opened."""
    from storage_engine.connection import connect  # the wiring of the whole package; a process needs it, the room does not

    parser = argparse.ArgumentParser(prog="python -m storage_engine.stream", description="Run the stream jobs of a store.")
    parser.add_argument("--store", required=True, metavar="URL", help="file:///path or flashlake://host:port")
    parser.add_argument("--rows-max", type=int, default=N_ROWS_MAX, metavar="N", help="input rows per micro-batch (default %(default)s)")
    parser.add_argument("--lanes", type=int, default=N_LANES, metavar="N", help="micro-batches at a time (default %(default)s)")
    parser.add_argument("--python-path", action="append", default=[], metavar="DIR", help="folder that functions are imported from")
    parser.add_argument("--functions", default="{}", metavar="JSON", help="where functions may come from: modules (null: any), names")
    arguments = parser.parse_args()
    sys.path[:0] = arguments.python_path
    configure(FunctionSources.from_json(json.loads(arguments.functions)))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with connect(arguments.store) as store, ExitStack() as stack:
            group = None
            if not store.url.startswith("file:"):  # a directory has one owner, so one worker
                beats = stack.enter_context(connect(arguments.store))
                group = WorkerGroup(beats.backend).start()
                stack.callback(group.close)
            sys.stderr.write(f"stream worker ready, store {store.url}{f', member {group.member}' if group else ''}\n")
            sys.stderr.flush()
            Worker(store, n_rows_max=arguments.rows_max, group=group, n_lanes=arguments.lanes).run_forever(stop)
    except FlashlakeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
