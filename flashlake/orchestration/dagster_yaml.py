"""Dagster's instance: its configuration, which `flashlake up` writes to DAGSTER_HOME/dagster.yaml, and its databases.

One second between looks into the queue; a backfill takes one run at a time, so that it never starves the daily seal;
one run at a time touches the warehouse's batch path or Spark. Ticks are forgotten after a week.
"""

from __future__ import annotations

from pathlib import Path

DAGSTER_YAML = """\
telemetry: {enabled: false}
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config: {dequeue_interval_seconds: 1, dequeue_use_threads: true, dequeue_num_workers: 2}
concurrency:
  pools: {default_limit: 1, granularity: run}
  runs:
    max_concurrent_runs: 2
    tag_concurrency_limits: [{key: lane, value: backfill, limit: 1}]
run_monitoring: {enabled: true, start_timeout_seconds: 180, max_resume_run_attempts: 0}
run_retries: {enabled: true, max_retries: 1}
freshness: {enabled: true}
retention:
  schedule: {purge_after_days: {skipped: 7, success: 30, failure: 30}}
  sensor: {purge_after_days: {skipped: 1, success: 7, failure: 30}}
"""


def write_dagster_yaml(home: Path) -> Path:
    """Write HOME/dagster.yaml when it is not there; a file that a user has changed stays. Its path."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "dagster.yaml"
    if not path.exists():
        path.write_text(DAGSTER_YAML, encoding="utf-8")
    return path


def prepare_home(home: Path) -> None:
    """Make DAGSTER_HOME: its settings and its databases, before a web server and a daemon start at once.

    Both would make the databases at the same moment; the one that comes second ends with "table already exists".
    """
    from dagster import DagsterInstance

    write_dagster_yaml(home)
    with DagsterInstance.from_config(str(home)) as instance:
        instance.get_runs_count()
        instance.get_asset_keys()
        instance.all_instigator_state()
