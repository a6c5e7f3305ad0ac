"""A model whose rows are computed one by one, because they do not fit packed rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence as Rows

from torch import Tensor

from vdiff_grpc.engine.columns import Variant
from vdiff_grpc.engine.kernels.registry import AUTO
from vdiff_grpc.engine.kernels.segments import SDPA
from vdiff_grpc.engine.models.loader import LoadedModel
from vdiff_grpc.errors import CheckpointError


class RowModel(LoadedModel):
    """Exact in company by construction."""

    def backends(self, wanted: str, *, batch_invariant: bool) -> tuple[str, ...]:
        """Rows are no packed segments: the network has transformers' own attention, by sdpa."""
        if wanted not in (AUTO, SDPA):
            raise CheckpointError(
                f"attention {wanted!r} cannot be used here: this family's rows are computed one "
                f"by one, with {SDPA}"
            )
        return (SDPA,)

    @abstractmethod
    def row_logits(self, variants: Rows[Variant]) -> Tensor:
        """[num_heads, vocab_width] float32: the variants' heads, in their order."""
