"""A short run of the campaign of `make stream-kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stream.kills import Campaign


@pytest.mark.crash
def test_killing_workers_server_and_tiering_loses_and_doubles_nothing_anywhere(tmp_path: Path) -> None:
    figures = Campaign(tmp_path, seed=3).run(seconds=4)
    assert figures.checks >= 1
    assert figures.kills.total() >= 1
    assert figures.rows_compared > 1_000
