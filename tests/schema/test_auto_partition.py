"""Auto partition: names, periods and retention agree with an independent computation, in every unit and zone."""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as hs

from storage_engine.errors import InvalidOption, InvalidPartition
from storage_engine.schema.auto_partition import AutoPartition, rule_of
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.schema.evolve import set_options
from storage_engine.schema.validate import validate

UNITS = ["hour", "day", "month", "quarter", "year"]
FORMATS = {
    "hour": ["yyyyMMddHH", "yyyy-MM-dd-HH", "HHddMMyyyy"],
    "day": ["yyyyMMdd", "yyyy-MM-dd", "dd_MM_yyyy"],
    "month": ["yyyyMM", "yyyy-MM", "MMyyyy"],
    "quarter": ["yyyyQ", "yyyy-Q", "Q_yyyy"],
    "year": ["yyyy"],
}
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Apia", "America/Sao_Paulo"]
RULES = hs.sampled_from(UNITS).flatmap(
    lambda unit: hs.builds(
        AutoPartition,
        hs.just(unit),
        hs.sampled_from(FORMATS[unit]),
        hs.sampled_from(ZONES),
        hs.integers(0, 6),
        hs.integers(-1, 9),
        hs.booleans(),
    )
)
SWITCHES = [datetime(2024, 3, 31, 1, tzinfo=UTC), datetime(2024, 10, 27, 1, tzinfo=UTC), datetime(2011, 12, 30, 10, tzinfo=UTC)]
MOMENTS = hs.one_of(
    hs.builds(lambda seconds: datetime.fromtimestamp(seconds, UTC), hs.integers(150_000_000, 3_800_000_000)),
    hs.builds(lambda at, minutes: at + timedelta(minutes=minutes), hs.sampled_from(SWITCHES), hs.integers(-180, 180)),
)
OPTIONS = "table.auto-partition."


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def written(pattern: str, year: int, month: int = 1, day: int = 1, hour: int = 0) -> str:
    """The name of a period, by replacing its parts one after another."""
    parts = {"yyyy": f"{year:04}", "MM": f"{month:02}", "dd": f"{day:02}", "HH": f"{hour:02}", "Q": str((month + 2) // 3)}
    for part, text in parts.items():
        pattern = pattern.replace(part, text)
    return pattern


def naive_periods(rule: AutoPartition, moment: datetime, step: int) -> Iterator[str]:
    """Names of the period of a moment and those before (step -1) or after it, by walking the clock or the calendar."""
    local = moment.astimezone(ZoneInfo(rule.zone or "UTC"))
    year, month, day = local.year, local.month, local.day
    while True:
        match rule.unit:
            case "hour":
                at = moment.astimezone(ZoneInfo(rule.zone or "UTC"))
                yield written(rule.format, at.year, at.month, at.day, at.hour)
                moment += timedelta(hours=step)
                continue
            case "day":
                yield written(rule.format, year, month, day)
                at = date(year, month, day) + timedelta(days=step)
                year, month, day = at.year, at.month, at.day
                continue
            case "year":
                yield written(rule.format, year)
                year += step
                continue
            case _:
                yield written(rule.format, year, month)
        for _ in range(3 if rule.unit == "quarter" else 1):
            month += step
            if month in (0, 13):
                year, month = year + step, 12 if month == 0 else 1


@given(RULES, MOMENTS)
def test_the_partitions_wanted_are_the_present_period_and_those_that_follow_on_the_clock_or_the_calendar(rule, moment):
    periods = naive_periods(rule, moment, 1)
    walked = [next(periods) for _ in range(rule.n_precreate)]

    assert rule.wanted(ms(moment)) == list(dict.fromkeys(walked))


@given(RULES, MOMENTS, hs.integers(0, 12))
def test_a_partition_expires_when_as_many_periods_as_are_kept_lie_between_it_and_the_present_one(rule, moment, n_back):
    periods = naive_periods(rule, moment, -1)
    walked = [next(periods) for _ in range(n_back + 1)]
    later = next(p for p in naive_periods(rule, moment + timedelta(days=1), 1))
    expected = rule.n_retention >= 0 and n_back > rule.n_retention
    assume(rule.unit != "hour" or walked[-1] not in walked[:-1])  # the hour that a clock set back shows twice is one partition

    assert rule.is_expired(walked[-1], ms(moment)) == expected
    assert not rule.is_expired(later, ms(moment))
    kept = walked[: rule.n_retention + 1]  # a name among them is kept, also when it is that of an hour before as well
    gone = [name for name in walked[: rule.n_retention : -1] if name not in kept]
    assert rule.expired([*walked, later], ms(moment)) == (list(dict.fromkeys(gone)) if rule.n_retention >= 0 else [])


@given(RULES, MOMENTS)
def test_a_name_and_its_period_are_inverses_and_names_order_as_time_does(rule, moment):
    periods = naive_periods(rule, moment, 1)
    names = list(dict.fromkeys(next(periods) for _ in range(30)))
    ordinals = [rule.ordinal_of(name) for name in names]

    assert [rule.name_of(ordinal) for ordinal in ordinals] == names
    assert ordinals == sorted(ordinals)


@given(RULES, hs.text("0123456789-_Qx", min_size=0, max_size=14))
def test_what_does_not_read_as_the_format_says_names_no_partition(rule, name):
    try:
        ordinal = rule.ordinal_of(name)
    except InvalidPartition:
        return
    assert rule.name_of(ordinal) == name


@pytest.mark.parametrize(
    ("name", "unit"), [("20170229", "day"), ("2017010124", "hour"), ("201713", "month"), ("20175", "quarter"), ("0000", "year")]
)
def test_a_date_that_the_calendar_does_not_have_names_no_partition(name, unit):
    with pytest.raises(InvalidPartition, match=f"does not name a {unit}"):
        AutoPartition(unit, FORMATS[unit][0], "UTC", 1, 1, drops_late=False).ordinal_of(name)


def test_an_hour_that_the_clock_skips_is_not_created_and_one_that_it_repeats_is_created_once():
    rule = AutoPartition("hour", "yyyyMMddHH", "Europe/Berlin", 4, 2, drops_late=False)
    before_spring, before_autumn = datetime(2024, 3, 31, 0, 30, tzinfo=UTC), datetime(2024, 10, 27, 0, 30, tzinfo=UTC)

    assert rule.wanted(ms(before_spring)) == ["2024033101", "2024033103", "2024033104", "2024033105"]
    assert rule.wanted(ms(before_autumn)) == ["2024102702", "2024102703", "2024102704"]


def test_a_zone_decides_which_day_it_is():
    moment = ms(datetime(2024, 6, 30, 23, 30, tzinfo=UTC))
    rules = [AutoPartition("quarter", "yyyyQ", zone, 1, 1, drops_late=False) for zone in ("UTC", "Europe/Berlin")]

    assert [rule.wanted(moment) for rule in rules] == [["20242"], ["20243"]]


def test_every_month_has_as_many_day_partitions_as_days():
    rule = AutoPartition("day", "yyyyMMdd", "UTC", 366, -1, drops_late=False)
    names = rule.wanted(ms(datetime(2024, 1, 1, tzinfo=UTC)))

    for month in range(1, 13):
        assert sum(name.startswith(f"2024{month:02}") for name in names) == calendar.monthrange(2024, month)[1]


def table(key_type: str = "STRING", **options: str) -> TableDescriptor:
    named = {OPTIONS + name.replace("_", "-"): value for name, value in options.items()}
    return validate(TableDescriptor("db.t", (Column("ds", key_type), Column("x", "INT")), partition_keys=("ds",), options=named))


def test_a_rule_takes_its_defaults_from_its_unit_and_from_a_date_column():
    assert rule_of(table()) is None
    assert rule_of(table(enabled="true")) == AutoPartition("day", "yyyyMMdd", None, 2, 7, drops_late=False)
    assert rule_of(table(enabled="true", time_unit="QUARTER")).format == "yyyyQ"
    assert rule_of(table("DATE", enabled="true")).format == "yyyy-MM-dd"
    assert rule_of(set_options(table(enabled="true"), {OPTIONS + "num-retention": "-1"})).n_retention == -1


@pytest.mark.parametrize(
    ("key_type", "options", "message"),
    [
        ("STRING", {"time_unit": "HOUR"}, "time-unit has no effect while table.auto-partition.enabled is false"),
        ("STRING", {"enabled": "true", "key": "x"}, "'x' is not the partition column"),
        ("STRING", {"enabled": "true", "time_zone": "Mars/Olympus"}, "'Mars/Olympus' is not a time zone"),
        ("STRING", {"enabled": "true", "time_format": "yyyy/MM/dd"}, "has parts that are not known"),
        ("STRING", {"enabled": "true", "time_format": "yyyyMM"}, "does not name a day.*yyyyMMdd"),
        ("STRING", {"enabled": "true", "time_format": "yyyyMMddHH"}, "does not name a day"),
        ("STRING", {"enabled": "true", "time_format": "yyyyMMdddd"}, "does not name a day"),
        ("DATE", {"enabled": "true", "time_unit": "MONTH"}, "a DATE is named by 'yyyy-MM-dd' and the unit DAY"),
        ("DATE", {"enabled": "true", "time_format": "yyyyMMdd"}, "a DATE is named by 'yyyy-MM-dd'"),
        ("INT", {"enabled": "true", "time_format": "yyyy-MM-dd"}, "does not fit a column of type int32"),
        ("INT", {"enabled": "true", "time_unit": "HOUR"}, "does not fit a column of type int32"),
        ("BIGINT", {"enabled": "true", "time_format": "ddMMyyyy"}, "does not fit a column of type int64"),
    ],
)
def test_options_that_say_nothing_or_contradict_are_refused_by_name(key_type, options, message):
    with pytest.raises(InvalidOption, match=message):
        table(key_type, **options)


def test_integers_name_what_fits_them():
    assert rule_of(table("BIGINT", enabled="true", time_unit="HOUR")).format == "yyyyMMddHH"
    assert rule_of(table("INT", enabled="true")).unit == "day"
    assert pa.array(["20240101"]).cast(pa.int32()).to_pylist() == [20240101]
