"""Small models that others have trained, where they are at hand.

VDIFF_REAL_WEIGHTS names a folder with stories15M (karpathy/llama2.c), albert-reactions
(rxnmapper) and roberta-antibody (sapiens), each in Hugging Face layout. Without it nothing runs.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers

from tests.engine.tools import add, finished, run, run_all, tiny_engine
from vdiff_grpc.engine.engine import Engine
from vdiff_grpc.engine.prompt_types import Hole, InfillPrompt, TextPrompt, TokensPrompt
from vdiff_grpc.engine.strategies import ConfidenceThreshold
from vdiff_grpc.engine.types import Request, RequestParams

FOLDER = os.environ.get("VDIFF_REAL_WEIGHTS", "")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="VDIFF_REAL_WEIGHTS names no folder with trained models"
)

STORY = "Once upon a time, there was a little dog"
REACTIONS = (
    "CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1",
    "CC(=O)OC(C)=O.Oc1ccccc1C(=O)O>>CC(=O)Oc1ccccc1C(=O)O",
    "Brc1ccccc1.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1",
    "O=[N+]([O-])c1ccccc1>>Nc1ccccc1",
)
RESIDUES = {letter: 4 + i for i, letter in enumerate("ACDEFGHIKLMNPQRSTVWY")}
ANTIBODY = "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK"


def engine_of(name: str) -> Engine:
    path = Path(FOLDER) / name
    if not path.is_dir():
        pytest.skip(f"VDIFF_REAL_WEIGHTS has no {name}")
    return tiny_engine(path, max_waiting_rows=1000)


def fill_each(engine: Engine, ids: list[int], positions: list[int]) -> list[int]:
    """What the model fills in at each position, when that alone is open."""
    for position in positions:
        template = (tuple(ids[:position]), Hole(1), tuple(ids[position + 1 :]))
        add(engine, position, Request(InfillPrompt(template)))
    events = run_all(engine)
    return [finished(events[p]).outputs[0].tokens.ids[0] for p in positions]


def test_a_causal_model_writes_what_transformers_writes() -> None:
    engine = engine_of("stories15M")
    assert engine.tokenizer is not None
    prompt = [1, *engine.tokenizer.encode(STORY)]
    reference = transformers.LlamaForCausalLM.from_pretrained(
        Path(FOLDER) / "stories15M", dtype=torch.float32
    )
    expected = reference.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)
    params = RequestParams(max_new_tokens=40)
    for prompt_kind in (TextPrompt(STORY), TokensPrompt(tuple(prompt))):
        [output] = finished(run(engine, Request(prompt_kind, params))).outputs
        assert list(output.canvas) == expected[0].tolist()
        assert output.forward_passes == 40
    assert output.text.startswith(" named Spot. Spot loved to play")


def test_a_model_of_reactions_fills_in_products() -> None:
    engine = engine_of("albert-reactions")
    assert engine.tokenizer is not None
    right = total = 0
    for reaction in REACTIONS:
        ids = [*engine.info.prefix_ids, *engine.tokenizer.encode(reaction), *engine.info.suffix_ids]
        product = range(ids.index(engine.tokenizer.encode(">>")[0]) + 1, len(ids) - 1)
        filled = fill_each(engine, ids, list(product))
        right += sum(token == ids[p] for token, p in zip(filled, product, strict=True))
        total += len(product)
    assert right / total > 0.95


def test_a_text_around_holes_stands_between_its_marks() -> None:
    engine = engine_of("albert-reactions")
    assert engine.tokenizer is not None
    template = ("CC(=O)Cl.Nc1ccccc1>>CC(=O)", Hole(1), "c1cc", Hole(2), "c1")
    params = RequestParams(strategy=ConfidenceThreshold(0.9))
    [output] = finished(run(engine, Request(InfillPrompt(template), params))).outputs
    assert output.hole_texts == ("N", "cc")
    names = [engine.tokenizer.token_text(i) for i in output.canvas]
    assert (names[0], names[-1]) == ("[CLS]", "[SEP]")


def test_a_model_of_antibodies_fills_in_residues_without_a_tokenizer() -> None:
    engine = engine_of("roberta-antibody")
    assert engine.tokenizer is None
    assert (engine.info.mask_token_id, engine.info.max_positions) == (24, 144)
    ids = [0, *(RESIDUES[letter] for letter in ANTIBODY), 2]
    positions = list(range(1, len(ids) - 1))
    filled = fill_each(engine, ids, positions)
    right = sum(token == ids[p] for token, p in zip(filled, positions, strict=True))
    assert right / len(positions) > 0.85
    assert not set(filled) & {0, 1, 24}, "no mark, no padding, no mask"


def test_the_longest_text_of_a_roberta_fits_its_positions() -> None:
    engine = engine_of("roberta-antibody")
    prompt = TokensPrompt(tuple([0] + [5] * 99))
    [output] = finished(
        run(engine, Request(prompt, RequestParams(max_new_tokens=44, ignore_eos=True, steps=2)))
    ).outputs
    assert len(output.canvas) == 144
