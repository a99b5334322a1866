"""What asset.* options mean, and how a wrong one is told."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from flashlake.orchestration.policies import asset_policy
from storage_engine.errors import InvalidOption


def test_every_option_is_read() -> None:
    policy = asset_policy(
        "dws.t",
        {
            "asset.partitions": "day(ds)", "asset.start": "2017-01-01", "asset.owner": "team:a, me@example.org", "asset.group": "g",
            "asset.schedule": "0 2 * * *", "asset.freshness": "30min", "asset.backfill": "multi_run(20)", "asset.kinds": "spark",
            "bucket.num": "2",
        },
        ("id", "ds"),
    )  # fmt: skip

    assert policy.day_column == "ds"
    assert policy.start == date(2017, 1, 1)
    assert policy.owners == ("team:a", "me@example.org")
    assert (policy.group, policy.schedule, policy.kinds) == ("g", "0 2 * * *", ("spark",))
    assert policy.freshness == timedelta(minutes=30)
    assert policy.partitions_per_run == 20


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"asset.partition": "day(ds)"}, "Did you mean asset.partitions"),
        ({"asset.partitions": "minute(ts)"}, "columns of the table, not partitions"),
        ({"asset.partitions": "day(dss)"}, "does not have"),
        ({"asset.owner": "trading"}, "team:NAME"),
        ({"asset.start": "1.1.2017"}, "yyyy-MM-dd"),
        ({"asset.schedule": "daily"}, "five cron fields"),
        ({"asset.freshness": "soon"}, "a number and a unit"),
        ({"asset.freshness": "0s"}, "a number and a unit"),
        ({"asset.backfill": "multi_run(0)"}, "N at least 1"),
    ],
)
def test_a_wrong_option_is_refused_with_table_and_remedy(options: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidOption, match=r"table dws\.t") as refusal:
        asset_policy("dws.t", options, ("id", "ds"))

    assert named in str(refusal.value)
