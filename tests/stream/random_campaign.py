"""`make torture-sql`: generated queries over generated histories for a time (MINUTES=60), from a seed on (FIRST=0).

Exit status 1 when a result differs; its seed, statements and rows are printed, and `MINUTES=0 FIRST=seed` runs it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.stream.random_queries import check_seed, make_case


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stream.random_campaign")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=0, help="first seed; with --minutes 0 only this one is run")
    options = parser.parse_args()
    deadline = time.monotonic() + options.minutes * 60
    outcomes: Counter[str] = Counter()
    shapes: Counter[str] = Counter()
    n_wrong = 0
    seed = options.first
    while True:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                outcome = check_seed(Path(scratch) / "s", seed)
            except Exception as error:  # noqa: BLE001 - a campaign goes on; every failing seed is printed and counts
                n_wrong += 1
                outcome = "wrong"
                sys.stderr.write(f"\nseed {seed}: {type(error).__name__}: {error}\n")
        outcomes[outcome] += 1
        shapes[make_case(seed).shape] += 1
        seed += 1
        if time.monotonic() >= deadline:
            break
    sys.stdout.write(f"seeds {options.first} to {seed - 1}: {outcomes['equal']} equal, {n_wrong} wrong; shapes: {dict(shapes)}\n")
    for text, n in outcomes.most_common():
        sys.stdout.write(f"{n:8} {text}\n")
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
