"""stream: continuous SQL. Parse, bind, plan, run in micro-batches; state only in tables of the store.

text -> dialect.syntax -> planning.bind -> plan.tree -> planning.planner: JobPlan -> operators.execute -> one commit
                                                                            -> run.batch (the same, at once)
"""

from storage_engine.stream.functions.bitmaps import open_connection, register_functions
from storage_engine.stream.functions.python_functions import udf
from storage_engine.stream.jobs.job import JobDescriptor, load_job, load_jobs, plan_job
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.planning.computed_columns import computed_types
from storage_engine.stream.planning.planner import plan_insert
from storage_engine.stream.planning.view_table import plan_view
from storage_engine.stream.run.batch import batch_select
from storage_engine.stream.run.runner import JobRunner
from storage_engine.stream.run.worker import Worker
from storage_engine.stream.session.session import Result, SqlSession

__all__ = [
    "JobDescriptor",
    "JobPlan",
    "JobRunner",
    "Result",
    "SqlSession",
    "Worker",
    "batch_select",
    "computed_types",
    "load_job",
    "load_jobs",
    "open_connection",
    "plan_insert",
    "plan_job",
    "plan_view",
    "register_functions",
    "udf",
]
