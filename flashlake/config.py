"""Config: the one typed configuration of a project, from flashlake.toml and the environment.

Every key has a type, a default and a unit or meaning; the environment overrides (FLASHLAKE__STORE__PORT=9700).
Paths are relative to the project: the folder that holds flashlake.toml. Nothing is read twice; a Config does not change.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage_engine.errors import InvalidConfiguration

FILE_NAME = "flashlake.toml"
ENV_PREFIX = "FLASHLAKE__"
PROJECT_ENV = "FLASHLAKE_PROJECT"

Port = Annotated[int, Field(ge=1, le=65535)]
OptionalPath = Path | Literal[""]


class Section(BaseModel):
    """A table of flashlake.toml: an unknown key is refused, and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreSection(Section):
    """The streaming store and its server."""

    dir: Path = Field(default=Path("data/store"), description="folder of the store; one process opens it at a time")
    host: str = Field(default="127.0.0.1", description="address the server listens on; other than loopback needs authentication")
    port: Port = Field(default=9650, description="port the server listens on (Arrow Flight)")
    partitions_max: int = Field(default=1000, ge=1, description="partitions one table may have")
    consumer_expiration_hours: float = Field(
        default=168.0, ge=0, description="hours after which a consumer that commits nothing and has no live member is forgotten; 0: never"
    )
    key_memory_mb: int = Field(
        default=4096, ge=1, description="memory for the key indexes of primary-key tables, in MiB (about 20 B per key); more moves to disk"
    )
    url: str = Field(
        default="", description='where the store is, if not ours: "flashlake://host:port"; empty: the server above, else the folder'
    )


class ServerSection(Section):
    """What the store server asks of its callers, and what it holds at most; docs/server.md explains."""

    authentication: Literal["on", "off"] = Field(default="off", description="on: every caller needs a user or token; off: loopback only")
    token_file: OptionalPath = Field(default="", description="token of this project's processes and commands; empty: the environment's")
    stream_token_file: OptionalPath = Field(default="", description="token of the stream worker; empty: the one above")
    tiering_token_file: OptionalPath = Field(default="", description="token of the tiering worker; empty: the one above")
    tls_cert: OptionalPath = Field(default="", description="PEM certificate (chain) for TLS on both lanes; empty: plain TCP")
    tls_key: OptionalPath = Field(default="", description="PEM private key of the certificate")
    tls_ca: OptionalPath = Field(default="", description="PEM of the authority that clients verify with; empty: the machine's own list")
    plain_passwords: Literal["refuse", "allow"] = Field(
        default="refuse", description="allow: beyond loopback without TLS, secrets and rows readable by whoever listens to the network"
    )
    lane_port: Annotated[int, Field(ge=0, le=65535)] = Field(default=0, description="port of the socket lane; 0: a free one")
    metrics_port: Annotated[int, Field(ge=-1, le=65535)] = Field(default=-1, description="port of the Prometheus page; -1: none")
    metrics_host: str = Field(default="127.0.0.1", description="address of that page, which asks nobody who they are")
    memory_mb_max: int = Field(default=1024, ge=1, description="MiB of requests in flight")
    request_mb_max: int = Field(default=512, ge=1, description="MiB of one request")
    connections_max: int = Field(default=1024, ge=1, description="connections per lane")
    idle_seconds_max: float = Field(default=900, gt=0, description="seconds after which a silent connection is closed")
    stall_seconds_max: float = Field(default=300, gt=0, description="seconds after which a connection that takes nothing is closed")
    drain_seconds_max: float = Field(default=10, ge=0, description="seconds that calls in flight get when the server stops")
    log_format: Literal["text", "json"] = Field(default="text", description="one record a line, as text or as JSON")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level of a record")


class LakeSection(Section):
    """Delta tables behind the store."""

    root: Path = Field(default=Path("data/lake"), description="folder of the lake: ROOT/database/table")


class DagsterSection(Section):
    """Dagster's web server and daemon."""

    home: Path = Field(default=Path("data/dagster"), description="DAGSTER_HOME: run history, schedules, event log")
    host: str = Field(default="127.0.0.1", description="address the web server listens on")
    port: Port = Field(default=3000, description="port of the web server")
    workspace: Path = Field(default=Path("workspace.yaml"), description="the code locations Dagster loads")


class SparkSection(Section):
    """Batch work on Spark."""

    master: str = Field(default="local[2]", description="Spark master: local[N] or spark://host:port")
    driver_memory: str = Field(default="2g", description="memory of the driver JVM; plan 3 GB of resident memory for 2g")
    shuffle_partitions: int = Field(default=4, ge=1, description="spark.sql.shuffle.partitions")
    jars: Path | Literal[""] = Field(default=Path("jars"), description="folder of the Delta jars; empty: the cluster has them")
    conf: dict[str, str] = Field(default_factory=dict, description="further spark.* settings, passed on as they are")


class QuerySection(Section):
    """DuckDB queries."""

    memory_limit: str = Field(default="4GB", description="memory of one query session before it spills")
    spill_dir: Path = Field(default=Path("data/spill"), description="where queries spill")


class StreamSection(Section):
    """The workers that run stream jobs; docs/streaming.md explains."""

    workers: int = Field(default=1, ge=1, le=64, description="processes that share the jobs; each more takes about 300 MB")
    lanes: int = Field(default=2, ge=1, le=64, description="jobs of one worker that run a micro-batch at the same time")


class ServicesSection(Section):
    """Processes that `flashlake up` supervises."""

    log_dir: Path = Field(default=Path("data/logs"), description="one log file per service")
    run_dir: Path = Field(default=Path("data/run"), description="records of the running processes")
    start_seconds_max: int = Field(default=120, ge=1, description="seconds until a started service must be healthy")
    stop_seconds_max: int = Field(default=20, ge=1, description="seconds a service gets to stop before it is killed")
    backoff_seconds_max: int = Field(default=30, ge=1, description="longest pause between restarts of a failing service, in seconds")


class DemoSection(Section):
    """`flashlake demo`."""

    first_day: str = Field(
        default="2017-01-01", pattern=r"^\d{4}-\d{2}-\d{2}$", description="first day of real transactions that is streamed"
    )
    days: int = Field(default=14, ge=1, le=366, description="how many days are streamed")
    seed: int = Field(default=7, ge=0, description="seed of the made events")


class UdfSection(Section):
    """Python functions of SQL."""

    modules: str = Field(
        default="",
        description="modules CREATE FUNCTION may name, with commas; empty: any, with authentication those of [functions] only",
    )


class Config(Section):
    """All settings of a project. Paths are absolute once `load_config` returns it; `project` is the folder."""

    store: StoreSection = StoreSection()
    server: ServerSection = ServerSection()
    lake: LakeSection = LakeSection()
    dagster: DagsterSection = DagsterSection()
    spark: SparkSection = SparkSection()
    query: QuerySection = QuerySection()
    stream: StreamSection = StreamSection()
    services: ServicesSection = ServicesSection()
    demo: DemoSection = DemoSection()
    udf: UdfSection = UdfSection()
    functions: dict[str, str] = Field(default_factory=dict, description="name in CREATE FUNCTION ... AS 'name' to 'python.module.function'")
    project: Path = Field(default=Path("."), exclude=True)

    @property
    def server_url(self) -> str:
        """The URL of the store server that this project starts (or of the store named by store.url)."""
        scheme = "flashlake+tls" if self.server.tls_cert else "flashlake"
        host = "127.0.0.1" if self.store.host in ("0.0.0.0", "::") else self.store.host  # noqa: S104 - what is named in the file
        return self.store.url or f"{scheme}://{host}:{self.store.port}"

    @property
    def directory_url(self) -> str:
        """The URL that opens the store's folder in this process."""
        return f"file://{self.store.dir}"


def find_project(start: Path | None = None) -> Path:
    """The project folder: FLASHLAKE_PROJECT, else the nearest folder upwards from `start` with a flashlake.toml.

    Errors: InvalidConfiguration when there is none.
    """
    if start is None and (named := os.environ.get(PROJECT_ENV)):
        start = Path(named)
        if not (start / FILE_NAME).exists():
            raise InvalidConfiguration(
                f"{PROJECT_ENV} names a folder without {FILE_NAME}",
                where=named,
                next_step="Name a project, or make one with `flashlake init`.",
            )
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).exists():
            return folder
    raise InvalidConfiguration(
        f"no {FILE_NAME} here or above",
        where=str(here),
        next_step="Go into a project, name one with --project DIR, or make one with `flashlake init DIR`.",
    )


def load_config(project: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Read PROJECT/flashlake.toml, apply the environment, check every key, make every path absolute.

    `project`: None searches as `find_project` does; a named folder need not hold a file (then: defaults).
    Errors: InvalidConfiguration naming the key, the file or variable, and what would be right.
    """
    folder = (project or find_project()).resolve()
    if not folder.is_dir():
        raise InvalidConfiguration(
            "the project folder does not exist",
            where=str(folder),
            next_step="Name a project, or make one with `flashlake init DIR`.",
        )
    file = folder / FILE_NAME
    try:
        values: dict[str, Any] = tomllib.loads(file.read_text()) if file.exists() else {}
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfiguration(
            f"not valid TOML: {error}", where=str(file), next_step="Correct the line; `flashlake init` shows a whole file."
        ) from error
    origin = dict.fromkeys(_flat_keys(values), str(file))
    for variable, key, value in _overrides(os.environ if environ is None else environ):
        section = values
        *path, last = key
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
        origin[".".join(key)] = f"environment variable {variable}"
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _explain(error, origin, str(file)) from None
    return _absolute(config, folder)


def render_toml(config: Config | None = None) -> str:
    """A whole flashlake.toml: every key with its value and its meaning; what `flashlake init` writes.

    >>> "port = 9650  # port the server listens on (Arrow Flight)" in render_toml()
    True
    """
    config = config or Config()
    lines = [
        "# Flashlake's configuration. Paths are relative to this file's folder.",
        "# The environment overrides: FLASHLAKE__SECTION__KEY, for example FLASHLAKE__STORE__PORT=9700.",
    ]
    tables = []
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            lines += ["", f"[{name}]  # {(type(value).__doc__ or '').strip()}"]
            for key, inner in type(value).model_fields.items():
                if isinstance(getattr(value, key), dict):
                    tables.append((f"{name}.{key}", getattr(value, key), inner.description))
                else:
                    lines.append(f"{key} = {_literal(getattr(value, key))}  # {inner.description}")
        elif isinstance(value, dict):
            tables.append((name, value, field.description))
    for name, value, description in tables:
        lines += ["", f"[{name}]  # {description}", *(f"{json.dumps(key)} = {_literal(entry)}" for key, entry in value.items())]
    return "\n".join(lines) + "\n"


def _literal(value: object) -> str:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else json.dumps(str(value))


def _overrides(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX):
            yield variable, tuple(variable[len(ENV_PREFIX) :].lower().split("__")), environ[variable]


def _flat_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat_keys(value, f"{prefix}{key}.")
        yield f"{prefix}{key}"


def _known_keys() -> list[str]:
    keys = []
    for name, field in Config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        keys += [f"{name}.{key}" for key in type(default).model_fields] if isinstance(default, Section) else [name]
    return [key for key in keys if key != "project"]


def _explain(error: ValidationError, origin: Mapping[str, str], file: str) -> InvalidConfiguration:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    where = origin.get(key, file)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _known_keys(), n=1)
        hint = f"Did you mean {near[0]}?" if near else "Remove it; `flashlake init` writes a file with every key."
        return InvalidConfiguration(f"unknown key {key}", where=where, next_step=hint)
    return InvalidConfiguration(
        f"{key} = {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}", where=where, next_step=f"Give {key} another value."
    )


def _absolute(config: Config, folder: Path) -> Config:
    def resolve(section: Section) -> Section:
        changed = {key: (folder / value) for key, value in section if isinstance(value, Path)}
        return section.model_copy(update=changed)

    sections = {name: resolve(value) for name, value in config if isinstance(value, Section)}
    return config.model_copy(update={**sections, "project": folder})
