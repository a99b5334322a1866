"""How the suite waits: for a named event until a deadline. The one module of tests that sleeps (tests/test_architecture.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def await_true(question: Callable[[], Answer], what: object = "it", *, timeout_s: float = 20.0, every_s: float = 0.02) -> Answer:
    """Ask until the answer is true, and return it. AssertionError, naming `what`, when it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(every_s)
    return answer


def let_pass(seconds: float) -> None:
    """Let time pass where the time itself is the input of a test: the moment of a kill, a pause. Never to wait for something."""
    time.sleep(seconds)
