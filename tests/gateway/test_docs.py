"""The OpenAPI document is valid, true to the routes and the replies; the pages need no internet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

import gateway.app
from tests.gateway.test_refusals import BOTH, CHAT, TEXT


@pytest.fixture
def document(http: httpx.Client) -> dict[str, Any]:
    reply = http.get("/openapi.json")
    assert reply.headers["content-type"] == "application/json"
    document: dict[str, Any] = reply.json()
    return document


def validator(document: dict[str, Any], name: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    )


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_the_document_lists_every_route(document: dict[str, Any]) -> None:
    source = Path(gateway.app.__file__).read_text()
    routes = {path.replace(":path", "") for path in re.findall(r'Route\("([^"]+)"', source)}
    assert routes == set(document["paths"])


def test_replies_and_errors_are_what_the_document_says(
    http: httpx.Client, document: dict[str, Any]
) -> None:
    for reply, name in (
        (http.post("/v1/completions", json=TEXT), "Completion"),
        (http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 4}), "ChatCompletion"),
        (http.get("/v1/models"), "ModelList"),
        (http.get("/v1/models/demo"), "Model"),
        (http.get("/health"), "Health"),
        (http.get("/version"), "Version"),
        (http.post("/v1/completions", json={}), "ErrorReply"),
        (http.get("/nothing"), "ErrorReply"),
    ):
        validator(document, name).validate(reply.json())


def test_the_documents_examples_are_honoured(http: httpx.Client, document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        if "requestBody" not in operations.get("post", {}):
            continue
        content = operations["post"]["requestBody"]["content"]["application/json"]
        schema = validator(document, content["schema"]["$ref"].rsplit("/", 1)[-1])
        assert content["examples"]
        for example in content["examples"].values():
            schema.validate(example["value"])
            assert http.post(path, json=example["value"]).status_code == 200


def test_what_the_document_forbids_is_refused(document: dict[str, Any]) -> None:
    # BOTH is refused, see test_refusals. Some need the model's limits or two fields to be wrong.
    completion = validator(document, "CompletionRequest")
    forbidden = [fields for fields, _ in BOTH if not completion.is_valid(TEXT | fields)]
    assert len(forbidden) >= 28
    assert completion.is_valid(TEXT)


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_pages_load_nothing_from_elsewhere(http: httpx.Client, path: str) -> None:
    reply = http.get(path)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "openapi.json" in reply.text
    assert not re.search(r"https?://|src=|<link|@import|url\(", reply.text)
