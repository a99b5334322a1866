"""demo: the whole path on real data, stage by stage, with the proof of each result.

run.py         the order of stages, their clock, and the final table
stages.py      what each stage does
truth.py       the same answers straight from the package's Parquet files, by DuckDB
dagster_run.py one run of assets through Dagster's queue
"""

from flashlake.demo.run import Outcome, run_demo

__all__ = ["Outcome", "run_demo"]
