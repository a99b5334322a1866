"""Model: the day's orders and the day's GMV, from what is there so far and a baseline. Arrow in, Arrow out.

predict_day_orders is FutureHourlyForecastUDF of the article, whose formula is not printed. The printed statement calls it predict_hour_gmv;
what it forecasts is the day's number of orders. predict_day_gmv is ours.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.stream import udf

MINUTES = 1_440
PRIOR = 0.05
"""How much a past day weighs against the present one: as this share of its GMV would. Few orders of the night say little about the day."""


def predict_day_orders(order_cnt: pa.Int64Array, mm: pa.StringArray, minute_ratio_feat: pa.StringArray) -> pa.StringArray:
    """The orders over share(minute), rounded, as text; null where there is no baseline, or its share at that minute is 0.

    Shapes: all (n,). Units: order_cnt is a count since midnight, mm is HHmm, a share is in 0..1.
    """
    encoded = pc.dictionary_encode(minute_ratio_feat)
    shares = np.array([shares_of(text) for text in encoded.dictionary.to_pylist()] or [np.full(MINUTES, np.nan)])
    hours, minutes = (pc.utf8_slice_codeunits(mm, begin, begin + 2).cast(pa.int64()) for begin in (0, 2))
    places = pc.add(pc.multiply(hours, 60), minutes).to_numpy(zero_copy_only=False)
    rows = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
    share = shares[rows, places]
    counts = order_cnt.to_numpy(zero_copy_only=False)
    is_known = (share > 0) & pc.is_valid(minute_ratio_feat).to_numpy(zero_copy_only=False)
    forecast = np.rint(np.divide(counts, share, out=np.zeros(len(share)), where=is_known)).astype(np.int64)
    return pc.if_else(pa.array(is_known), pa.array(forecast).cast(pa.string()), pa.scalar(None, pa.string()))


@udf(inputs=["DECIMAL(18, 2)", "DOUBLE", "DECIMAL(18, 2)"], result="DECIMAL(18, 2)", vectorised=True)
def predict_day_gmv(gmv: pa.Decimal128Array, gmv_share: pa.DoubleArray, day_gmv: pa.Decimal128Array) -> pa.Decimal128Array:
    """What is there, and what was still to come of the past day, times how much stronger the present one has been; null without a baseline.

    gmv        so far, of the present day
    gmv_share  of the past day's GMV, that had been placed by this minute: 0..1
    day_gmv    the past day's
    Shapes: all (n,). Units: money, to the cent.
    """
    now, share, past = (item.cast(pa.float64()).to_numpy(zero_copy_only=False) for item in (gmv, gmv_share, day_gmv))  # a null is NaN
    with np.errstate(invalid="ignore", divide="ignore"):
        strength = (now + PRIOR * past) / (share * past + PRIOR * past)
    forecast = now + (1.0 - share) * past * strength
    is_known = np.isfinite(forecast)
    cents = pa.array(np.rint(np.where(is_known, forecast, 0.0) * 100.0).astype(np.int64))
    money = pc.multiply(cents.cast(pa.decimal128(19, 0)), pa.scalar(Decimal("0.01"))).cast(pa.decimal128(18, 2))
    return pc.if_else(pa.array(is_known), money, pa.scalar(None, money.type))


def shares_of(text: str) -> np.ndarray:
    """The share at each minute of the day. Shapes: -> (1440,). Errors: ValueError for another text.

    >>> shares_of(feature_of(np.linspace(0, 1, 1440)))[-1]
    1.0
    """
    shares = np.array([float(part.split("=")[1]) for part in text.split(",")])
    if len(shares) != MINUTES:
        raise ValueError(f"a baseline of {len(shares)} minutes; it has {MINUTES}")
    return shares


def feature_of(shares: np.ndarray) -> str:
    """The inverse of shares_of. Shapes: (1440,) ->."""
    return ",".join(f"{minute // 60:02}{minute % 60:02}={share:.9f}" for minute, share in enumerate(shares))
