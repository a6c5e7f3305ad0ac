"""Checks of our own, beside schemathesis' own, on every reply to a request that it makes.

Loaded by schemathesis itself, see schemathesis.toml.
"""

from __future__ import annotations

import re
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext
from schemathesis.core.transport import Response

from tests.gateway.peers.openai_document import TITLE

# What a document cannot say: the limits of the server behind, and what goes together.
STATED = re.compile(
    r"(exceeds|within) the (model's limit|server's limit|vocabulary|generated positions)"
    r"|is not (in the vocabulary|among this model's)"
    r"|needs (logprobs|stream) \(true\)"
    r"|needs text prompts"
    r"|with echo are not supported"
    r"|are two names of one field"
    r"|cannot be (set|used) with"
    r"|must (be at most|be at least n|exceed)"
    r"|is below the smallest of this caller"
    r"|^latency_budget_ms \([^)]*\) is not in \(0, \d+\]$"
    r"|^(text\.format|response_format\.json_schema)\.schema is required$"
    r"|^min_tokens \(\d+\) needs (a suffix|max_tokens)"
    r"|: a schema needs type json_schema$"
    # which segments are a document with holes
    r"|^prompt is required$|has no hole to fill$"
    r"|^hole_lengths \((native|confidence)\) (needs a hole that|cannot be set: the model) "
    r"|holes whose length is (still )?to be chosen"
    r"|^(hole length|m(in|ax)_length) \(\d+\) (is not in \[1, \d+\]$|needs max_length$)"
    # what goes together in a conversation with tools, and names that must differ
    r"|^tools: |^tool_choice( |: )|^tool_calls(: | are)|^tool_call_id \("
    r"|\.(content|tool_call_id) is required$"
    # which texts are a regex or a schema that is supported, and can be met in so many tokens
    r"|^(regex|json_schema|choice): "
    r"|in include$"
)


def error_of(response: Response) -> dict[str, Any]:
    """OpenAI's error object, whole and of the right types."""
    body = response.json()
    assert set(body) == {"error"}, body
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert error["message"]
    assert isinstance(error["type"], str)
    assert all(error[key] is None or isinstance(error[key], str) for key in ("param", "code"))
    return error


@schemathesis.check
def an_error_has_openais_shape(ctx: CheckContext, response: Response, case: Case) -> None:
    # Health has a shape of its own.
    if response.status_code >= 400 and "health" not in case.path:
        error_of(response)


@schemathesis.check
def what_the_document_allows_is_refused_for_a_stated_reason(
    ctx: CheckContext, response: Response, case: Case
) -> None:
    if response.status_code == 400 and case.meta and case.meta.generation.mode.is_positive:
        error = error_of(response)
        assert error["param"], error
        # Of OpenAI's whole document much is not supported.
        if case.operation.schema.raw_schema["info"]["title"] != TITLE:
            assert STATED.search(error["message"]), error
