"""A model whose weights are split over this process and other ranks'.

Only this one decides: it tells the others each forward pass, computes its own part, and alone
uses the logits. Each rank keeps the keys and values of its own heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from vdiff_grpc.engine.attention import AttentionLayout
from vdiff_grpc.engine.messages import Ended
from vdiff_grpc.engine.models import loader, quantization
from vdiff_grpc.engine.models.loader import LoadedModel
from vdiff_grpc.engine.models.sharding import Group
from vdiff_grpc.engine.parallel.messages import Forward, Part, Reserve
from vdiff_grpc.engine.parallel.ranks import Ranks
from vdiff_grpc.engine.types import EngineConfig, ModelInfo
from vdiff_grpc.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class ParallelModel(LoadedModel):
    """Rank 0, and all the others behind it."""

    ranks: Ranks = field(kw_only=True)
    group: Group = field(kw_only=True)

    def reserving(self, num_slots: int) -> LoadedModel:
        """As LoadedModel's, in every rank."""
        if num_slots:
            self.ranks.send(Reserve(num_slots))
        return LoadedModel.reserving(self, num_slots)

    def logits(
        self, token_ids: Tensor, position_ids: Tensor, layout: AttentionLayout, head: Tensor
    ) -> Tensor:
        """As LoadedModel's. Raises RankLostError: what fails in one rank leaves the others waiting."""
        segments = layout.segments
        lengths = tuple(b - a for a, b in pairwise(segments.cu_q))
        nothing = (None,) * len(lengths)
        ids, positions, heads = (x.cpu().numpy() for x in (token_ids, position_ids, head))
        self.ranks.send(
            Forward(
                ids,
                positions,
                heads,
                lengths,
                segments.rules,
                nothing if layout.traffic is None else layout.traffic.windows,
                segments.merge,
                segments.backends,
            )
        )
        try:
            return LoadedModel.logits(self, token_ids, position_ids, layout, head)
        except Exception as error:
            raise self.ranks.lost(error) from error

    def close(self) -> None:
        """Ends the other ranks; the model is of no more use."""
        self.ranks.close()
        self.group.leave()


def load(config: EngineConfig, info: ModelInfo, on_lost: Callable[[Ended], None]) -> LoadedModel:
    """The model, over as many processes as the config says; all of them have their weights.

    on_lost: told from another thread, once, when one of them has ended.
    Raises CheckpointError: the weights, or why this model cannot be split here.
    """
    if config.tensor_parallel_size == 1:
        return loader.load(
            config.model_path, config.device, config.dtype, quantized=config.quantization
        )
    size = config.tensor_parallel_size
    if config.quantization != quantization.NONE:
        raise CheckpointError(
            f"tensor_parallel_size is {size} and quantization {config.quantization}: quantised "
            "weights are not split"
        )
    if config.compile:
        raise CheckpointError(f"tensor_parallel_size is {size} and compile on: choose one of them")
    if dist.is_initialized():
        raise CheckpointError(
            f"tensor_parallel_size is {size}: this process is already one of a torch.distributed "
            "group"
        )
    devices = _devices(config.device, size)
    loader.check_split(config.model_path, size)
    exact = devices[0].type == "cpu" or config.batch_invariant
    threads = config.threads or max(1, torch.get_num_threads() // size)
    torch.set_num_threads(threads)
    ranks = Ranks(on_lost)
    joined = False
    try:
        ranks.start(
            [
                Part(
                    rank,
                    size,
                    ranks.store,
                    config.model_path,
                    str(device),
                    config.dtype,
                    threads,
                    exact,
                )
                for rank, device in enumerate(devices[1:], 1)
            ]
        )
        group = Group.join(0, size, devices[0], ranks.store, exact=exact)
        joined = True
        mine = loader.load(config.model_path, str(devices[0]), config.dtype, group=group)
        ranks.wait_loaded()
    except BaseException:
        ranks.close()
        if joined:
            group.leave()
        raise
    return ParallelModel(
        mine.network,
        mine.device,
        mine.dtype,
        mine.position_offset,
        mine.head,
        ranks=ranks,
        group=group,
    )


def _devices(wanted: str, size: int) -> list[torch.device]:
    """One for each rank: GPUs, or the CPU for all. Raises CheckpointError."""
    begin = f"tensor_parallel_size is {size}: "
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" and count:
        raise CheckpointError(
            f"{begin}transformers splits a model over the GPUs of a machine that has some; to "
            "split it over processes on the CPU hide them: CUDA_VISIBLE_DEVICES=''"
        )
    chosen = loader.choose_device(wanted)
    if chosen.type == "cpu":
        return [chosen] * size
    if str(chosen) != "cuda":
        raise CheckpointError(f"{begin}device {str(chosen)!r} is one; choose cuda or cpu")
    if count < size:
        raise CheckpointError(f"{begin}there are {count} GPUs")
    return [torch.device("cuda", rank) for rank in range(size)]
