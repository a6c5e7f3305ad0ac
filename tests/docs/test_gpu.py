"""docs/gpu.md: its table is the arithmetic's, and the arithmetic is what a step allocates."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile

from docs.memory import COPIES, TILE_COPIES, Sizes, sizes_of
from tests.docs.commands import page
from tests.engine.tools import GOLDEN, add, tiny_engine
from vdiff_grpc.engine.decoding.stages import TILE_BYTES, Sampling, draw, tile_rows
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.rng import CounterNoise, NoiseRows
from vdiff_grpc.engine.strategies import (
    DreamSchedule,
    EntropyBound,
    FixedSchedule,
    FreeDave,
    Klass,
    Strategy,
)
from vdiff_grpc.engine.types import Request, RequestParams

# Of the published config.json files, what the sums need.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "LLaDA-8B": (
        "tiny-llada",
        {
            "d_model": 4096,
            "n_layers": 32,
            "n_heads": 32,
            "n_kv_heads": 32,
            "mlp_hidden_size": 12288,
            "embedding_size": 126464,
            "vocab_size": 126464,
        },
    ),
    "Dream-7B": (
        "tiny-dream",
        {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
        },
    ),
    "SDAR-8B": (
        "tiny-sdar",
        {
            "hidden_size": 4096,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 12288,
            "vocab_size": 151936,
        },
    ),
}


def _checkpoint(folder: Path, like: str, **changes: Any) -> Path:
    config = json.loads((GOLDEN / like / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_is_the_arithmetics(name: str, tmp_path: Path) -> None:
    like, changes = PUBLISHED[name]
    sizes = sizes_of(_checkpoint(tmp_path, like, **changes))
    row = (
        f"| {name} | {sizes.parameters / 1e9:.2f} | {sizes.weight_bytes / 1e9:.1f} GB "
        f"| {1000 * sizes.token_bytes / 1e9:.2f} GB | {sizes.logits_bytes(1000) / 1e9:.2f} GB "
        f"| {1000 * sizes.kept_bytes / 1e9:.2f} GB |"
    )
    assert row in page("gpu.md"), row


def test_the_pages_copies_are_the_arithmetics() -> None:
    told = re.findall(r"^\| [^|]+ \| (\d[\d.]*) \|$", page("gpu.md"), re.M)
    assert [float(copies) for copies in told] == list(COPIES.values())


@pytest.mark.parametrize("gigabytes", [24, 40, 80])
def test_the_limits_are_the_largest_whose_worst_step_fits(gigabytes: int, tmp_path: Path) -> None:
    like, changes = PUBLISHED["LLaDA-8B"]
    sizes = sizes_of(_checkpoint(tmp_path, like, **changes))
    assert sizes.cache_tokens == 4096
    kept = sizes.cache_tokens * sizes.kept_bytes
    free = 0.9 * gigabytes * 1e9 - sizes.weight_bytes - kept
    worst, greedy = (
        int(
            (free - TILE_COPIES * TILE_BYTES)
            / (sizes.token_bytes + sizes.logits_bytes(1, COPIES[name]))
        )
        for name in ("klass", "all but klass")
    )
    row = f"| {gigabytes} GB | {free / 1e9:.1f} GB | {worst:,} | {greedy:,} |"
    assert row in page("gpu.md"), row


# --- what a step allocates --------------------------------------------------------

_HIDDEN, _VOCAB, _ROWS = 256, 20_000, 256


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sizes]:
    """Two layers of LLaDA with a vocabulary that outweighs them."""
    folder = _checkpoint(
        tmp_path_factory.mktemp("wide"),
        "tiny-llada",
        d_model=_HIDDEN,
        n_layers=2,
        n_heads=8,
        n_kv_heads=8,
        mlp_hidden_size=3 * _HIDDEN,
        vocab_size=_VOCAB,
        embedding_size=_VOCAB,
        mask_token_id=_VOCAB - 1,
        max_sequence_length=4096,
    )
    square, wide = (_HIDDEN, _HIDDEN), (3 * _HIDDEN, _HIDDEN)
    layer = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), square),
        **dict.fromkeys(("ff_proj", "up_proj"), wide),
        "ff_out": wide[::-1],
        **dict.fromkeys(("attn_norm", "ff_norm"), (_HIDDEN,)),
    }
    shapes = {
        **dict.fromkeys(("wte", "ff_out"), (_VOCAB, _HIDDEN)),
        **{f"blocks.{i}.{name}": shape for i in range(2) for name, shape in layer.items()},
        "ln_f": (_HIDDEN,),
    }
    torch.manual_seed(0)
    save_file(
        {
            f"model.transformer.{key}.weight": torch.randn(*shape) * 0.02
            for key, shape in shapes.items()
        },
        folder / "model.safetensors",
    )
    return folder, sizes_of(folder)


def _peak_bytes(work: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    total = highest = 0
    for _, change in changes:
        total += change
        highest = max(highest, total)
    return highest


def _step_bytes(folder: Path, prompt: int, params: RequestParams) -> int:
    engine = tiny_engine(folder, early_end=False, dtype="bfloat16")
    add(engine, 1, Request(TokensPrompt((5,) * prompt), params))
    engine.step()
    return _peak_bytes(engine.step)


@pytest.mark.parametrize(
    ("strategy", "sampling"),
    [
        (FixedSchedule(), {}),
        (EntropyBound(0.0), {}),
        (DreamSchedule(), {}),
        (Klass(), {}),
        (FixedSchedule(), {"temperature": 1.0}),
        (EntropyBound(0.0), {"temperature": 1.0, "top_p": 0.9}),
    ],
)
def test_a_step_holds_so_many_copies_of_its_logits(
    checkpoint: tuple[Path, Sizes], strategy: Strategy, sampling: dict[str, Any]
) -> None:
    folder, sizes = checkpoint
    params = RequestParams(
        max_new_tokens=_ROWS, block_length=_ROWS, seed=1, strategy=strategy, **sampling
    )
    found = _step_bytes(folder, 16, params) / sizes.logits_bytes(_ROWS)
    is_klass = isinstance(strategy, Klass)
    copies = COPIES["klass" if is_klass else "all but klass"]
    assert found + is_klass == pytest.approx(copies, rel=0.03)  # one was there before


def test_the_stages_take_so_many_copies_of_a_tile_whatever_is_drawn() -> None:
    logits = torch.randn(_ROWS, _VOCAB)
    address = np.zeros(_ROWS, np.int64)
    sampling = Sampling(
        torch.arange(_ROWS),
        torch.ones(_ROWS),
        torch.zeros(_ROWS, dtype=torch.int64),
        torch.full((_ROWS,), 0.9),
        NoiseRows(address.astype(np.uint64), address, address),
        filtered=True,
    )
    found = _peak_bytes(lambda: draw(logits, sampling, CounterNoise()))
    tile = 4 * tile_rows(logits) * _VOCAB
    assert found / tile == pytest.approx(TILE_COPIES, rel=0.1)


@pytest.mark.parametrize(
    ("times", "strategy", "sampling"),
    [(2, FixedSchedule(), {"cfg_scale": 1.0}), (5, FreeDave(4), {})],
)
def test_guidance_and_drafts_take_so_many_times_more(
    checkpoint: tuple[Path, Sizes], times: int, strategy: Strategy, sampling: dict[str, Any]
) -> None:
    folder, sizes = checkpoint
    params = RequestParams(
        max_new_tokens=_ROWS, block_length=_ROWS, seed=1, strategy=strategy, **sampling
    )
    usual = sizes.logits_bytes(_ROWS, COPIES["all but klass"])
    assert _step_bytes(folder, 16, params) / usual == pytest.approx(times, rel=0.03)


def test_a_packed_token_takes_what_the_arithmetic_says(checkpoint: tuple[Path, Sizes]) -> None:
    folder, sizes = checkpoint
    params = RequestParams(max_new_tokens=32, seed=1, strategy=FixedSchedule())
    few, many = (_step_bytes(folder, count - 32, params) for count in (2048, 4096))
    assert (many - few) / 2048 == pytest.approx(sizes.token_bytes, rel=0.05)
