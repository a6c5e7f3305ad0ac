"""Sliding windows under a clock that the test turns. Over gRPC: test_auth.py."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from vdiff_grpc.errors import InvalidRequestError, RateLimitError
from vdiff_grpc.keys import KeyEntry
from vdiff_grpc.server.rate_limit import RateLimits
from vdiff_grpc.sliding_window import SlidingWindow

SECOND = 10**9
MINUTE = 60 * SECOND
ENTRY = KeyEntry("search", ("0" * 64,), requests_per_minute=3, tokens_per_minute=100)


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1

    def __call__(self) -> int:
        return self.now_ns


def test_a_window_has_room_again_exactly_when_it_said() -> None:
    clock = Clock()
    window = SlidingWindow(10, clock)
    window.take(6)
    clock.now_ns += 20 * SECOND
    window.take(4)
    clock.now_ns += 5 * SECOND
    assert window.wait_ns(0) == 0
    assert window.wait_ns(6) == 35 * SECOND
    assert window.wait_ns(7) == 55 * SECOND
    clock.now_ns += 35 * SECOND - 1
    assert window.wait_ns(6) == 1
    clock.now_ns += 1
    assert window.wait_ns(6) == 0
    assert window.used == 4


def test_no_minute_ever_holds_more_than_the_limit_and_no_wait_is_too_long() -> None:
    chance = random.Random(7)
    clock, admitted = Clock(), []
    window = SlidingWindow(50, clock)

    def held() -> int:
        return sum(amount for time_ns, amount in admitted if clock.now_ns - time_ns < MINUTE)

    for _ in range(3000):
        clock.now_ns += chance.randrange(4 * SECOND)
        amount = chance.randint(1, 50)
        wait_ns = window.wait_ns(amount)
        assert (wait_ns == 0) == (held() + amount <= 50)
        if wait_ns and chance.random() < 0.3:
            clock.now_ns += wait_ns - 1
            assert window.wait_ns(amount) == 1
            clock.now_ns += 1
            wait_ns = window.wait_ns(amount)
            assert wait_ns == 0
        if not wait_ns:
            window.take(amount)
            admitted.append((clock.now_ns, amount))
        assert window.used == held() <= 50


def test_the_request_too_many_is_told_when_to_come_back_and_does_not_count() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    for _ in range(3):
        limits.take_request(ENTRY)
        clock.now_ns += SECOND
    for _ in range(5):
        with pytest.raises(RateLimitError) as refused:
            limits.take_request(ENTRY)
        assert refused.value.retry_after_s == 57.0
        assert refused.value.subject == "requests_per_minute:search"
        assert "3 requests per minute" in str(refused.value)
    limits.take_request(replace(ENTRY, name="another"))
    clock.now_ns += 57 * SECOND
    limits.take_request(ENTRY)


def test_tokens_are_charged_at_the_most_and_corrected_to_what_was_used() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    first, second, third = (limits.allowance(ENTRY) for _ in range(3))
    first.charge(60)
    with pytest.raises(RateLimitError) as refused:
        second.charge(41)
    assert refused.value.subject == "tokens_per_minute:search"
    assert refused.value.retry_after_s == 60.0
    second.charge(40)
    first.settle(35)
    third.charge(25)
    third.refund()
    limits.allowance(ENTRY).charge(25)
    first.refund()  # it has been said what was used
    with pytest.raises(RateLimitError):
        limits.allowance(ENTRY).charge(1)
    clock.now_ns += MINUTE
    first.settle(0)  # long forgotten by the window
    limits.allowance(ENTRY).charge(100)


def test_more_than_a_minute_can_ever_hold_is_a_wrong_request() -> None:
    allowance = RateLimits(Clock()).allowance(ENTRY)
    with pytest.raises(InvalidRequestError) as refused:
        allowance.charge(101)
    [violation] = refused.value.violations
    assert violation.field == "sampling.max_new_tokens"
    assert "101 tokens" in violation.description
    assert "100 tokens per minute" in violation.description


def test_a_changed_limit_holds_for_what_was_used_already() -> None:
    limits = RateLimits(Clock())
    for _ in range(3):
        limits.take_request(ENTRY)
    limits.take_request(replace(ENTRY, requests_per_minute=4))
    with pytest.raises(RateLimitError):
        limits.take_request(replace(ENTRY, requests_per_minute=2))
    limits.take_request(replace(ENTRY, requests_per_minute=None))
    limits.allowance(replace(ENTRY, tokens_per_minute=None)).charge(10**9)
