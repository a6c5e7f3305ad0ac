"""Constraints on a model that knows nothing: whatever is valid, the algorithm alone has made so."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.engine.spelled import spelled_checkpoint
from tests.engine.tools import GOLDEN, LogitsRecorder, add, finished, run_all, tiny_engine
from vdiff_grpc.engine.caches.kinds import CacheKind
from vdiff_grpc.engine.constraints.automaton import Vocabulary, token_automaton
from vdiff_grpc.engine.constraints.kinds import (
    ChoiceConstraint,
    Constraint,
    JsonSchemaConstraint,
    RegexConstraint,
)
from vdiff_grpc.engine.constraints.regex_process import compile_regex
from vdiff_grpc.engine.decoding.best_path import best_path
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.events import Event, Finished, FinishReason, Output
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import (
    STRATEGIES,
    AdaptiveConfidence,
    AdaptiveParallel,
    ConfidenceThreshold,
    DreamSchedule,
    DynamicThreshold,
    Editing,
    EntropyBound,
    Factor,
    FixedSchedule,
    FreeDave,
    Klass,
    LeftToRight,
    LocalLeap,
    Remasking,
    Remdm,
    Strategy,
    UniformNoise,
    Wino,
)
from vdiff_grpc.engine.types import Granularity, Request, RequestParams
from vdiff_grpc.errors import InvalidRequestError

ABLE: tuple[Strategy, ...] = (
    FixedSchedule(),
    FixedSchedule(Remasking.RANDOM),
    ConfidenceThreshold(0.2),
    DreamSchedule(),
    DynamicThreshold(0.2),
    EntropyBound(3.0),
    Factor(2.0),
    Klass(0.1, 0.5),
    LocalLeap(0.2, 0.1),
    Wino(0.1, 0.3),
    Remdm(eta=0.3),
    AdaptiveConfidence(0.1),
    LeftToRight(),
)
REFUSING: tuple[Strategy, ...] = (Editing(), FreeDave(), AdaptiveParallel(), UniformNoise())
PROMPT = TokensPrompt((3, 4, 5))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return tiny_engine(spelled_checkpoint(tmp_path_factory.mktemp("spelled")))


def test_every_strategy_is_constrained_or_refused() -> None:
    assert {type(s) for s in ABLE + REFUSING} == set(STRATEGIES.values())


# --- what is drawn at random ---------------------------------------------------


def random_regex(rng: random.Random, depth: int = 3) -> str:
    if depth == 0 or rng.random() < 0.25:
        return rng.choice(["a", "b", "[0-9]", "[a-z]", "yes", "no", "abc", " ", "é", "[^a]", "42"])
    parts = [random_regex(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    match rng.randrange(4):
        case 0:
            return "(?:" + "|".join(parts) + ")"
        case 1:
            return f"(?:{parts[0]})" + rng.choice(["*", "+", "?", "{2}", "{1,3}", "*?"])
        case _:
            return "".join(parts)


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(
            [
                {"type": "integer", "minimum": rng.randint(-20, 5), "maximum": rng.randint(6, 99)},
                {"type": "number", "minimum": 0, "exclusiveMaximum": 2},
                {"type": "string", "maxLength": rng.randint(1, 4)},
                {"type": "string", "pattern": "^[a-c]{1,3}$"},
                {"enum": ["yes", "no", 42, None]},
                {"const": "abc"},
                {"type": ["boolean", "null"]},
            ]
        )
    match rng.randrange(3):
        case 0:
            names = rng.sample(["name", "age", "id", "ab"], rng.randint(1, 2))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth - 1) for name in names},
                "required": [name for name in names if rng.random() < 0.5],
                "additionalProperties": False,
            }
        case 1:
            low = rng.randint(0, 1)
            item = random_schema(rng, depth - 1)
            return {"type": "array", "items": item, "minItems": low, "maxItems": low + 1}
        case _:
            return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}


def random_constraint(rng: random.Random) -> Constraint:
    match rng.randrange(4):
        case 0 | 1:
            return RegexConstraint(random_regex(rng))
        case 2:
            words = ["yes", "no", "abc", "a.b", "é", "42}", "name", "(x"]
            return ChoiceConstraint(tuple(rng.sample(words, rng.randint(1, 4))))
        case _:
            return JsonSchemaConstraint(json.dumps(random_schema(rng)))


def is_valid(text: str, constraint: Constraint) -> bool:
    match constraint:
        case RegexConstraint(pattern):
            return re.fullmatch(pattern, text) is not None
        case ChoiceConstraint(options):
            return text in options
        case JsonSchemaConstraint(schema):
            jsonschema.validate(json.loads(text), json.loads(schema))
            return True


def random_params(rng: random.Random, strategy: Strategy) -> RequestParams:
    length = rng.choice([12, 30, 60])
    block = rng.choice([1, 3, 8, 32])
    blocks = -(-length // block)
    return RequestParams(
        max_new_tokens=length,
        block_length=block,
        steps=rng.randint(blocks, length) if strategy.HAS_STEPS else None,
        temperature=rng.choice([0.0, 0.7, 1.5]),
        top_k=rng.choice([0, 0, 2]),
        top_p=rng.choice([1.0, 0.3]),
        cfg_scale=rng.choice([0.0, 0.0, 1.5]),
        ignore_eos=rng.random() < 0.1,
        seed=rng.randrange(2**53),
        n=rng.choice([1, 1, 2]),
        strategy=strategy,
    )


def check_random(engine: Engine, seed: int, count: int) -> int:
    """Requests at random in each other's company; every answer valid. Returns how many had one."""
    rng = random.Random(seed)
    asked: dict[int, Constraint] = {}
    num_answered = 0
    for key in range(count):
        constraint = random_constraint(rng)
        strategy = ABLE[key % len(ABLE)]
        request = Request(PROMPT, random_params(rng, strategy), constraint=constraint)
        try:
            engine.add(key, engine.resolve(request))
        except InvalidRequestError as error:
            if re.search("tokens|cannot write", str(error)):
                continue  # it does not fit
            raise
        asked[key] = constraint
        if len(asked) == 16:
            num_answered += check_answers(engine, asked)
            asked.clear()
    return num_answered + check_answers(engine, asked)


def check_answers(engine: Engine, asked: dict[int, Constraint]) -> int:
    for key, events in run_all(engine).items():
        for output in finished(events).outputs:
            assert is_valid(output.text, asked[key]), (asked[key], output.text)
            assert output.finish_reason is FinishReason.STOP
    return len(asked)


# --- validity --------------------------------------------------------------------


def test_every_answer_is_valid(engine: Engine) -> None:
    assert check_random(engine, seed=1, count=26) > 18


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 12))
def test_thousands_of_answers_are_valid(engine: Engine, seed: int) -> None:
    num_answered = check_random(engine, seed=seed, count=400)
    print(f"seed {seed}: of 400 requests {num_answered} answered and valid, the others do not fit")
    assert num_answered > 200


@pytest.mark.parametrize("model", ["sdar", "llada2", "dream", "causal"])
def test_every_kind_of_attention_gives_valid_answers(model: str, tmp_path: Path) -> None:
    engine = tiny_engine(spelled(model, tmp_path))
    constraint = RegexConstraint("(?:[a-c]{2}, )+(?:yes|no)")
    for strategy in engine.info.strategies:
        chosen = next((s for s in ABLE if strategy == s.NAME), None)
        if chosen is None:
            continue
        params = RequestParams(max_new_tokens=21, temperature=1.0, seed=3, strategy=chosen)
        output = engine.generate(Request(PROMPT, params, constraint=constraint)).outputs[0]
        assert is_valid(output.text, constraint), (strategy, output.text)


def spelled(model: str, folder: Path) -> Path:
    source = GOLDEN / f"tiny-{model}"
    config = json.loads((source / "config.json").read_text())
    known = tiny_engine(source).info
    end = known.end_token_ids[0]
    mask = config["vocab_size"] - 1 if known.mask_token_id is None else known.mask_token_id
    return spelled_checkpoint(folder, source, end, mask)


@pytest.mark.parametrize("kind", [CacheKind.PREFIX, CacheKind.DUAL])
def test_with_an_approximate_cache_answers_are_valid(engine: Engine, kind: CacheKind) -> None:
    params = RequestParams(max_new_tokens=24, block_length=5, seed=1, temperature=1.0, cache=kind)
    constraint = RegexConstraint("(?:[a-c]{2}, )+(?:yes|no)")
    output = engine.generate(Request(PROMPT, params, constraint=constraint)).outputs[0]
    assert is_valid(output.text, constraint)


def test_a_hole_between_given_text_is_filled_exactly(engine: Engine) -> None:
    number, word = RegexConstraint("[0-9]+"), ChoiceConstraint(("abcno", "yesage"))
    prompt = InfillPrompt(
        ((1, 2), Hole(5, constraint=number), (3,), Hole(2, constraint=word), (4,), Hole(3), (5,))
    )
    for seed in range(5):
        params = RequestParams(temperature=1.0, seed=seed, block_length=4)
        output = engine.generate(Request(prompt, params)).outputs[0]
        digits, chosen, rest = output.hole_texts
        assert re.fullmatch("[0-9]{5,}", digits)
        assert chosen in word.options
        assert rest


def test_the_most_likely_valid_answer_is_found(engine: Engine) -> None:
    """All at once at temperature 0: the product of probabilities is the highest there is."""
    words = ("yesno", "abc42", "noage", "42abc")
    params = RequestParams(
        max_new_tokens=2, seed=0, ignore_eos=True, strategy=ConfidenceThreshold(1e-9)
    )
    recorder = LogitsRecorder.install(engine)
    add(engine, 0, Request(PROMPT, params, constraint=ChoiceConstraint(words)))
    output = finished(run_all(engine)[0]).outputs[0]
    logits = recorder.seen[0, 0][0].numpy()
    assert engine.tokenizer is not None
    ids = {engine.tokenizer.token_bytes(i).decode("utf-8", "replace"): i for i in range(90)}

    def likelihood(word: str) -> float:
        splits = [(word[:at], word[at:]) for at in range(1, len(word))]
        pairs = [(ids[a], ids[b]) for a, b in splits if a in ids and b in ids]
        return max(float(logits[0, a] + logits[1, b]) for a, b in pairs)

    assert output.text == max(words, key=likelihood)


@pytest.mark.parametrize("strategy", [s for s in ABLE if not s.REVOCABLE and s != LeftToRight()])
def test_where_one_token_only_may_stand_it_is_filled_for_free(
    engine: Engine, strategy: Strategy
) -> None:
    """Also beside a schedule's share, of which nothing goes to them."""
    steps = 2 if strategy.HAS_STEPS else None
    params = RequestParams(max_new_tokens=16, block_length=8, steps=steps, strategy=strategy)
    for pattern in ("Z{16}", "(?:[TE]Z{7}){2}"):
        request = Request(PROMPT, params, constraint=RegexConstraint(pattern))
        assert engine.generate(request).outputs[0].forward_passes == 2, pattern  # one a block


def test_what_may_be_masked_again_waits_its_turn(engine: Engine) -> None:
    for strategy in (Wino(), Remdm(eta=0.0), LeftToRight()):
        params = RequestParams(max_new_tokens=8, strategy=strategy)
        request = Request(PROMPT, params, constraint=RegexConstraint("Z{8}"))
        assert engine.generate(request).outputs[0].forward_passes > 1, strategy


@pytest.mark.parametrize("pattern", ["a(?:b|c)d|aed", "ab?c+d", "[ab]{2}cd|abcd", "(?:ab|cd)*e?"])
def test_a_position_is_forced_where_all_paths_agree(pattern: str) -> None:
    letters = Vocabulary({i: bytes([97 + i]) for i in range(5)}, (5,), 6)
    automaton = token_automaton(*compile_regex(pattern), letters)
    num_classes = automaton.table.shape[1]
    rng = np.random.default_rng(0)
    for length in (3, 4, 5):
        ends = automaton.fits(0, exact=False)[0]
        texts = []
        for classes in itertools.product(range(1, num_classes), repeat=length):
            state = 0
            for kind in classes:
                state = int(automaton.table[state, kind]) if state >= 0 else -1
            if state >= 0 and ends[state]:
                texts.append(classes)
        for given in itertools.product([False, True], repeat=length):
            if not texts:
                continue
            chosen = texts[rng.integers(len(texts))]
            fixed = np.where(given, chosen, -1).astype(np.int32)
            scores = rng.random((length, num_classes), dtype=np.float32)
            path, forced = best_path(automaton, 0, ends, fixed, scores)
            left = [t for t in texts if all(f < 0 or f == k for f, k in zip(fixed, t, strict=True))]
            assert tuple(path.tolist()) in left
            assert forced.tolist() == [len(set(kinds)) == 1 for kinds in zip(*left, strict=True)]


def test_a_constrained_row_is_the_same_in_company(engine: Engine) -> None:
    rng = random.Random(4)
    requests = []
    for number, strategy in enumerate(ABLE * 2):
        constraint = RegexConstraint("(?:[a-c]{2}, |[0-9])+") if number % 3 else None
        params = random_params(rng, strategy)
        requests.append(
            Request(PROMPT, params, granularity=Granularity.STEPS, constraint=constraint)
        )
    recorder = LogitsRecorder.install(engine)
    alone: dict[int, list[Output]] = {}
    for key, request in enumerate(requests):
        engine.add(key, engine.resolve(request))
        alone[key] = list(finished(run_all(engine)[key]).outputs)
    logits = dict(recorder.seen)
    recorder.seen.clear()
    early: list[tuple[int, Event]] = []
    for key, request in enumerate(requests):
        engine.add(key, engine.resolve(request))
        early += engine.step()
    for key, events in run_all(engine).items():
        early += [(key, event) for event in events]
    together = {key: event.outputs for key, event in early if isinstance(event, Finished)}
    for key, outputs in alone.items():
        assert list(together[key]) == outputs
    for row, steps in logits.items():
        again = recorder.seen[row]
        assert len(steps) == len(again)
        assert all(np.array_equal(a, b) for a, b in zip(steps, again, strict=True))
