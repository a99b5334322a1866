"""DagsterRun: one run of assets through Dagster's queue, followed to its end, with the results of the assets' checks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashlake.orchestration.backfill import graphql
from storage_engine.errors import StoreUnavailable, UserError

_PLACE = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { __typename
  ... on AssetNode { jobNames repository { name location { name } } } } }"""
_LAUNCH = """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } ... on RunConfigValidationInvalid { errors { message } } } }"""
_STATUS = "query($id: ID!) { runOrError(runId: $id) { __typename ... on Run { status } } }"
_CHECKS = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { assetChecksOrError {
  ... on AssetChecks { checks { name executionForLatestMaterialization { runId status } } } } } } }"""
_ROWS = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { assetMaterializations(limit: 1) {
  runId metadataEntries { label ... on IntMetadataEntry { intValue } } } } } }"""
_LOCATIONS = """{ workspaceOrError { __typename ... on PythonError { message } ... on Workspace { locationEntries {
  name loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }"""
_ENDS = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class DagsterRun:
    """A run that ended in success. n_rows: dagster/row_count of the last asset, if it said; checks: name -> passed."""

    run_id: str
    n_rows: int | None
    checks: Mapping[str, bool]


def run_assets(
    url: str, tables: Sequence[str], *, partition: str | None = None, config: Mapping[str, Any] | None = None, timeout_s: float = 600.0
) -> DagsterRun:
    """Materialize the assets of these tables in one run and wait for its end.

    Errors: UserError when Dagster refuses or the run fails, with the address of the run; StoreUnavailable when it does not end in time.
    """
    await_code(url, timeout_s)
    keys = [{"path": table.split(".")} for table in tables]
    node = graphql(url, _PLACE, {"key": keys[0]})["assetNodeOrError"]
    if node["__typename"] != "AssetNode":
        raise UserError(f"Dagster has no asset {tables[0]}", where=url, next_step="See the code location's error at " + url + "/locations.")
    repository = node["repository"]
    tags = [{"key": "dagster/partition", "value": partition}] if partition else []
    params = {
        "selector": {
            "repositoryName": repository["name"], "repositoryLocationName": repository["location"]["name"],
            "jobName": next(name for name in node["jobNames"] if name.startswith("__")), "assetSelection": keys,
        },
        "runConfigData": config or {}, "executionMetadata": {"tags": tags},
    }  # fmt: skip
    answer = graphql(url, _LAUNCH, {"params": params})["launchPipelineExecution"]
    if answer["__typename"] != "LaunchRunSuccess":
        reason = answer.get("message") or "; ".join(error["message"] for error in answer.get("errors", [])) or answer["__typename"]
        raise UserError(f"Dagster refused the run: {reason}", where=", ".join(tables), next_step="See the assets' pages in Dagster.")
    run_id = answer["run"]["runId"]
    await_run(url, run_id, timeout_s)
    return DagsterRun(
        run_id, _row_count(url, keys[-1], run_id), {name: ok for key in keys for name, ok in _checks(url, key, run_id).items()}
    )


def await_code(url: str, timeout_s: float) -> None:
    """Wait until Dagster has loaded the project's code.

    Errors: UserError with the reason when the code cannot be loaded; StoreUnavailable when it is not loaded in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        workspace = graphql(url, _LOCATIONS, {})["workspaceOrError"]
        entries = workspace.get("locationEntries", [])
        for entry in entries:
            found = entry["locationOrLoadError"] or {}
            if found.get("__typename") == "PythonError":
                lines = [line.strip() for line in found["message"].splitlines() if line.strip()]
                raise UserError(f"the code location does not load: {lines[-1]}", where=entry["name"], next_step=f"See {url}/locations.")
        if entries and all(entry["loadStatus"] == "LOADED" for entry in entries):
            return
        if time.monotonic() > deadline:
            raise StoreUnavailable("the code location is not loaded yet", where=url, next_step=f"See {url}/locations.")
        time.sleep(POLL_SECONDS)


def await_run(url: str, run_id: str, timeout_s: float) -> None:
    """Return when a run has succeeded. Errors: UserError when it ended otherwise; StoreUnavailable when it has not within the time."""
    deadline = time.monotonic() + timeout_s
    while (status := graphql(url, _STATUS, {"id": run_id})["runOrError"].get("status")) not in _ENDS:
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                f"the run is still {status} after {timeout_s:.0f} s", where=f"{url}/runs/{run_id}", next_step="Look at the run in Dagster."
            )
        time.sleep(POLL_SECONDS)
    if status != "SUCCESS":
        raise UserError(f"the run ended as {status}", where=f"{url}/runs/{run_id}", next_step="Read the run's log in Dagster.")


def _checks(url: str, key: Mapping[str, Any], run_id: str) -> dict[str, bool]:
    checks = graphql(url, _CHECKS, {"key": key})["assetNodeOrError"].get("assetChecksOrError", {}).get("checks", [])
    latest = {check["name"]: check["executionForLatestMaterialization"] for check in checks}
    return {
        ".".join([*key["path"], name]): found["status"] == "SUCCEEDED"
        for name, found in latest.items()
        if found and found["runId"] == run_id
    }


def _row_count(url: str, key: Mapping[str, Any], run_id: str) -> int | None:
    for found in graphql(url, _ROWS, {"key": key})["assetNodeOrError"].get("assetMaterializations", []):
        counts = {entry["label"]: entry.get("intValue") for entry in found["metadataEntries"]}
        if found["runId"] == run_id:
            return counts.get("dagster/row_count")
    return None
