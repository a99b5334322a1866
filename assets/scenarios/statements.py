"""Statements: a scenario's .sql file, its placeholders filled in."""

from __future__ import annotations

from pathlib import Path

from flashlake.sql import fill_in

FOLDER = Path(__file__).resolve().parent
VALUES = {"BUCKET_NUM": "1", "REPLICATION_FACTOR": "1", "LOG_TTL": "1d"}
"""What the article's ${...} are here: one machine with two cores."""


def statements(scenario: str, name: str = "statements", **values: str) -> str:
    """The text of assets/scenarios/SCENARIO/NAME.sql as it runs.

    values  placeholders beside VALUES, or instead of them. Errors: StatementRefused naming a placeholder without a value.
    """
    return fill_in((FOLDER / scenario / f"{name}.sql").read_text(encoding="utf-8"), {**VALUES, **values})
