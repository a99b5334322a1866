"""Scenario 3 whole, with store, stream worker and tiering worker in processes of their own: what it reports is what the tables say."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from assets.scenarios.order_forecast.events import Events
from assets.scenarios.order_forecast.scenario import FUNCTIONS, run
from assets.scenarios.report import BEGIN, END, Options
from assets.scenarios.stage import open_stage
from storage_engine.stream.functions import python_functions
from storage_engine.stream.functions.python_functions import configure


def test_on_processes_of_its_own_the_forecast_is_shown_against_the_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")  # the stage sets it for its services
    before = python_functions._sources
    try:
        with open_stage(tmp_path / "stage", lambda _: None, FUNCTIONS) as stage:
            report = run(stage, Options(rate=4_000, seconds=4, seed=5, say=lambda _: None))
    finally:
        configure(before)
    assert [(found.name, found.n_differing) for found in report.checks if not found.holds] == []
    assert len(report.checks) == 7
    (against,) = report.listings.values()
    actual = Events(5, n_events=16_000, day="20170102").cents.sum() / 100
    assert [row[0] for row in against.rows] == ["06:00", "09:00", "12:00", "15:00", "18:00", "21:00"]
    for row in against.rows:
        shown = dict(zip(against.columns[4:], row[4:], strict=True))
        assert shown["GMV, actual day"] == f"{actual:,.0f}"
        error = float(shown["GMV, forecast"].replace(",", "")) / actual - 1
        assert shown["error"] == f"{error:+.2%}"
    (tmp_path / "order_forecast.md").write_text(f"{BEGIN}{END}")
    written = report.write(tmp_path, "this")
    assert {path.name for path in written} == {f"order_forecast{end}" for end in (".json", ".svg", "_gmv.svg", ".md")}
    page = (tmp_path / "order_forecast.md").read_text()
    assert "| at | orders, forecast | orders, actual day | error | GMV, forecast | GMV, actual day | error |" in page
    assert "![gmv](order_forecast_gmv.svg)" in page
    drawn = ElementTree.parse(tmp_path / "order_forecast_gmv.svg").findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) > 1_400 for line in drawn] == [True, True]
