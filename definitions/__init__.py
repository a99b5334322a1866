"""The Dagster code location: assets, checks, schedules, sensors and resources of this project. No logic."""

from pathlib import Path

import dagster as dg

from assets import LAKE_ASSETS, LAKE_CHECKS
from flashlake.orchestration import load_definitions
from resources import project_resources

PROJECT = Path(__file__).resolve().parent.parent
FIRST_DAY = "2017-01-01"

defs = dg.Definitions.merge(
    load_definitions(PROJECT / "assets", start=FIRST_DAY),
    dg.Definitions(
        assets=list(LAKE_ASSETS), asset_checks=list(LAKE_CHECKS), resources=project_resources(PROJECT), executor=dg.in_process_executor
    ),
)
