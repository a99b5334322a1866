"""Resources of this project: the warehouse (store, lake, query engine), the lake's own tables, and Spark.

Configuration and life cycle only. Each is made from the project's flashlake.toml when it is first used, never at import.
"""

from pathlib import Path

from resources.lake import Lake
from resources.spark import Spark
from resources.warehouse import StoreWarehouse


def project_resources(project: Path) -> dict[str, object]:
    """The resources of the project in that folder, by resource key."""
    folder = str(project)
    return {"warehouse": StoreWarehouse(project=folder), "lake": Lake(project=folder), "spark": Spark(project=folder)}


__all__ = ["Lake", "Spark", "StoreWarehouse", "project_resources"]
