"""Flow: the order in which one worker runs its jobs: who writes a table before who reads it. Pure.

A row then passes through a chain of jobs in one round of the worker instead of one round per job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def upstream_first(sinks: Mapping[str, str], reads: Mapping[str, Iterable[str]]) -> list[str]:
    """The names of the jobs, each after those that write what it reads; otherwise in the order given. Jobs in a circle stay in theirs.

    sinks  job -> the table it writes; reads: job -> the tables it reads or looks up

    >>> upstream_first({"alert": "a", "cube": "c", "log": "l"}, {"alert": ["c"], "cube": ["l"], "log": ["raw"]})
    ['log', 'cube', 'alert']
    """
    writers: dict[str, list[str]] = {}
    for job, table in sinks.items():
        writers.setdefault(table, []).append(job)
    ordered: dict[str, None] = {}
    for job in sinks:
        _visit(job, writers, reads, ordered, visiting=set())
    return list(ordered)


def _visit(
    job: str, writers: Mapping[str, list[str]], reads: Mapping[str, Iterable[str]], ordered: dict[str, None], visiting: set[str]
) -> None:
    if job in ordered or job in visiting:
        return
    visiting.add(job)
    for table in reads[job]:
        for writer in writers.get(table, ()):
            _visit(writer, writers, reads, ordered, visiting)
    ordered[job] = None
