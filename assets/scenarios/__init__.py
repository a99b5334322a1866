"""The article's five scenarios (Taobao Instant Commerce on Fluss), each run whole and held to an independent answer.

NAME/statements.sql   the article's statements as printed, placeholders filled when they run, elided columns written out
NAME/events.py        made input: event number i is a function of seed and i, so any part of it can be made again
NAME/expected.py      what the tables must hold, computed without the platform
NAME/scenario.py      the run against real processes, its measurements and checks
`make scenarios` runs them (python -m assets.scenarios). They are no part of the Dagster code location, whose tables are
assets/LAYER/NAME.sql, two levels deep: each scenario has a store, a lake and processes of its own (docs/adr/0023).
"""
