"""Features: what the Fluss client can do for this surface, and the refusals of what it cannot. Pure."""

from __future__ import annotations

from storage_engine.api import CommitRequest
from storage_engine.client.capabilities import features_of_commit, require
from storage_engine.errors import UnsupportedByBackend

FEATURES = frozenset(
    {
        "append", "upsert", "delete", "partial_update", "lookup", "prefix_lookup", "scan", "changelog", "read", "auto_increment",
        "insert_if_not_exists", "drop_partition", "add_partition", "auto_partition", "scan_from_timestamp",
    }
)  # fmt: skip
"""What is not here is in REMEDIES."""

REMEDIES = {
    "aggregation": "pyfluss cannot name a function per column (each would silently keep its last value): aggregate before writing.",
    "alter_table": "pyfluss has no ALTER TABLE: alter it by Flink SQL, or make a new table and copy.",
    "transactions": "Fluss has no transactions over tables or writes: commit one operation at a time.",
    "journal": "Fluss has no store-wide version: compare offsets() instead.",
    "read_at_version": "Fluss has no store-wide version: read the changelog up to offsets that you kept.",
    "idempotent_writes": "Fluss recognises retries inside one connection only: make the write an upsert, which may be repeated.",
    "consumers": "Fluss keeps no offsets of readers: keep offsets() yourself and scan from them.",
    "jobs": "Fluss keeps no progress of jobs: run jobs on the bundled store.",
    "objects": "Fluss keeps no definitions of views, functions and jobs: keep them in the bundled store.",
    "late_rows": "Fluss neither drops nor counts rows that come after retention: leave 'table.auto-partition.late-rows' out.",
    "statistics_of_buckets": "Fluss tells offsets only: see offsets('earliest') and offsets('latest').",
    "compaction": "The cluster's tablet servers compact by themselves, by 'table.log.ttl' and their own options.",
    "backup": "The cluster keeps its own copies: back it up by its own means.",
    "retract": "Fluss has no retraction: aggregate before writing, and upsert the new totals.",
    "last_rows": "Fluss has no order over buckets: scan from offsets('latest') minus n per bucket, or by timestamp.",
    "statistics": "pyfluss takes no filter: leave 'table.statistics.columns' out; conditions are checked row by row.",
    "computed_columns": "Flink's catalog keeps them for Flink alone: compute the columns in a view.",
    "users": "A Fluss cluster has its own users (SASL) and ACLs: manage them by its own means.",
    "tiering": "Fluss tiers to Paimon, Iceberg, Lance or Hudi, by a Flink job of its own: leave table.datalake.* out.",
}


def refused(feature: str, *, backend: str) -> UnsupportedByBackend:
    """The refusal of a feature, by its name and the backend's."""
    remedy = REMEDIES.get(feature, f"It has: {', '.join(sorted(FEATURES))}.")
    return UnsupportedByBackend(f"this backend lacks {feature}", where=backend, next_step=remedy)


def require_commit(request: CommitRequest, *, backend: str) -> None:
    """Errors: UnsupportedByBackend when the request is more than one plain write to one table."""
    if len(request.ops) > 1 or (request.ops and request.progress):
        raise refused("transactions", backend=backend)
    for progress in request.progress:
        raise refused(feature_of_owner(progress.owner), backend=backend)
    if request.write_id is not None:
        raise refused("idempotent_writes", backend=backend)
    require(FEATURES, features_of_commit(request), backend=backend)


def feature_of_owner(owner: str) -> str:
    """Whose progress it is decides which feature is missing.

    >>> feature_of_owner("consumer:c:a.t"), feature_of_owner("job:x")
    ('consumers', 'jobs')
    """
    return "consumers" if owner.startswith("consumer:") else "jobs"
