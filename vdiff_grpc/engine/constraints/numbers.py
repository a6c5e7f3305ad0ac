"""Regexes of whole numbers and decimals between limits. Knows no schema."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vdiff_grpc.engine.constraints.dialects import INT32, at
from vdiff_grpc.engine.constraints.kinds import ConstraintError, NoValueError

_MOST_DIGITS = 15  # of a whole number that nothing limits: every reader keeps these exactly
_EXPONENT = "(?:[eE][+-]?[0-9]{1,2})?"

_INT32 = {"minimum": -(2**31), "maximum": 2**31 - 1}
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MOST_LISTED = 1024  # multiples that are written one by one

Limits = Mapping[str, float]


def number_regex(name: str, schema: Mapping[str, Any], path: str) -> str:
    """Of an `integer` or `number` as a schema limits it. Raises NoValueError and ConstraintError."""
    limits = {keyword: schema[keyword] for keyword in _LIMITS if keyword in schema}
    if schema.get("format") == INT32:
        limits["minimum"] = max(limits.get("minimum", _INT32["minimum"]), _INT32["minimum"])
        limits["maximum"] = min(limits.get("maximum", _INT32["maximum"]), _INT32["maximum"])
    multiple = schema.get("multipleOf", 1 if name == "integer" else None)
    if multiple is None:
        written = numbers(limits)
    elif multiple == 1:
        written = integers(limits)
    else:
        written = _multiples(multiple, limits, name, at(path, "multipleOf"))
    if not written:
        raise NoValueError(path, f"its limits leave no {name} that can be written")
    return written


def _multiples(multiple: float, limits: Limits, name: str, path: str) -> str:
    low, high = _bounds(limits)
    if isinstance(multiple, int) or multiple.is_integer():
        step = int(multiple)
        if step > 0 and (high - low) // step <= _MOST_LISTED:
            found = map(str, range(-(-low // step) * step, high + 1, step))
            return f"(?:{'|'.join(found)})" if low <= high else ""
        if step > 0 and not limits and 1000 % step == 0:
            tens = next(n for n in (1, 2, 3) if 10**n % step == 0)
            ends = "|".join(f"{end:0{tens}}" for end in range(0, 10**tens, step))
            small = "|".join(map(str, range(step, 10**tens, step)))
            return (
                f"(?:-?[1-9][0-9]{{0,9}}(?:{ends})" + (f"|-?(?:{small})" if small else "") + "|0)"
            )
    digits = next((n for n in (1, 2, 3, 4) if multiple == 10.0**-n), None)
    if name == "number" and digits is not None:
        return numbers(limits, digits)
    raise ConstraintError(path, f"multipleOf ({multiple:g}) is not supported here")


def integers(limits: Limits) -> str:
    """Whole numbers by JSON schema's minimum, maximum and exclusive ones; empty: there is none."""
    if not limits.keys() - {"multipleOf"}:
        return rf"-?(?:0|[1-9][0-9]{{0,{_MOST_DIGITS - 1}}})"
    low, high = _bounds(limits)
    return _joined(_between(max(low, 0), high), _between(max(-high, 1), -low))


def numbers(limits: Limits, digits: int = _MOST_DIGITS) -> str:
    """The same of decimals, which have an exponent only where nothing limits them.

    digits: most of them after the point.
    """
    if not limits:
        exponent = _EXPONENT if digits == _MOST_DIGITS else ""
        whole = rf"-?(?:0|[1-9][0-9]{{0,{_MOST_DIGITS - 1}}})"
        return rf"{whole}(?:\.[0-9]{{1,{digits}}})?{exponent}"
    most = 10**_MOST_DIGITS - 1
    low = max(limits.get("minimum", -most), limits.get("exclusiveMinimum", -most))
    high = min(limits.get("maximum", most), limits.get("exclusiveMaximum", most))
    for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
        if keyword in limits:  # what has more digits may be read as the limit itself
            whole_digits = len(str(math.ceil(abs(limits[keyword]))))
            digits = max(0, min(digits, _MOST_DIGITS - whole_digits))
    open_low = limits.get("exclusiveMinimum") == low
    open_high = limits.get("exclusiveMaximum") == high
    above = (
        _decimals(low, high, open_low, open_high, digits)
        if low >= 0
        else _decimals(0, high, False, open_high, digits)
    )
    # what is below zero, by its size; -0 would be a zero again
    below = (
        _decimals(-high, -low, open_high, open_low, digits)
        if high < 0
        else _decimals(0, -low, True, open_low, digits)
    )
    return _joined(above, below if low < 0 else "")


def _decimals(low: float, high: float, open_low: bool, open_high: bool, digits: int) -> str:
    """Of 0 and more."""
    fraction, zeros = "", ""
    if digits:
        fraction, zeros = rf"(?:\.[0-9]{{1,{digits}}})?", rf"(?:\.0{{1,{digits}}})?"
    if high < low:
        return ""
    first, last = math.ceil(low), math.floor(high)
    parts = []
    if open_low and first == low:
        if first < last and digits:
            parts.append(rf"{first}\.[0-9]{{0,{digits - 1}}}[1-9]")
        first += 1
    if whole := _between(first, last - 1):
        parts.append(whole + fraction)
    if last >= first and not (open_high and last == high):
        parts.append(f"{last}{zeros}")
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
