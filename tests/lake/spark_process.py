"""Runs SQL on one Delta table in a Spark of its own. Arguments: table path, then statements with {table}. Prints one JSON line each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from spark_jobs.session import EngineConfig, spark_session

JARS = Path(__file__).resolve().parents[2] / "jars"


def main() -> None:
    table = f"delta.`{sys.argv[1]}`"
    jars = tuple(str(jar) for jar in sorted(JARS.glob("*.jar")))
    session = spark_session(EngineConfig(driver_memory="1g", jars=jars, short=True), "lake test")
    for text in sys.argv[2:]:
        rows = [[None if value is None else str(value) for value in row] for row in session.sql(text.format(table=table)).collect()]
        sys.stdout.write(json.dumps(rows) + "\n")
    session.stop()


if __name__ == "__main__":
    main()
