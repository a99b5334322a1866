"""Where a project's processes take Python functions from, as its configuration says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from flashlake.config import Config, ServerSection, UdfSection, load_config
from flashlake.functions import function_sources, use_functions
from flashlake.sql import open_session, open_store
from flashlake.supervisor.services import stream_service
from storage_engine.errors import StatementRefused
from storage_engine.stream.functions import python_functions


@pytest.mark.parametrize(
    ("authentication", "modules", "allowed", "refused"),
    [
        ("off", "", ["any.f", "named.f"], []),
        ("off", "shop, models.daily", ["shop.f", "shop.deep.f", "models.daily.f", "named.f"], ["any.f", "shopping.f", "models.f"]),
        ("on", "", ["named.f"], ["any.f", "os.system"]),
        ("on", "shop", ["shop.f", "named.f"], ["any.f"]),
    ],
)
def test_which_modules_functions_may_come_from(authentication: str, modules: str, allowed: list[str], refused: list[str]) -> None:
    config = Config(
        server=ServerSection(authentication=authentication),  # type: ignore[arg-type]
        udf=UdfSection(modules=modules),
        functions={"com.x.Y": "named.f"},
    )
    sources = function_sources(config)
    assert [target for target in [*allowed, *refused] if sources.allows(target)] == allowed
    command = stream_service(config).command
    told = json.loads(command[command.index("--functions") + 1])
    assert python_functions.FunctionSources.from_json(told) == sources


def test_a_session_of_a_project_finds_functions_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "project_functions.py").write_text("def twice(n: int) -> int: return 2 * n")
    (tmp_path / "flashlake.toml").write_text('[functions]\n"com.x.Twice" = "project_functions.twice"\n')
    config = load_config(tmp_path)
    try:
        with open_store(config) as store:
            session = open_session(config, store)
            session.execute("CREATE TEMPORARY FUNCTION twice AS 'com.x.Twice'; CREATE TABLE db.n (n BIGINT); INSERT INTO db.n VALUES (4)")
            rows = session.execute("SELECT twice(n) AS m FROM db.n")[0].rows
            assert rows is not None
            assert rows.to_pylist() == [{"m": 8}]
            with pytest.raises(StatementRefused, match="no_such_module cannot be imported"):
                session.execute("CREATE FUNCTION f AS 'no_such_module.f' LANGUAGE PYTHON")
        use_functions(config)
        assert sys.path.count(str(tmp_path)) == 1
    finally:
        python_functions.configure(python_functions.FunctionSources())
        sys.modules.pop("project_functions", None)
