"""The configuration: one file, every key with a default, overridden by the environment, wrong keys refused by name."""

from pathlib import Path

import pytest

from flashlake.config import Config, find_project, load_config, render_toml
from storage_engine.errors import InvalidConfiguration

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_committed_file_holds_every_key_with_its_default():
    assert (REPOSITORY / "flashlake.toml").read_text() == render_toml()


def test_the_rendered_file_loads_as_the_defaults(tmp_path):
    (tmp_path / "flashlake.toml").write_text(render_toml())

    loaded = load_config(tmp_path, {})

    assert loaded.store.port == Config().store.port
    assert loaded.spark.jars == tmp_path / "jars"


def test_paths_are_relative_to_the_project(tmp_path):
    (tmp_path / "flashlake.toml").write_text('[store]\ndir = "elsewhere"\n[lake]\nroot = "/abs/lake"\n')

    loaded = load_config(tmp_path, {})

    assert loaded.store.dir == tmp_path / "elsewhere"
    assert loaded.lake.root == Path("/abs/lake")


def test_the_environment_overrides_the_file(tmp_path):
    (tmp_path / "flashlake.toml").write_text("[store]\nport = 9000\n")

    loaded = load_config(tmp_path, {"FLASHLAKE__STORE__PORT": "9001", "FLASHLAKE__SPARK__SHUFFLE_PARTITIONS": "7"})

    assert (loaded.store.port, loaded.spark.shuffle_partitions) == (9001, 7)


def test_an_empty_jar_folder_means_that_the_cluster_has_the_jars(tmp_path):
    assert load_config(tmp_path, {"FLASHLAKE__SPARK__JARS": ""}).spark.jars == ""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[store]\nprot = 1\n", ["store.prot", "store.port"]),
        ("[store]\nport = 70000\n", ["store.port", "70000", "65535"]),
        ("[store]\nport = 'x'\n", ["store.port", "'x'"]),
        ("[stroe]\nport = 1\n", ["stroe"]),
        ("[store\n", ["TOML", "line 1"]),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_and_the_remedy(tmp_path, text, names):
    (tmp_path / "flashlake.toml").write_text(text)

    with pytest.raises(InvalidConfiguration) as refused:
        load_config(tmp_path, {})

    assert all(name in str(refused.value) for name in [*names, str(tmp_path)])


def test_a_wrong_variable_is_refused_by_its_name(tmp_path):
    with pytest.raises(InvalidConfiguration, match="FLASHLAKE__STORE__PORT"):
        load_config(tmp_path, {"FLASHLAKE__STORE__PORT": "no"})


def test_a_folder_without_a_project_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.delenv("FLASHLAKE_PROJECT", raising=False)

    with pytest.raises(InvalidConfiguration, match="flashlake init"):
        find_project(tmp_path)


def test_the_project_is_found_from_a_folder_below_it(tmp_path):
    (tmp_path / "flashlake.toml").write_text("")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)

    assert find_project(below) == tmp_path
