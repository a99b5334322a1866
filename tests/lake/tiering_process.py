"""A process that writes to a store and tiers it as fast as it can, until somebody kills it. Started by test_crash.py.

Arguments: store directory, lake root, seed. Prints "ready" after the first round, then one line per acknowledged write.
"""

from __future__ import annotations

import random
import sys
import threading

import storage_engine
from storage_engine.lake import Limits, Tierer


def main() -> None:
    store_directory, lake_root, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    pick = random.Random(seed)
    with storage_engine.connect(f"file://{store_directory}") as store, Tierer(store, lake_root, Limits(compact_commits=4)) as tierer:
        log, keyed = store.table("shop.visits"), store.table("shop.stock")

        def write(number: int) -> None:
            day = f"2026-01-0{pick.randint(1, 3)}"
            items = pick.sample(range(50), 10)
            log.append({"user_id": [number] * 5, "day": [day] * 5})
            keyed.upsert({"item": items, "day": [day] * 10, "n": [number] * 10})
            gone = pick.sample(range(50), 3)
            keyed.delete({"item": gone, "day": [day] * 3})

        write(0)
        tierer.run_once(force=True)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        stop = threading.Event()

        def tier() -> None:
            while not stop.is_set():
                tierer.run_once(force=True)

        threading.Thread(target=tier, daemon=True).start()
        for number in range(1, 1_000_000):
            write(number)


if __name__ == "__main__":
    main()
