"""Generated queries over generated histories: stream = batch = plain DuckDB. More of it: `make torture-sql`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.stream.random_queries import check_seed, make_case

N_SEEDS, N_GROUPS = 80, 8
EQUAL_SHARE_MIN = 0.6  # of a group; some results are empty
EXPECTED_REFUSALS = re.compile(r"does not contain the query's key|without an equality|cannot take back rows")


@pytest.mark.parametrize("group", range(N_GROUPS))
def test_a_generated_job_leaves_what_one_query_over_the_whole_input_says(tmp_path: Path, group: int) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(group, N_SEEDS, N_GROUPS):
        outcome = check_seed(tmp_path / f"s{seed}", seed)
        assert outcome.startswith("equal") or EXPECTED_REFUSALS.search(outcome), f"seed {seed}: {outcome}"
        outcomes[outcome.partition(":")[0]] += 1
    assert outcomes["equal"] >= EQUAL_SHARE_MIN * outcomes.total(), outcomes


def test_the_seeds_draw_every_shape() -> None:
    cases = [make_case(seed) for seed in range(N_SEEDS)]
    assert {case.shape for case in cases} == {"aggregate", "windows", "rows", "distinct", "two levels", "pairs", "shared"}
    texts = "\n".join(case.flink for case in cases)
    pieces = ["LEFT JOIN", " JOIN ", "UNION ALL", "ROW_NUMBER", "HAVING", "COUNT(DISTINCT", "FILTER", "HOP", "TUMBLE", "CASE WHEN"]
    pieces += ["CUMULATE", "DESCRIPTOR(pt)", "OF PROCTIME()", "OF l.pt", "LEFT JOIN db.fixed", " JOIN db.parts"]
    pieces += ["CROSS JOIN UNNEST", "LEFT JOIN UNNEST", "UNNEST(MAP", "USING (shop)", "USING (id)", "NATURAL", "FULL JOIN"]
    for piece in pieces:
        assert piece in texts, piece
