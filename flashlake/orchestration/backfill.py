"""Backfill: recompute a range of days through Dagster's own queue, so that limits, policies and history hold.

It asks the web server for an asset backfill (never a job backfill, which ignores the policy) and follows its runs.
The range is inclusive at both ends, as Dagster's own ranges are.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from storage_engine.errors import InvalidPartition, StoreUnavailable, UnknownTable, UserError

_ASSET = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { __typename
  ... on AssetNode { isPartitioned isMaterializable partitionKeys backfillPolicy { policyType maxPartitionsPerRun } } } }"""
_LAUNCH = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename
  ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } ... on PartitionKeysNotFoundError { message } } }"""
_STATUS = """query($id: String!) { partitionBackfillOrError(backfillId: $id) { __typename
  ... on PythonError { message }
  ... on PartitionBackfill { status error { message } runs { runId status tags { key value } } } } }"""
_SECONDS_BETWEEN_POLLS = 1.0
_GOOD_ENDS = frozenset({"COMPLETED", "COMPLETED_SUCCESS"})
_BAD_ENDS = frozenset({"FAILED", "COMPLETED_FAILED", "CANCELED"})
_RUN_ENDS = frozenset({"SUCCESS", "FAILURE", "CANCELED"})


@dataclass(frozen=True)
class BackfillState:
    """A backfill as seen now. `n_done` counts partitions of successful runs; `runs` maps run id to status."""

    backfill_id: str
    status: str
    n_partitions: int
    n_done: int
    runs: dict[str, str]
    error: str = ""

    @property
    def is_over(self) -> bool:
        if self.status in _GOOD_ENDS | _BAD_ENDS:
            return True
        # The daemon looks every 30 s; when the runs of every partition have succeeded there is nothing to wait for.
        return self.n_done == self.n_partitions and all(status in _RUN_ENDS for status in self.runs.values())

    @property
    def is_success(self) -> bool:
        return self.n_done == self.n_partitions or self.status in _GOOD_ENDS


class DagsterUnavailable(StoreUnavailable):
    """Dagster's web server does not answer."""


def backfill(
    url: str,
    table: str,
    partitions: str,
    *,
    chunk: int | None = None,
    timeout_s: float = 3600.0,
    on_state: Callable[[BackfillState], None] = lambda _: None,
) -> BackfillState:
    """Recompute days of a table and wait for the end.

    url         Dagster's web server, for example http://127.0.0.1:3000
    table       "database.table"
    partitions  "A..B" (both included) or one partition "A"
    chunk       most partitions in one backfill, one backfill after another; None: all in one
    on_state    called after each look, at most once a second
    Errors: UnknownTable, InvalidPartition, DagsterUnavailable; UserError when a run fails, naming it.
    """
    keys = partition_range(asset_partitions(url, table), partitions, table)
    parts = [keys] if chunk is None else [keys[start : start + chunk] for start in range(0, len(keys), chunk)]
    n_before = 0
    runs: dict[str, str] = {}
    deadline = time.monotonic() + timeout_s
    state = BackfillState("", "REQUESTED", len(keys), 0, {})
    for part in parts:
        backfill_id = launch(url, table, part)
        while True:
            found = look(url, backfill_id, part)
            state = BackfillState(backfill_id, found.status, len(keys), n_before + found.n_done, {**runs, **found.runs}, found.error)
            on_state(state)
            if found.is_over:
                break
            if time.monotonic() > deadline:
                raise DagsterUnavailable(
                    f"backfill {backfill_id} is not done after {timeout_s:.0f} s",
                    where=table,
                    next_step="It goes on in Dagster; see its page under Runs, Backfills.",
                )
            time.sleep(_SECONDS_BETWEEN_POLLS)
        if not found.is_success:
            failed = [run for run, status in found.runs.items() if status != "SUCCESS"]
            reason = found.error or f"runs {', '.join(failed)} did not succeed"
            raise UserError(
                f"backfill {backfill_id} ended as {found.status}: {reason}",
                where=table,
                next_step=f"Read the run in Dagster: {url}/runs/{failed[0] if failed else ''}",
            )
        n_before += found.n_done
        runs.update(found.runs)
    return state


def asset_partitions(url: str, table: str) -> list[str]:
    """Partition keys of a table's asset, in order. Errors: UnknownTable, InvalidPartition for a table without partitions."""
    node = graphql(url, _ASSET, {"key": {"path": table.split(".")}})["assetNodeOrError"]
    if node["__typename"] != "AssetNode":
        raise UnknownTable(
            f"Dagster has no asset for {table}",
            where=url,
            next_step="Give the table as LAYER.NAME; its .sql file is assets/LAYER/NAME.sql.",
        )
    if not node["isMaterializable"]:
        raise UserError(
            f"{table} is filled from outside and cannot be recomputed",
            where="backfill",
            next_step="Load it with flashlake ingest; backfill the tables derived from it.",
        )
    if not node["isPartitioned"]:
        raise InvalidPartition(f"{table} has no partitions", where="backfill", next_step="Run flashlake verify on the whole table.")
    return node["partitionKeys"]


def partition_range(keys: Sequence[str], text: str, table: str) -> list[str]:
    """The keys from A to B, both included.

    >>> partition_range(["d1", "d2", "d3"], "d1..d2", "t")
    ['d1', 'd2']
    """
    first, dots, last = text.partition("..")
    last = last if dots else first
    position = {key: index for index, key in enumerate(keys)}
    for key in (first, last):
        if key not in position:
            raise InvalidPartition(
                f"{key!r} is not a partition of {table}",
                where=f"--partitions {text}",
                next_step=f"Partitions are {keys[0]} to {keys[-1]}; write A..B, both included." if keys else "There is no partition yet.",
            )
    if position[first] > position[last]:
        raise InvalidPartition(f"{first} is after {last}", where=f"--partitions {text}", next_step="Write the earlier partition first.")
    return list(keys[position[first] : position[last] + 1])


def launch(url: str, table: str, partitions: Sequence[str]) -> str:
    """Ask for one backfill; its id."""
    params = {
        "assetSelection": [{"path": table.split(".")}],
        "partitionNames": list(partitions),
        "tags": [{"key": "lane", "value": "backfill"}, {"key": "dagster/priority", "value": "-10"}],
        "title": f"{table} {partitions[0]}..{partitions[-1]}",
    }
    answer = graphql(url, _LAUNCH, {"params": params})["launchPartitionBackfill"]
    if answer["__typename"] != "LaunchBackfillSuccess":
        raise UserError(
            f"Dagster refused the backfill: {answer.get('message', answer['__typename'])}",
            where=table,
            next_step="See the asset's page in Dagster.",
        )
    return answer["backfillId"]


def look(url: str, backfill_id: str, partitions: Sequence[str]) -> BackfillState:
    """The state of a backfill now."""
    answer = graphql(url, _STATUS, {"id": backfill_id})["partitionBackfillOrError"]
    if answer["__typename"] != "PartitionBackfill":
        raise UserError(f"backfill {backfill_id} is not known: {answer.get('message', '')}", where=url, next_step="Start it again.")
    done: set[str] = set()
    for run in answer["runs"]:
        if run["status"] == "SUCCESS":
            done.update(_partitions_of(run["tags"], partitions))
    error = (answer["error"] or {}).get("message", "")
    return BackfillState(
        backfill_id, answer["status"], len(partitions), len(done), {run["runId"]: run["status"] for run in answer["runs"]}, error
    )


def _partitions_of(tags: Sequence[dict[str, str]], partitions: Sequence[str]) -> list[str]:
    values = {tag["key"]: tag["value"] for tag in tags}
    if (key := values.get("dagster/partition")) is not None:
        return [key]
    first, last = values.get("dagster/asset_partition_range_start"), values.get("dagster/asset_partition_range_end")
    if first is None or last is None:
        return []
    return [key for key in partitions if first <= key <= last]


def graphql(url: str, query: str, variables: dict[str, Any], timeout_s: float = 60.0) -> dict[str, Any]:
    """One GraphQL call; the `data` of the answer. Errors: DagsterUnavailable; UserError for an answer with errors."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})  # noqa: S310  # the address is the project's own web server
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            answer = json.load(response)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DagsterUnavailable(
            f"Dagster's web server does not answer: {error}", where=url, next_step="Start it with flashlake up."
        ) from error
    if answer.get("errors"):
        raise UserError(f"Dagster answered: {answer['errors'][0]['message']}", where=url, next_step="See Dagster's log.")
    return answer["data"]
