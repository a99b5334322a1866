"""Session: one engine configuration, one Spark session, local or on a cluster.

Holds: the configuration is all a job needs to know of the engine; the same job runs on local[N] and on spark://host:port.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class EngineConfig:
    """Where and how Spark runs.

    master              local[N] or spark://host:port; ignored when `remote` is given
    remote              sc://host:port of a Spark Connect server; empty: an own driver
    driver_memory       of the JVM; resident memory is about 1 GB more
    shuffle_partitions  before adaptive execution coalesces them
    jars                Delta's jars; empty: the cluster has them
    event_log           folder for the event log, from which task times are read; empty: none
    short               a job of about a minute: no optimising compiler, no parallel collector; it ends before they pay
    conf                further spark.* settings, applied last
    """

    master: str = "local[2]"
    remote: str = ""
    driver_memory: str = "2g"
    shuffle_partitions: int = 4
    jars: tuple[str, ...] = ()
    event_log: str = ""
    short: bool = False
    conf: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EngineConfig:
        """The configuration from JSON values; an unknown key is a TypeError, naming it."""
        return cls(**{**value, "jars": tuple(value.get("jars", ()))})

    def settings(self) -> dict[str, str]:
        """All spark.* settings, in the order in which they apply."""
        settings = {
            "spark.driver.memory": self.driver_memory,
            "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
            "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
            "spark.sql.shuffle.partitions": str(self.shuffle_partitions),
            "spark.databricks.delta.snapshotPartitions": "1",  # the default of 50 costs 50 tasks for each log that is read
            "spark.sql.session.timeZone": "UTC",
            "spark.ui.enabled": "false",
            "spark.log.level": "WARN",
            "spark.ui.showConsoleProgress": "false",
        }
        if self.master.startswith("local") and not self.remote:
            settings |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}  # nobody else needs to reach it
        if self.short:
            settings["spark.driver.extraJavaOptions"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
        if self.jars:
            settings["spark.jars"] = ",".join(self.jars)
        if self.event_log:
            settings |= {
                "spark.eventLog.enabled": "true",
                "spark.eventLog.dir": Path(self.event_log).absolute().as_uri(),
                "spark.eventLog.rolling.enabled": "false",
                "spark.eventLog.compress": "false",
            }
        return {**settings, **self.conf}


def spark_session(engine: EngineConfig, name: str) -> SparkSession:
    """A session by that configuration. The caller stops it."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # workers must run the driver's Python
    if engine.event_log:
        Path(engine.event_log).mkdir(parents=True, exist_ok=True)
    builder = SparkSession.builder.appName(name)
    builder = builder.remote(engine.remote) if engine.remote else builder.master(engine.master)
    for key, value in engine.settings().items():
        builder = builder.config(key, value)
    return builder.getOrCreate()
