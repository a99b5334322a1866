"""A short soak: a server under mixed load, killed a few times, equals its model to the row."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.soak import WRITERS, soak

pytestmark = pytest.mark.crash


def test_a_server_killed_under_mixed_load_holds_every_acknowledged_row(tmp_path: Path) -> None:
    figures = soak(tmp_path, seconds=0.0, kill_every_s=2.0, kills_min=2)

    assert len(figures.recoveries_s) >= 2
    assert figures.checks > len(figures.recoveries_s)
    assert min(figures.commits[name] for name in WRITERS) > 3
    assert min(figures.reads, figures.polled, figures.rows_compared) > 0
