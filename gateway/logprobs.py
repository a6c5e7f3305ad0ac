"""Logarithms of probabilities in OpenAI's two shapes: pure, no IO.

A token's probability is that of the forward pass that committed it: a diffusion model does not
condition on what stands left of it only.
"""

from __future__ import annotations

import math

from vdiff_grpc import v1

from .openai_replies import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob

# What OpenAI says of a token that is as good as impossible; JSON has no infinity.
_LEAST = -9999.0


def of_chat(tokens: v1.Tokens) -> ChatLogprobs:
    content = []
    for i, token_id in enumerate(tokens.ids):
        data = tokens.token_bytes[i]
        tops = tokens.top_tokens[i] if tokens.top_tokens else v1.TopTokens()
        content.append(
            TokenLogprob(
                _text(token_id, data),
                _logarithm(tokens.confidences[i]),
                list(data),
                [
                    TopLogprob(_text(top_id, top_data), _rounded(logprob), list(top_data))
                    for top_id, logprob, top_data in _tops(tops)
                ],
            )
        )
    return ChatLogprobs(content)


def of_completion(tokens: v1.Tokens) -> CompletionLogprobs:
    """`top_logprobs` has the token itself too, if it is none of the most likely."""
    texts, logprobs, tops = [], [], []
    for i, token_id in enumerate(tokens.ids):
        texts.append(_unique_text(token_id, tokens.token_bytes[i]))
        logprobs.append(_logarithm(tokens.confidences[i]))
        top = tokens.top_tokens[i] if tokens.top_tokens else v1.TopTokens()
        likely = {_unique_text(one, data): _rounded(value) for one, value, data in _tops(top)}
        tops.append(likely | {texts[-1]: logprobs[-1]})
    return CompletionLogprobs(texts, logprobs, tops, list(tokens.text_offsets))


def _tops(top: v1.TopTokens) -> list[tuple[int, float, bytes]]:
    """Without a tokenizer no token has bytes."""
    data = list(top.token_bytes) or [b""] * len(top.ids)
    return list(zip(top.ids, top.logprobs, data, strict=True))


def _text(token_id: int, data: bytes) -> str:
    """Half a character is shown as the replacement character; `bytes` has the truth."""
    return data.decode("utf-8", "replace") if data else f"token_id:{token_id}"


def _unique_text(token_id: int, data: bytes) -> str:
    """As a key: OpenAI writes what is no text as `bytes:` and escapes."""
    try:
        return data.decode() if data else f"token_id:{token_id}"
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _logarithm(probability: float) -> float:
    return _rounded(math.log(probability)) if probability > 0 else _LEAST


def _rounded(logprob: float) -> float:
    # As with confidences: a float32 has seven digits.
    return round(max(logprob, _LEAST), 6)
