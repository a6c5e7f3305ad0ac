"""Regexes of whole numbers and decimals between limits. Knows no schema."""

from __future__ import annotations

import math
from collections.abc import Mapping

_MOST_DIGITS = 15  # of a whole number that nothing limits: every reader keeps these exactly
_FRACTION = r"(?:\.[0-9]{1,15})?"
_ZEROS = r"(?:\.0{1,15})?"
_SOME = r"\.[0-9]{0,14}[1-9]"
_EXPONENT = "(?:[eE][+-]?[0-9]{1,2})?"

Limits = Mapping[str, float]


def integers(limits: Limits) -> str:
    """Whole numbers by JSON schema's minimum, maximum and exclusive ones; empty: there is none."""
    if not limits.keys() - {"multipleOf"}:
        return rf"-?(?:0|[1-9][0-9]{{0,{_MOST_DIGITS - 1}}})"
    low, high = _bounds(limits)
    return _joined(_between(max(low, 0), high), _between(max(-high, 1), -low))


def numbers(limits: Limits) -> str:
    """The same of decimals, which have an exponent only where nothing limits them."""
    if not limits:
        return rf"-?(?:0|[1-9][0-9]{{0,{_MOST_DIGITS - 1}}}){_FRACTION}{_EXPONENT}"
    most = 10**_MOST_DIGITS - 1
    low = max(limits.get("minimum", -most), limits.get("exclusiveMinimum", -most))
    high = min(limits.get("maximum", most), limits.get("exclusiveMaximum", most))
    open_low = limits.get("exclusiveMinimum") == low
    open_high = limits.get("exclusiveMaximum") == high
    above = (
        _decimals(low, high, open_low, open_high)
        if low >= 0
        else _decimals(0, high, False, open_high)
    )
    # what is below zero, by its size; -0 would be a zero again
    below = (
        _decimals(-high, -low, open_high, open_low)
        if high < 0
        else _decimals(0, -low, True, open_low)
    )
    return _joined(above, below if low < 0 else "")


def _decimals(low: float, high: float, open_low: bool, open_high: bool) -> str:
    """Of 0 and more."""
    if high < low:
        return ""
    first, last = math.ceil(low), math.floor(high)
    parts = []
    if open_low and first == low:
        if first < last:
            parts.append(f"{first}{_SOME}")
        first += 1
    if whole := _between(first, last - 1):
        parts.append(whole + _FRACTION)
    if last >= first and not (open_high and last == high):
        parts.append(f"{last}{_ZEROS}")
    return f"(?:{'|'.join(parts)})" if parts else ""


def _bounds(limits: Limits) -> tuple[int, int]:
    """The least and the greatest whole number, both included."""
    most = 10**_MOST_DIGITS - 1
    low = math.ceil(limits.get("minimum", -most))
    high = math.floor(limits.get("maximum", most))
    if "exclusiveMinimum" in limits:
        low = max(low, math.floor(limits["exclusiveMinimum"]) + 1)
    if "exclusiveMaximum" in limits:
        high = min(high, math.ceil(limits["exclusiveMaximum"]) - 1)
    return low, high


def _joined(positive: str, negative: str) -> str:
    parts = [positive] if positive else []
    if negative:
        parts.append(f"-{negative}")
    return f"(?:{'|'.join(parts)})" if parts else ""


def _between(low: int, high: int) -> str:
    """Whole numbers of 0 and more, without leading zeros; empty: there is none."""
    if high < low:
        return ""
    parts = []
    first, last = len(str(low)), len(str(high))
    for digits in range(first, last + 1):
        least = str(low) if digits == first else "1" + "0" * (digits - 1)
        most = str(high) if digits == last else "9" * digits
        parts.append(_same_length(least, most))
    return f"(?:{'|'.join(parts)})"


def _same_length(low: str, high: str) -> str:
    if low == high:
        return low
    rest = len(low) - 1
    if low[0] == high[0]:
        return low[0] + _same_length(low[1:], high[1:])
    parts = []
    begin, end = int(low[0]), int(high[0])
    if rest and low[1:] != "0" * rest:
        parts.append(low[0] + _same_length(low[1:], "9" * rest))
        begin += 1
    part = ""
    if rest and high[1:] != "9" * rest:
        part = high[0] + _same_length("0" * rest, high[1:])
        end -= 1
    if begin <= end:
        more = f"[0-9]{{{rest}}}" if rest else ""
        parts.append(f"[{begin}-{end}]{more}")
    if part:
        parts.append(part)
    return f"(?:{'|'.join(parts)})"
