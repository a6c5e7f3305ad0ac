"""Checks where a request asks its answers to end. Knows no canvas."""

from __future__ import annotations

from vdiff_grpc.engine.prompts import Violations
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import ModelInfo, RequestParams

MAX_STOPS = 16
MAX_STOP_CHARS = 256


def check_stops(asked: RequestParams, info: ModelInfo, bad: Violations) -> None:
    if len(asked.stop_strings) > MAX_STOPS:
        bad.add(
            "sampling.stop.strings",
            f"stop has {len(asked.stop_strings)} strings; the limit is {MAX_STOPS}",
        )
    for index, text in enumerate(asked.stop_strings):
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            bad.add(
                f"sampling.stop.strings[{index}]",
                f"stop string {index} has {len(text)} characters; 1 to {MAX_STOP_CHARS} are allowed",
            )
    if len(asked.stop_token_ids) > MAX_STOPS:
        bad.add(
            "sampling.stop.token_ids",
            f"stop has {len(asked.stop_token_ids)} token ids; the limit is {MAX_STOPS}",
        )


def check_stop_ids(
    asked: RequestParams, info: ModelInfo, tokenizer: Tokenizer | None, bad: Violations
) -> None:
    """A stop token that is never generated would be accepted and ignored."""
    for index, token in enumerate(asked.stop_token_ids):
        why = ""
        if not 0 <= token < info.vocab_size:
            why = f"is not in the vocabulary of {info.vocab_size}"
        elif token == info.mask_token_id:
            why = "is the mask token, which is never generated"
        elif info.growth is not None and token == info.growth.expand:
            why = "is the expand token, which no answer has"
        elif token in info.suppressed_ids:
            why = "is suppressed by the checkpoint's generation config"
        elif tokenizer is not None and token not in tokenizer.defined_ids:
            why = "is defined by no token of the tokenizer"
        elif asked.ignore_eos and token in info.end_token_ids:
            why = "is an end token, which ignore_eos keeps from being generated"
        if why:
            bad.add(f"sampling.stop.token_ids[{index}]", f"stop token id ({token}) {why}")
