"""The layers hold: imports point down, doors are free of logic, modules say what they are and stay small."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["storage_engine", "query_engine", "spark_jobs", "flashlake", "resources", "assets", "definitions"]
BELOW = {
    "storage_engine": set(),
    "query_engine": {"storage_engine"},
    "spark_jobs": {"storage_engine"},
    "flashlake": {"storage_engine", "query_engine", "spark_jobs"},
    "resources": {"storage_engine", "query_engine", "spark_jobs", "flashlake"},
    "assets": {"storage_engine", "query_engine", "spark_jobs", "flashlake", "resources"},
    "definitions": {"storage_engine", "query_engine", "spark_jobs", "flashlake", "resources", "assets"},
}
STORE_ROOMS = [
    "errors", "no_pandas", "schema", "api", "access", "log", "kv", "engine", "client", "fluss", "stream", "lake", "server", "connection",
]  # fmt: skip
STREAM_ROOMS = ["dialect", "functions", "plan", "operators", "planning", "jobs", "run", "session"]
LINES_MAX = 520


def modules() -> list[Path]:
    return sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.append((node.lineno, node.module))
    return found


def top_level_imports(path: Path) -> list[tuple[int, str]]:
    """Imports outside functions and TYPE_CHECKING blocks: what loading the module loads."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.append((node.lineno, node.module))
    return found


def test_there_is_code_to_check() -> None:
    assert len(modules()) > 50


def test_no_layer_imports_a_higher_one() -> None:
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules()
        for line, name in imports(path)
        if (root := name.split(".")[0]) in LAYERS and root != (layer := path.relative_to(ROOT).parts[0]) and root not in BELOW[layer]
    ]
    assert upward == []


def upward_imports(folder: Path, rooms: list[str]) -> list[str]:
    """Imports of a module in a room of a package from a room that comes later in the list."""
    package = ".".join(folder.relative_to(ROOT).parts)
    upward = []
    for path in sorted(folder.rglob("*.py")):
        room = path.relative_to(folder).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        for line, name in top_level_imports(path):
            if name.startswith(f"{package}.") and rooms.index(name.removeprefix(f"{package}.").split(".")[0]) > rooms.index(room):
                upward.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return upward


def test_rooms_of_the_store_import_only_rooms_below_them() -> None:
    assert upward_imports(ROOT / "storage_engine", STORE_ROOMS) == []


def test_rooms_of_the_stream_import_only_rooms_below_them() -> None:
    assert upward_imports(ROOT / "storage_engine" / "stream", STREAM_ROOMS) == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no header"


def test_no_module_outgrows_its_room(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = sorted(((path.read_text().count("\n"), str(path.relative_to(ROOT))) for path in modules()), reverse=True)
    with capsys.disabled():
        sys.stderr.write("\nlongest modules: " + ", ".join(f"{name} {lines}" for lines, name in sizes[:10]) + "\n")
    assert [name for lines, name in sizes if lines > LINES_MAX] == []


def test_the_store_reaches_its_files_through_the_disk_alone() -> None:
    """A simulation that takes Disk's place then decides the fate of every byte."""
    modules = {"os", "io", "shutil", "tempfile", "fcntl", "glob"}
    calls = {
        "exists", "is_dir", "is_file", "iterdir", "glob", "rglob", "mkdir", "rmdir", "touch", "stat", "lstat", "resolve", "read_bytes",
        "read_text", "write_bytes", "write_text", "samefile", "hardlink_to", "symlink_to", "memory_map", "OSFile", "input_stream",
        "output_stream", "create_memory_map", "fromfile", "tofile", "memmap", "LocalFileSystem", "FileSystem", "unlink", "rename",
    }  # fmt: skip
    around = []
    for room in ("log", "kv", "engine"):
        for path in sorted((ROOT / "storage_engine" / room).rglob("*.py")):
            name = path.relative_to(ROOT / "storage_engine")
            if str(name) == "log/disk.py":
                continue
            around += [f"{name}:{line} imports {module}" for line, module in imports(path) if module.split(".")[0] in modules]
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                function = node.func
                if isinstance(function, ast.Name) and function.id == "open":
                    around.append(f"{name}:{node.lineno} calls open")
                if isinstance(function, ast.Attribute) and function.attr == "mmap" and ast.unparse(node.args[0]) != "-1":
                    around.append(f"{name}:{node.lineno} maps a file")  # -1: memory that is no file
                if isinstance(function, ast.Attribute) and function.attr in calls and not _is_disk(function.value):
                    around.append(f"{name}:{node.lineno} calls {function.attr}")
    assert around == []


def _is_disk(node: ast.expr) -> bool:
    """`disk` or `self._disk` and the like, whose methods have some of the names of a path's."""
    return (isinstance(node, ast.Name) and node.id == "disk") or (isinstance(node, ast.Attribute) and node.attr in ("disk", "_disk"))


def test_spark_code_runs_under_connect_too() -> None:
    """No driver-only handles: the same code must run against a Spark Connect server."""
    forbidden = ("._jvm", "._jsc", ".sparkContext", ".rdd")
    hits = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in sorted((ROOT / "spark_jobs").rglob("*.py"))
        for word in forbidden
        if word in path.read_text()
    ]
    assert hits == []


def test_tests_wait_for_events_and_not_for_time() -> None:
    """A sleep is too long on a fast machine and too short on a busy one: tests/waiting.py asks until a deadline."""
    sleeps = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if path.name != "waiting.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep", "threading.Event().wait")
    ]
    assert sleeps == []
