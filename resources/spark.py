"""Spark: runs a job of spark_jobs/ in a process of its own, with Dagster Pipes between them."""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg


class Spark(dg.ConfigurableResource):
    """The batch engine of a project. `project`: the folder of flashlake.toml."""

    project: str

    def run(
        self, context: dg.AssetExecutionContext, job: str, arguments: Mapping[str, Any], *, short: bool = False
    ) -> dg.MaterializeResult:
        """Run `python -m spark_jobs.JOB ARGUMENTS_FILE` and return what it reported.

        short      the job takes about a minute: start fast rather than run fast
        arguments  JSON values; they travel in a file, next to the engine's configuration under "engine".
        Errors:    DagsterPipesExecutionError when the job exits with another status than 0; what it raised is in the run's log.
        """
        from flashlake.config import load_config
        from flashlake.setup import find_java, spark_environment

        project = Path(self.project)
        config = load_config(project)
        jars = sorted(str(jar) for jar in config.spark.jars.glob("*.jar")) if config.spark.jars else []
        engine = {
            "master": config.spark.master,
            "driver_memory": config.spark.driver_memory,
            "shuffle_partitions": config.spark.shuffle_partitions,
            "jars": jars,
            "short": short,
            "conf": config.spark.conf,
        }
        with tempfile.TemporaryDirectory(prefix="flashlake-spark-") as scratch:
            file = Path(scratch) / "arguments.json"
            file.write_text(json.dumps({"engine": engine, **arguments}), encoding="utf-8")
            invocation = dg.PipesSubprocessClient(env=spark_environment(find_java()), cwd=self.project, forward_termination=True).run(
                command=[sys.executable, "-m", f"spark_jobs.{job}", str(file)], context=context
            )
        return invocation.get_materialize_result()
