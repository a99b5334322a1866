"""The network faces of a store. `python -m storage_engine.server` is the process; FlightServer is its face for every call."""

from storage_engine.server.flight_server import FlightServer
from storage_engine.server.process import ServerProcess

__all__ = ["FlightServer", "ServerProcess"]
