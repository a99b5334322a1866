"""stream: continuous SQL. Parse, bind, plan, run in micro-batches; state only in tables of the store.

text -> dialect.parse_select -> bind.Binder -> plan (tree of operators) -> planner.JobPlan -> execute.Executor -> one commit
                                                                        -> batch.batch_select (the same, at once)
"""

from storage_engine.stream.batch import batch_select
from storage_engine.stream.functions import open_connection, register_functions
from storage_engine.stream.job import JobDescriptor, load_job, load_jobs, plan_job
from storage_engine.stream.planner import JobPlan, plan_insert, plan_view
from storage_engine.stream.python_functions import udf
from storage_engine.stream.runner import JobRunner
from storage_engine.stream.session import Result, SqlSession
from storage_engine.stream.worker import Worker

__all__ = [
    "JobDescriptor",
    "JobPlan",
    "JobRunner",
    "Result",
    "SqlSession",
    "Worker",
    "batch_select",
    "load_job",
    "load_jobs",
    "open_connection",
    "plan_insert",
    "plan_job",
    "plan_view",
    "register_functions",
    "udf",
]
