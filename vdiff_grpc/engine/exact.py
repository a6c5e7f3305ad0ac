"""What keeps a row's numbers the same, to the last bit, whatever is computed beside it.

Two things on CPU make them depend on the shape: matrix products of few rows (1, 2 and 3 differ
from 300, measured in float32; 1 to 7 on another CPU), and elementwise functions such as exp and
SiLU, of which torch computes what is left over from whole vectors (at most 31 numbers) by another
formula. Multiples of 32 rows have neither.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

ROWS = 32


def whole_rows(count: int) -> int:
    """The next multiple of ROWS."""
    return -(-count // ROWS) * ROWS


def stable(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """An elementwise function of rows, each number by the same formula whatever their count."""
    count = len(values)
    if count % ROWS == 0:
        return function(values)
    padding = [0, 0] * (values.dim() - 1) + [0, whole_rows(count) - count]
    return function(F.pad(values, padding))[:count]
