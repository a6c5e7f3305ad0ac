"""What a request may begin with: text, token ids, a conversation with tools, a document with holes."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vdiff_grpc.engine.constraints.kinds import Constraint


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str
    suffix: str | None = None


@dataclass(frozen=True, slots=True)
class TokensPrompt:
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """arguments: a JSON object, as JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """tool_calls: of the assistant. tool_call_id, name: of a tool, whose call it answers."""

    role: str  # "system" | "user" | "assistant" | "tool"
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the caller's. parameters: JSON schema of its arguments, or empty."""

    name: str
    description: str = ""
    parameters: str = ""


class ToolMode(enum.Enum):
    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """name: of the one tool that is called."""

    mode: ToolMode = ToolMode.AUTO
    name: str = ""
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice | None = None  # with tools: automatic

    @property
    def may_call(self) -> bool:
        return bool(self.tools) and (self.choice or ToolChoice()).mode is not ToolMode.NONE


@dataclass(frozen=True, slots=True)
class Hole:
    """Of `length`, or of what the engine chooses from min_length (None: 1) to max_length."""

    length: int = 0
    min_length: int | None = None
    max_length: int | None = None
    constraint: Constraint | None = None

    @property
    def shortest(self) -> int:
        return self.length if self.max_length is None else self.min_length or 1

    @property
    def longest(self) -> int:
        return self.length if self.max_length is None else self.max_length


class LengthChoice(enum.Enum):
    """How the lengths of holes that leave it open are found."""

    CONFIDENCE = "confidence"  # before anything is filled
    NATIVE = "native"  # while they are filled: GrowthTokens


@dataclass(frozen=True, slots=True)
class InfillPrompt:
    """Segments in order: text, token ids, or a hole."""

    segments: tuple[str | tuple[int, ...] | Hole, ...]


Prompt = TextPrompt | TokensPrompt | ChatPrompt | InfillPrompt
