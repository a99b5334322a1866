"""Orchestration: from .sql definitions to Dagster assets, checks, schedules, sensors and backfills.

Light to import: Dagster, pyarrow and sqlglot; never Spark or DuckDB.
"""

from flashlake.orchestration.dagster_yaml import DAGSTER_YAML, prepare_home, write_dagster_yaml
from flashlake.orchestration.load import load_definitions
from flashlake.orchestration.tables import TableDefinition, read_file, read_project
from flashlake.orchestration.warehouse import RESOURCE_KEY, Proof, Warehouse

__all__ = [
    "DAGSTER_YAML",
    "RESOURCE_KEY",
    "Proof",
    "TableDefinition",
    "Warehouse",
    "load_definitions",
    "prepare_home",
    "read_file",
    "read_project",
    "write_dagster_yaml",
]
