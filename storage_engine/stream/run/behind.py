"""Behind: the commit of a micro-batch on its way to the store, while the job computes the next one.

Holds: at most one commit is on its way, and what comes after it is sent only when it was answered; who reads a table that it writes waits
       for it. So the store sees the same commits in the same order, with the same contents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage_engine.api import CommitResult
    from storage_engine.stream.operators.beside import Beside


class Behind:
    """The commit of one job that is on its way; none at first."""

    def __init__(self, beside: Beside) -> None:
        self._beside = beside
        self._commit: Future[CommitResult] | None = None
        self._tables: frozenset[str] = frozenset()

    def send(self, commit: Callable[[], CommitResult], tables: Iterable[str]) -> None:
        """Begin a commit that writes `tables`, in another thread. The one before it has been awaited."""
        assert self._commit is None, "a commit is on its way already"
        self._commit, self._tables = self._beside.begin(commit), frozenset(tables)

    def settle(self, table: str | None = None) -> CommitResult | None:
        """Wait for what is on its way, or only where it writes `table`; its result, or None when nothing was. Errors: its own."""
        if self._commit is None or not (table is None or table in self._tables):
            return None
        commit, self._commit = self._commit, None
        return commit.result()
