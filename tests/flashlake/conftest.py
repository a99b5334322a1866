"""A project of its own per test: a folder with a configuration whose ports are free, and the ods definitions of this repository."""

import shutil
import socket
from pathlib import Path

import pytest

from flashlake.config import Config, load_config

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(REPOSITORY / "assets" / "ods", folder / "assets" / "ods", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (folder / "flashlake.toml").write_text(
        f"[store]\nport = {free_port()}\n[dagster]\nport = {free_port()}\n[services]\nstop_seconds_max = 5\nbackoff_seconds_max = 1\n"
    )
    return folder


@pytest.fixture
def config(project: Path) -> Config:
    return load_config(project, {})
