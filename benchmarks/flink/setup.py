"""Setup: Flink in an environment of its own: apache-flink by pip, connector and bitmaps by Maven, our functions by javac. Once.

Owner of: FLASHLAKE_FLINK (default ~/.cache/flashlake/flink). apache-flink pins pandas and pyarrow that are older than ours, so it
never shares our environment. Needs: java and javac 11 or newer, mvn and the network for the first time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from storage_engine.errors import UserError
from storage_engine.fluss.cluster import FLUSS_VERSION

FLINK_VERSION: Final = "2.2.1"
ROARING_VERSION: Final = "1.3.0"
_SOURCES: Final = Path(__file__).parent / "java"
_POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>local</groupId><artifactId>flink-jars</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.fluss</groupId><artifactId>fluss-flink-2.2</artifactId><version>{FLUSS_VERSION}</version></dependency>
<dependency><groupId>org.roaringbitmap</groupId><artifactId>RoaringBitmap</artifactId><version>{ROARING_VERSION}</version></dependency>
</dependencies></project>
"""


def root() -> Path:
    return Path(os.environ.get("FLASHLAKE_FLINK") or Path.home() / ".cache" / "flashlake" / "flink") / FLINK_VERSION


def python() -> Path:
    """The interpreter that has PyFlink."""
    return root() / "bin" / "python"


def set_up() -> Path:
    """Flink's home, complete. Errors: UserError naming the step that failed and what to do."""
    for tool in ("java", "javac", "jar", "mvn"):
        if shutil.which(tool) is None:
            raise UserError(f"there is no {tool} on the path", where="flink", next_step="Install a JDK of 11 or newer, and Maven.")
    done = root() / "installed"
    if not done.exists():
        print(f"  Flink {FLINK_VERSION} into {root()}: some minutes, once", file=sys.stderr)
        _run("python environment", [sys.executable, "-m", "venv", str(root())])
        _run("pip install", [str(python()), "-m", "pip", "install", "--quiet", f"apache-flink=={FLINK_VERSION}"])
        _fetch_jars(_home() / "lib")
        done.touch()
    _compile_functions(_home() / "lib")
    return _home()


def _home() -> Path:
    return next((root() / "lib").glob("python3*/site-packages/pyflink"))


def _fetch_jars(into: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        pom = Path(name) / "pom.xml"
        pom.write_text(_POM)
        goal = ["dependency:copy-dependencies", "-DexcludeTransitive=true", f"-DoutputDirectory={into}"]
        _run("Maven", ["mvn", "-q", "-B", "-f", str(pom), *goal])


def _compile_functions(lib: Path) -> None:
    """The jar of our functions, compiled anew when their sources have changed."""
    sources = sorted(_SOURCES.rglob("*.java"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    jar = lib / f"flashlake-bench-{digest}.jar"
    if jar.exists():
        return
    with tempfile.TemporaryDirectory() as classes:
        _run("javac", ["javac", "-nowarn", "--release", "11", "-cp", f"{lib}/*", "-d", classes, *map(str, sources)])
        for old in lib.glob("flashlake-bench-*.jar"):
            old.unlink()
        _run("jar", ["jar", "cf", str(jar), "-C", classes, "."])


def _run(step: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    if done.returncode:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise UserError(f"{step} failed: {tail}", where="flink", next_step=f"Repeat it by hand: {' '.join(command[:6])} ...")
