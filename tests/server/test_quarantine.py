"""Who is suspected of the engine's death, who is refused, and for how long."""

from __future__ import annotations

import pytest

from vdiff_grpc.errors import QuarantinedError
from vdiff_grpc.server.quarantine import Quarantine

ONE, TWO, POISON = b"one", b"two", b"poison"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quarantine(clock: Clock) -> Quarantine:
    return Quarantine(600.0, clock)


def test_who_was_alone_is_refused_for_its_time(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.blame([POISON, POISON])
    with pytest.raises(QuarantinedError, match="another 600 s"):
        quarantine.refuse_guilty(POISON)
    quarantine.refuse_guilty(ONE)
    clock.now = 600.0
    quarantine.refuse_guilty(POISON)


def test_company_is_suspected_and_refused_the_second_time(quarantine: Quarantine) -> None:
    quarantine.blame([ONE, POISON])
    for content in (ONE, POISON):
        quarantine.refuse_guilty(content)
        assert quarantine.is_suspect(content)
    quarantine.blame([TWO, POISON])
    with pytest.raises(QuarantinedError):
        quarantine.refuse_guilty(POISON)
    for content in (ONE, TWO):
        quarantine.refuse_guilty(content)
        assert quarantine.is_suspect(content)


def test_an_answer_clears_a_suspect(quarantine: Quarantine) -> None:
    quarantine.blame([ONE, POISON])
    quarantine.acquit(ONE)
    quarantine.blame([ONE, TWO])
    quarantine.refuse_guilty(ONE)


def test_a_suspicion_is_forgotten_in_time(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.blame([ONE, POISON])
    clock.now = 600.0
    assert not quarantine.is_suspect(POISON)
    quarantine.blame([TWO, POISON])
    quarantine.refuse_guilty(POISON)


def test_without_a_duration_nobody_is_blamed(clock: Clock) -> None:
    quarantine = Quarantine(0.0, clock)
    quarantine.blame([POISON])
    quarantine.refuse_guilty(POISON)
