"""The store's time in the hands of a test."""

from __future__ import annotations


class Clock:
    """Milliseconds since 1970, as the store asks for them; a test moves `now_ms`."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms
