"""jobs: list, describe, stop, pause, resume, drop stream jobs, and change how they are run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from flashlake.cli.options import command, config_of, with_format, with_store
from flashlake.cli.output import say, write_rows
from flashlake.sql import open_store
from storage_engine import Store
from storage_engine.errors import UserError

CHANGES = ("stop", "pause", "resume", "drop", "set", "reset")


def add_to(found: Any) -> None:
    parser = command(
        found, "jobs", run_jobs, summary="list, describe, stop, pause, resume and drop stream jobs, and change how they are run",
        more="list: state, lag, rows per second, state size and last error of each. describe: all of one job, its plan and statement too.\n"
        "drop: forget a stopped job with its state and progress; its rows stay. set, reset: options such as\n"
        "table.exec.mini-batch.allow-latency, table.exec.mini-batch.size, pipeline.micro-batch.min, pipeline.poison-row.",
        example="flashlake jobs list\nflashlake jobs describe shop_exposure --format json\nflashlake jobs pause shop_exposure\n"
        "flashlake jobs set shop_exposure pipeline.poison-row=quarantine 'table.exec.mini-batch.allow-latency=1 s'\n"
        "flashlake jobs reset shop_exposure pipeline.poison-row\nflashlake jobs stop shop_exposure\nflashlake jobs drop shop_exposure",
    )  # fmt: skip
    parser.add_argument("action", choices=["list", "describe", *CHANGES])
    parser.add_argument("name", nargs="?", default="", metavar="JOB", help="the job's name")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="set: KEY=VALUE ...; reset: KEY ...")
    parser.add_argument("--if-exists", action="store_true", help="drop: it is no error when there is no such job")
    with_store(parser)
    with_format(parser)


def run_jobs(options: argparse.Namespace) -> int:
    _check_words(options)
    with open_store(config_of(options), options.store) as store:
        if options.action in CHANGES:
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
