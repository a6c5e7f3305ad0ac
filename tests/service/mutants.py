"""Requests gone wrong: valid messages with fields changed, and their bytes with bits changed.

Deterministic: the same Random gives the same mutants. Walks the contract's descriptors, so that
a new field is mutated from its first day.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# What a field may well hold comes first and is drawn more often than what it may not.
_COMMON_SHARE = 0.6
_TEXTS = (
    ("a", "Once upon a time", " ", "the", "é", "日本語", "😀", "x" * 40),
    ("", "\0", "\n", "\r\nlevel=ERROR forged", "x" * 300, "x" * 20_000, "\u202e", "\ufeff", "%s%n"),
)
_NATURALS = ((0, 1, 2, 3, 4, 5, 8, 16), (31, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1))
_NUMBERS = (
    (0.0, 0.1, 0.3, 0.5, 0.75, 0.9, 1.0),
    (-0.0, 1.5, 2.0, -1.0, 1e-300, 5e-324, 1e300, math.inf, -math.inf, math.nan),
)
_MAX_REPEATED = 64


def mutant(seed: Message, random: Random) -> Message:
    """A copy with one to three changes."""
    copy = type(seed)()
    copy.CopyFrom(seed)
    for _ in range(random.choice((1, 1, 2, 3))):
        _change(random.choice(list(_messages(copy))), random)
    return copy


def broken_bytes(data: bytes, random: Random) -> bytes:
    """The bytes with one to four changes: bits and bytes, for one half cuts and repeats too."""
    changed = bytearray(data)
    num_kinds = random.choice((2, 5))
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(changed) + 1)
        match random.randrange(num_kinds):
            case 0 | 1 if at == len(changed):
                pass
            case 0:
                changed[at] ^= 1 << random.randrange(8)
            case 1:
                changed[at] = random.randrange(256)
            case 2:
                del changed[at : at + random.choice((1, 2, 8, len(changed)))]
            case 3:
                changed[at:at] = random.randbytes(random.choice((1, 4, 32)))
            case _:
                changed[at:at] = changed[at : at + random.choice((1, 8, 64))]
    return bytes(changed)


def _messages(message: Message) -> Iterator[Message]:
    """The message and all that are set inside."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                yield from _messages(inner)


def _change(message: Message, random: Random) -> None:
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = random.choice(fields)
    if random.random() < 0.2:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_list(getattr(message, field.name), field, random)
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        if random.random() < 0.5:
            _change(inner, random)
    else:
        setattr(message, field.name, _value(field, random))


def _change_list(values: Any, field: FieldDescriptor, random: Random) -> None:
    is_message = field.message_type is not None
    match random.randrange(4):
        case 0 if values:
            del values[random.randrange(len(values))]
        case 1 if values and len(values) < _MAX_REPEATED:
            values.extend(list(values)[: random.choice((1, len(values)))])
        case 2 if values and not is_message:
            values[random.randrange(len(values))] = _value(field, random)
        case _ if is_message:
            _change(values.add(), random)
        case _:
            values.append(_value(field, random))


def _value(field: FieldDescriptor, random: Random) -> Any:
    if field.enum_type is not None:
        numbers = [value.number for value in field.enum_type.values]
        return _pick((numbers, (77, -1, 2**31 - 1)), random)
    return _VALUES[field.cpp_type](random)


def _pick(choices: Sequence[Sequence[Any]], random: Random) -> Any:
    common, rare = choices
    return random.choice(common if random.random() < _COMMON_SHARE else rare)


_VALUES: dict[int, Callable[[Random], Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: lambda random: random.random() < 0.5,
    FieldDescriptor.CPPTYPE_DOUBLE: lambda random: _pick(_NUMBERS, random),
    FieldDescriptor.CPPTYPE_FLOAT: lambda random: _pick(_NUMBERS, random),
    FieldDescriptor.CPPTYPE_UINT32: lambda random: _pick(_NATURALS, random),
    FieldDescriptor.CPPTYPE_UINT64: lambda random: _pick(_NATURALS, random),
    FieldDescriptor.CPPTYPE_INT32: lambda random: min(_pick(_NATURALS, random), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: lambda random: _pick(_NATURALS, random),
    FieldDescriptor.CPPTYPE_STRING: lambda random: _pick(_TEXTS, random),
}
