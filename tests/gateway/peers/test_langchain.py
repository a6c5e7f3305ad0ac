"""LangChain's own tests of a chat model: ChatOpenAI on our base_url.

The properties say what LangChain may expect. What they deny it skips; that these are refused by
name is in test_refusals.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest_asyncio
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.gateway.conftest import RunningGateway


class TestChatOpenAI(ChatModelIntegrationTests):
    where: dict[str, Any]

    @pytest_asyncio.fixture(autouse=True)
    async def _where(self, gateway: RunningGateway) -> AsyncIterator[None]:
        # Clients of our own: LangChain never closes those that it makes.
        with httpx.Client() as client:
            async with httpx.AsyncClient() as async_client:
                self.where = {
                    "base_url": f"{gateway.url}/v1",
                    "http_client": client,
                    "http_async_client": async_client,
                }
                yield

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # The embedded model would answer some of their conversations with nothing.
        said = {"extra_body": {"ignore_eos": True}}
        return self.where | said | {"model": "demo", "api_key": "none", "stream_usage": True}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # Theirs has `stop: []` too. Fewer tokens than their 100: what is tested is the same.
        return super().standard_chat_model_params | {"max_tokens": 24}

    @property
    def model_override_value(self) -> str:
        return "demo-alias"

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False
