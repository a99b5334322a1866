"""Scenario 2: a wide table of shops by hour, each stream writing columns of its own."""
