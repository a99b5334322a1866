"""Scalar functions: all that SQL has by name, from the tables that say what each means."""

from __future__ import annotations

from storage_engine.stream.dialect.json_syntax import NAMES as JSON_NAMES
from storage_engine.stream.functions.builtins import BUILTINS, Builtin
from storage_engine.stream.functions.nested import NESTED
from storage_engine.stream.functions.text_and_numbers import TEXT_AND_NUMBERS

SCALARS: dict[str, Builtin] = {**BUILTINS, **TEXT_AND_NUMBERS, **NESTED}
WITH_SYNTAX = (*JSON_NAMES, "JSON_STRING", "ROW", "TIMESTAMPADD", "TIMESTAMPDIFF")
"""Functions that expressions.py binds by itself."""
