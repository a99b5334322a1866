"""Scenario 3: a forecast of the day's orders, by a Python model over the orders so far and a baseline in the lake."""
