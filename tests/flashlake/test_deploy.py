"""Deployment: definitions into a store, again without harm, with what may change taken over and what may not refused."""

import re

import pytest

import storage_engine
from flashlake.deploy import deploy
from storage_engine.errors import AlreadyExists, InvalidOption

TABLE = """CREATE TABLE dws.t (k BIGINT NOT NULL, n BIGINT, PRIMARY KEY (k) NOT ENFORCED)
WITH ('bucket.key' = 'k', 'asset.owner' = 'team:a');"""


@pytest.fixture
def store(tmp_path):
    with storage_engine.connect(f"file://{tmp_path}/store") as opened:
        yield opened


def define(tmp_path, text):
    path = tmp_path / "assets" / "dws" / "t.sql"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return tmp_path / "assets"


def test_deploying_twice_changes_nothing(store, tmp_path):
    folder = define(tmp_path, TABLE)
    deploy(store, folder)
    version = store.version()

    deploy(store, folder)

    assert store.version() == version


def test_a_column_added_at_the_end_is_taken_over(store, tmp_path):
    deploy(store, define(tmp_path, TABLE))
    store.table("dws.t").upsert({"k": [1], "n": [2]})

    deploy(store, define(tmp_path, TABLE.replace("n BIGINT,", "n BIGINT, m STRING,")))

    assert store.table("dws.t").read().to_pylist() == [{"k": 1, "n": 2, "m": None}]


def test_a_changed_option_is_taken_over(store, tmp_path):
    deploy(store, define(tmp_path, TABLE))

    deploy(store, define(tmp_path, TABLE.replace("team:a", "team:b")))

    assert store.describe("dws.t").options["asset.owner"] == "team:b"


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [("n BIGINT", "n STRING", "columns"), ("n BIGINT,", "", "columns"), ("(k)", "(k, n)", "primary_key")],
)
def test_another_definition_is_refused_by_what_differs(store, tmp_path, before, after, names):
    deploy(store, define(tmp_path, TABLE))

    with pytest.raises(AlreadyExists, match=names):
        deploy(store, define(tmp_path, re.sub(re.escape(before), after, TABLE, count=1)))


def test_an_option_that_is_fixed_at_creation_is_refused(store, tmp_path):
    deploy(store, define(tmp_path, TABLE))

    with pytest.raises(InvalidOption):
        deploy(store, define(tmp_path, TABLE.replace("'asset.owner'", "'table.merge-engine' = 'aggregation', 'asset.owner'")))
