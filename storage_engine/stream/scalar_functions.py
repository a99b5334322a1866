"""Scalar functions: all that SQL has by name, from the tables that say what each means."""

from __future__ import annotations

from storage_engine.stream.builtins import BUILTINS, Builtin
from storage_engine.stream.json_syntax import NAMES as JSON_NAMES
from storage_engine.stream.nested import NESTED
from storage_engine.stream.text_and_numbers import TEXT_AND_NUMBERS

SCALARS: dict[str, Builtin] = {**BUILTINS, **TEXT_AND_NUMBERS, **NESTED}
WITH_SYNTAX = (*JSON_NAMES, "ROW", "TIMESTAMPADD", "TIMESTAMPDIFF")
"""Functions that expressions.py binds by itself."""
