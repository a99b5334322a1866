"""Spark jobs: functions on DataFrames, and their entry points. No Dagster but dagster-pipes."""
