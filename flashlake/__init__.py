"""flashlake: command line, configuration, process supervision, made events, ingestion, demo, orchestration.

Lower layers: query_engine, spark_jobs, storage_engine. Nothing in those imports this package.
"""

__version__ = "0.1.0"
