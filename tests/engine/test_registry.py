"""Strategies, rules and families name each other."""

from __future__ import annotations

import pytest

from vdiff_grpc.engine.decoding.registry import RULES
from vdiff_grpc.engine.lengths import HoleLengths
from vdiff_grpc.engine.models.registry import FAMILIES
from vdiff_grpc.engine.strategies import STRATEGIES


def test_every_strategy_has_a_rule_of_its_name() -> None:
    assert {kind: rule.name for kind, rule in RULES.items()} == {
        kind: name for name, kind in STRATEGIES.items()
    } | {HoleLengths: ""}, "which nobody can ask for"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_serves_strategies_that_exist(family: object) -> None:
    names = family.strategies  # type: ignore[attr-defined]
    assert names
    assert set(names) <= set(STRATEGIES)
