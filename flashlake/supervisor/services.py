"""Services: which processes make up a running platform, how each is started, what it waits for, how its health is seen."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flashlake.access import has_own_credentials
from flashlake.config import PROJECT_ENV, Config
from flashlake.functions import function_sources
from flashlake.setup.java import find_java, spark_environment
from flashlake.supervisor.probes import Probe, always, http_answers, store_answers
from storage_engine.errors import InvalidConfiguration

STREAM = "stream"


@dataclass(frozen=True)
class Service:
    """One supervised process.

    needs        names of services that must be healthy before this one is started
    port_key     the configuration key of the port it listens on, with host and port; None: it listens on none
    settle_s     seconds it must have lived before it counts as healthy; for services that answer no probe
    """

    name: str
    command: tuple[str, ...]
    probe: Probe
    needs: tuple[str, ...] = ()
    address: str = ""
    port_key: tuple[str, str, int] | None = None
    settle_s: float = 0.0
    environment: Callable[[], Mapping[str, str]] = dict


def store_service(config: Config) -> Service:
    """The store's server; it is healthy when it answers a call."""
    store = config.store
    return Service(
        "store",
        (sys.executable, "-m", "storage_engine.server", *server_options(config)),
        probe=store_answers(config.server_url, config.server.tls_ca),
        address=config.server_url,
        port_key=("store.port", store.host, store.port),
    )


def server_options(config: Config) -> list[str]:
    """The server's command line."""
    store, server = config.store, config.server
    options: dict[str, object] = {
        "--dir": store.dir,
        "--host": store.host,
        "--port": store.port,
        "--partitions-max": store.partitions_max,
        "--consumer-expiration-hours": store.consumer_expiration_hours,
        "--key-memory-mb": store.key_memory_mb,
        "--authentication": server.authentication,
        "--tls-cert": server.tls_cert,
        "--tls-key": server.tls_key,
        "--lane-port": server.lane_port,
        "--metrics-port": server.metrics_port,
        "--metrics-host": server.metrics_host,
        "--memory-max-bytes": server.memory_mb_max << 20,
        "--request-max-bytes": server.request_mb_max << 20,
        "--connections-max": server.connections_max,
        "--idle-timeout-s": server.idle_seconds_max,
        "--stall-timeout-s": server.stall_seconds_max,
        "--stop-timeout-s": server.drain_seconds_max,
        "--log-format": server.log_format,
        "--log-level": server.log_level,
    }
    words = [f"{name}={value}" for name, value in options.items() if value != ""]
    return [*words, "--allow-plain-passwords"] if server.plain_passwords == "allow" else words


def stream_service(config: Config, name: str = STREAM) -> Service:
    """A stream worker, which may run the functions that the configuration allows; it needs the store."""
    sources = function_sources(config)
    allowed = json.dumps({"modules": sources.modules, "names": dict(sources.names)})
    options = ("--python-path", str(config.project), "--functions", allowed, "--lanes", str(config.stream.lanes))
    command = (sys.executable, "-m", "storage_engine.stream", "--store", config.server_url, *options)
    environment = _token_environment(config.server.stream_token_file)
    return Service(name, command, probe=always, needs=_store_of(config), settle_s=3.0, environment=lambda: environment)


def tiering_service(config: Config) -> Service:
    """The worker that brings tables into the lake; it needs the store."""
    command = (sys.executable, "-m", "storage_engine.lake", "--store", config.server_url, "--lake", str(config.lake.root))
    environment = _token_environment(config.server.tiering_token_file)
    root = str(config.lake.root)
    return Service("tiering", command, probe=always, needs=_store_of(config), settle_s=3.0, address=root, environment=lambda: environment)


def webserver_service(config: Config) -> Service:
    """Dagster's web server over the workspace of the project."""
    dagster = config.dagster
    url = f"http://{dagster.host}:{dagster.port}"
    return Service(
        "webserver",
        (_tool("dagster-webserver"), "-h", dagster.host, "-p", str(dagster.port), "-w", str(dagster.workspace)),
        probe=http_answers(f"{url}/server_info"),
        needs=_store_of(config),
        address=url,
        port_key=("dagster.port", dagster.host, dagster.port),
        environment=lambda: dagster_environment(config),
    )


def daemon_service(config: Config) -> Service:
    """Dagster's daemon: schedules, sensors, the run queue."""
    command = (_tool("dagster-daemon"), "run", "-w", str(config.dagster.workspace))
    return Service("daemon", command, probe=always, needs=_store_of(config), settle_s=5.0, environment=lambda: dagster_environment(config))


_MAKERS: dict[str, Callable[[Config], Service]] = {
    "store": store_service,
    STREAM: stream_service,
    "tiering": tiering_service,
    "webserver": webserver_service,
    "daemon": daemon_service,
}
SERVICE_NAMES = tuple(_MAKERS)
"""In the order in which they start; they stop in the opposite one. `stream` stands for all stream workers."""


def kind_of(name: str) -> str:
    """Which of SERVICE_NAMES a service is.

    >>> kind_of("stream-2"), kind_of("store")
    ('stream', 'store')
    """
    return name.partition("-")[0]


def services(config: Config) -> dict[str, Service]:
    """All services of this configuration, by name. With a store that is not ours there is no store service.

    The stream workers are `stream`, `stream-2`, `stream-3`, ...
    """
    names = [name for name in SERVICE_NAMES if name != "store" or not config.store.url]
    at = names.index(STREAM) + 1
    names[at:at] = [f"{STREAM}-{number}" for number in range(2, config.stream.workers + 1)]
    return {name: service_of(config, name) for name in names}


def service_of(config: Config, name: str) -> Service:
    """The service of that name, whether or not the configuration has so many stream workers."""
    return stream_service(config, name) if kind_of(name) == STREAM else _MAKERS[name](config)


def base_environment(config: Config) -> dict[str, str]:
    """What every service gets: the project it belongs to, who it is at the store, its modules, and unbuffered output."""
    access = {
        **({} if has_own_credentials() else _token_environment(config.server.token_file)),
        **({"FLASHLAKE_TLS_CA": str(config.server.tls_ca)} if config.server.tls_ca else {}),
    }
    path = os.pathsep.join([str(config.project), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    return {**os.environ, **access, PROJECT_ENV: str(config.project), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def dagster_environment(config: Config) -> dict[str, str]:
    """For Dagster's processes and what they launch: DAGSTER_HOME, and the Java that Spark runs on."""
    try:
        spark = spark_environment(find_java())
    except InvalidConfiguration:
        spark = {}  # without Java only the Spark assets fail, and they say so themselves
    return {
        "DAGSTER_HOME": str(config.dagster.home),
        **{key: spark[key] for key in ("PATH", "JAVA_HOME", "SPARK_HOME", "PYSPARK_PYTHON") if key in spark},
    }


def _token_environment(file: Path | str) -> dict[str, str]:
    """For one service user: its token comes before whatever else the environment says."""
    return {"FLASHLAKE_TOKEN_FILE": str(file), "FLASHLAKE_TOKEN": "", "FLASHLAKE_USER": "", "FLASHLAKE_PASSWORD": ""} if file else {}


def _store_of(config: Config) -> tuple[str, ...]:
    return () if config.store.url else ("store",)


def _tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)
