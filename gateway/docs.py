"""Owns the OpenAPI document, made from the msgspec types, and the pages that show it.

The pages are our own and load nothing from elsewhere.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from . import (
    docs_texts,
    fim_replies,
    openai,
    openai_replies,
    openai_responses,
    response_replies,
)
from .errors import ErrorReply

_STATIC = Path(__file__).parent / "static"

_DESCRIPTION = """\
Text from a diffusion language model, through OpenAI's API.

A diffusion model fills a canvas of masked positions, several per forward pass and in any order.
So there are fields that OpenAI's API does not have: `steps`, `block_length`, `strategy`,
`cfg_scale`, and `diffusing`, which shows the canvas as it fills in. They stand at the top level of
the request, where `extra_body` of the OpenAI clients puts them. `suffix` is real infilling.

`strategy` is an object: its `type`, and the parameters of that type, as in
`{"type": "klass", "threshold": 0.95}`. Which of them the model knows depends on its attention.

`logprobs` tells the probability of each token in the forward pass that committed it, before
temperature, top_k and top_p. That pass saw what was filled then, to the left and to the right: the
product over the tokens is not the probability of the text. A token that has no text of its own is
shown as `token_id:N`.

`tools` are functions that the answer may call, with arguments that keep to their schemas. With
`tool_choice` `required`, or a function, it does; with `auto` it may, if the model's chat template has
tools (`supports_tools` of `/v1/models`).

Fields that are not listed are accepted and have no effect (`user`, `store`, `metadata`, ...).
Fields of OpenAI's that would change the answer and are not supported are refused with 400; `param`
names them.

Every reply carries `x-request-id` (the request's own, if it has one of at most 128 printable ASCII
characters) and `openai-processing-ms`. Where the gateway limits requests, replies of `/v1` say by
`x-ratelimit-limit-requests`, `x-ratelimit-remaining-requests` and `x-ratelimit-reset-requests` (until
none is counted any more, as `12.5s`) where the caller stands.
"""

_STREAMING = """\
With `stream` the answer is server-sent events: `data: ` and one {chunk} each, then
`data: [DONE]`. The text of the deltas can no longer change. With `stream_options.include_usage` a
last chunk with empty `choices` has the token counts. With `diffusing` there are also chunks whose
top-level `diffusion` holds, by its `kind`: the canvas at the `start`, the positions that a step has
filled (`unmask`), changed (`revise`) or masked again (`remask`), the whole canvas after steps were
left out for a slow reader (`snapshot`), and the cost at the `end`. An error after the stream has
begun is an event too: `data: {{"error": ...}}`, and no `[DONE]` follows.
"""

_PROBLEMS = {
    400: "A field is wrong, over a limit or not supported; `param` names it. Or not JSON.",
    401: "No API key, or one that the model server does not know.",
    403: "The API key has no right to this.",
    404: "The model is not served here, or there is nothing at this URL.",
    405: "Not with this method.",
    413: "The request body is too large.",
    429: "The waiting queue is full, or the requests or tokens of a minute are used up. `retry-after` says when to come back.",
    500: "An internal error. `x-should-retry` is false.",
    503: "The model server is loading, draining or not reachable. See `retry-after`.",
    504: "The request took longer than the time limit.",
}
_RETRY_AFTER = {
    "retry-after": {
        "description": "Seconds to wait, at most 120.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 120},
    }
}
_HEADERS = {
    "x-request-id": {
        "description": "The request's id; it is in the log lines of gateway and server.",
        "schema": {"type": "string"},
    },
    "openai-processing-ms": {
        "description": "Milliseconds until the answer began.",
        "schema": {"type": "integer", "minimum": 0},
    },
}
_RESPONSE_ID = {
    "name": "response_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
}
_REQUEST_ID_PARAMETER = {
    "name": "x-request-id",
    "in": "header",
    "required": False,
    "description": "An id of your own, at most 128 printable ASCII characters.",
    "schema": {"type": "string"},
}


class Health(msgspec.Struct, frozen=True):
    status: str


class Unavailable(msgspec.Struct, frozen=True):
    status: str
    reason: str


class Version(msgspec.Struct, frozen=True):
    version: str
    server_version: str | None


_SCHEMAS: tuple[Any, ...] = (
    openai.CompletionRequest,
    openai_replies.Completion,
    openai_replies.CompletionChunk,
    openai.ChatRequest,
    openai_replies.ChatCompletion,
    openai_replies.ChatChunk,
    openai.FimRequest,
    fim_replies.FimCompletion,
    fim_replies.FimChunk,
    openai_responses.ResponseRequest,
    response_replies.Response,
    openai_replies.ModelList,
    openai_replies.Model,
    ErrorReply,
    Health,
    Unavailable,
    Version,
    response_replies.ResponseEvent,
)


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    schemas, components = msgspec.json.schema_components(
        _SCHEMAS, ref_template="#/components/schemas/{name}"
    )
    # A union has no name of its own.
    components["ResponseEvent"] = schemas[-1]
    docs_texts.complete(components)
    components["CompletionRequest"]["properties"]["prompt"]["anyOf"] = openai.PROMPT_SCHEMA
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vdiff-grpc gateway",
            "version": version("vdiff-grpc"),
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "generation", "description": "Text from the model."},
            {"name": "models", "description": "What is served."},
            {"name": "operation", "description": "Health, version and these pages."},
        ],
        "paths": _paths(),
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # Either of both: not every server asks for keys.
        "security": [{"key": []}, {}],
    }


async def openapi_json(request: Request) -> Response:
    return Response(_document_json(), media_type="application/json")


async def docs(request: Request) -> Response:
    return Response(_page("docs.html"), media_type="text/html")


async def redoc(request: Request) -> Response:
    # The same page; it shows itself for reading when it is asked for by this name.
    return Response(_page("docs.html"), media_type="text/html")


@cache
def _document_json() -> bytes:
    return msgspec.json.encode(document())


@cache
def _page(name: str) -> bytes:
    return (_STATIC / name).read_bytes()


def _paths() -> dict[str, Any]:
    return {
        "/v1/completions": {
            "post": _generation(
                "createCompletion",
                "Continue a prompt, or fill the gap before a suffix",
                openai.CompletionRequest,
                openai_replies.Completion,
                "CompletionChunk",
                docs_texts.COMPLETION_EXAMPLES,
            )
        },
        "/v1/chat/completions": {
            "post": _generation(
                "createChatCompletion",
                "Answer a conversation",
                openai.ChatRequest,
                openai_replies.ChatCompletion,
                "ChatChunk",
                docs_texts.CHAT_EXAMPLES,
            )
        },
        "/v1/fim/completions": {
            "post": _generation(
                "createFimCompletion",
                "Fill the gap between prompt and suffix, or continue a prompt",
                openai.FimRequest,
                fim_replies.FimCompletion,
                "FimChunk",
                docs_texts.FIM_EXAMPLES,
                docs_texts.FIM + _STREAMING,
            )
        },
        "/v1/responses": {
            "post": _generation(
                "createResponse",
                "Answer an input",
                openai_responses.ResponseRequest,
                response_replies.Response,
                "ResponseEvent",
                docs_texts.RESPONSE_EXAMPLES,
                docs_texts.RESPONSES,
            )
        },
        "/v1/responses/{response_id}": {
            "parameters": [_RESPONSE_ID],
            "get": _nothing_stored("retrieveResponse", "An earlier response: not stored"),
            "delete": _nothing_stored("deleteResponse", "Delete a response: not stored"),
        },
        "/v1/responses/{response_id}/cancel": {
            "parameters": [_RESPONSE_ID],
            "post": _nothing_stored("cancelResponse", "Cancel a response: not stored"),
        },
        "/v1/responses/{response_id}/input_items": {
            "parameters": [_RESPONSE_ID],
            "get": _nothing_stored("listInputItems", "The input of a response: not stored"),
        },
        "/v1/models": {
            "get": _get("models", "listModels", "The served model, under each of its names")
            | {"responses": _answers(openai_replies.ModelList, 401, 500, 503, 504)}
        },
        "/v1/models/{model}": {
            "parameters": [
                {
                    "name": "model",
                    "in": "path",
                    "required": True,
                    "description": "Name of the model; it may contain slashes.",
                    "schema": {"type": "string"},
                }
            ],
            "get": _get("models", "retrieveModel", "One model")
            | {"responses": _answers(openai_replies.Model, 401, 404, 500, 503, 504)},
        },
        "/health": {"get": _health("health", "Whether requests can be served")},
        "/health/ready": {"get": _health("ready", "The same, for a readiness probe")},
        "/health/live": {
            "get": _get("operation", "live", "Whether the gateway itself runs")
            | {"responses": _answers(Health)}
        },
        "/version": {
            "get": _get("operation", "version", "Versions of gateway and server")
            | {"responses": _answers(Version)}
        },
        "/metrics": {
            "get": _get("operation", "metrics", "Figures of the gateway itself, for Prometheus")
            | {"responses": {"200": _success({"text/plain": {"schema": {"type": "string"}}})}}
        },
        "/openapi.json": {
            "get": _get("operation", "openapi", "This document")
            | {"responses": {"200": _success({"application/json": {"schema": {"type": "object"}}})}}
        },
        "/docs": {"get": _html("docs", "The document as a page, to read and to try")},
        "/redoc": {"get": _html("redoc", "The document as a page, to read")},
        "/playground": {
            "get": _html("playground", "Watch the canvas fill in, and compare strategies")
        },
    }


def _generation(
    operation_id: str,
    summary: str,
    request: Any,
    reply: Any,
    chunk: str,
    examples: docs_texts.Examples,
    description: str = _STREAMING,
) -> dict[str, Any]:
    answers = _answers(reply, 400, 401, 403, 404, 413, 429, 500, 503, 504)
    answers["200"]["content"]["text/event-stream"] = {"schema": _event(chunk)}
    return {
        "tags": ["generation"],
        "operationId": operation_id,
        "summary": summary,
        "description": description.format(chunk=chunk),
        "parameters": [_REQUEST_ID_PARAMETER],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(request), "examples": examples}},
        },
        "responses": answers,
    }


def _nothing_stored(operation_id: str, summary: str) -> dict[str, Any]:
    return _get("generation", operation_id, summary) | {"responses": _problems(404)}


def _event(chunk: str) -> dict[str, Any]:
    """Before OpenAPI 3.2 a stream's schema describes one event."""
    data = {"anyOf": [{"$ref": f"#/components/schemas/{chunk}"}, _ref(ErrorReply)]}
    return {
        "type": "object",
        "description": f"One event: a {chunk}, or [DONE], or an error that came after the start.",
        "required": ["data"],
        "properties": {
            "data": {
                "type": "string",
                "anyOf": [
                    {"contentMediaType": "application/json", "contentSchema": data},
                    {"const": "[DONE]"},
                ],
            }
        },
    }


def _get(tag: str, operation_id: str, summary: str) -> dict[str, Any]:
    return {"tags": [tag], "operationId": operation_id, "summary": summary}


def _health(operation_id: str, summary: str) -> dict[str, Any]:
    answers = _answers(Health)
    answers["503"] = {
        "description": "Not now; `reason` says why.",
        "headers": _HEADERS,
        "content": {"application/json": {"schema": _ref(Unavailable)}},
    }
    return _get("operation", operation_id, summary) | {"responses": answers}


def _html(operation_id: str, summary: str) -> dict[str, Any]:
    page = _success({"text/html": {"schema": {"type": "string"}}})
    return _get("operation", operation_id, summary) | {"responses": {"200": page}}


def _answers(reply: Any, *problems: int) -> dict[str, Any]:
    success = {"200": _success({"application/json": {"schema": _ref(reply)}})}
    return success | _problems(*problems)


def _problems(*problems: int) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for status in problems:
        retry = _RETRY_AFTER if status in (429, 503) else {}
        answers[str(status)] = {
            "description": _PROBLEMS[status],
            "headers": _HEADERS | retry,
            "content": {"application/json": {"schema": _ref(ErrorReply)}},
        }
    return answers


def _success(content: dict[str, Any]) -> dict[str, Any]:
    return {"description": "Success.", "headers": _HEADERS, "content": content}


def _ref(schema: Any) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema.__name__}"}
