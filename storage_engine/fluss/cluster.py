"""Cluster: a Fluss of one node on loopback, for tests and measurements: ZooKeeper, coordinator and tablet server from one jar.

Owner of: a directory with configuration, logs, data and the three processes' ids. stop() ends what start() began.
Needs: java 11 or newer and, for the first fetch of the jars, mvn. Jars are kept in FLASHLAKE_FLUSS_JARS (default ~/.cache/flashlake/fluss).
Meant for: python -m storage_engine.fluss.cluster start|stop|status DIR
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from storage_engine.errors import StoreUnavailable, UserError

FLUSS_VERSION = "0.9.1-incubating"
LOG4J_VERSION = "2.24.3"
READY_S = 90.0
STOP_S = 20.0
ROLES = ("zookeeper", "coordinator", "tablet")
_MAIN = {
    "zookeeper": "org.apache.fluss.shaded.zookeeper3.org.apache.zookeeper.server.quorum.QuorumPeerMain",
    "coordinator": "org.apache.fluss.server.coordinator.CoordinatorServer",
    "tablet": "org.apache.fluss.server.tablet.TabletServer",
}
_HEAP = {"zookeeper": "256m", "coordinator": "512m", "tablet": "1g"}
_REGISTERED = "New tablet server callback"
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>local</groupId><artifactId>fluss-jars</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.fluss</groupId><artifactId>fluss-server</artifactId><version>{fluss}</version></dependency>
<dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>{log4j}</version></dependency>
<dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId><version>{log4j}</version></dependency>
</dependencies></project>
"""
_LOG = """rootLogger.level=INFO
rootLogger.appenderRef.console.ref=console
appender.console.name=console
appender.console.type=CONSOLE
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{HH:mm:ss,SSS} %-5p %c{1} - %m%n
"""


def jars() -> Path:
    """The folder of the server's jars, fetched by Maven once. Errors: UserError without java or mvn."""
    if shutil.which("java") is None:
        raise UserError("there is no java on the path", where="Fluss cluster", next_step="Install Java 11 or newer.")
    root = Path(os.environ.get("FLASHLAKE_FLUSS_JARS") or Path.home() / ".cache" / "flashlake" / "fluss")
    folder = root / FLUSS_VERSION
    if list(folder.glob("fluss-server-*.jar")):
        return folder
    if shutil.which("mvn") is None:
        hint = f"Install Maven, or put fluss-server-{FLUSS_VERSION}.jar and log4j into {folder}."
        raise UserError("the Fluss server's jars are not here, and there is no mvn to fetch them", where="Fluss cluster", next_step=hint)
    root.mkdir(parents=True, exist_ok=True)
    pom = root / "pom.xml"
    pom.write_text(_POM.format(fluss=FLUSS_VERSION, log4j=LOG4J_VERSION))
    fetched = root / f"{FLUSS_VERSION}.{os.getpid()}"
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={fetched}"]
    subprocess.run(command, check=True, timeout=600)
    if not folder.exists():
        fetched.rename(folder)
    return folder


def free_ports(n: int) -> list[int]:
    """Ports of loopback on which nothing listens now."""
    probes = [socket.socket() for _ in range(n)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class FlussCluster:
    """Three processes over one directory. start() twice is start() once; data stays over stop() and start()."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory).absolute()
        self._state = self.directory / "cluster.json"

    @property
    def url(self) -> str:
        return f"fluss://localhost:{self._ports()['coordinator']}"

    def start(self) -> FlussCluster:
        """Start what does not run and wait until a tablet server is registered. Errors: StoreUnavailable with the log's last lines."""
        classpath = f"{jars()}/*"
        self._configure()
        for role in ROLES:
            if self.pid(role) is None:
                self._launch(role, classpath)
            self._await(role, lambda role=role: _answers(self._ports()[role]))
        self._await("coordinator", lambda: _REGISTERED in (self.directory / "log" / "coordinator.log").read_text(errors="replace"))
        return self

    def stop(self) -> None:
        """End the processes, the tablet server first; data stays."""
        for role in reversed(ROLES):
            pid = self.pid(role)
            if pid is not None:
                os.kill(pid, signal.SIGTERM)
                deadline = time.monotonic() + STOP_S
                while self.pid(role) is not None and time.monotonic() < deadline:
                    time.sleep(0.05)
                if self.pid(role) is not None:
                    os.kill(pid, signal.SIGKILL)
            self._pid_file(role).unlink(missing_ok=True)

    def pid(self, role: str) -> int | None:
        """The running process of a role, None if there is none."""
        try:
            pid = int(self._pid_file(role).read_text())
            done, _ = os.waitpid(pid, os.WNOHANG)
            return None if done else pid
        except (FileNotFoundError, ValueError):
            return None
        except ChildProcessError:
            # not a child of this process: started by an earlier one
            words = Path(f"/proc/{pid}/cmdline")
            return pid if words.exists() and _MAIN[role] in words.read_text() else None

    def _pid_file(self, role: str) -> Path:
        return self.directory / f"{role}.pid"

    def _ports(self) -> dict[str, int]:
        return json.loads(self._state.read_text())

    def _configure(self) -> None:
        if not self._state.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._state.write_text(json.dumps(dict(zip(ROLES, free_ports(3), strict=True))))
        for name in ("log", "zookeeper", "coordinator", "tablet", "remote", "coordinator-data", "tablet-data"):
            (self.directory / name).mkdir(exist_ok=True)
        ports = self._ports()
        (self.directory / "log4j2.properties").write_text(_LOG)
        keeper = {
            "tickTime": 2000, "dataDir": self.directory / "zookeeper", "clientPort": ports["zookeeper"], "clientPortAddress": "127.0.0.1",
            "maxClientCnxns": 0, "admin.enableServer": "false",
        }  # fmt: skip
        (self.directory / "zookeeper.properties").write_text("".join(f"{name}={value}\n" for name, value in keeper.items()))
        for role in ("coordinator", "tablet"):
            server = {
                "zookeeper.address": f"localhost:{ports['zookeeper']}", "zookeeper.path.root": "/fluss", "default.bucket.number": 1,
                "default.replication.factor": 1, "data.dir": self.directory / f"{role}-data", "remote.data.dir": self.directory / "remote",
                "bind.listeners": f"FLUSS://localhost:{ports[role]}", "kv.snapshot.interval": "30s",
            }  # fmt: skip
            if role == "tablet":
                server["tablet-server.id"] = 0
            (self.directory / role / "server.yaml").write_text("".join(f"{name}: {value}\n" for name, value in server.items()))

    def _launch(self, role: str, classpath: str) -> None:
        arguments = [str(self.directory / "zookeeper.properties")] if role == "zookeeper" else ["--configDir", str(self.directory / role)]
        # without this the shaded Arrow of the server fails at the first upsert, which then never returns
        opens = "--add-opens=java.base/java.nio=ALL-UNNAMED"
        logging = f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}"
        command = ["java", f"-Xmx{_HEAP[role]}", opens, logging, "-cp", classpath, _MAIN[role], *arguments]
        with (self.directory / "log" / f"{role}.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._pid_file(role).write_text(str(process.pid))

    def _await(self, role: str, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S
        while not is_ready():
            if self.pid(role) is None or time.monotonic() > deadline:
                tail = (self.directory / "log" / f"{role}.log").read_text(errors="replace").splitlines()[-5:]
                self.stop()
                raise StoreUnavailable(f"{role} did not start: {' | '.join(tail)}", where="Fluss cluster", next_step="Read its log.")
            time.sleep(0.1)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main(arguments: list[str]) -> None:
    """Start, stop or show a cluster of one node in a directory."""
    parser = argparse.ArgumentParser(prog="python -m storage_engine.fluss.cluster", description="A Fluss of one node on loopback.")
    parser.add_argument("action", choices=["start", "stop", "status"])
    parser.add_argument("directory", type=Path)
    given = parser.parse_args(arguments)
    cluster = FlussCluster(given.directory)
    if given.action == "start":
        sys.stdout.write(f"{cluster.start().url}\n")
    elif given.action == "stop":
        cluster.stop()
    else:
        sys.stdout.write("".join(f"{role} {cluster.pid(role) or 'not running'}\n" for role in ROLES))


if __name__ == "__main__":
    main(sys.argv[1:])
