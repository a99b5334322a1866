"""The store server's process: opens the directory, listens, says that it is ready, and stops on SIGTERM or SIGINT.

Standard output carries one line, when calls are accepted: `ready flashlake://HOST:PORT ...`. Everything else goes to standard error.
SIGUSR1 writes every thread's stack there. The first SIGTERM refuses new calls and waits for those in flight, a second one does not.
Exit status: 0 stopped as asked, 1 refused (one line says why), 2 wrong usage, 3 stopped with calls broken off.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable

import pyarrow as pa
from prometheus_client.core import Metric

from storage_engine.access import Users
from storage_engine.api import Backend
from storage_engine.client.endpoint import DEFAULT_PORT
from storage_engine.engine.consumers import EXPIRATION_MS
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.engine.key_budget import BYTES_MAX
from storage_engine.engine.partitions import PARTITIONS_MAX
from storage_engine.errors import FlashlakeError, InvalidConfiguration, StoreUnavailable
from storage_engine.no_pandas import go_without_pandas
from storage_engine.server.admission import Limits
from storage_engine.server.authentication import Authenticator
from storage_engine.server.connections import ConnectionWatcher
from storage_engine.server.flight_server import FlightServer
from storage_engine.server.logs import start_logging
from storage_engine.server.metrics import Metrics, store_metrics
from storage_engine.server.socket_server import SocketServer
from storage_engine.server.tls import Certificate, load_certificate, require_safe

STOPPED, REFUSED, CUT_OFF = 0, 1, 3
_SAME_REQUEST_S = 1.0
_HOUR_MS = 3_600_000

logger = logging.getLogger("storage_engine.server")


def main(arguments: list[str] | None = None) -> int:
    """Serve a directory until a signal ends it; the exit status. A refusal is one line on standard error."""
    options = _parse(arguments)
    go_without_pandas()
    faulthandler.register(signal.SIGUSR1)  # all threads' stacks to standard error, for a server that does not answer
    start_logging(options.log_format, options.log_level)
    try:
        return _serve(options)
    except FlashlakeError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the process's own refusal
        return REFUSED


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m storage_engine.server",
        description="Serve one store directory over Arrow Flight, and over a socket lane for lookups and small commits.",
        epilog="example: python -m storage_engine.server --dir data/store --port 9650",
    )
    add = parser.add_argument
    add("--dir", required=True, help="the store's directory; made when it does not exist")
    add("--host", default="127.0.0.1", help="address to listen on; one beyond loopback needs authentication and TLS")
    add("--port", type=int, default=DEFAULT_PORT, help="port to listen on; 0 takes a free one (default %(default)s)")
    add("--lane-port", type=int, default=0, help="port of the socket lane, which clients are told; 0 takes a free one (default 0)")
    add("--sync", choices=["commit", "none"], default="commit", help="when a commit is acknowledged (default %(default)s)")
    add("--partitions-max", type=int, default=PARTITIONS_MAX, help="partitions one table may have (default %(default)s)")
    add("--consumer-expiration-hours", type=float, default=EXPIRATION_MS / _HOUR_MS,
        help="a consumer without commits for so long, and without a live member, is forgotten; 0: never (default %(default)g)")  # fmt: skip
    add("--key-memory-mb", type=int, default=BYTES_MAX >> 20,
        help="memory for key indexes, in MiB; what is beyond moves to disk (default %(default)s)")  # fmt: skip
    add("--stop-timeout-s", type=float, default=10.0, help="how long to wait for calls in flight when stopping")
    add("--authentication", choices=["on", "off"], default="off", help="ask every caller for a user or token (default %(default)s)")
    add("--tls-cert", default="", metavar="FILE", help="PEM certificate (chain) for TLS on both lanes; with --tls-key")
    add("--tls-key", default="", metavar="FILE", help="PEM private key of the certificate, not encrypted")
    add("--allow-plain-passwords", action="store_true",
        help="beyond loopback without TLS: passwords, tokens and rows cross the network readable by whoever can listen to it")  # fmt: skip
    limits = Limits()
    add("--memory-max-bytes", type=int, default=limits.bytes_in_flight_max, help="bytes of requests in flight (default %(default)s)")
    add("--request-max-bytes", type=int, default=limits.request_bytes_max, help="bytes of one request (default %(default)s)")
    add("--connections-max", type=int, default=limits.connections_max, help="connections per lane (default %(default)s)")
    add("--idle-timeout-s", type=float, default=limits.idle_s, help="a connection silent for so long is closed (default %(default)s)")
    add("--stall-timeout-s", type=float, default=limits.stall_s,
        help="a connection that takes nothing of what it is sent for so long is closed (default %(default)s)")  # fmt: skip
    add("--greeting-timeout-s", type=float, default=limits.greeting_s,
        help="a connection that has not said who it is after so long is closed (default %(default)s)")  # fmt: skip
    add("--metrics-port", type=int, default=-1, help="port of the Prometheus page /metrics; 0 takes a free one, -1 has none (default)")
    add("--metrics-host", default="127.0.0.1", help="address of that page, which asks nobody who they are (default %(default)s)")
    add("--log-format", choices=["text", "json"], default="text", help="one record a line, as text or as JSON (default %(default)s)")
    add("--log-level", choices=["debug", "info", "warning", "error"], default="info", help="least level of a record (default %(default)s)")
    return parser.parse_args(arguments)


def _serve(options: argparse.Namespace) -> int:
    stop = _StopSignal()
    is_on = options.authentication == "on"
    if bool(options.tls_cert) != bool(options.tls_key):
        raise InvalidConfiguration("TLS needs both", where="--tls-cert, --tls-key", next_step="Give certificate and key.")
    certificate = load_certificate(options.tls_cert, options.tls_key) if options.tls_cert else None
    require_safe(options.host, is_authenticated=is_on, is_encrypted=certificate is not None, allows_plain=options.allow_plain_passwords)
    require_free_port(options.host, options.port)
    backend = EmbeddedBackend.open(
        options.dir,
        sync=options.sync,
        partitions_max=options.partitions_max,
        consumer_expiration_ms=int(options.consumer_expiration_hours * _HOUR_MS),
        key_memory_bytes_max=options.key_memory_mb << 20,
    )
    try:
        server, lanes = _listen(options, backend, certificate)
        metrics_port = _serve_metrics(options, server, lanes)
    except BaseException:
        backend.close()
        raise
    scheme = "flashlake" if certificate is None else "flashlake+tls"
    page = f" metrics=http://{options.metrics_host}:{metrics_port}/metrics" if metrics_port else ""
    print(  # noqa: T201 - the one line that says so
        f"ready {scheme}://{options.host}:{server.port} dir={options.dir} version={backend.version()} pid={os.getpid()}{page}", flush=True
    )
    stop.wait()
    logger.info("stopping")
    threading.Thread(target=_end_at_second_signal, args=(stop,), daemon=True).start()
    lanes.close()
    status = STOPPED
    if server.drain(options.stop_timeout_s):
        backend.close()
    else:
        logger.warning("calls were still in flight after %s s; the log is whole, the next start replays it", options.stop_timeout_s)
        status = CUT_OFF
    logging.shutdown()
    # Flight's shutdown waits until the last client closes its last stream; a process that has closed its store need not.
    os._exit(status)


def _listen(options: argparse.Namespace, backend: EmbeddedBackend, certificate: Certificate | None) -> tuple[FlightServer, SocketServer]:
    """Both lanes, answering. Errors: InvalidConfiguration when nobody could log in; StoreUnavailable for a port in use."""
    is_on = options.authentication == "on"
    if is_on and not Users(backend).users():
        raise InvalidConfiguration(
            "authentication is on and there is no user",
            where=str(options.dir),
            next_step="Make an administrator first: flashlake user add NAME --admin.",
        )
    limits = Limits(
        bytes_in_flight_max=options.memory_max_bytes,
        request_bytes_max=options.request_max_bytes,
        connections_max=options.connections_max,
        idle_s=options.idle_timeout_s,
        stall_s=options.stall_timeout_s,
        greeting_s=options.greeting_timeout_s,
    )
    authenticator = Authenticator(backend, is_on=is_on)
    metrics = Metrics(store_metrics(backend))
    metrics.sources.append(lambda: _job_metrics(backend))
    try:
        address = {"host": options.host, "port": options.port, "certificate": certificate}
        server = FlightServer(
            backend, **address, authenticator=authenticator, limits=limits, metrics=metrics, spool_directory=str(options.dir)
        )
        lanes = SocketServer(server, host=options.host, port=options.lane_port, certificate=certificate)
    except (pa.ArrowException, OSError) as error:
        where = f"{options.host}:{options.port}, lane {options.lane_port}"
        raise StoreUnavailable(str(error), where=where, next_step="Choose another --port or --lane-port.") from error
    server.lane_address = lanes.address_for
    return server, lanes


def _job_metrics(backend: Backend) -> Iterable[Metric]:
    """Numbers of the stream jobs. They need the SQL engine's modules, which a server without jobs does not load."""
    if not backend.objects("job"):
        return ()
    from storage_engine.server.job_metrics import job_metrics

    return job_metrics(backend)


def _serve_metrics(options: argparse.Namespace, server: FlightServer, lanes: SocketServer) -> int:
    """Watch the Flight port's connections, and answer with the page of numbers if one is asked for; its port, 0 for none."""
    watcher = ConnectionWatcher(server.port, server.admission.limits)
    if options.metrics_port < 0:
        return 0
    admission, metrics = server.admission, server.metrics
    metrics.gauges |= {
        "connections": ("Open connections by lane.", lambda: {"flight": float(watcher.n_open), "socket": float(lanes.n_open)}),
        "streams": ("Open Flight exchange streams.", lambda: server.n_streams),
        "calls_in_flight": ("Calls being answered.", lambda: server.n_in_flight),
        "bytes_in_flight": ("Bytes of requests being read or answered.", lambda: admission.n_bytes),
        "pressure": ("What clients are told: 0 none, below 1.", admission.pressure),
    }
    metrics.counters |= {
        "backpressure_refusals": ("Requests refused for want of room.", lambda: admission.n_refused),
        "closed_connections": ("Flight connections that the server closed, by reason.", lambda: dict(watcher.closed)),
    }
    return metrics.serve(options.metrics_host, options.metrics_port)


def _end_at_second_signal(stop: _StopSignal) -> None:
    """A second SIGTERM or SIGINT ends the process at once: nothing acknowledged is lost by that.

    A supervisor that signals the group and then each process is one request: what comes within a second of the first is that.
    """
    first_s = time.monotonic()
    stop.wait()
    while time.monotonic() - first_s < _SAME_REQUEST_S:
        stop.wait()
    logger.warning("a second signal: calls in flight are broken off")
    logging.shutdown()
    os._exit(CUT_OFF)


class _StopSignal:
    """SIGTERM or SIGINT, whichever of the process's threads the kernel gives it to: the handler writes a byte that wait() reads.

    An Event that a handler sets does not do: handlers run in the main thread, which sleeps in wait() when another thread got the signal.
    """

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def wait(self) -> None:
        os.read(self._reader, 1)


def require_free_port(host: str, port: int) -> None:
    """Errors: StoreUnavailable when something listens there. Asked before the directory is opened, so that nothing is half started."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise StoreUnavailable(
                f"port {port} is in use", where=f"{host}:{port}", next_step="Stop what listens there, or choose another --port."
            ) from error


if __name__ == "__main__":
    sys.exit(main())
