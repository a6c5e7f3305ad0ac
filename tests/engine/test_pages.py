"""Pages of the memory for keys and values: who has which, and what is left behind."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vdiff_grpc.engine.caches.pages import Lease, Pages

A, B, C, D = (bytes([i]) * 4 for i in range(4))


def computed(pages: Pages, lease: Lease, num_pages: int) -> None:
    lease.length = num_pages * pages.page_tokens
    pages.publish(lease)


def taken(pages: Pages, num_tokens: int, names: tuple[bytes, ...] = ()) -> Lease:
    lease = pages.take(num_tokens, names)
    assert lease is not None
    return lease


def test_a_canvas_has_the_pages_that_it_wants_side_by_side_where_it_can() -> None:
    pages = Pages(8, 4)
    first, second = taken(pages, 9), taken(pages, 4)
    assert (first.pages, second.pages) == ([0, 1, 2], [3])
    assert second.slots.tolist() == [12, 13, 14, 15]
    pages.give_back(first)
    third = taken(pages, 14)
    assert third.pages == [4, 5, 6, 7], "three at the beginning would have been too few"


def test_what_does_not_fit_takes_nothing() -> None:
    pages = Pages(3, 4)
    held = taken(pages, 8)
    assert pages.take(8) is None
    assert pages.num_held == 2
    pages.give_back(held)
    assert pages.num_held == 0


def test_a_prompt_that_was_computed_is_found_again_up_to_where_it_differs() -> None:
    pages = Pages(16, 4)
    first = taken(pages, 16, (A, B, C))
    computed(pages, first, 3)
    second = taken(pages, 16, (A, B, D))
    assert second.pages[:2] == first.pages[:2]
    assert second.length == second.num_shared == 8
    assert not set(second.pages[2:]) & set(first.pages)
    assert taken(pages, 8, (B,)).num_shared == 0, "the same tokens elsewhere are another thing"


def test_only_what_is_computed_can_be_found() -> None:
    pages = Pages(16, 4)
    first = taken(pages, 16, (A, B))
    assert pages.is_coming((A, B))
    assert not pages.is_coming((B,))
    computed(pages, first, 1)
    assert pages.is_coming((A, B)), "the second page is still to come"
    assert not pages.is_coming((A, C))
    computed(pages, first, 2)
    assert not pages.is_coming((A, B))
    assert taken(pages, 16, (A, B)).num_shared == 8


def test_nobody_waits_for_a_page_whose_owner_has_left() -> None:
    pages = Pages(16, 4)
    first = taken(pages, 16, (A, B))
    pages.give_back(first)
    assert not pages.is_coming((A, B))


def test_of_two_that_compute_the_same_one_is_published() -> None:
    pages = Pages(16, 4)
    first, second = taken(pages, 8, (A,)), taken(pages, 8, (A,))
    computed(pages, first, 1)
    computed(pages, second, 1)
    assert first.pages[0] != second.pages[0]
    assert taken(pages, 8, (A,)).pages[0] == first.pages[0]


def test_the_longest_unused_gives_way_first_and_its_beginning_last() -> None:
    pages = Pages(4, 4)
    first = taken(pages, 8, (A, B))
    computed(pages, first, 2)
    pages.give_back(first)
    assert pages.num_held == 0
    held = taken(pages, 12)
    assert not taken_again(pages, (A, B)), "the second page has given way"
    pages.give_back(held)
    assert taken_again(pages, (A,))


def taken_again(pages: Pages, names: tuple[bytes, ...]) -> bool:
    """Whether a prompt of these pages, and nothing else, is there as a whole."""
    lease = pages.take(len(names) * pages.page_tokens, names)
    if lease is None:
        return False
    there = lease.num_shared == len(names) * pages.page_tokens
    pages.give_back(lease)
    return there


def test_pages_in_use_never_give_way() -> None:
    pages = Pages(3, 4)
    first = taken(pages, 8, (A,))
    computed(pages, first, 1)
    second = taken(pages, 8, (A,))
    pages.give_back(first)
    assert pages.take(12) is None
    assert second.pages[0] in range(3)
    assert pages.num_held == 2


class Callers(RuleBasedStateMachine):
    """Any order of taking, computing and leaving: contents stay what their holders think."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(12, 2)
        self.open: list[Lease] = []
        self.content: dict[int, tuple[bytes, ...]] = {}  # of a page: the prompt up to its end

    @rule(prompt=st.lists(st.sampled_from([A, B]), max_size=4), more=st.integers(1, 9))
    def take(self, prompt: list[bytes], more: int) -> None:
        names = tuple(prompt)
        lease = self.pages.take(2 * len(names) + more, names)
        if lease is None:
            return
        for number in range(lease.num_shared // 2):
            assert self.content[lease.pages[number]] == names[: number + 1]
        self.open.append(lease)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.open))
        done = lease.length // 2
        if done < len(lease.names):
            self.content[lease.pages[done]] = lease.names[: done + 1]
            lease.length += 2
            self.pages.publish(lease)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.open))
        self.open.remove(lease)
        self.pages.give_back(lease)

    @invariant()
    def nothing_is_lost_and_nobody_shares_what_he_writes(self) -> None:
        held = {page for lease in self.open for page in lease.pages}
        assert self.pages.num_held == len(held)
        own = [p for lease in self.open for p in lease.pages[lease.num_published :]]
        assert len(own) == len(set(own))

    def teardown(self) -> None:
        for lease in self.open:
            self.pages.give_back(lease)
        assert self.pages.num_held == 0
        assert self.pages.take(24) is not None, "all of it can be had again"


TestCallers = Callers.TestCase
TestCallers.settings = settings(max_examples=60, stateful_step_count=30)
