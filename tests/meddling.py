"""A store in which something happens at the n-th call: every gap between two calls of a reader can be tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from storage_engine.api import Backend
from storage_engine.client.store import Store
from storage_engine.connection import wrap


class Meddler:
    """Stands before a backend and runs `act` right before call number `at_call`. `has_acted` says whether it came to that."""

    def __init__(self, backend: Backend, at_call: int, act: Callable[[], None]) -> None:
        self._backend = backend
        self._left = at_call
        self._act = act
        self.has_acted = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self.has_acted = True
                self._act()
            return found(*arguments, **options)

        return call


def meddled(store: Store, at_call: int, act: Callable[[], None]) -> tuple[Store, Meddler]:
    """The same store for another client, with something that happens in the midst of its calls."""
    meddler = Meddler(store.backend, at_call, act)
    return wrap(meddler), meddler  # type: ignore[arg-type]  # it answers every method by its backend
