"""Jars: the two Delta jars that Spark needs, fetched once through Spark's own resolver and checked against jars.lock.

No address of a package repository stands here: the resolver knows its default and honours the user's mirror
(spark.jars.ivySettings, ~/.ivy2). A jar is written to a .part file, checked, then renamed: a jar of the right name is whole.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flashlake.setup.java import Java, spark_environment
from storage_engine.errors import DamageError, InvalidConfiguration

LOCK = Path(__file__).with_name("jars.lock")
# Everything the two POMs pull beside them is in Spark already, in newer versions. The resolver matches globs.
EXCLUDED = (
    "org.*:*",
    "com.*:*",
    "io.unitycatalog:*",
    "io.delta:delta-kernel*",
    "io.netty:*",
    "io.dropwizard*:*",
    "commons*:*",
    "ch.*:*",
    "net.*:*",
    "jakarta*:*",
    "javax*:*",
)
FETCH_SECONDS_MAX = 600


@dataclass(frozen=True)
class Jar:
    """One line of jars.lock."""

    sha256: str
    file: str
    coordinate: str


def locked_jars() -> list[Jar]:
    """The jars of jars.lock, in order."""
    lines = [line.split() for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return [Jar(*fields) for fields in lines]


def ensure_jars(folder: Path, java: Java, *, say: Callable[[str], None] = lambda _: None) -> bool:
    """Make sure that `folder` holds every locked jar; True if some were fetched. Needs the network only then.

    Errors: DamageError when a jar's bytes are not the locked ones; InvalidConfiguration when the resolver cannot fetch them.
    """
    missing = []
    for jar in locked_jars():
        path = folder / jar.file
        if not path.exists():
            missing.append(jar)
        elif sha256_of(path) != jar.sha256:
            raise DamageError(
                "the jar's sha256 is not the locked one",
                where=str(path),
                next_step="Remove the file and run `make setup`: it is fetched again.",
            )
    if not missing:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    say(f"fetching {len(missing)} jars through Spark's resolver (once)")
    with tempfile.TemporaryDirectory(prefix="flashlake-jars-") as scratch:
        resolve(missing, java, Path(scratch))
        for jar in missing:
            place(jar, Path(scratch), folder)
    return True


def resolve(jars: list[Jar], java: Java, scratch: Path) -> None:
    """Let Spark's resolver fetch the jars into scratch/ivy; a Spark program that does nothing is what makes it do so."""
    program = scratch / "nothing.py"
    program.write_text("")
    environment = spark_environment(java)
    command = [
        f"{environment['SPARK_HOME']}/bin/spark-submit",
        "--master",
        "local[1]",
        "--packages",
        ",".join(jar.coordinate for jar in jars),
        "--exclude-packages",
        ",".join(EXCLUDED),
        "--conf",
        f"spark.jars.ivy={scratch / 'ivy'}",
        str(program),
    ]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=FETCH_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise InvalidConfiguration(
            f"Spark's resolver did not finish within {FETCH_SECONDS_MAX} s",
            where="jars",
            next_step="Check the network and repeat `make setup`.",
        ) from error
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("\t")][-3:]
        raise InvalidConfiguration(
            "Spark's resolver could not fetch the Delta jars: " + " / ".join(last),
            where=", ".join(jar.coordinate for jar in jars),
            next_step="With the network restored, or a mirror in ivySettings, repeat `make setup`; or copy the files into jars/.",
        )


def place(jar: Jar, scratch: Path, folder: Path) -> None:
    """Copy one fetched jar into the folder: .part, check, rename."""
    found = [path for path in scratch.rglob(jar.file) if path.is_file()]
    if not found:
        raise InvalidConfiguration(
            f"Spark's resolver fetched no {jar.file}",
            where=jar.coordinate,
            next_step="Repeat `make setup`; or copy the file into jars/ yourself.",
        )
    part = folder / (jar.file + ".part")
    shutil.copyfile(found[0], part)
    if (actual := sha256_of(part)) != jar.sha256:
        part.unlink()
        raise DamageError(
            f"{jar.file} was fetched with sha256 {actual}, the lock says {jar.sha256}",
            where=jar.coordinate,
            next_step="Do not use it; check the mirror that served it.",
        )
    part.replace(folder / jar.file)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
