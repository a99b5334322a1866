"""Session: runs SQL in PyFlink, one request a line. Runs under Flink's own interpreter, so it imports nothing of ours.

Request:  {"conf": {name: value}, "sql": [statement, ...]}   Answer: {"jobs": [id or null, ...]} or {"error": text}
"""

import json
import sys

from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment

DEFAULTS = {
    "table.exec.mini-batch.enabled": "false",
    "table.optimizer.distinct-agg.split.enabled": "false",
    "table.exec.async-lookup.buffer-capacity": "100",
}
FUNCTIONS = {"BITMAP_BUILD_AGG": "flashlake.bench.BitmapBuildAgg"}


def environment(rest_port, bootstrap):
    conf = Configuration()
    for name, value in {"execution.target": "remote", "rest.address": "localhost", "rest.port": rest_port}.items():
        conf.set_string(name, value)
    settings = EnvironmentSettings.new_instance().with_configuration(conf).in_streaming_mode().build()
    tables = TableEnvironment.create(settings)
    for name, value in {"table.local-time-zone": "UTC", "parallelism.default": "1", "execution.checkpointing.interval": "10 s"}.items():
        tables.get_config().set(name, value)
    tables.execute_sql(f"CREATE CATALOG fluss WITH ('type' = 'fluss', 'bootstrap.servers' = '{bootstrap}')")
    tables.execute_sql("USE CATALOG fluss")
    for name, path in FUNCTIONS.items():
        tables.execute_sql(f"CREATE TEMPORARY SYSTEM FUNCTION {name} AS '{path}'")
    return tables


def answer(tables, request):
    for name, value in {**DEFAULTS, **request["conf"]}.items():
        tables.get_config().set(name, value)
    jobs = []
    for statement in request["sql"]:
        client = tables.execute_sql(statement).get_job_client()
        jobs.append(None if client is None else str(client.get_job_id()))
    return {"jobs": jobs}


def reasons(error):
    """Each exception of a Java error's chain, first lines only."""
    java, lines = getattr(error, "java_exception", None), []
    while java is not None and len(lines) < 8:
        lines.append(" ".join((java.getMessage() or java.getClass().getSimpleName()).split())[:400])
        java = java.getCause()
    return " <- ".join(lines) or str(error)


def main(rest_port, bootstrap):
    tables = environment(rest_port, bootstrap)
    print(json.dumps({"jobs": []}), flush=True)
    for line in sys.stdin:
        try:
            print(json.dumps(answer(tables, json.loads(line))), flush=True)
        except Exception as error:  # noqa: BLE001 - whatever Flink says goes to the one who asked
            print(json.dumps({"error": reasons(error)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
