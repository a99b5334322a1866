"""Latest: the version of a store and the ends of several logs at it, which is what a reader of several tables begins with.

A backend behind a wire may answer it at once (AnswersLatest); any other is asked one question after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from storage_engine.api import Backend
from storage_engine.schema.descriptor import Offsets

Latest = tuple[int, dict[str, Offsets]]
"""The version, and the next offsets of each table at that version."""


@runtime_checkable
class AnswersLatest(Protocol):
    def latest(self, tables: Sequence[str]) -> Latest: ...


def latest_of(backend: Backend, tables: Sequence[str]) -> Latest:
    """Question by question; all offsets are those of the one version."""
    version = backend.version()
    return version, {table: backend.offsets(table, "latest", version) for table in tables}
