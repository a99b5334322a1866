"""Rights of the wire: what each method needs, and what of its answer a principal may see. One table for both lanes. Pure.

Holds: every method of the dispatch table is declared here (a test compares them); one that is not needs ADMIN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from storage_engine.access import CLUSTER, GRANT, TOKEN, USER, Grants, Scope, database, table
from storage_engine.access.rights import Right
from storage_engine.api import CONSUMER_PREFIX, FORGOTTEN_INPUT

Arguments = Mapping[str, Any]
Need = tuple[Right, Scope]

VIEW_KINDS = ("view", "materialized_view")
JOB_KIND, FUNCTION_KIND = "job", "function"


def needs_of(method: str, arguments: Arguments) -> Iterable[Need]:
    """The rights that a call needs; () for what every authenticated user may do."""
    needs = NEEDS.get(method)
    return [("ADMIN", CLUSTER)] if needs is None else needs(arguments)


def _on_table(right: Right, key: str = "table") -> Callable[[Arguments], list[Need]]:
    return lambda arguments: [(right, table(str(arguments[key])))]


def _database_of(name: str) -> Scope:
    return database(name.partition(".")[0])


def _commit(arguments: Arguments) -> list[Need]:
    needs: list[Need] = [("WRITE", table(op["table"])) for op in arguments["ops"]]
    for progress in arguments["progress"]:
        needs += _progress(progress["owner"], list(progress["offsets"]))
    return needs


def _progress(owner: str, tables: list[str]) -> list[Need]:
    """A consumer needs READ on what it reads. Progress of jobs and of tiering decides what they write: it needs WRITE everywhere."""
    name = _table_of(owner)
    return [("READ", table(name))] if name and set(tables) <= {name} else [("WRITE", CLUSTER)]


def _table_of(owner: str) -> str:
    """The table that a consumer reads; "" for an owner that is no consumer.

    >>> _table_of("consumer:audit:shop.orders"), _table_of("job:orders")
    ('shop.orders', '')
    """
    name = owner.removeprefix(CONSUMER_PREFIX)
    return "" if name == owner else name.partition(":")[2]


def _on_owner(arguments: Arguments) -> list[Need]:
    return _progress(str(arguments["owner"]), [])


def _lookup(arguments: Arguments) -> list[Need]:
    on = table(str(arguments["table"]))
    return [("READ", on), ("WRITE", on)] if arguments.get("insert_if_not_exists") else [("READ", on)]


def _put_object(arguments: Arguments) -> list[Need]:
    """Users and jobs depend on more than their name: guard.py decides those."""
    kind, name, is_drop = arguments["kind"], str(arguments["name"]), arguments["value"] is None
    if kind in VIEW_KINDS:
        return [("DROP" if is_drop else "CREATE", _database_of(name))]
    return [("ADMIN" if kind in (USER, TOKEN, GRANT) else "ALL", CLUSTER)]


def _nothing(_arguments: Arguments) -> list[Need]:
    return []


NEEDS: dict[str, Callable[[Arguments], Iterable[Need]]] = {
    "hello": _nothing,
    "lane": _nothing,
    "create_table": lambda arguments: [("CREATE", _database_of(str(arguments["descriptor"]["name"])))],
    "alter_table": lambda arguments: [("ALTER", table(str(arguments["descriptor"]["name"])))],
    "drop_table": _on_table("DROP", "name"),
    "create_partition": _on_table("WRITE"),
    "drop_partition": _on_table("WRITE"),
    "tables": _nothing,
    "partitions": _on_table("DESCRIBE"),
    "put_object": _put_object,
    "objects": _nothing,
    "commit": _commit,
    "version": _nothing,
    "await_version": _nothing,
    "commits": _nothing,
    "progress": _nothing,
    "drop_progress": _on_owner,
    "heartbeat": _on_owner,
    "leave_group": _on_owner,
    "late_rows": _on_table("DESCRIBE"),
    "bucket_statistics": _on_table("DESCRIBE"),
    "offsets": _on_table("DESCRIBE"),
    "latest": lambda arguments: [("DESCRIBE", table(str(name))) for name in arguments["tables"]],
    "fetch": _on_table("READ"),
    "read": _on_table("READ"),
    "snapshot": _on_table("READ"),
    "lookup": _lookup,
    "prefix_lookup": _on_table("READ"),
    "count": _on_table("READ"),
    "compact": _on_table("ALTER"),
    "backup": lambda _arguments: [("ADMIN", CLUSTER)],
}
"""Method -> the rights that it needs. Answers of those that need nothing are cut to what may be seen (VISIBLE)."""


def _tables(grants: Grants, _user: str, _arguments: Arguments, result: Any) -> Any:
    return [value for value in result if grants.permits("DESCRIBE", table(value["name"]))]


def _commits(grants: Grants, _user: str, _arguments: Arguments, result: Any) -> Any:
    return [{**info, "ranges": {name: of for name, of in info["ranges"].items() if _may_see(grants, name)}} for info in result]


def _visible_progress(grants: Grants, _user: str, _arguments: Arguments, result: Any) -> Any:
    shown = []
    for value in result:
        tables = {*value["offsets"], *filter(None, [_table_of(value["owner"])])}  # a consumer may have no offsets yet
        if tables and all(_may_see(grants, name) for name in tables):
            shown.append(value)
    return shown


def _objects(grants: Grants, user: str, arguments: Arguments, result: Any) -> Any:
    kind = arguments["kind"]
    if kind == USER:
        return {name: {**value, "password": None} for name, value in result.items() if name == user}
    if kind in (TOKEN, GRANT):
        return {name: value for name, value in result.items() if value.get("user") == user}
    if kind in VIEW_KINDS:
        return {name: value for name, value in result.items() if _may_see(grants, name)}
    if kind == FUNCTION_KIND:
        return result  # whoever writes SQL may know which functions there are
    if kind == JOB_KIND:
        return {name: value for name, value in result.items() if _may_see(grants, str(value.get("sink")))}
    if kind == FORGOTTEN_INPUT:
        return {name: value for name, value in result.items() if all(_may_see(grants, of) for of in value)}
    return result if grants.permits("DESCRIBE", CLUSTER) else {}


def _may_see(grants: Grants, name: str) -> bool:
    return grants.permits("DESCRIBE", table(name))


VISIBLE: dict[str, Callable[[Grants, str, Arguments, Any], Any]] = {
    "tables": _tables,
    "commits": _commits,
    "progress": _visible_progress,
    "objects": _objects,
}
"""Method -> (grants, user, arguments, result) -> the part of the result that a user who is no administrator may see."""
