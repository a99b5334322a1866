"""What a scenario runs is what the article prints: each printed statement stands in its file, but for the changes that are named here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from assets.scenarios.statements import FOLDER

PRINTED = (Path(__file__).parents[1] / "vectors" / "seed" / "fluss_instant_commerce.sql").read_text()
STATEMENTS = re.findall(r"^(?:CREATE|INSERT)\b.*?;\s*?$", PRINTED, re.M | re.S)
SCENARIOS = {"conversion_attribution": 4, "wide_table": 3, "order_forecast": 5, "canary_monitoring": 2, "unique_visitors": 7}
"""How many printed statements each scenario has, in the order of print."""
SCENARIO_OF = [name for name, n in SCENARIOS.items() for _ in range(n)]
ELISION = re.compile(r"--\s*\.+ Intermediate fields omitted")
CHANGES = [
    ("unique_visitors", "`user_mapping`", "`user_mapping_table`", "the table is created under this name"),
    ("unique_visitors", "% N ", "% ${N} ", "the article's N is a number to be configured"),
    ("unique_visitors", "/ N)", "/ ${N})", "as above"),
    (
        "unique_visitors",
        "OPTIONS('lookup.cache'",
        "OPTIONS('lookup.insert-if-not-exists' = 'true', 'lookup.cache'",
        "a user whom the mapping job has not met yet has no id, and a null is no key",
    ),
]
"""Scenario, what is printed, what runs instead, why."""


def words(text: str) -> str:
    """A statement without comments and line breaks."""
    return re.sub(r"\s+", " ", re.sub(r"--.*", "", text)).replace(" ;", ";").strip()


def parts(scenario: str, statement: str) -> list[str]:
    """A printed statement as it should stand in its file, cut where columns are elided."""
    found = [words(part) for part in ELISION.split(statement)]
    for name, before, after, _ in CHANGES:
        if name == scenario:
            found = [part.replace(before, after) for part in found]
    return found


def test_the_print_has_the_statements_of_five_scenarios() -> None:
    assert len(STATEMENTS) == len(SCENARIO_OF)


@pytest.mark.parametrize("number", range(len(SCENARIO_OF)), ids=lambda n: f"{n}-{SCENARIO_OF[n]}")
def test_a_printed_statement_stands_in_its_scenario(number: int) -> None:
    scenario = SCENARIO_OF[number]
    text = words("\n".join(path.read_text() for path in sorted((FOLDER / scenario).glob("*.sql"))))
    begin = 0
    for part in parts(scenario, STATEMENTS[number]):
        begin = text.find(part, begin)
        assert begin >= 0, f"not in {scenario}: {part}"
        begin += len(part)
