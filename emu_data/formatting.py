"""How a number is written for people. Pages, Dagster's metadata, verdicts, model cards and commands all use these
functions, so that a number looks the same everywhere.

None and NaN are written "–", a minus sign "−". Thousands are separated by a thin space.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeGuard

NOTHING = "–"
DIGITS = 4  # significant digits of a number whose unit does not imply a precision; chosen here


def is_known(value: float | None) -> TypeGuard[float]:
    """Whether a value is a number: neither None nor NaN."""
    return value is not None and value == value


def format_number(value: float | None, digits: int = 1) -> str:
    """With `digits` digits after the point: "64.3"."""
    return f"{value:.{digits}f}".replace("-", "−") if is_known(value) else NOTHING


def format_signed(value: float | None, digits: int = 1) -> str:
    """As format_number, with a plus sign if positive: "+1.2"."""
    return f"{value:+.{digits}f}".replace("-", "−") if is_known(value) else NOTHING


def format_count(value: float | None) -> str:
    """A whole number: "12 345"."""
    return f"{int(value):,}".replace(",", "\u202f").replace("-", "−") if is_known(value) else NOTHING


def format_significant(value: float | None, digits: int = DIGITS) -> str:
    """With `digits` significant digits; from 10 ** digits on as a whole number: "0.1235", "12 345"."""
    if not is_known(value):
        return NOTHING
    if math.isfinite(value) and (value == int(value) or abs(value) >= 10**digits):
        return format_count(round(value))
    return f"{value:.{digits}g}".replace("-", "−")


def format_percent(value: float | None, digits: int = 1) -> str:
    """A rate that is already in per cent (0..100): "64.3 %"."""
    return f"{format_number(value, digits)} %" if is_known(value) else NOTHING


def format_share(value: float | None, digits: int = 0) -> str:
    """A share (0..1) in per cent: "64 %"."""
    return format_percent(None if value is None else 100 * value, digits)


def format_p_value(value: float | None) -> str:
    """With two significant digits; "< 0.001" below 0.001."""
    if not is_known(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def format_span(interval: Any, digits: int = 1) -> str:
    """The ends of an interval (a mapping or an object with low and high): "64.0 – 77.8"; "" if one is unknown."""
    ends = interval if isinstance(interval, Mapping) else vars(interval)
    if not is_known(ends["low"]) or not is_known(ends["high"]):
        return ""
    return f"{format_number(ends['low'], digits)} – {format_number(ends['high'], digits)}"


def format_duration(seconds: float | None) -> str:
    """Seconds as "48 s", "7 min 5 s" or "2 h 10 min"."""
    if not is_known(seconds):
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_time(time: str | datetime | None) -> str:
    """A time (in ISO 8601, or a datetime) to the minute in UTC: "27 Nov 2026, 14:05 UTC"."""
    if not time:
        return NOTHING
    found = datetime.fromisoformat(time) if isinstance(time, str) else time
    return f"{found.astimezone(UTC):%d %b %Y, %H:%M} UTC".lstrip("0")


def rounded(value: Any) -> Any:
    """Round a number to about the digits of format_significant, but keep it a number, for pages that plot numbers
    (Dagster's).

    Whole numbers become int; others get DIGITS significant digits, or none after the point from 1000 on; NaN becomes
    "–"; other values are returned unchanged.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if not is_known(value):
        return NOTHING
    if math.isinf(value):
        return float(value)
    if value == int(value) or abs(value) >= 10 ** (DIGITS - 1):
        return round(value)
    return float(f"{value:.{DIGITS}g}")
