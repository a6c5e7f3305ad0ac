"""A network's weights split over several processes, by transformers' own plans.

transformers reads each process's part of the files and says, per layer, how it is split. What its
layers do around a split one, by DTensor and with any order of a sum, is done here by plain tensors
and in one order. Knows nothing of steps; how the processes start is not its business.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.utils import is_accelerate_available

from vdiff_grpc.engine.models.checkpoint import Config
from vdiff_grpc.errors import CheckpointError

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"

# How a layer's parts become its whole: what a plan of transformers may say.
_KEPT = ("colwise", "packed_colwise", "replicated_with_grad_allreduce")  # the next layer sums
_SUMMED = ("rowwise", "moe_tp_experts")
_GATHERED = ("colwise_gather_output", "colwise_rep")
_LOOKED_UP = ("embedding_rowwise",)

# What is split into equal parts.
_DIVIDED = (
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
)


@dataclass(frozen=True, slots=True)
class Group:
    """This process among those that hold one model.

    exact: sums have one order, whatever the shape. The libraries' own order follows the size of
    what is summed as soon as there are three processes.
    """

    rank: int
    size: int
    device: torch.device
    exact: bool

    @classmethod
    def join(cls, rank: int, size: int, device: torch.device, store: str, *, exact: bool) -> Group:
        """Waits until all have joined. store: a file that all of them can reach."""
        # Whatever the machine's name resolves to: nothing listens but on loopback.
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", _LOOPBACK)
        os.environ["LOCAL_RANK"] = str(rank)  # transformers takes the device by it
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=dist.FileStore(store, size),  # type: ignore[attr-defined]
            rank=rank,
            world_size=size,
            device_id=device if cuda else None,
        )
        return cls(rank, size, device, exact)

    def leave(self) -> None:
        """Of a GPU's group nothing is undone: that can wait for processes that are gone."""
        if self.device.type != "cuda":
            dist.destroy_process_group()

    def loading_options(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` is told."""
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=self.size)}

    def settle(self, network: Any) -> None:
        """Plain tensors in place of transformers' distributed ones, and our own sums."""
        plan = network.tp_plan
        for name, module in network.named_modules():
            style = plan.get(re.sub(r"(?<=\.)\d+(?=\.)", "*", name))
            if style is not None:
                vars(module).pop("forward", None)
                self._connect(module, style)
        parts: dict[int, nn.Parameter] = {}  # a tied one stays tied
        for module in network.modules():
            for name, whole in module._parameters.items():
                if whole is not None and hasattr(whole, "to_local"):
                    if id(whole) not in parts:
                        parts[id(whole)] = nn.Parameter(whole.to_local(), requires_grad=False)
                    module._parameters[name] = parts[id(whole)]

    def sum(self, part: Tensor) -> Tensor:
        """All processes' parts added up."""
        if self.size > 2 and self.exact:
            total, *others = self._all(part)
            for other in others:
                total = total + other
            return total
        dist.all_reduce(part)
        return part

    def gather(self, part: Tensor, width: int) -> Tensor:
        """All processes' last columns side by side: [..., width]. The last part may be narrower."""
        share = -(-width // self.size)
        padded = F.pad(part, (0, share - part.shape[-1]))
        return torch.cat(self._all(padded), dim=-1)[..., :width]

    def _all(self, part: Tensor) -> list[Tensor]:
        part = part.contiguous()
        found = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(found, part)
        return found

    def _connect(self, module: nn.Module, style: str) -> None:
        """Makes a layer's output whole where its plan says so."""
        if style in _GATHERED:
            width = int(module.out_features)  # type: ignore[arg-type]
            own = module.forward
            module.forward = lambda *given: self.gather(own(*given), width)
        elif style in _LOOKED_UP:
            module.forward = self._lookup(module)
        elif style in _SUMMED:
            module.forward = self._summed(module)

    def _summed(self, module: nn.Module) -> Callable[..., Tensor]:
        """A bias is added once."""
        own = module.forward

        def linear(values: Tensor) -> Tensor:
            weight: Any = module.weight
            bias: Any = module.bias
            total = self.sum(F.linear(values, weight))
            return total if bias is None else total + bias

        return linear if isinstance(module, nn.Linear) else lambda *given: self.sum(own(*given))

    def _lookup(self, embedding: nn.Module) -> Callable[[Tensor], Tensor]:
        """One process knows a token; the others add zeros."""
        count = int(embedding.num_embeddings)  # type: ignore[arg-type]
        first = self.rank * -(-count // self.size)

        def forward(token_ids: Tensor) -> Tensor:
            weight: Tensor = embedding.weight  # type: ignore[assignment]
            mine = token_ids - first
            elsewhere = (mine < 0) | (mine >= len(weight))
            found = F.embedding(mine.masked_fill(elsewhere, 0), weight)
            found = found.masked_fill(elsewhere.unsqueeze(-1), 0)
            dist.all_reduce(found)  # exact in any order: all but one are zero
            return found

        return forward


def check(kind: Any, native: Any, config: Config, size: int) -> None:
    """Whether a class of transformers can be split so. Raises CheckpointError."""
    begin = f"{config.path}: tensor_parallel_size is {size}: "
    base, own = native.base_model_tp_plan, kind._tp_plan
    if not base or not own:
        raise CheckpointError(
            f"{begin}{kind.__name__} has no tensor-parallel plan in transformers "
            f"{transformers.__version__}"
        )
    known = {*_KEPT, *_SUMMED, *_GATHERED, *_LOOKED_UP}
    unknown = sorted({*base.values(), *own.values()} - known)
    if unknown:
        raise CheckpointError(
            f"{begin}the plan of {kind.__name__} splits layers in a way that is not served: "
            f"{', '.join(unknown)}"
        )
    for key in _DIVIDED:
        number = getattr(native, key, None)
        if number is not None and number % size:
            raise CheckpointError(f"{begin}{key} ({number}) does not divide by it")
    if not is_accelerate_available():
        raise CheckpointError(
            f"{begin}transformers needs the package accelerate to split weights: "
            "pip install 'vdiff-grpc[parallel]'"
        )
