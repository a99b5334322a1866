"""Users and tokens on the command line, and a project whose services run with authentication and TLS on."""

from __future__ import annotations

import io
import json
import stat
import sys

import pytest

import storage_engine
from flashlake.cli import main
from storage_engine.access import Users
from tests.server.authority import Authority
from tests.waiting import await_true

CREDENTIALS = ("FLASHLAKE_USER", "FLASHLAKE_PASSWORD", "FLASHLAKE_TOKEN", "FLASHLAKE_TOKEN_FILE", "FLASHLAKE_TLS_CA")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)


def run(monkeypatch, *arguments, stdin="") -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    return main(list(map(str, arguments)))


def test_the_first_administrator_is_made_on_the_directory(project, config, monkeypatch, capsys):
    assert run(monkeypatch, "user", "add", "ana", "--admin", "--project", project, stdin="correct horse\n") == 0
    assert run(monkeypatch, "user", "add", "robot", "--service", "--project", project) == 0
    create = ["token", "create", "robot", "--label", "w", "--expires", "30d", "--out", project / "t", "--project", project]
    assert run(monkeypatch, *create) == 0
    capsys.readouterr()
    assert run(monkeypatch, "user", "list", "--format", "json", "--project", project) == 0

    assert [(row["user"], row["tokens"]) for row in json.loads(capsys.readouterr().out)] == [("ana", 0), ("robot", 1)]
    assert stat.S_IMODE((project / "t").stat().st_mode) == 0o600
    with storage_engine.connect(config.directory_url) as store:
        users = Users(store.backend)
        assert users.users()["ana"].password.matches("correct horse")
        assert {str(record.grant) for record in users.grants("ana")} == {"ADMIN ON CLUSTER"}
        ((token_id, record),) = users.tokens().items()
        assert (record.label, record.expires_ms - record.created_ms) == ("w", 30 * 86_400_000)
    assert token_id in (project / "t").read_text()
    assert run(monkeypatch, "token", "revoke", token_id, "--project", project) == 0
    assert run(monkeypatch, "user", "password", "ana", "--project", project, stdin="battery staple\n") == 0
    assert run(monkeypatch, "user", "drop", "robot", "--project", project) == 0
    with storage_engine.connect(config.directory_url) as store:
        assert Users(store.backend).users()["ana"].password.matches("battery staple")
        assert Users(store.backend).tokens() == {}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["add", "ana"], "too short"), (["drop", "nobody"], "no user nobody"), (["add"], "needs a name"), (["list", "x"], "no name")],
)
def test_what_cannot_be_is_refused_in_one_line(project, monkeypatch, capsys, arguments, word):
    assert run(monkeypatch, "user", *arguments, "--project", project, stdin="short\n") == 1
    assert word in capsys.readouterr().err


def test_services_run_with_authentication_and_tls_as_their_own_users(project, monkeypatch, capsys):
    authority = Authority(project)
    files = authority.server("127.0.0.1")
    for name, kind in (("ana", "--admin"), ("streamer", "--service"), ("tierer", "--service")):
        assert run(monkeypatch, "user", "add", name, kind, "--project", project, stdin="correct horse\n") == 0
    for name in ("ana", "streamer", "tierer"):
        assert run(monkeypatch, "token", "create", name, "--out", project / f"{name}.token", "--project", project) == 0
    (project / "flashlake.toml").write_text(
        (project / "flashlake.toml").read_text()
        + f'[server]\nauthentication = "on"\ntls_cert = "{files.cert}"\ntls_key = "{files.key}"\ntls_ca = "{authority.ca}"\n'
        + 'token_file = "ana.token"\nstream_token_file = "streamer.token"\ntiering_token_file = "tierer.token"\nlog_level = "debug"\n'
    )
    capsys.readouterr()
    assert run(monkeypatch, "up", "store", "stream", "tiering", "--no-deploy", "--project", project) == 0
    try:
        url = next(word for word in capsys.readouterr().out.split() if word.startswith("flashlake+tls://"))
        statements = (
            "CREATE TABLE a.log (k BIGINT, v BIGINT); CREATE TABLE a.sum (k BIGINT NOT NULL, n BIGINT, PRIMARY KEY (k) NOT ENFORCED) "
            "WITH ('table.datalake.enabled' = 'true', 'table.datalake.freshness' = '1s');"
            "INSERT INTO a.sum SELECT k, SUM(v) FROM a.log GROUP BY k; INSERT INTO a.log VALUES (1, 2), (1, 3)"
        )
        assert run(monkeypatch, "sql", "-e", statements, "--project", project) == 0
        with storage_engine.connect(url, tls_ca=authority.ca, token_file=project / "ana.token") as store:
            await_true(
                lambda: store.table("a.sum").read().to_pylist() == [{"k": 1, "n": 5}] and "tier:a.sum" in store.progress("tier:"),
                f"the sum is streamed and tiered; logs in {project / 'data' / 'logs'}",
                timeout_s=40,
                every_s=0.1,
            )
        assert run(monkeypatch, "status", "--project", project) == 0
        monkeypatch.setenv("FLASHLAKE_USER", "ana")
        monkeypatch.setenv("FLASHLAKE_PASSWORD", "wrong horse")
        assert run(monkeypatch, "sql", "-e", "SHOW TABLES", "--project", project) == 1
        assert "not accepted" in capsys.readouterr().err
    finally:
        assert run(monkeypatch, "down", "--project", project) == 0
    log = (project / "data" / "logs" / "store.log").read_text()
    assert "stopping" in log
    assert "flt_" not in log
