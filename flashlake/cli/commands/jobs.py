"""jobs: list, describe, stop, pause, resume, drop stream jobs, and change how they are run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from flashlake.cli.options import config_of
from flashlake.cli.output import say, write_rows
from flashlake.cli.usage import JOB_CHANGES
from flashlake.sql import open_store
from storage_engine import Store
from storage_engine.errors import UserError


def run_jobs(options: argparse.Namespace) -> int:
    _check_words(options)
    with open_store(config_of(options), options.store) as store:
        if options.action in JOB_CHANGES:
            say(_change(options)(store))
        else:
            from storage_engine.stream import load_job
            from storage_engine.stream.session import reports

            is_list = options.action == "list"
            write_rows(reports.jobs(store) if is_list else reports.job(store, load_job(store, options.name)), options.format)
    return 0


def _change(options: argparse.Namespace) -> Callable[[Store], str]:
    from storage_engine.stream.jobs import operate

    name, words = options.name, options.options
    changes: dict[str, Callable[[Store], str]] = {
        "stop": lambda store: operate.stop(store, name),
        "pause": lambda store: operate.pause(store, name),
        "resume": lambda store: operate.resume(store, name),
        "drop": lambda store: operate.drop(store, name, if_exists=options.if_exists),
        "set": lambda store: operate.alter(store, name, pairs_of(words)),
        "reset": lambda store: operate.alter(store, name, {}, tuple(words)),
    }
    return changes[options.action]


def _check_words(options: argparse.Namespace) -> None:
    """Errors: UserError for an action without its job or its options, or with words that it does not take."""
    action = options.action
    takes_options = action in ("set", "reset")
    if bool(options.name) != (action != "list") or bool(options.options) != takes_options:
        form = {"list": "", "set": " JOB KEY=VALUE ...", "reset": " JOB KEY ..."}.get(action, " JOB")
        raise UserError(f"{action} takes{form or ' nothing'}", where="jobs", next_step=f"Write flashlake jobs {action}{form}.")
    if options.if_exists and action != "drop":
        raise UserError("--if-exists is of drop", where="jobs", next_step="Leave it out.")


def pairs_of(words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE ... as a mapping. Errors: UserError for a word without = or a key given twice.

    >>> pairs_of(["a=1", "b=x=y"])
    {'a': '1', 'b': 'x=y'}
    """
    pairs: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key or key in pairs:
            what = f"{key} is given twice" if key in pairs else f"{word!r} is not KEY=VALUE"
            raise UserError(what, where="jobs set", next_step="Write KEY=VALUE, once for each key.")
        pairs[key] = value
    return pairs
