"""Guard: the one place where a call's rights are checked, whichever lane it came over; then it is dispatched.

Holds: a table that the caller may not see is refused as one that does not exist, whether it does or not, and no hint of an error
       names another; one that may be seen is refused as AccessDenied, naming the right.
       A job runs with the worker's rights: who submits or drops one needs READ on all that it reads and WRITE on
       all that it writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import pyarrow as pa

from storage_engine.access import CLUSTER, KINDS, USER, Scope, table
from storage_engine.access.records import UserRecord
from storage_engine.access.rights import Right
from storage_engine.api import JOB_PREFIX, Backend, CommitRequest, CommitResult, FetchedFrame
from storage_engine.client.wire import Call, Reply, decode_commit
from storage_engine.errors import AccessDenied, FlashlakeError, UnknownTable
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.server.authentication import Authenticator, Principal
from storage_engine.server.dispatch import answer, commit_reply, current_rows, fetched, snapshot
from storage_engine.server.rights import FUNCTION_KIND, JOB_KIND, VISIBLE, Arguments, needs_of

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Guard:
    """A backend behind its users."""

    def __init__(self, backend: Backend, authenticator: Authenticator, pressure: Callable[[], float] = lambda: 0.0) -> None:
        """`pressure`: how hard the server is pressed, told to those who commit (admission.py)."""
        self.backend = backend
        self.authenticator = authenticator
        self._pressure = pressure

    def answer(self, principal: Principal, call: Call) -> Reply:
        """Do the call. Errors: AccessDenied; UnknownTable; what dispatch raises."""
        self.check(principal, call.method, call.arguments)
        try:
            reply = answer(self.backend, call)
        except UnknownTable as error:
            raise self.shown(principal, error) from None
        if call.method == "commit":
            return self._pressed(reply)
        if call.method == "put_object" and call.arguments["kind"] in KINDS:
            self.authenticator.changed()
        visible = VISIBLE.get(call.method)
        if visible is None or principal.grants.permits("ADMIN", CLUSTER):
            return reply
        return Reply(visible(principal.grants, principal.user, call.arguments, reply.result), reply.tables)

    def begin_commit(self, principal: Principal, call: Call, begin: Callable[[CommitRequest], tuple[CommitResult, T]]) -> tuple[Reply, T]:
        """As answer() of a commit, by a way that says what the answer has still to wait for. Errors: as answer()."""
        self.check(principal, "commit", call.arguments)
        try:
            result, position = begin(decode_commit(call.arguments, call.tables, call.blobs))
        except UnknownTable as error:
            raise self.shown(principal, error) from None
        return self._pressed(commit_reply(result)), position

    def _pressed(self, reply: Reply) -> Reply:
        """The answer to a commit, with the pressure if there is any."""
        pressure = self._pressure()
        return Reply({**reply.result, "pressure": pressure}, reply.tables) if pressure > 0 else reply

    def fetched(self, principal: Principal, arguments: Arguments) -> Iterator[FetchedFrame]:
        self.check(principal, "fetch", arguments)
        try:
            yield from fetched(self.backend, arguments)
        except UnknownTable as error:
            raise self.shown(principal, error) from None

    def current_rows(self, principal: Principal, arguments: Arguments) -> pa.Table:
        self.check(principal, "read", arguments)
        try:
            return current_rows(self.backend, arguments)
        except UnknownTable as error:
            raise self.shown(principal, error) from None

    def snapshot(self, principal: Principal, arguments: Arguments) -> pa.RecordBatchReader:
        self.check(principal, "snapshot", arguments)
        try:
            return snapshot(self.backend, arguments)
        except UnknownTable as error:
            raise self.shown(principal, error) from None

    def check(self, principal: Principal, method: str, arguments: Arguments) -> None:
        """Errors: AccessDenied; UnknownTable for a table that the principal may not see."""
        if principal.kind == "none":
            return
        if method == "put_object" and not principal.grants.permits("ADMIN", CLUSTER):
            if arguments["kind"] in KINDS and self._is_own(principal, arguments):
                return
            if arguments["kind"] == JOB_KIND:
                self._check_job(principal, str(arguments["name"]), arguments["value"])
                return
        if method == "drop_progress" and (dropped := self._job_being_dropped(str(arguments["owner"]))):
            self._check_job(principal, dropped, None)
            return
        for right, scope in needs_of(method, arguments):
            self._require(principal, right, scope, method)

    def _require(self, principal: Principal, right: Right, scope: Scope, method: str) -> None:
        if principal.grants.permits(right, scope):
            return
        logger.warning("refused", extra={"user": principal.user, "method": method, "right": right, "scope": str(scope)})
        if scope.kind == "TABLE" and not principal.grants.permits("DESCRIBE", scope):
            raise _unknown(scope.name)
        next_step = f"An administrator can GRANT {right} ON {scope} TO {principal.user}."
        raise AccessDenied(f"{principal.user} lacks {right} ON {scope}", where=method, next_step=next_step)

    def shown(self, principal: Principal, error: FlashlakeError) -> FlashlakeError:
        """The error as the principal may see it: without names of tables that it did not ask for."""
        if not isinstance(error, UnknownTable) or principal.grants.permits("DESCRIBE", CLUSTER):
            return error
        return UnknownTable(error.what, where=error.where, next_step=_SEE)

    def _is_own(self, principal: Principal, arguments: Arguments) -> bool:
        """A user's own password and tokens are theirs to change."""
        kind, name, value = arguments["kind"], arguments["name"], arguments["value"]
        if kind == USER:
            if name != principal.user or value is None:
                return False
            try:
                return UserRecord.from_json(value).id == principal.user_id and set(value) == {"id", "password", "created_ms"}
            except (ValueError, KeyError, TypeError):
                return False
        held = self.backend.objects(kind).get(name)
        if kind == "token" and (held is None or held.get("user_id") == principal.user_id):
            if value is None:
                return held is not None
            return value.get("user") == principal.user and value.get("user_id") == principal.user_id
        return False

    # jobs

    def _check_job(self, principal: Principal, name: str, value: Mapping[str, Any] | None) -> None:
        held = self.backend.objects(JOB_KIND).get(name)
        for definition in (held, value):
            if definition is not None:
                self._check_functions(principal, name, definition)
                for right, touched in self._touched(principal, definition):
                    self._require(principal, right, table(touched), f"job {name}")

    def _job_being_dropped(self, owner: str) -> str:
        """The job whose progress this is, while it is being dropped; else ""."""
        name = owner.removeprefix(JOB_PREFIX) if owner.startswith(JOB_PREFIX) else ""
        held = self.backend.objects(JOB_KIND).get(name) if name else None
        return name if held is not None and held.get("state") == "DROPPING" else ""

    def _check_functions(self, principal: Principal, name: str, definition: Mapping[str, Any]) -> None:
        """Python runs in the worker with the worker's rights: a job takes functions that are stored, and those who may store any bring
        their own.
        """
        stored = self.backend.objects(FUNCTION_KIND)
        used = definition.get("functions") or {}
        if not isinstance(used, Mapping) or any(stored.get(key) != value for key, value in used.items()):
            self._require(principal, "ALL", CLUSTER, f"job {name} with a function that is not stored")

    def _touched(self, principal: Principal, definition: Mapping[str, Any]) -> list[tuple[Right, str]]:
        """What a job reads and writes, by its plan over the tables that the principal may see."""
        if principal.grants.permits("READ", CLUSTER) and principal.grants.permits("WRITE", CLUSTER):
            return []
        from storage_engine.client.store import Store
        from storage_engine.stream.jobs.job import JobDescriptor, plan_job
        from storage_engine.stream.plan.tree import lookups, walk

        def no_session(_store: Store) -> Any:
            raise AssertionError("planning runs no statement")

        try:
            job = JobDescriptor.from_json(definition)
            plan = plan_job(Store(_Seen(self.backend, principal), no_session), job)  # type: ignore[arg-type]
        except (FlashlakeError, KeyError, TypeError, ValueError):
            raise AccessDenied(
                "the job cannot be planned over what its user may see",
                where="put_object job",
                next_step="Submit it with DESCRIBE on all its tables, READ on those it reads and WRITE on those it writes.",
            ) from None
        inserted = [join.table.name for join in lookups(plan.root) if join.inserts_missing]
        writes = [plan.sink.name, *(state.name for state in plan.state_tables), *inserted, *plan.late_tables]
        values = [getattr(node, item.name) for node in walk(plan.root) for item in fields(node)]
        reads = {value.name for value in values if isinstance(value, TableDescriptor)}  # of every kind of node
        return [*(("WRITE", written) for written in writes), *(("READ", read) for read in sorted(reads))]


class _Seen:
    """What a planner asks a backend, cut to what a principal may see."""

    def __init__(self, backend: Backend, principal: Principal) -> None:
        self._backend = backend
        self._principal = principal

    def tables(self) -> Sequence[TableDescriptor]:
        return [found for found in self._backend.tables() if self._principal.grants.permits("DESCRIBE", table(found.name))]

    def objects(self, kind: str) -> Any:
        return VISIBLE["objects"](self._principal.grants, self._principal.user, {"kind": kind}, self._backend.objects(kind))


_SEE = "SHOW TABLES lists the tables that you may see; names are database.table."


def _unknown(name: str) -> UnknownTable:
    return UnknownTable(f"there is no table {name}", where="catalog", next_step=_SEE)
