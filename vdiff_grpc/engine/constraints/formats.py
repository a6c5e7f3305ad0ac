"""Regexes of JSON Schema's formats: each of a part of what the format allows. Knows no schema."""

from __future__ import annotations

import re._parser as parser  # type: ignore[import-not-found]

_DATE = (
    "[12][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:0[0-9]|1[0-2]):[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_HEX = "[0-9a-f]{1,4}"
_LABEL = "[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,20})?"
_HOST = rf"(?:{_LABEL}\.){{0,3}}[A-Za-z]{{2,12}}"
_PCHAR = r"(?:[A-Za-z0-9._~!$&()*+,;=:@\-]|%[0-9A-F]{2})"
_TAIL = rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:\#(?:{_PCHAR}|[/?])*)?"
_URI = rf"(?:https?|ftp)://{_HOST}(?::[0-9]{{1,4}})?(?:/{_PCHAR}*)*{_TAIL}|(?:urn|mailto|tel):{_PCHAR}+"
_REFERENCE = rf"{_URI}|(?:/{_PCHAR}+)+/?{_TAIL}"
_EMAIL = rf"[A-Za-z0-9_%+-]{{1,32}}(?:\.[A-Za-z0-9_%+-]{{1,31}})?@{_HOST}"
_POINTER = r"(?:/(?:[^~/\"\\\x00-\x1f\x7f]|~[01])*)*"
_DAYS = "(?:N Y(?:N M(?:N D)?)?|N M(?:N D)?|N D)"
_HOURS = "(?:N H(?:N M(?:N S)?)?|N M(?:N S)?|N S)"
_SPAN = f"(?:N W|{_DAYS}(?:T{_HOURS})?|T{_HOURS})".replace("N ", "[0-9]{1,3}")
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P{_SPAN}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": _IPV4,
    "ipv6": f"(?:{_HEX}:){{7}}{_HEX}|(?:{_HEX}:){{1,5}}:{_HEX}|::(?:{_HEX})?",
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": _HOST,
    "idn-hostname": _HOST,
    "uri": _URI,
    "iri": _URI,
    "uri-reference": _REFERENCE,
    "iri-reference": _REFERENCE,
    "uri-template": _URI,
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9][0-9]{{0,3}})(?:\#|{_POINTER})",
    "regex": r"\^?(?:(?:[A-Za-z0-9 _]|\\\\[dws])[*+?]?)*\$?",
}

# Where the length is limited.
_SHORT = {
    "email": r"[a-z0-9]{1,20}(?:\.[a-z0-9]{1,20})?@[a-z0-9]{1,20}\.[a-z]{2,12}",
    "hostname": r"[a-z0-9]{1,20}\.[a-z]{2,12}",
    "uri": rf"https?://{_HOST}(?:/[A-Za-z0-9._~\-]{{0,50}})?",
    "uri-reference": rf"https?://{_HOST}(?:/[A-Za-z0-9._~\-]{{0,50}})?",
    "time": "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z",
    "date-time": f"{_DATE}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z",
}


def format_regex(name: str, low: int, high: int | None) -> str | None:
    """Of so many characters; None: that cannot be told."""
    for written in (FORMATS[name], _SHORT.get(name)):
        if written is None:
            continue
        least, most = parser.parse(written.replace(r"\#", "#")).getwidth()
        if low <= least and (high is None or most <= high):
            return f"(?:{written})"
    return None
