"""Events: deterministic shop events and Nexmark's auctions, made in whole columns.

Shapes follow what the comparison with Flink and Fluss uses: 1,000 shops, a day of event time over all rows; Nexmark with 1 person,
3 auctions and 46 bids per 50 events and 10,000 events per second of event time, values drawn from a hash of the event's number.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Numbers = npt.NDArray[np.uint64]
EVENT_COLUMNS: Final = (
    "user_id BIGINT, shop_id BIGINT, stat_date STRING, stat_hour STRING, ev STRING, cnt BIGINT, amt BIGINT, ts TIMESTAMP(3)"
)
_DAY_MS: Final = 86_400_000
_FIRST_MS: Final = 1_511_568_000_000
_NEXMARK_MS: Final = 1_436_918_400_000
_FIRST_NAMES: Final = pa.array("Peter Paul Luke John Saul Vicky Kate Julie Sarah Deiter Walter".split())
_LAST_NAMES: Final = pa.array("Shultz Abrams Spencer White Bartels Walton Smith Jones Noris".split())
_CITIES: Final = pa.array("Phoenix,Los Angeles,San Francisco,Boise,Portland,Bend,Redmond,Seattle,Kent,Cheyenne".split(","))
_STATES: Final = pa.array("AZ CA ID OR WA WY".split())
_CHANNELS: Final = pa.array(["Google", "Facebook", "Baidu", "Apple", *(f"channel-{k}" for k in range(10_000))])
_URLS: Final = pa.array(
    [f"https://www.nexmark.com/{name}/item.htm?query=1" for name in ("google", "facebook", "baidu", "apple")]
    + [f"https://www.nexmark.com/item/{k % 97}/item.htm?query=1&channel_id={k}" for k in range(10_000)]
)
_EXTRAS: Final = {size: pa.array([(f"{k * 2654435761 % (1 << 60):x}" * 20)[:size] for k in range(4096)]) for size in (20, 30, 100, 200)}


def hashed(numbers: Numbers, salt: int) -> Numbers:
    """splitmix64 of 16 n + salt + 1, without its highest bit. Source: Steele, Lea, Flood, Fast splittable pseudorandom generators."""
    z = (numbers * np.uint64(16) + np.uint64(salt + 1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(1)


def shop_events(start: int, stop: int, n_total: int, n_users: int) -> pa.RecordBatch:
    """Events [start, stop) of n_total, in order of their time."""
    n = np.arange(start, stop, dtype=np.uint64)
    ms = n.astype(np.int64) * _DAY_MS // n_total
    hours = pa.array([f"{hour:02d}" for hour in range(24)])
    kinds = pa.array(["pv"] * 7 + ["cart", "fav", "buy"])
    return pa.record_batch(
        {
            "user_id": _modulo(hashed(n, 1), n_users),
            "shop_id": _modulo(hashed(n, 2), 1000),
            "stat_date": pa.repeat("20171125", len(n)),
            "stat_hour": hours.take(pa.array(ms // 3_600_000)),
            "ev": kinds.take(_modulo(hashed(n, 3), 10)),
            "cnt": pa.array(np.ones(len(n), np.int64)),
            "amt": _modulo(hashed(n, 4), 10_000),
            "ts": pa.array(_FIRST_MS + ms, pa.timestamp("ms")),
        }
    )


def nexmark_events(start: int, stop: int) -> dict[str, pa.RecordBatch]:
    """Events [start, stop) as the rows of person, auction and bid."""
    n = np.arange(start, stop, dtype=np.uint64)
    kind = n % np.uint64(50)
    return {"person": _persons(n[kind == 0]), "auction": _auctions(n[(kind > 0) & (kind < 4)]), "bid": _bids(n[kind > 3])}


def _persons(n: Numbers) -> pa.RecordBatch:
    first, last = _FIRST_NAMES.take(_modulo(hashed(n, 0), 11)), _LAST_NAMES.take(_modulo(hashed(n, 1), 9))
    return pa.record_batch(
        {
            "id": _integers(np.uint64(1000) + n // np.uint64(50)),
            "name": pc.binary_join_element_wise(first, last, " "),
            "email_address": pc.binary_join_element_wise(pc.binary_join_element_wise(first, last, "@"), ".com", ""),
            "credit_card": _modulo(hashed(n, 2), 10_000).cast(pa.string()),
            "city": _CITIES.take(_modulo(hashed(n, 6), 10)),
            "state": _STATES.take(_modulo(hashed(n, 7), 6)),
            "date_time": _times(n),
            "extra": _extra(n, 100),
        }
    )


def _auctions(n: Numbers) -> pa.RecordBatch:
    epoch, place = n // np.uint64(50), n % np.uint64(50)
    first = hashed(n, 2) % np.uint64(900) + np.uint64(100)
    lately = np.where(epoch > 999, epoch - np.minimum(epoch, np.uint64(999)), np.uint64(0))
    seller = np.where(
        hashed(n, 0) % np.uint64(4) != 0,
        epoch // np.uint64(4) * np.uint64(4),
        lately + hashed(n, 1) % np.minimum(np.uint64(1000), epoch + np.uint64(1)),
    )
    opened = _NEXMARK_MS + (n // np.uint64(10)).astype(np.int64)
    return pa.record_batch(
        {
            "id": _integers(np.uint64(1000) + epoch * np.uint64(3) + place - np.uint64(1)),
            "item_name": _extra(n, 20),
            "description": _extra(n, 100),
            "initial_bid": _integers(first),
            "reserve": _integers(first + hashed(n, 5) % np.uint64(1000)),
            "date_time": pa.array(opened, pa.timestamp("ms")),
            "expires": pa.array(opened + 1 + (hashed(n, 6) % np.uint64(333)).astype(np.int64), pa.timestamp("ms")),
            "seller": _integers(np.uint64(1000) + seller),
            "category": _integers(np.uint64(10) + hashed(n, 7) % np.uint64(5)),
            "extra": _extra(n, 200),
        }
    )


def _bids(n: Numbers) -> pa.RecordBatch:
    epoch = n // np.uint64(50)
    latest = epoch * np.uint64(3) + np.uint64(2)
    lately = latest - np.minimum(latest, np.uint64(99))
    auction = np.where(
        hashed(n, 0) % np.uint64(2) != 0,
        latest // np.uint64(100) * np.uint64(100),
        lately + hashed(n, 1) % np.minimum(np.uint64(100), latest + np.uint64(1)),
    )
    recent = epoch - np.minimum(epoch, np.uint64(999))
    bidder = np.where(
        hashed(n, 2) % np.uint64(4) != 0,
        epoch // np.uint64(100) * np.uint64(100),
        recent + hashed(n, 3) % np.minimum(np.uint64(1000), epoch + np.uint64(1)),
    )
    scale = np.uint64(10) ** (hashed(n, 4) % np.uint64(6))
    price = (hashed(n, 5) % (np.uint64(9) * scale) + scale) * np.uint64(100)
    which = hashed(n, 7)
    channel = pa.array(
        np.where(hashed(n, 6) % np.uint64(2) == 0, which % np.uint64(4), np.uint64(4) + which % np.uint64(10_000)).astype(np.int64)
    )
    return pa.record_batch(
        {
            "auction": _integers(np.uint64(1000) + auction),
            "bidder": _integers(np.uint64(1000) + bidder),
            "price": _integers(price),
            "channel": _CHANNELS.take(channel),
            "url": _URLS.take(channel),
            "date_time": _times(n),
            "extra": _extra(n, 30),
        }
    )


def _integers(values: Numbers) -> pa.Array:
    return pa.array(values.astype(np.int64))


def _modulo(values: Numbers, by: int) -> pa.Array:
    return _integers(values % np.uint64(by))


def _times(n: Numbers) -> pa.Array:
    return pa.array(_NEXMARK_MS + (n // np.uint64(10)).astype(np.int64), pa.timestamp("ms"))


def _extra(n: Numbers, size: int) -> pa.Array:
    return _EXTRAS[size].take(_modulo(hashed(n, 8), 4096))
