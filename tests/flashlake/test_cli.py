"""The command line: results and nothing else on standard output, one clear line for a refusal, exit status 0, 1 or 2."""

import csv
import io
import json
import subprocess
import sys
import time
from decimal import Decimal

import pyarrow as pa
import pytest

import storage_engine
from flashlake.cli import main
from flashlake.cli.main import build_parser
from flashlake.cli.options import run_of
from flashlake.cli.output import csv_text, write_rows
from flashlake.deploy import deploy
from flashlake.new_project import make_project
from storage_engine.errors import AlreadyExists

COMMANDS = [name for action in build_parser()._actions if isinstance(action.choices, dict) for name in action.choices]


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flashlake", *arguments], capture_output=True, text=True, input=stdin, timeout=120)


def rows_of(shown: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    assert shown.returncode == 0, shown.stderr
    return list(csv.DictReader(io.StringIO(shown.stdout)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])

    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"\n  flashlake {command}" in shown.replace("FLASHLAKE__STORE__PORT=9700 ", ""), "an example of its own"


@pytest.mark.parametrize("words", [["--help"], ["sql", "--help"], ["ingst"]], ids=" ".join)
def test_help_and_wrong_usage_load_no_part_of_the_platform(words):
    heavy = ["pandas", "pyspark", "dagster", "duckdb", "pyarrow", "storage_engine", "query_engine"]
    code = (
        "import sys; from flashlake.cli import main\n"
        f"try: main({words!r})\n"
        f"except SystemExit: print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)

    assert shown.stderr.splitlines()[-1] == "[]"


def test_each_command_names_a_function_that_runs_it():
    (parsers,) = (action.choices for action in build_parser()._actions if isinstance(action.choices, dict))

    assert {"up", "sql", "verify", "fsck", "user", "demo"} <= set(parsers)
    assert all(callable(run_of(parser.get_default("run"))) for parser in parsers.values())


def test_help_names_the_services_events_and_tables_that_there_are(capsys):
    from flashlake.generate.events import KINDS
    from flashlake.ingest import TABLES
    from flashlake.supervisor import SERVICE_NAMES

    for command, names in (("up", SERVICE_NAMES), ("generate", KINDS), ("ingest", TABLES)):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert [name for name in names if name not in shown] == [], command


@pytest.mark.parametrize(
    "wrong",
    [
        [], ["ingst"], ["sql", "--format", "xml"], ["sql", "-e", "a", "-f", "b"], ["ingest", "--days", "0"],
        ["ingest", "--from", "tomorrow"],
        ["generate"], ["generate", "--target", "ods.page_visits", "--late", "0.9"], ["generate", "--dry-run", "--rate", "fast"],
        ["backfill", "dws.store_hour_wide"], ["sql", "-D", "novalue", "-e", "SHOW TABLES"],
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_status_2_and_says_nothing_on_standard_output(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        main(wrong)

    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        (["sql", "-e", "SELECT * FROM ods.nothing"], "ods.nothing"),
        (["sql", "-e", "CREATE TABL x"], "line 1"),
        (["sql", "-e", "SHOW JOBS WHERE ${day}"], "-D day="),
        (["sql", "-f", "no/such/file.sql"], "no/such/file.sql"),
        (["ingest", "--tables", "ods.clicks"], "ods.clicks"),
        (["generate", "--target", "ods.transactions"], "--kind"),
        (["up", "stroe"], "store, stream"),
        (["sql", "--store", "flashlake://127.0.0.1:1", "-e", "SHOW TABLES"], "127.0.0.1:1"),
        (["backfill", "ods.transactions", "--partitions", "2017-01-01"], "flashlake up"),
    ],
)
def test_a_refusal_is_one_line_with_status_1_and_nothing_on_standard_output(project, refused, says, capsys):
    status = main([refused[0], "--project", str(project), *refused[1:]])

    shown = capsys.readouterr()
    assert status == 1
    assert shown.out == ""
    assert says in shown.err
    assert [line.startswith("flashlake: ") for line in shown.err.strip().splitlines()] == [True]


def test_a_folder_without_a_project_is_refused_with_the_remedy(tmp_path):
    shown = subprocess.run([sys.executable, "-m", "flashlake", "status"], capture_output=True, text=True, cwd=tmp_path)

    assert shown.returncode == 1
    assert "flashlake init" in shown.stderr


def test_ingest_and_queries_answer_on_standard_output(project):
    loaded = rows_of(run("ingest", "--project", str(project), "--days", "1", "--format", "csv"))
    again = rows_of(run("ingest", "--project", str(project), "--days", "1", "--format", "csv"))
    query = "SELECT COUNT(*) AS n, SUM(sales_value) AS s FROM ods.transactions"
    answered = rows_of(run("sql", "--project", str(project), "-e", query, "--format", "csv"))

    assert {row["table"]: row["new"] for row in loaded}["ods.transactions"] == "3098"
    assert {row["table"]: row["new"] for row in again}["ods.transactions"] == "0"
    assert answered[0]["n"] == "3098"
    assert Decimal(answered[0]["s"]) == Decimal(answered[0]["s"]).quantize(Decimal("0.01"))


def test_messages_go_to_standard_error_and_rows_to_standard_output(project):
    text = "CREATE TABLE a.t (x BIGINT); INSERT INTO a.t VALUES (1), (2); SHOW TABLES; SELECT SUM(x) AS s FROM a.t"

    shown = run("sql", "--project", str(project), "--format", "csv", stdin=text)

    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split("\n\n")[1] == "s\n3\n"
    assert "a.t" in shown.stdout.split("\n\n")[0]
    assert "table a.t" in shown.stderr


def test_a_file_of_statements_is_filled_in(project, tmp_path, capsys):
    (tmp_path / "f.sql").write_text("SELECT '${day}' AS d")

    status = main(["sql", "--project", str(project), "-f", str(tmp_path / "f.sql"), "-D", "day=2017-01-03", "--format", "csv"])

    assert (status, capsys.readouterr().out) == (0, "d\n2017-01-03\n")


def test_generate_measures_without_a_store(project, capsys):
    status = main(
        ["generate", "--project", str(project), "--kind", "exposures", "--rate", "1e4", "--span", "2s", "--dry-run", "--format", "json"]
    )

    (row,) = json.loads(capsys.readouterr().out)
    assert status == 0
    assert (row["events"], row["new"]) == (20_000, 20_000)


def test_status_of_a_project_where_nothing_runs_is_stopped(project, capsys):
    status = main(["status", "--project", str(project), "--format", "json"])

    rows = json.loads(capsys.readouterr().out)
    assert status == 0
    assert {row["name"]: row["health"] for row in rows} == dict.fromkeys(["store", "stream", "tiering", "webserver", "daemon"], "stopped")


def test_csv_keeps_every_value_readable():
    rows = pa.table(
        {
            "money": pa.array([Decimal("1.10"), None], pa.decimal128(12, 2)),
            'te"xt, x': ["a,b", 'say "x"'],
            "bytes": [b"\x01\xff", None],
            "list": [[1, 2], None],
            "at": pa.array([0, None], pa.timestamp("ms")),
        }
    )

    parsed = list(csv.reader(io.StringIO(csv_text(rows))))

    assert parsed[0] == ["money", 'te"xt, x', "bytes", "list", "at"]
    assert parsed[1] == ["1.10", "a,b", "01ff", "[1, 2]", "1970-01-01 00:00:00"]
    assert parsed[2] == ["", 'say "x"', "", "", ""]


def test_json_is_one_list_whatever_the_types(capsys):
    write_rows(pa.table({"d": pa.array([Decimal("1.10")], pa.decimal128(12, 2)), "b": [b"\xff"]}), "json")

    assert json.loads(capsys.readouterr().out) == [{"d": "1.10", "b": "ff"}]


def test_square_brackets_in_a_table_are_text(capsys):
    write_rows(pa.table({"a": ["[catalog] [bold]"]}), "table")

    assert "[catalog] [bold]" in capsys.readouterr().out


def test_a_new_project_deploys_and_its_job_is_known(tmp_path):
    written = make_project(tmp_path / "shop")

    with storage_engine.connect(f"file://{tmp_path}/store") as store:
        names = deploy(store, tmp_path / "shop" / "assets")
        again = deploy(store, tmp_path / "shop" / "assets")

        assert names == again == ["ods.orders", "dws.shop_day"]
        assert list(store.objects("job")) == ["shop_day"]
    assert tmp_path / "shop" / "flashlake.toml" in written


def test_init_does_not_write_over_a_project(tmp_path):
    make_project(tmp_path / "shop")
    before = {path: path.read_bytes() for path in (tmp_path / "shop").rglob("*") if path.is_file()}

    with pytest.raises(AlreadyExists, match="exists"):
        make_project(tmp_path / "shop")

    assert {path: path.read_bytes() for path in (tmp_path / "shop").rglob("*") if path.is_file()} == before


@pytest.mark.dagster
def test_dagster_loads_a_new_project(tmp_path):
    make_project(tmp_path / "shop")

    shown = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=tmp_path / "shop", capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert shown.returncode == 0, shown.stderr[-2000:]


def test_up_runs_the_definitions_status_shows_their_lag_and_down_ends_it(project):
    make = (
        "CREATE TABLE dws.n (store_id BIGINT NOT NULL, n BIGINT, PRIMARY KEY (store_id) NOT ENFORCED);\nSET 'pipeline.name' = 'counting';\n"
    )
    (project / "assets" / "dws").mkdir()
    (project / "assets" / "dws" / "n.sql").write_text(
        make + "INSERT INTO dws.n SELECT store_id, COUNT(*) FROM ods.transactions GROUP BY store_id;\n"
    )
    of_project = ["--project", str(project), "--format", "csv"]
    try:
        started = rows_of(run("up", *of_project, "store", "stream"))
        rows_of(run("ingest", *of_project, "--days", "1", "--tables", "ods.transactions"))
        counted = ""
        deadline = time.monotonic() + 30
        while counted != "3098":
            assert time.monotonic() < deadline, run("status", *of_project).stdout
            counted = rows_of(run("sql", *of_project, "-e", "SELECT SUM(n) AS n FROM dws.n"))[0]["n"]
        seen = {(row["kind"], row["name"]): row for row in rows_of(run("status", *of_project))}
    finally:
        ended = run("down", "--project", str(project))

    assert [row["service"] for row in started] == ["store", "stream"]
    assert (seen["service", "stream"]["health"], seen["service", "stream"]["lag_rows"]) == ("healthy", "0")
    assert (seen["job", "counting"]["health"], seen["job", "counting"]["lag_rows"]) == ("running", "0")
    assert seen["service", "tiering"]["health"] == "stopped"
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "store: stopped" in ended.stderr
