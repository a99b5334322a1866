"""Servers: the peers' processes, each over a directory of its own, on loopback and free ports.

Owner of: what start() began; stop() ends it by its pid file and leaves nothing running. Data stays in the directory.
Needs: redis-server on the path; Java 17 and, for the first fetch of the jars, mvn (Kafka, Fluss). Clients come with the extra `peers`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from storage_engine.errors import StoreUnavailable, UserError
from storage_engine.fluss.cluster import FlussCluster, free_ports

KAFKA_VERSION = "4.1.1"
READY_S = 60.0
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>local</groupId><artifactId>kafka-jars</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version></dependency>
</dependencies></project>
"""


class _Process:
    """One process with a pid file and a log."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._pid_file = directory / f"{name}.pid"
        self._log = directory / f"{name}.log"
        self._child: subprocess.Popen[bytes] | None = None

    def launch(self, command: list[str], is_ready: Callable[[], bool]) -> None:
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._pid_file.write_text(str(self._child.pid))
        deadline = time.monotonic() + READY_S
        while not is_ready():
            if self._child.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace").splitlines()[-5:]
                self.stop()
                raise StoreUnavailable(f"{command[0]} did not start: {' | '.join(tail)}", where=str(self._log), next_step="Read its log.")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(20)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._child = None
        self._pid_file.unlink(missing_ok=True)


class Redis(_Process):
    """A Redis without persistence, on a Unix socket."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "redis")
        self.socket = directory / "socket"

    def start(self) -> Redis:
        if shutil.which("redis-server") is None:
            raise UserError("there is no redis-server on the path", where="peers", next_step="Install it: apt-get install redis-server.")
        command = ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory), "--save", ""]
        self.launch([*command, "--appendonly", "no", "--daemonize", "no"], self.socket.exists)
        return self

    @property
    def version(self) -> str:
        import redis

        return redis.Redis(unix_socket_path=str(self.socket)).info("server")["redis_version"]


class Kafka(_Process):
    """A Kafka of one node (broker and controller in one process)."""

    version = KAFKA_VERSION

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "kafka")
        self._ports = free_ports(2)

    @property
    def bootstrap(self) -> str:
        return f"localhost:{self._ports[0]}"

    def start(self) -> Kafka:
        classpath = f"{_kafka_jars()}/*"
        broker, controller = self._ports
        properties = {
            "process.roles": "broker,controller", "node.id": 1, "controller.quorum.voters": f"1@localhost:{controller}",
            "listeners": f"PLAINTEXT://localhost:{broker},CONTROLLER://localhost:{controller}",
            "advertised.listeners": f"PLAINTEXT://localhost:{broker}", "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT", "log.dirs": self.directory / "data",
            "num.partitions": 1, "offsets.topic.replication.factor": 1, "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1, "group.initial.rebalance.delay.ms": 0, "message.max.bytes": 20_000_000,
        }  # fmt: skip
        file = self.directory / "server.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        if not (self.directory / "data" / "meta.properties").exists():
            cluster_id = "MkU3OEVBNTcwNTJENDM2Qk"  # any 16 bytes in base 64
            format_storage = ["java", "-cp", classpath, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(file)]
            subprocess.run(format_storage, check=True, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.launch(["java", "-Xmx1g", "-cp", classpath, "kafka.Kafka", str(file)], lambda: _answers(broker))
        return self


def _kafka_jars() -> Path:
    """The folder of Kafka's jars, fetched by Maven once. Errors: UserError without java or mvn."""
    if shutil.which("java") is None:
        raise UserError("there is no java on the path", where="peers", next_step="Install Java 17.")
    root = Path(os.environ.get("FLASHLAKE_KAFKA_JARS") or Path.home() / ".cache" / "flashlake" / "kafka")
    folder = root / KAFKA_VERSION
    if list(folder.glob("kafka_2.13-*.jar")):
        return folder
    if shutil.which("mvn") is None:
        hint = f"Install Maven, or put kafka_2.13-{KAFKA_VERSION}.jar and what it needs into {folder}."
        raise UserError("Kafka's jars are not here, and there is no mvn to fetch them", where="peers", next_step=hint)
    root.mkdir(parents=True, exist_ok=True)
    pom = root / "pom.xml"
    pom.write_text(_POM.format(version=KAFKA_VERSION))
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    subprocess.run(["mvn", "-q", "-B", "-f", str(pom), *goal], check=True, timeout=600)
    return folder


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Peers:
    """The peers that the cases ask for, started once each. A context manager: what was started is stopped."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._redis: Redis | None = None
        self._kafka: Kafka | None = None
        self._fluss: FlussCluster | None = None

    def redis(self) -> Redis:
        self._redis = self._redis or Redis(self.directory / "redis").start()
        return self._redis

    def kafka(self) -> Kafka:
        self._kafka = self._kafka or Kafka(self.directory / "kafka").start()
        return self._kafka

    def fluss(self) -> FlussCluster:
        self._fluss = self._fluss or FlussCluster(self.directory / "fluss").start()
        return self._fluss

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        for started in (self._redis, self._kafka, self._fluss):
            if started is not None:
                started.stop()
