"""Strategies between the contract's oneof and the engine's dataclasses, by the names of their fields.

Both sides have a strategy under one name, with the same fields and the same words in its enums: a
new one needs no change here.
"""

from __future__ import annotations

import enum
from typing import Any

from google.protobuf.message import Message

from vdiff_grpc import v1
from vdiff_grpc.engine.strategies import STRATEGIES, Strategy
from vdiff_grpc.engine.strategy_checks import without_effect
from vdiff_grpc.errors import FieldViolation

_UNSPECIFIED = "UNSPECIFIED"


def strategy_of(diffusion: v1.DiffusionParams, violations: list[FieldViolation]) -> Strategy | None:
    """The strategy as it was asked for: None in what was left out. None when none was."""
    name: str | None = diffusion.WhichOneof("strategy")
    if name is None:
        return None
    message: Message = getattr(diffusion, name)
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.enum_type is None:
            values[field.name] = value if message.HasField(field.name) else None
        elif value in (choices := _choices(name, field)):
            values[field.name] = choices[value]
        else:
            path = f"diffusion.{name}.{field.name}"
            violations.append(FieldViolation(path, f"{path} ({value}) is unknown"))
    return STRATEGIES[name](**values)


def set_strategy(diffusion: v1.DiffusionParams, strategy: Strategy) -> None:
    """Writes a resolved strategy, but for parameters that mean nothing beside its others.

    What is written can be sent as it is: it asks for the same.
    """
    message: Message = getattr(diffusion, strategy.NAME)
    message.SetInParent()
    unused = without_effect(strategy)
    for field in message.DESCRIPTOR.fields:
        value = getattr(strategy, field.name)
        if field.name in unused or value is None:
            continue
        if isinstance(value, enum.Enum):
            words = _words(field.enum_type)
            value = next(number for number, word in words.items() if word == value.name)
        setattr(message, field.name, value)


def _choices(name: str, field: Any) -> dict[int, enum.Enum | None]:
    """The engine's value for each number of a field's enum; None for the unspecified one."""
    kind = type(STRATEGIES[name].ranges()[field.name].default)
    return {
        number: None if word == _UNSPECIFIED else kind[word]
        for number, word in _words(field.enum_type).items()
    }


def _words(enum_type: Any) -> dict[int, str]:
    """An enum descriptor's numbers with their names, the prefix that all of them have left out."""
    prefix = enum_type.values_by_number[0].name.removesuffix(_UNSPECIFIED)
    return {value.number: value.name.removeprefix(prefix) for value in enum_type.values}
