"""The store server's process: opens the directory, listens, says that it is ready, and stops on SIGTERM or SIGINT.

Standard output carries one line, when calls are accepted: `ready flashlake://HOST:PORT ...`. Everything else goes to standard error.
SIGUSR1 writes every thread's stack there. Exit status: 0 stopped as asked, 1 refused (one line says why), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import faulthandler
import ipaddress
import logging
import os
import signal
import socket
import sys

import pyarrow as pa

from storage_engine.client.flight import DEFAULT_PORT
from storage_engine.engine.consumers import EXPIRATION_MS
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.engine.key_budget import BYTES_MAX
from storage_engine.engine.partitions import PARTITIONS_MAX
from storage_engine.errors import FlashlakeError, InvalidConfiguration, StoreUnavailable
from storage_engine.server.flight_server import FlightServer
from storage_engine.server.socket_server import SocketServer

_HOUR_MS = 3_600_000
logger = logging.getLogger("storage_engine.server")


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    faulthandler.register(signal.SIGUSR1)  # all threads' stacks to standard error, for a server that does not answer
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        return _serve(options)
    except FlashlakeError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the process's own refusal
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m storage_engine.server",
        description="Serve one store directory over Arrow Flight.",
        epilog="example: python -m storage_engine.server --dir data/store --port 9650",
    )
    parser.add_argument("--dir", required=True, help="the store's directory; made when it does not exist")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; only loopback addresses, as there is no authentication")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port to listen on; 0 takes a free one (default %(default)s)")
    parser.add_argument("--sync", choices=["commit", "none"], default="commit", help="when a commit is acknowledged (default %(default)s)")
    parser.add_argument("--partitions-max", type=int, default=PARTITIONS_MAX, help="partitions one table may have (default %(default)s)")
    parser.add_argument(
        "--consumer-expiration-hours", type=float, default=EXPIRATION_MS / _HOUR_MS,
        help="a consumer that has not committed for so long, and has no live member, is forgotten; 0: never (default %(default)g)",
    )  # fmt: skip
    help_text = "memory for key indexes, in MiB; what is beyond moves to disk (default %(default)s)"
    parser.add_argument("--key-memory-mb", type=int, default=BYTES_MAX >> 20, help=help_text)
    parser.add_argument("--stop-timeout-s", type=float, default=10.0, help="how long to wait for calls in flight when stopping")
    return parser.parse_args(arguments)


def _serve(options: argparse.Namespace) -> int:
    stop = _StopSignal()
    require_loopback(options.host)
    require_free_port(options.host, options.port)
    backend = EmbeddedBackend.open(
        options.dir,
        sync=options.sync,
        partitions_max=options.partitions_max,
        consumer_expiration_ms=int(options.consumer_expiration_hours * _HOUR_MS),
        key_memory_bytes_max=options.key_memory_mb << 20,
    )
    try:
        server = FlightServer(backend, host=options.host, port=options.port)
    except pa.ArrowException as error:
        backend.close()
        raise StoreUnavailable(str(error), where=f"{options.host}:{options.port}", next_step="Choose another --port.") from error
    server.lane_address = SocketServer(backend, server, host=options.host).address
    version = backend.version()
    print(f"ready flashlake://{options.host}:{server.port} dir={options.dir} version={version} pid={os.getpid()}", flush=True)  # noqa: T201
    stop.wait()
    logger.info("stopping")
    if server.drain(options.stop_timeout_s):
        backend.close()
    else:
        logger.warning("calls were still in flight after %s s; the log is whole, the next start replays it", options.stop_timeout_s)
    logging.shutdown()
    # Flight's shutdown waits until the last client closes its last stream; a process that has closed its store need not.
    os._exit(0)


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


def require_loopback(host: str) -> None:
    """Errors: InvalidConfiguration for an address that other machines can reach: the server has no authentication."""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise InvalidConfiguration(
            f"{host} is not a loopback address and this server has no authentication", where="--host", next_step="Listen on 127.0.0.1."
        )


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
