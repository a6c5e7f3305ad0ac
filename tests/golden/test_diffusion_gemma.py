"""DiffusionGemma against transformers' own class: logits, and whole runs of its `generate`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.engine.tools import GOLDEN, LogitsRecorder, add, finished, run, run_all, tiny_engine
from tests.golden.fed import FedDraws
from vdiff_grpc.engine.attention import FULL
from vdiff_grpc.engine.columns import Variant
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Event, FinishReason, StepUpdate, UpdateKind
from vdiff_grpc.engine.models import loader, registry
from vdiff_grpc.engine.models.diffusion_gemma_network import CanvasState, DiffusionGemmaModel
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.rng import CounterNoise, NoiseRows
from vdiff_grpc.engine.strategies import ConfidenceThreshold, UniformNoise
from vdiff_grpc.engine.types import AttentionPattern, Granularity, Request, RequestParams
from vdiff_grpc.engine.validation import resolve
from vdiff_grpc.errors import CheckpointError, InvalidRequestError

TINY_GEMMA = GOLDEN / "tiny-diffusion-gemma"
CANVAS = 8
CASES = json.loads((GOLDEN / "diffusion_gemma_generate.json").read_text())["cases"]
EXPONENTIALS = load_file(GOLDEN / "diffusion_gemma_noise.safetensors")
Change = tuple[int, int, float]  # position, token, confidence


class FedCanvases(FedDraws):
    """A recorded run's canvases and draws; `exponentials` are those that drew, if kept."""

    def __init__(self, case: dict[str, Any], exponentials: torch.Tensor | None = None) -> None:
        steps = [step for canvas in case["canvases"] for step in canvas["steps"]]
        self._canvases = [step["canvas"] for step in steps]
        self._exponentials = exponentials
        self._begin = len(case["prompt"])
        numbers = [c for c, canvas in enumerate(case["canvases"]) for _ in canvas["steps"]]
        begins = [self._begin + CANVAS * number for number in numbers]
        super().__init__(
            [
                [(begin + i, token) for i, token in enumerate(step["drawn"])]
                for begin, step in zip(begins, steps, strict=True)
            ]
        )

    def token_exponentials(
        self, rows: NoiseRows, vocab_size: int, device: torch.device
    ) -> torch.Tensor:
        if self._exponentials is None:
            return super().token_exponentials(rows, vocab_size, device)
        places = torch.from_numpy((rows.positions - self._begin) % CANVAS)
        return self._exponentials[torch.from_numpy(rows.steps), places].to(device)

    def canvas_tokens(self, rows: NoiseRows, vocab_size: int) -> np.ndarray:
        return np.array(
            [
                self._canvases[step][(position - self._begin) % CANVAS]
                for step, position in zip(rows.steps, rows.positions, strict=True)
            ],
            dtype=np.int64,
        )


def strategy(case: dict[str, Any]) -> UniformNoise:
    given = {name: case["params"][name] for name in UniformNoise.ranges()}
    return UniformNoise(**given)


def asked(case: dict[str, Any]) -> Request:
    params = RequestParams(
        max_new_tokens=case["params"]["max_new_tokens"], seed=0, strategy=strategy(case)
    )
    return Request(TokensPrompt(tuple(case["prompt"])), params)


def expected_updates(case: dict[str, Any]) -> list[dict[UpdateKind, list[Change]]]:
    """What the recorded steps change on a canvas whose noise is told as masked.

    The last canvas is told whole, though what lies beyond the answer is no part of it.
    """
    found = []
    for number, canvas in enumerate(case["canvases"]):
        begin = len(case["prompt"]) + CANVAS * number
        told: dict[int, int] = {}
        for step in canvas["steps"]:
            taken = {i: (step["drawn"][i], step["drawn_confidence"][i]) for i in step["accepted"]}
            if step is canvas["steps"][-1]:
                best = zip(step["argmax"], step["argmax_confidence"], strict=True)
                taken = dict(enumerate(best))
            changes: dict[UpdateKind, list[Change]] = defaultdict(list)
            for i in range(CANVAS):
                if i not in taken:
                    if told.pop(i, None) is not None:
                        changes[UpdateKind.REMASK].append((begin + i, -1, 0.0))
                    continue
                token, confidence = taken[i]
                if i not in told:
                    changes[UpdateKind.UNMASK].append((begin + i, token, confidence))
                elif told[i] != token:
                    changes[UpdateKind.REVISE].append((begin + i, token, confidence))
                told[i] = token
            found.append(dict(changes))
    return found


def told_updates(events: list[Event]) -> list[dict[UpdateKind, list[Change]]]:
    found: dict[int, dict[UpdateKind, list[Change]]] = defaultdict(dict)
    for event in events:
        if isinstance(event, StepUpdate):
            ids: tuple[int, ...] = event.token_ids
            if event.kind is UpdateKind.REMASK:
                ids = (-1,) * len(ids)
            changes = list(zip(event.positions, ids, event.confidences, strict=True))
            if changes:
                found[event.step][event.kind] = changes
            else:
                found[event.step] = found[event.step]
    return [found[step] for step in sorted(found)]


def check_run(case: dict[str, Any], noise: CounterNoise) -> list[Event]:
    engine = tiny_engine(TINY_GEMMA, noise=noise)
    events = run(engine, asked(case))
    ours, theirs = told_updates(events), expected_updates(case)
    assert [
        {kind: [(p, t) for p, t, _ in changes] for kind, changes in step.items()} for step in ours
    ] == [
        {kind: [(p, t) for p, t, _ in changes] for kind, changes in step.items()} for step in theirs
    ]
    for step, expected in zip(ours, theirs, strict=True):
        for kind, changes in step.items():
            confidences = [c for *_, c in expected[kind]]
            assert [c for *_, c in changes] == pytest.approx(confidences, abs=1e-4)
    return events


@pytest.mark.parametrize("case", [pytest.param(c, id=c["id"]) for c in CASES])
def test_a_run_is_that_of_generate_when_it_is_fed_its_draws(case: dict[str, Any]) -> None:
    events = check_run(case, FedCanvases(case))
    output = finished(events).outputs[0]
    generated = case["final"][len(case["prompt"]) :][: case["params"]["max_new_tokens"]]
    ends = [i for i, token in enumerate(generated) if token in (94, 95)]
    if ends:
        assert output.finish_reason is FinishReason.STOP
        assert list(output.tokens.ids) == generated[: ends[0]]
        assert output.stop == generated[ends[0]]
        assert set(generated[ends[0] + 1 :]) <= {0}, "the reference puts its pad there"
    else:
        assert list(output.tokens.ids) == generated
        assert output.finish_reason is FinishReason.LENGTH
    # the encoder's pass at the beginning of every canvas counts too
    assert output.forward_passes == case["decoder_passes"] + len(case["canvases"])
    assert output.steps == case["decoder_passes"]


@pytest.mark.parametrize("name", sorted(EXPONENTIALS))
def test_a_run_draws_what_generate_draws_from_the_same_exponentials(name: str) -> None:
    (case,) = (case for case in CASES if case["id"] == name)
    check_run(case, FedCanvases(case, EXPONENTIALS[name]))


def test_the_recorded_runs_are_no_easy_ones() -> None:
    assert len(CASES) >= 12
    kinds = {kind for case in CASES for step in expected_updates(case) for kind in step}
    assert kinds == set(UpdateKind)
    lengths = {len(canvas["steps"]) for case in CASES for canvas in case["canvases"]}
    assert {1, 10} < lengths, "some stop early, some never"
    assert {len(case["canvases"]) for case in CASES} == {1, 2, 3}


def test_logits_of_a_decoder_pass_equal_the_native_ones() -> None:
    model = loader.load(str(TINY_GEMMA), "cpu", "float32")
    assert isinstance(model, DiffusionGemmaModel)
    recorded = load_file(GOLDEN / "diffusion_gemma_logits.safetensors")
    names = [name.removesuffix(".ids") for name in recorded if name.endswith(".ids")]
    assert len(names) >= 8
    variants = []
    for name in names:
        read = recorded[f"{name}.ids"].numpy()
        state = CanvasState(unread=read)
        conditioning = recorded.get(f"{name}.self_conditioning")
        if conditioning is not None:
            state.condition(conditioning)
        variants.append(canvas_variant(len(read), recorded[f"{name}.canvas"].numpy(), state))
    logits = model.row_logits(variants)[: CANVAS * len(names)].split(CANVAS)
    for name, ours in zip(names, logits, strict=True):
        torch.testing.assert_close(ours, recorded[f"{name}.logits"], atol=1e-4, rtol=0)


def canvas_variant(begin: int, ids: np.ndarray, state: CanvasState) -> Variant:
    places = np.arange(len(ids))
    return Variant(ids, begin + places, FULL, places, begin + places, 0, state=state)


def test_reading_in_parts_gives_the_same_logits_as_reading_at_once() -> None:
    """Beyond the sliding window too, where the cache has forgotten the beginning."""
    model = loader.load(str(TINY_GEMMA), "cpu", "float32")
    assert isinstance(model, DiffusionGemmaModel)
    text = np.arange(3, 26)
    canvas = np.arange(40, 48)
    at_once = CanvasState(unread=text)
    expected = model.row_logits([canvas_variant(23, canvas, at_once)])
    in_parts = CanvasState()
    for begin, end in ((0, 7), (7, 15), (15, 23)):
        in_parts.unread = text[begin:end]
        logits = model.row_logits([canvas_variant(23, canvas, in_parts)])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def mixed_requests() -> list[Request]:
    """Prompts, lengths, seeds, temperatures, filters and settings of all kinds."""
    rng = np.random.default_rng(5)
    found = []
    for i in range(8):
        prompt = tuple(rng.integers(1, 94, size=int(rng.integers(1, 20))).tolist())
        params = RequestParams(
            max_new_tokens=[3, 8, 16, 19, 24][i % 5],
            temperature=[None, 0.0, 1.7][i % 3],
            top_p=0.7 if i == 6 else None,
            top_k=5 if i == 7 else None,
            seed=int(rng.integers(0, 2**40)),
            n=2 if i == 4 else None,
            ignore_eos=i % 2 == 0,
            strategy=None if i == 0 else UniformNoise(max_denoising_steps=2 + i, entropy_bound=0.5),
        )
        found.append(Request(TokensPrompt(prompt), params, granularity=Granularity.STEPS))
    return found


def test_alone_and_in_company_are_the_same_to_the_last_bit() -> None:
    engine = tiny_engine(TINY_GEMMA, max_running_rows=7)
    recorder = LogitsRecorder.install(engine)
    alone = {}
    for key, request in enumerate(mixed_requests()):
        add(engine, key, request)
        alone[key] = run_all(engine)[key]
    logits = dict(recorder.seen)
    recorder.seen.clear()
    together: dict[int, list[Event]] = defaultdict(list)
    waiting = list(enumerate(mixed_requests()))
    while waiting or engine.has_work:
        for key, request in waiting[:2]:
            add(engine, key, request)
        waiting = waiting[2:]
        for key, event in engine.step():
            together[key].append(event)
    for key, events in alone.items():
        assert together[key][:-1] == events[:-1]
        assert finished(together[key]).outputs == finished(events).outputs
    for row, expected in logits.items():
        for ours, theirs in zip(recorder.seen[row], expected, strict=True):
            assert torch.equal(ours, theirs)


def test_a_seed_decides_and_another_seed_decides_otherwise() -> None:
    engine = tiny_engine(TINY_GEMMA)
    canvases = {}
    for seed in (1, 1, 2):
        params = RequestParams(max_new_tokens=16, seed=seed, ignore_eos=True)
        canvas = finished(run(engine, Request(TokensPrompt((5, 6, 7)), params))).outputs[0].canvas
        assert canvases.setdefault(seed, canvas) == canvas
    assert canvases[1] != canvases[2]


def test_at_temperature_0_everything_is_certain_and_accepted_at_every_step() -> None:
    engine = tiny_engine(TINY_GEMMA)
    params = RequestParams(max_new_tokens=16, temperature=0.0, seed=3, ignore_eos=True)
    for step in told_updates(run(engine, Request(TokensPrompt((9, 8)), params))):
        assert UpdateKind.REMASK not in step


def test_an_end_token_that_is_not_wanted_is_in_no_canvas() -> None:
    engine = tiny_engine(TINY_GEMMA)
    for seed in (2, 6, 7):
        params = RequestParams(max_new_tokens=16, seed=seed)
        request = Request(TokensPrompt((1, 2, 3)), params)
        assert finished(run(engine, request)).outputs[0].finish_reason is FinishReason.STOP
        unending = dataclasses.replace(params, ignore_eos=True)
        output = finished(run(engine, dataclasses.replace(request, params=unending))).outputs[0]
        assert not {94, 95} & set(output.canvas)
        assert len(output.tokens.ids) == 16


def test_a_network_in_bfloat16_denoises_too() -> None:
    engine = tiny_engine(TINY_GEMMA, dtype="bfloat16")
    params = RequestParams(max_new_tokens=16, seed=1, ignore_eos=True)
    output = finished(run(engine, Request(TokensPrompt((1, 2, 3)), params))).outputs[0]
    assert len(output.tokens.ids) == 16
    assert all(0 <= token < 97 for token in output.canvas)


def test_a_network_in_float16_can_be_as_cold_as_in_float32() -> None:
    params = RequestParams(max_new_tokens=8, temperature=0.0, seed=1)
    request = Request(TokensPrompt((1, 2, 3)), params)
    half, full = (
        finished(run(tiny_engine(TINY_GEMMA, dtype=dtype), request)).outputs[0]
        for dtype in ("float16", "float32")
    )
    assert half.canvas == full.canvas
    assert half.tokens.confidences == pytest.approx(full.tokens.confidences, abs=0.02)


def test_text_leaves_when_its_canvas_is_done_and_not_before() -> None:
    engine = tiny_engine(TINY_GEMMA)
    params = RequestParams(max_new_tokens=16, seed=1, ignore_eos=True)
    request = Request(TokensPrompt((5, 6)), params, granularity=Granularity.COMMITTED)
    add(engine, 1, request)
    sizes = [len(e.tokens.ids) for e in run_all(engine)[1][:-1]]  # type: ignore[union-attr]
    assert sizes == [8, 8]


def test_the_checkpoint_names_the_defaults() -> None:
    info = registry.describe(str(TINY_GEMMA))
    assert info.attention is AttentionPattern.CANVAS
    assert (info.block_length, info.vocab_size, info.mask_token_id) == (CANVAS, 97, None)
    assert info.end_token_ids == (94, 95)
    assert info.default_strategy == UniformNoise(0.4, 0.3, 0.7, 10, 1, 0.05)
    assert info.default_temperature == 1.0
    assert not info.supports_infill


def test_a_strategy_keeps_the_checkpoints_word_where_the_request_says_nothing() -> None:
    engine = tiny_engine(TINY_GEMMA)
    request = Request(
        TokensPrompt((1,)), RequestParams(strategy=UniformNoise(max_denoising_steps=3))
    )
    resolved = resolve(request, engine.info, engine.limits, None)
    assert resolved.params.strategy == UniformNoise(0.4, 0.3, 0.7, 3, 1, 0.05)


def test_a_sampler_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(TINY_GEMMA, tmp_path / "model")
    file = tmp_path / "model" / "generation_config.json"
    generation = json.loads(file.read_text())
    generation["sampler_config"] = {"_cls_name": "OtherSamplerConfig", "speed": 3}
    file.write_text(json.dumps(generation))
    with pytest.raises(CheckpointError, match="'OtherSamplerConfig' is not served"):
        registry.describe(str(tmp_path / "model"))


def refused(engine: Engine, request: Request) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        resolve(request, engine.info, engine.limits, engine.tokenizer)
    return {violation.field: violation.description for violation in caught.value.violations}


@pytest.mark.parametrize(
    ("params", "field", "says"),
    [
        (RequestParams(cfg_scale=1.0), "cfg_scale", "no mask token"),
        (RequestParams(block_length=4), "block_length", "(8)"),
        (RequestParams(steps=10), "steps", "uniform_noise"),
        (RequestParams(strategy=ConfidenceThreshold()), "confidence_threshold", "not among"),
    ],
)
def test_what_makes_no_sense_here_is_refused(params: RequestParams, field: str, says: str) -> None:
    found = refused(tiny_engine(TINY_GEMMA), Request(TokensPrompt((1, 2)), params))
    assert says in found[f"diffusion.{field}"]


@pytest.mark.parametrize(
    ("strategy", "field", "says"),
    [
        (UniformNoise(t_min=0.5, t_max=0.5), "t_min", "below t_max"),
        (UniformNoise(entropy_bound=0.0), "entropy_bound", "(0, "),
        (UniformNoise(max_denoising_steps=0), "max_denoising_steps", "[1, "),
    ],
)
def test_a_parameter_out_of_its_range_is_refused(
    strategy: UniformNoise, field: str, says: str
) -> None:
    request = Request(TokensPrompt((1, 2)), RequestParams(strategy=strategy))
    assert says in refused(tiny_engine(TINY_GEMMA), request)[f"diffusion.uniform_noise.{field}"]


def test_a_template_and_an_empty_prompt_are_refused() -> None:
    engine = tiny_engine(TINY_GEMMA)
    assert refused(engine, Request(InfillPrompt(((1, 2), Hole(8), (3,)))))
    assert refused(engine, Request(TokensPrompt(())))


def test_the_last_canvas_must_fit_whole() -> None:
    """128 positions: a prompt of 3 leaves room for 15 canvases, 120 tokens, of 125 positions."""
    engine = tiny_engine(TINY_GEMMA)
    prompt = TokensPrompt((1, 2, 3))
    resolve(Request(prompt, RequestParams(max_new_tokens=120)), engine.info, engine.limits, None)
    found = refused(engine, Request(prompt, RequestParams(max_new_tokens=121)))
    assert "sampling.max_new_tokens" in found


def test_a_canvas_begins_with_noise_of_the_whole_vocabulary() -> None:
    rows = NoiseRows(
        np.repeat(np.arange(50, dtype=np.uint64), 40), np.zeros(2000, np.int64), np.arange(2000)
    )
    tokens = CounterNoise().canvas_tokens(rows, 97)
    assert set(tokens.tolist()) == set(range(97))
    later = dataclasses.replace(rows, steps=rows.steps + 1)
    assert (CounterNoise().canvas_tokens(later, 97) != tokens).mean() > 0.9
