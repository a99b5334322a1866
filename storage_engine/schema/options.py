"""Options: the table options known by name, their types, defaults and ranges.

Owner: schema/validate.py checks a WITH clause with it; everyone else reads values with option_value().
Holds: values stay strings in a descriptor, in one spelling each (true/false in small letters, enums as listed here),
       so that two descriptors that mean the same are equal.
Source: names and meaning are those of Apache Fluss; `asset.*` is free text for the orchestration and is kept as written.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from storage_engine.errors import InvalidOption

OptionKind = Literal["bool", "int", "duration", "ttl", "string", "enum", "columns", "late"]


@dataclass(frozen=True)
class Option:
    """One known option. `default` is text as in a WITH clause (None: unset); durations may be given as "30s".

    alterable   ALTER TABLE ... SET may change it
    refused     why the bundled store takes no other value than the default (Apache Fluss does); empty when it does
    """

    name: str
    kind: OptionKind
    default: str | None
    doc: str
    choices: tuple[str, ...] = ()
    low: int | None = None
    high: int | None = None
    alterable: bool = False
    refused: str = ""


_ONE_MACHINE = "the bundled store runs on one machine, without replicas"
_ARROW_ROWS = "the bundled store keeps rows as Arrow, in the changelog"

KNOWN_OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option("bucket.num", "int", "1", "buckets per partition; changing it moves rows", low=1, high=4096, alterable=True),
        Option(
            "bucket.key", "columns", None, "columns that route a row to a bucket; default: the primary key without the partition column"
        ),
        Option("auto-increment.fields", "columns", None, "the one column that the store fills with 1, 2, 3, ... for new keys"),
        Option(
            "table.auto-increment.cache-size",
            "int",
            None,
            "ids that a bucket takes at once, with gaps after a restart; unset: ids have no gaps",
            low=1,
            high=1_000_000_000,
        ),
        Option(
            "table.merge-engine",
            "enum",
            None,
            "how a row merges with the stored one; unset: the last row wins",
            ("first_row", "versioned", "aggregation"),
        ),
        Option("table.merge-engine.versioned.ver-column", "string", None, "the column whose larger value wins under the versioned engine"),
        Option(
            "table.delete.behavior",
            "enum",
            None,
            "what a delete does; unset: allow, with a merge engine ignore",
            ("allow", "ignore", "disable"),
        ),
        Option(
            "table.delete.on-zero",
            "string",
            None,
            "aggregation: a column that counts what the row stands for (sum or count of integers); a row in which it comes to 0 is removed",
        ),
        Option("table.changelog.image", "enum", "full", "full: old and new rows; wal: new rows only", ("full", "wal")),
        Option("table.log.format", "enum", "arrow", "how log frames are stored", ("arrow",)),
        Option("table.kv.format", "enum", None, "how Fluss stores rows", ("compacted", "indexed"), refused=_ARROW_ROWS),
        Option(
            "table.log.arrow.compression.type",
            "enum",
            None,
            "compression of stored frames; unset: lz4 for logs, none for changelogs",
            ("none", "lz4_frame", "zstd"),
        ),
        Option("table.log.arrow.compression.zstd.level", "int", "3", "effort of zstd", low=1, high=22),
        Option("table.log.ttl", "ttl", "7d", "how long rows of log and changelog are kept; -1: as long as the table", alterable=True),
        Option("table.kv.ttl", "ttl", None, "how long rows of a primary-key table live; unset or -1: for ever", alterable=True),
        Option("table.kv.ttl.time-column", "string", None, "the column a row's life is counted from; unset: when it was written"),
        Option("table.auto-partition.enabled", "bool", "false", "create and expire partitions by time"),
        Option("table.auto-partition.key", "columns", None, "the partition column that names the time"),
        Option("table.auto-partition.time-unit", "enum", "day", "length of a partition", ("hour", "day", "month", "quarter", "year")),
        Option("table.auto-partition.time-format", "string", None, "how a partition is named; default by the unit, for example yyyyMMdd"),
        Option("table.auto-partition.time-zone", "string", None, "zone in which partitions begin; default: the system's"),
        Option(
            "table.auto-partition.num-precreate",
            "int",
            "2",
            "periods to create in advance, the present one counted",
            low=0,
            high=1000,
            alterable=True,
        ),
        Option(
            "table.auto-partition.num-retention",
            "int",
            "7",
            "past partitions to keep; -1 keeps all",
            low=-1,
            high=1_000_000,
            alterable=True,
        ),
        Option(
            "table.auto-partition.late-rows",
            "enum",
            "refuse",
            "what happens to rows of a partition that retention has passed: their write is refused, or they are dropped and counted",
            ("refuse", "drop"),
            alterable=True,
        ),
        Option("watermark.column", "string", None, "the column of the event's time: WATERMARK FOR column AS ..."),
        Option("watermark.delay", "duration", None, "how much older than a row before it a row may be: WATERMARK FOR ... AS c - INTERVAL"),
        Option(
            "watermark.idle-after",
            "duration",
            None,
            "a bucket whose newest row is so much older, in event time, than the table's newest holds nothing back, and its rows are late "
            "then; unset: every bucket holds back",
        ),
        Option(
            "watermark.late-rows",
            "late",
            "drop",
            "rows that come after their window was emitted: drop counts them, table:database.name also writes them there; update: windows "
            "are not emitted once, but change while rows come",
        ),
        Option("client.writer.dynamic-create-partition.enabled", "bool", "true", "a partition is created by its first row", alterable=True),
        Option(
            "table.statistics.columns",
            "columns",
            None,
            "columns (* for all) whose least and greatest value each frame carries, so that scans skip frames; empty: none",
            alterable=True,
        ),
        Option("table.datalake.enabled", "bool", "false", "tier the table to the lake", alterable=True),
        Option("table.datalake.freshness", "duration", "3min", "bound on the age of what is missing in the lake", alterable=True),
        Option("table.datalake.format", "enum", "delta", "the lake's table format", ("delta",)),
        Option("table.replication.factor", "int", "1", "copies on a cluster", low=1, high=100, refused=_ONE_MACHINE),
    )
}

_NOT_IMPLEMENTED = frozenset(
    """
    table.kv.format-version table.log.local-ttl
    table.log.tiered.local-segments table.datalake.auto-compaction table.datalake.auto-expire-snapshot
    table.datalake.historical-partition.enabled table.kv.standby-replica.enabled
    """.split()
)
_NOT_IMPLEMENTED_VALUES = {
    "table.log.format": ("indexed", "compacted"),
    "table.datalake.format": ("paimon", "iceberg", "lance", "hudi"),
}
SINGLE_COLUMN_OPTIONS = (
    "table.merge-engine.versioned.ver-column", "table.kv.ttl.time-column", "table.delete.on-zero", "watermark.column",
)  # fmt: skip
"""Options whose value is the name of one column; those of kind "columns" hold lists."""
AGGREGATE_FUNCTIONS = (
    "sum", "product", "count", "max", "min", "last_value", "last_value_ignore_nulls", "first_value", "first_value_ignore_nulls",
    "listagg", "bool_and", "bool_or", "rbm32", "rbm64",
)  # fmt: skip
"""Functions of `fields.<column>.agg`. All are Fluss's but count, which counts the values written that are not null."""
_FUNCTION_ALIASES = {"string_agg": "listagg"}
_FUNCTION_PARAMETERS = {"listagg": ("delimiter",)}

_FIELD_OPTION = re.compile(r"^fields\.(?P<column>.+)\.(?P<what>[a-z0-9_-]+)$")
_FUNCTION_OPTION = re.compile(r"^fields\.(?P<column>.+)\.(?P<function>[A-Za-z0-9_-]+)\.(?P<parameter>[a-z0-9_-]+)$")
_DURATION = re.compile(r"^\s*(\d+)\s*([a-zA-Zµ]*)\s*$")
_UNIT_MS = {
    unit: ms
    for ms, units in {
        1: ("", "ms", "milli", "millis", "millisecond", "milliseconds"),
        1_000: ("s", "sec", "secs", "second", "seconds"),
        60_000: ("m", "min", "minute", "minutes"),
        3_600_000: ("h", "hour", "hours"),
        86_400_000: ("d", "day", "days"),
    }.items()
    for unit in units
}


def duration_ms(text: str, *, name: str = "duration", where: str = "options") -> int:
    """A duration as milliseconds; a number without a unit is milliseconds, as in Flink.

    Errors: InvalidOption for anything else than a whole number and one of ms, s, min, h, d (or their long names).

    >>> duration_ms("30s"), duration_ms("3min"), duration_ms("1 h"), duration_ms("7d"), duration_ms("250")
    (30000, 180000, 3600000, 604800000, 250)
    """
    match = _DURATION.match(text)
    if match is None or match.group(2).lower() not in _UNIT_MS:
        raise InvalidOption(
            f"{name} = {text!r} is not a duration", where=where, next_step="Write a whole number and a unit: 500ms, 30s, 3min, 1h, 7d."
        )
    return int(match.group(1)) * _UNIT_MS[match.group(2).lower()]


def ttl_ms(text: str, *, name: str = "ttl", where: str = "options") -> int | None:
    """A time to live as milliseconds; None for -1, which keeps for ever. Errors: InvalidOption, also for 0: nothing would be readable.

    >>> ttl_ms("7d"), ttl_ms("-1")
    (604800000, None)
    """
    if text.strip() == "-1":
        return None
    found = duration_ms(text, name=name, where=where)
    if found == 0:
        raise InvalidOption(f"{name} = {text!r} keeps nothing", where=where, next_step="Write a time such as 7d, or -1 to keep for ever.")
    return found


def parse_bool(text: str, *, name: str = "option", where: str = "options") -> bool:
    """True or false in any capitals; InvalidOption for anything else."""
    lowered = text.strip().lower()
    if lowered not in ("true", "false"):
        raise InvalidOption(f"{name} = {text!r} is neither true nor false", where=where, next_step="Write 'true' or 'false'.")
    return lowered == "true"


def parse_int(text: str, *, name: str = "option", where: str = "options", low: int | None = None, high: int | None = None) -> int:
    """A whole number within [low, high]; InvalidOption for anything else."""
    bounds = f"from {low} to {high}" if low is not None and high is not None else f"at least {low}" if low is not None else "as digits"
    try:
        value = int(text.strip())
    except ValueError:
        value = None
    if value is None or (low is not None and value < low) or (high is not None and value > high):
        raise InvalidOption(f"{name} = {text!r} is out of range", where=where, next_step=f"Write a whole number {bounds}.")
    return value


def split_columns(text: str) -> tuple[str, ...]:
    """Column names of a list such as 'mm,order_source'; blanks around the commas do not count."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def check_options(options: Mapping[str, str], *, where: str, column_names: tuple[str, ...]) -> dict[str, str]:
    """Every option known and in range, each value in its one spelling; the order is kept.

    Errors: InvalidOption naming the option, its value and what it may be. Relations to columns are validate.py's concern.
    """
    checked: dict[str, str] = {}
    for name, value in options.items():
        spelled = _spelled(name)
        text = _check_option(name, value, where, column_names)
        if checked.setdefault(spelled, text) != text:
            raise InvalidOption(f"{name} = {value!r} contradicts {spelled}", where=where, next_step="Say it in one place.")
    return checked


def check_alterable(options: Mapping[str, str], *, where: str, column_names: tuple[str, ...] = ()) -> dict[str, str]:
    """The checked options of ALTER TABLE ... SET: only those that may change on a live table."""
    checked = check_options(options, where=where, column_names=column_names)
    for name in checked:
        if not name.startswith("asset.") and not KNOWN_OPTIONS.get(name, _FIXED).alterable:
            may = ", ".join([option.name for option in KNOWN_OPTIONS.values() if option.alterable] + ["asset.*"])
            raise InvalidOption(f"{name} is fixed when the table is created", where=where, next_step=f"Options that may change: {may}.")
    return checked


def check_effective(options: Mapping[str, str], *, where: str, among: Mapping[str, str] | None = None) -> None:
    """Errors: InvalidOption for a value that the bundled store would ignore: one that only Apache Fluss gives a meaning to, or one that
    needs another option which is not `among` all those of the table (None: `options`).
    """
    known = options if among is None else among
    level, kind = "table.log.arrow.compression.zstd.level", "table.log.arrow.compression.type"
    if level in options and known.get(kind) != "zstd":
        raise InvalidOption(f"{level} has no effect without zstd", where=where, next_step=f"Add '{kind}' = 'zstd', or leave it out.")
    freshness, enabled = "table.datalake.freshness", "table.datalake.enabled"
    if freshness in options and enabled not in known:
        raise InvalidOption(f"{freshness} has no effect without {enabled}", where=where, next_step=f"Add '{enabled}' = 'true'.")
    for name, value in options.items():
        option = KNOWN_OPTIONS.get(name)
        if option is not None and option.refused and value != option.default:
            remedy = "Leave it out." if option.default is None else f"Write {option.default}, or leave it out."
            raise InvalidOption(f"{name} = {value!r} would have no effect: {option.refused}", where=where, next_step=remedy)


def option_value(options: Mapping[str, str], name: str) -> Any:
    """The typed value of a known option, its default where it is unset.

    Meaning: bool, int, str; a duration is int milliseconds, None for a time to live that never ends; columns are a
             tuple of names; None: unset, and there is no default.

    >>> option_value({"table.datalake.freshness": "10s"}, "table.datalake.freshness"), option_value({}, "bucket.num")
    (10000, 1)
    """
    option = KNOWN_OPTIONS[name]
    text = options.get(name, option.default)
    if text is None:
        return None
    match option.kind:
        case "bool":
            return parse_bool(text, name=name)
        case "int":
            return parse_int(text, name=name, low=option.low, high=option.high)
        case "duration":
            return duration_ms(text, name=name)
        case "ttl":
            return ttl_ms(text, name=name)
        case "columns":
            return split_columns(text)
        case _:
            return text


def delete_behavior(options: Mapping[str, str]) -> Literal["allow", "ignore", "disable"]:
    """What a delete does to a primary-key table with these options: allow by default, ignore under any other engine than the last row."""
    written = option_value(options, "table.delete.behavior")
    return written or ("allow" if options.get("table.merge-engine", "last_row") == "last_row" else "ignore")


_FIXED = Option("", "string", None, "an option that cannot be altered")


def _check_option(name: str, value: str, where: str, column_names: tuple[str, ...]) -> str:
    if "${" in value:
        raise InvalidOption(f"{name} = {value!r} is a placeholder", where=where, next_step="Fill in its value.")
    if name.startswith("asset.") and len(name) > len("asset."):
        return value
    if (field := _FIELD_OPTION.match(name)) is not None:
        return _check_field_option(name, value, field, where, column_names)
    option = KNOWN_OPTIONS.get(name)
    if option is None:
        raise _unknown(name, where)
    match option.kind:
        case "bool":
            return "true" if parse_bool(value, name=name, where=where) else "false"
        case "int":
            return str(parse_int(value, name=name, where=where, low=option.low, high=option.high))
        case "duration":
            duration_ms(value, name=name, where=where)
            return value.strip()
        case "ttl":
            ttl_ms(value, name=name, where=where)
            return value.strip()
        case "columns":
            return ",".join(split_columns(value))
        case "enum":
            return _check_enum(option, value, where)
        case "late":
            return _check_late_rows(name, value, where)
        case _:
            return value


def _check_late_rows(name: str, value: str, where: str) -> str:
    written = value.strip()
    if written.lower() in ("drop", "update"):
        return written.lower()
    if written.lower().startswith("table:") and re.fullmatch(r"[\w-]+\.[\w-]+", written[len("table:") :].strip()):
        return "table:" + written[len("table:") :].strip()
    raise InvalidOption(f"{name} = {value!r} is not a choice", where=where, next_step="Write drop, update, or table:database.name.")


def _check_enum(option: Option, value: str, where: str) -> str:
    lowered = value.strip().lower().replace("-", "_")
    if (option.name, lowered) == ("table.merge-engine", "last_row"):
        return lowered
    if lowered in _NOT_IMPLEMENTED_VALUES.get(option.name, ()):
        what = f"{option.name} = {value!r} is known to Fluss and not implemented in this store"
        raise InvalidOption(what, where=where, next_step=f"Use {' or '.join(option.choices)}, or leave the option out.")
    if lowered not in option.choices:
        raise InvalidOption(
            f"{option.name} = {value!r} is not a choice", where=where, next_step=f"Choose from: {', '.join(option.choices)}."
        )
    return lowered


def _check_field_option(name: str, value: str, field: re.Match[str], where: str, column_names: tuple[str, ...]) -> str:
    column, what = field.group("column"), field.group("what")
    parameter = _FUNCTION_OPTION.match(name)
    if what != "agg" and parameter is not None and parameter.group("column") in column_names:
        return _check_parameter(name, value, parameter, where)
    if column not in column_names:
        raise InvalidOption(f"{name} names no column: {column!r}", where=where, next_step=f"Columns are: {', '.join(column_names)}.")
    if what != "agg":
        raise InvalidOption(
            f"{name} is not known", where=where, next_step=f"Write fields.{column}.agg, or fields.{column}.listagg.delimiter."
        )
    function = value.strip().lower()
    function = _FUNCTION_ALIASES.get(function, function)
    if function not in AGGREGATE_FUNCTIONS:
        raise InvalidOption(
            f"{name} = {value!r} is not a function", where=where, next_step=f"Choose from: {', '.join(AGGREGATE_FUNCTIONS)}."
        )
    return function


def _check_parameter(name: str, value: str, parameter: re.Match[str], where: str) -> str:
    function = _FUNCTION_ALIASES.get(parameter.group("function"), parameter.group("function"))
    if parameter.group("parameter") not in _FUNCTION_PARAMETERS.get(function, ()):
        raise InvalidOption(
            f"{name} is not known", where=where, next_step=f"The one parameter is fields.{parameter.group('column')}.listagg.delimiter."
        )
    return value


def _spelled(name: str) -> str:
    """The one spelling of an option's name: parameters of an aliased function belong to the function."""
    parameter = _FUNCTION_OPTION.match(name)
    if parameter is None or parameter.group("function") not in _FUNCTION_ALIASES:
        return name
    return f"fields.{parameter.group('column')}.{_FUNCTION_ALIASES[parameter.group('function')]}.{parameter.group('parameter')}"


def _unknown(name: str, where: str) -> InvalidOption:
    if name in _NOT_IMPLEMENTED:
        return InvalidOption(f"{name} is known to Fluss and not implemented in this store", where=where, next_step="Leave it out.")
    near = difflib.get_close_matches(name, KNOWN_OPTIONS, n=1, cutoff=0.6)
    guess = f"Did you mean {near[0]}? " if near else ""
    return InvalidOption(f"{name} is not a known option", where=where, next_step=guess + "Free options of your own begin with asset. .")
