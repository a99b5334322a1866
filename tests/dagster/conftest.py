"""The shop as a project in a folder of its own, and its store opened in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage_engine import connect
from tests.dagster.shop import create_tables, write_files


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The shop's folder, with its tables and jobs in the store, which nobody has open."""
    folder = write_files(tmp_path / "shop")
    (folder / "flashlake.toml").write_text("")
    with connect(f"file://{folder}/data/store") as store:
        create_tables(store, folder)
    return folder
