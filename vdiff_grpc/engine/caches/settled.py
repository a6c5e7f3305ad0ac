"""Causal and block-causal attention: what is settled is kept. Exact.

A settled token sees nothing that is still to come, so its keys and values never change. Prompts are
computed page by page, each page as a segment of its own: the numbers are the same whether a
page was computed for this row or for an earlier one, and however many pages a step takes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vdiff_grpc.engine.caches.pages import Lease
from vdiff_grpc.engine.caches.policy import CachePolicy, Canvas, Kept, Part

Ints = npt.NDArray[np.int64]


class KeepSettled(CachePolicy):
    """Computes what is not kept, up to the last position that is wanted or its block's end."""

    shares = True

    def part(self, canvas: Canvas, lease: Lease | None, positions: Ints) -> Part:
        assert lease is not None, "a row that keeps has its pages"
        block, begin = canvas.attention_block, lease.length
        if canvas.shift:  # causal: what is looked back from is settled
            end = int(positions[-1]) - canvas.shift + 1
            keep = end - begin
        else:
            first = int(canvas.block_positions()[0])
            keep = first - first % block - begin
            end = min(canvas.num_tokens, begin + keep + block)
        return Part(begin, end, Kept(lease, ((0, begin),), begin, keep))

    def most(self, canvas: Canvas, lease: Lease | None) -> int:
        """What is left of the prompt, less than a page, comes with the first block."""
        return min(canvas.num_tokens, canvas.page_tokens + canvas.attention_block)


def whole_pages(prompt: Ints, shift: int, page_tokens: int) -> tuple[bytes, ...]:
    """The pages of a prompt that are computed as such: what stands in each.

    What the first logits are read from is left out, if the shift puts it into the prompt.
    """
    count = max(len(prompt) - shift, 0) // page_tokens
    return tuple(prompt[i * page_tokens : (i + 1) * page_tokens].tobytes() for i in range(count))


def page_part(lease: Lease, number: int) -> Part:
    """A page of the prompt, to be kept."""
    begin = number * lease.page_tokens
    end = begin + lease.page_tokens
    return Part(begin, end, Kept(lease, ((0, begin),), begin, lease.page_tokens))
