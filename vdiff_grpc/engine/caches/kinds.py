"""The kinds of caches, by the contract's names. Knows no torch."""

from __future__ import annotations

import enum

_PAGE_TOKENS = 32  # at least


class CacheKind(enum.Enum):
    """What is kept of a canvas from one forward pass to the next.

    SETTLED is exact. PREFIX and DUAL are Fast-dLLM's approximations for full attention.
    """

    NONE = "none"
    SETTLED = "settled"
    PREFIX = "prefix"
    DUAL = "dual"


APPROXIMATE = (CacheKind.PREFIX, CacheKind.DUAL)


def page_tokens(block_length: int | None) -> int:
    """Tokens of a page: whole blocks of the model's attention."""
    block = block_length or 1
    return block * -(-_PAGE_TOKENS // block)
