"""Capabilities: which features a call needs, and the refusal when a backend does not declare one. Pure.

Holds: a call is refused before anything of it is sent or done, naming the feature and the backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from storage_engine.api import CommitRequest, EncodedAppend, OffsetSpec
from storage_engine.errors import UnsupportedByBackend


def require(capabilities: frozenset[str], features: Iterable[str], *, backend: str) -> None:
    """Errors: UnsupportedByBackend for the first of `features` that is not among `capabilities`."""
    for feature in features:
        if feature not in capabilities:
            raise UnsupportedByBackend(
                f"this backend lacks {feature}", where=backend, next_step=f"It has: {', '.join(sorted(capabilities)) or 'nothing'}."
            )


def features_of_commit(request: CommitRequest) -> Iterator[str]:
    """What a commit needs.

    >>> list(features_of_commit(CommitRequest()))
    []
    """
    for op in request.ops:
        if isinstance(op, EncodedAppend):
            yield "append"
            continue
        yield op.kind
        if op.columns is not None and op.kind != "retract":
            yield "partial_update"
    if len({op.table for op in request.ops}) > 1 or (request.ops and request.progress):
        yield "transactions"


def features_of_lookup(*, insert_if_not_exists: bool) -> Iterator[str]:
    """What a lookup needs of a backend."""
    yield "lookup"
    if insert_if_not_exists:
        yield "insert_if_not_exists"


def features_of_offsets(which: OffsetSpec) -> Iterator[str]:
    """What offsets need, besides a log.

    >>> list(features_of_offsets("latest")), list(features_of_offsets("timestamp"))
    ([], ['scan_from_timestamp'])
    """
    if which == "timestamp":
        yield "scan_from_timestamp"
    if which == "last":
        yield "last_rows"


def features_of_read(at_version: int | None) -> Iterator[str]:
    """What a read needs of a backend; at a version, a journal to name it by."""
    yield "read"
    if at_version is not None:
        yield "read_at_version"
