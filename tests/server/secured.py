"""Secured: a real server process with authentication and TLS, its authority, and an administrator."""

from __future__ import annotations

from pathlib import Path

import storage_engine
from storage_engine import Store
from storage_engine.access import Users
from storage_engine.server import ServerProcess
from tests.contract.conftest import free_port  # noqa: F401 - a fixture
from tests.server.authority import Authority

ADMIN = {"user": "admin", "password": "correct horse"}
TABLES = """
    CREATE TABLE shop.orders (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED);
    CREATE TABLE shop.salaries (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED);
    CREATE TABLE other.log (x BIGINT)
"""


def make_admin(directory: Path) -> None:
    with storage_engine.connect(directory.as_uri()) as store:
        users = Users(store.backend)
        users.create(ADMIN["user"], ADMIN["password"])
        users.make_administrator(ADMIN["user"])


class Secured:
    """A server with authentication and TLS, its authority, and an administrator's store."""

    def __init__(self, folder: Path) -> None:
        self.directory = folder / "store"
        self.authority = Authority(folder)
        make_admin(self.directory)
        self.options = ["--authentication", "on", "--log-format", "json", *self.authority.server("127.0.0.1").options]
        self.server = ServerProcess(self.directory, options=self.options).start()
        self.admin = self.connect(**ADMIN)
        self.admin.execute(TABLES)
        self.admin.table("shop.orders").upsert({"k": [1, 2], "v": ["a", "b"]})

    def connect(self, **access: str) -> Store:
        return storage_engine.connect(self.server.url, tls_ca=self.authority.ca, retry_s=5.0, **access)

    def user(self, name: str, *grants: str) -> Store:
        """A new user with these grants, connected."""
        self.admin.execute(f"CREATE USER {name} IDENTIFIED BY 'battery staple'")
        for grant in grants:
            self.admin.execute(f"GRANT {grant} TO {name}")
        return self.connect(user=name, password="battery staple")

    def secrets_in_log(self) -> list[str]:
        """Which of what nobody may read the server's log says."""
        return [word for word in ("correct horse", "battery staple", "wrong horse", "Bearer", "Basic ") if word in self.server.log()]


def socket_of(store: Store):
    """The socket lane that the store's next small call goes over."""
    store.table("shop.orders").lookup([1])
    (writer,) = store.backend._writers._idle
    return writer.socket
