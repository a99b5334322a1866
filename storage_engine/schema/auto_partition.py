"""Auto partition: which periods of time the partitions of a table name, which of them should exist now, and which are past keeping.

Owner: schema/validate.py checks a table's options by it; engine/partitions.py acts on what it decides.
Pure: the clock is a parameter. A period has an ordinal: hours, days, months, quarters or years, counted from the year 1 on the
       wall clock of the table's zone. Hours before and after now are elapsed hours, longer units are steps of the calendar (as in Fluss).
Holds: name_of and ordinal_of are inverses; a format names each period of its unit by another name, and every period by one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyarrow as pa

from storage_engine.errors import InvalidOption, InvalidPartition
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.options import option_value

PREFIX = "table.auto-partition."
_HOUR_MS = 3_600_000
_FORMATS = {"hour": "yyyyMMddHH", "day": "yyyyMMdd", "month": "yyyyMM", "quarter": "yyyyQ", "year": "yyyy"}
_FIELDS = {
    "hour": {"yyyy", "MM", "dd", "HH"}, "day": {"yyyy", "MM", "dd"}, "month": {"yyyy", "MM"}, "quarter": {"yyyy", "Q"}, "year": {"yyyy"},
}  # fmt: skip
_TOKEN = re.compile(r"yyyy|MM|dd|HH|Q|[-_]")
_WIDTHS = {"yyyy": 4, "MM": 2, "dd": 2, "HH": 2, "Q": 1}
_SEPARATORS = "-_"
_LAST_DAY, _HOURS = date.max, 24


@dataclass(frozen=True)
class AutoPartition:
    """The rule of one table.

    zone         None: the zone of the machine
    n_precreate  periods to have in advance, the present one counted
    n_retention  periods before the present one to keep; -1: all
    drops_late   rows of a period that is past keeping are left out and counted; else their write is refused
    """

    unit: str
    format: str
    zone: str | None
    n_precreate: int
    n_retention: int
    drops_late: bool

    def name_of(self, ordinal: int) -> str:
        """The name of a period. Errors: InvalidPartition outside the years 1 to 9999."""
        fields = _fields_of(self.unit, ordinal)
        if not 1 <= fields["yyyy"] <= 9999:
            raise InvalidPartition(f"there is no {self.unit} number {ordinal}", where="auto partition", next_step="Use years 1 to 9999.")
        return _TOKEN.sub(lambda found: _written(found.group(), fields), self.format)

    def ordinal_of(self, name: str) -> int:
        """The period that a name stands for. Errors: InvalidPartition when the name does not read as the format says."""
        return _ordinal_of(self.unit, self.format, name)

    def ordinal_at(self, now_ms: int) -> int:
        """The period that an instant lies in."""
        local = _local(now_ms, self.zone)
        return _ordinal_in(self.unit, local.date(), local.hour)

    def oldest_kept(self, now_ms: int) -> int | None:
        """The first period that is kept; None when all are."""
        if self.n_retention < 0:
            return None
        if self.unit == "hour":
            return self.ordinal_at(now_ms - self.n_retention * _HOUR_MS)
        return self.ordinal_at(now_ms) - self.n_retention

    def wanted(self, now_ms: int) -> list[str]:
        """The partitions that should exist at an instant: the present period and those after it, in order."""
        if self.unit == "hour":
            ordinals = [self.ordinal_at(now_ms + step * _HOUR_MS) for step in range(self.n_precreate)]
        else:
            present = self.ordinal_at(now_ms)
            ordinals = [present + step for step in range(self.n_precreate)]
        return [self.name_of(ordinal) for ordinal in dict.fromkeys(ordinals)]

    def expired(self, names: Collection[str], now_ms: int) -> list[str]:
        """Those of the names whose period is past keeping, oldest first. Names of no period are never among them."""
        oldest = self.oldest_kept(now_ms)
        if oldest is None:
            return []
        dated = [(ordinal, name) for name in names if (ordinal := self._ordinal_or_none(name)) is not None and ordinal < oldest]
        return [name for _, name in sorted(dated)]

    def is_expired(self, name: str, now_ms: int) -> bool:
        oldest = self.oldest_kept(now_ms)
        return oldest is not None and self.ordinal_of(name) < oldest

    def _ordinal_or_none(self, name: str) -> int | None:
        try:
            return self.ordinal_of(name)
        except InvalidPartition:
            return None


@lru_cache(maxsize=4096)
def auto_partition_of(descriptor_options: tuple[tuple[str, str], ...], key_type: pa.DataType | None) -> AutoPartition | None:
    """The rule that options say; None when auto partition is off. `key_type` is that of the partition column."""
    options = dict(descriptor_options)
    if not option_value(options, PREFIX + "enabled"):
        return None
    unit = option_value(options, PREFIX + "time-unit")
    default = "yyyy-MM-dd" if key_type is not None and pa.types.is_date32(key_type) else _FORMATS[unit]
    return AutoPartition(
        unit,
        option_value(options, PREFIX + "time-format") or default,
        option_value(options, PREFIX + "time-zone"),
        option_value(options, PREFIX + "num-precreate"),
        option_value(options, PREFIX + "num-retention"),
        option_value(options, PREFIX + "late-rows") == "drop",
    )


def rule_of(descriptor: TableDescriptor) -> AutoPartition | None:
    """The rule of a table; None when its partitions are not made and dropped by time."""
    if not descriptor.partition_keys or descriptor.options.get(PREFIX + "enabled") != "true":
        return None
    options = tuple((name, value) for name, value in descriptor.options.items() if name.startswith(PREFIX))
    return auto_partition_of(options, descriptor.column(descriptor.partition_keys[0]).arrow.type)


def check_auto_partition(descriptor: TableDescriptor, where: str) -> None:
    """Errors: InvalidOption for options that contradict each other, the partition column, or say nothing."""
    named = [name for name in descriptor.options if name.startswith(PREFIX)]
    if not named:
        return
    if not descriptor.partition_keys:
        raise InvalidOption(
            f"{named[0]} needs a partitioned table", where=where, next_step="Add PARTITIONED BY (column), or leave the option out."
        )
    key = descriptor.partition_keys[0]
    written = option_value(descriptor.options, PREFIX + "key")
    if written and written != descriptor.partition_keys:
        raise InvalidOption(f"{PREFIX}key = {','.join(written)!r} is not the partition column", where=where, next_step=f"Write {key!r}.")
    rule = rule_of(descriptor)
    if rule is None:
        idle = next((name for name in named if name != PREFIX + "enabled"), None)
        if idle is not None:
            raise InvalidOption(
                f"{idle} has no effect while {PREFIX}enabled is false", where=where, next_step=f"Add '{PREFIX}enabled' = 'true'."
            )
        return
    _check_format(rule, descriptor.column(key).arrow.type, f"{where}, partition column {key}")
    if rule.zone is not None:
        _zone(rule.zone, where)


def _check_format(rule: AutoPartition, key_type: pa.DataType, where: str) -> None:
    name, usual = PREFIX + "time-format", _FORMATS[rule.unit]
    if pa.types.is_date32(key_type) and (rule.unit, rule.format) != ("day", "yyyy-MM-dd"):
        raise InvalidOption(
            f"a DATE is named by 'yyyy-MM-dd' and the unit DAY, not by {rule.format!r} and {rule.unit.upper()}", where=where,
            next_step=f"Leave {name} and {PREFIX}time-unit out, or partition by a STRING.",
        )  # fmt: skip
    tokens = _TOKEN.findall(rule.format)
    if "".join(tokens) != rule.format:
        raise InvalidOption(
            f"{name} = {rule.format!r} has parts that are not known", where=where,
            next_step=f"Write it of yyyy, MM, dd, HH, Q, - and _: for example {usual}.",
        )  # fmt: skip
    fields = [part for part in tokens if part not in _SEPARATORS]
    if len(set(fields)) != len(fields) or set(fields) != _FIELDS[rule.unit]:
        remedy = f"Name each part of a {rule.unit} once: {usual}."
        raise InvalidOption(f"{name} = {rule.format!r} does not name a {rule.unit}", where=where, next_step=remedy)
    if pa.types.is_integer(key_type) and not (fields == tokens and tokens[0] == "yyyy" and _fits(key_type, rule)):
        raise InvalidOption(
            f"{name} = {rule.format!r} does not fit a column of type {key_type}", where=where,
            next_step="Take digits only, the year first, and an INT or BIGINT; or partition by a STRING.",
        )  # fmt: skip


def _fits(key_type: pa.DataType, rule: AutoPartition) -> bool:
    """True when the period's largest names are values of the column, and leading zeros cannot be lost."""
    try:
        pa.array([rule.name_of(_ordinal_in(rule.unit, _LAST_DAY, _HOURS - 1))]).cast(key_type)
    except pa.ArrowInvalid:
        return False
    return True


# periods of the calendar


def _ordinal_in(unit: str, day: date, hour: int) -> int:
    match unit:
        case "hour":
            return day.toordinal() * _HOURS + hour
        case "day":
            return day.toordinal()
        case "month":
            return day.year * 12 + day.month - 1
        case "quarter":
            return day.year * 4 + (day.month - 1) // 3
        case _:
            return day.year


def _fields_of(unit: str, ordinal: int) -> dict[str, int]:
    match unit:
        case "hour" | "day":
            days, hour = divmod(ordinal, _HOURS) if unit == "hour" else (ordinal, 0)
            if not 1 <= days <= _LAST_DAY.toordinal():
                return {"yyyy": 0}
            day = date.fromordinal(days)
            return {"yyyy": day.year, "MM": day.month, "dd": day.day, "HH": hour}
        case "month":
            return {"yyyy": ordinal // 12, "MM": ordinal % 12 + 1}
        case "quarter":
            return {"yyyy": ordinal // 4, "Q": ordinal % 4 + 1}
        case _:
            return {"yyyy": ordinal}


def _written(part: str, fields: dict[str, int]) -> str:
    return part if part in _SEPARATORS else str(fields[part]).zfill(_WIDTHS[part])


@lru_cache(maxsize=65_536)
def _ordinal_of(unit: str, pattern: str, name: str) -> int:
    match = _reader_of(pattern).fullmatch(name)
    try:
        if match is None:
            raise ValueError
        fields = {field: int(text) for field, text in match.groupdict().items()}
        quarter, hour = fields.get("Q", 1), fields.get("HH", 0)
        if not 1 <= quarter <= 4 or hour >= _HOURS:
            raise ValueError
        return _ordinal_in(unit, date(fields["yyyy"], fields.get("MM", quarter * 3 - 2), fields.get("dd", 1)), hour)
    except ValueError as error:
        raise InvalidPartition(
            f"{name[:80]!r} does not name a {unit}", where="auto partition", next_step=f"Partitions of this table are named by {pattern}."
        ) from error


@lru_cache(maxsize=1024)
def _reader_of(pattern: str) -> re.Pattern[str]:
    def read(found: re.Match[str]) -> str:
        part = found.group()
        return part if part in _SEPARATORS else f"(?P<{part}>[0-9]{{{_WIDTHS[part]}}})"

    return re.compile(_TOKEN.sub(read, pattern))


def _local(now_ms: int, zone: str | None) -> datetime:
    """The wall clock of a zone at an instant."""
    return datetime.fromtimestamp(now_ms // 1000, None if zone is None else _zone(zone, "auto partition"))


@lru_cache(maxsize=1024)
def _zone(name: str, where: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidOption(
            f"{PREFIX}time-zone = {name!r} is not a time zone", where=where, next_step="Write it as Europe/Berlin or UTC."
        ) from error
