"""Errors on the wire: a FlashlakeError travels as names and texts and is raised as the same class at the other end.

Holds: what, where, next_step and every attribute of the leaf (pid, file, offset, ...) survive the way.
A class that the reader does not know (an older client) becomes the nearest parent that it does know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage_engine.errors import FlashlakeError

_TEXTS = ("what", "where", "next_step")


def encode_error(error: FlashlakeError) -> dict[str, Any]:
    """The error as JSON values: its classes from leaf to root, its three texts, its attributes.

    >>> from storage_engine.errors import UnknownTable
    >>> encode_error(UnknownTable("no table a.b", where="store", next_step="SHOW TABLES."))["classes"]
    ['UnknownTable', 'UserError', 'FlashlakeError']
    """
    classes = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, FlashlakeError)]
    attributes = {name: value for name, value in vars(error).items() if name not in _TEXTS and _is_plain(value)}
    return {"classes": classes, **{name: getattr(error, name) for name in _TEXTS}, "attributes": attributes}


def decode_error(value: Mapping[str, Any]) -> FlashlakeError:
    """The inverse of encode_error: an exception to raise."""
    known = _known_classes()
    kind = next((known[name] for name in value["classes"] if name in known), FlashlakeError)
    error = kind.__new__(kind)
    FlashlakeError.__init__(error, value["what"], where=value["where"], next_step=value["next_step"])
    for name, attribute in value["attributes"].items():
        setattr(error, name, attribute)
    return error


def _known_classes() -> dict[str, type[FlashlakeError]]:
    found: dict[str, type[FlashlakeError]] = {FlashlakeError.__name__: FlashlakeError}
    pending = [FlashlakeError]
    while pending:
        for child in pending.pop().__subclasses__():
            found[child.__name__] = child
            pending.append(child)
    return found


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))
