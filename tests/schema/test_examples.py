"""The examples in the docstrings of the schema hold."""

import doctest
import importlib

import pytest

MODULES = ("bucketing", "ddl", "keys", "options", "partitions", "predicate", "reader", "rows", "scanner", "types", "validate")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_hold(name):
    module = importlib.import_module(f"storage_engine.schema.{name}")

    assert doctest.testmod(module).failed == 0
