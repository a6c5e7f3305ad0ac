"""A model whose rows are computed one by one, because they do not fit packed rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence as Rows

from torch import Tensor

from vdiff_grpc.engine.columns import Variant
from vdiff_grpc.engine.models.loader import LoadedModel


class RowModel(LoadedModel):
    """Exact in company by construction."""

    @abstractmethod
    def row_logits(self, variants: Rows[Variant]) -> Tensor:
        """[num_heads, vocab_width] float32: the variants' heads, in their order."""
