"""Tools in the words of OpenAI's two APIs, as the contract's: types, checks and conversion, no IO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from vdiff_grpc import v1

from .errors import ApiError, invalid, missing, unsupported

MAX_TOOLS = 128
MODES = ("none", "auto", "required")
_MODES = dict(
    zip(MODES, (v1.TOOL_MODE_NONE, v1.TOOL_MODE_AUTO, v1.TOOL_MODE_REQUIRED), strict=True)
)

FUNCTION = Annotated[str, Meta(extra_json_schema={"const": "function"})]
FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
_DESCRIPTION = Annotated[str | None, Meta(description="What the model is told of it.")]
_PARAMETERS = Annotated[
    dict[str, Any] | None,
    Meta(
        description="The JSON schema of an object: arguments are always held to it. A keyword that "
        "is not supported is refused with its path. Absent, or without properties: no arguments."
    ),
]
_STRICT = Annotated[
    bool | None, Meta(description="Without effect: arguments always keep to the schema.")
]
_CHOICE = Meta(
    description="none: no call; auto: text or calls, if the model's chat template has tools; "
    "required: calls alone; a function: one call of it. Default: auto."
)
MODE = Annotated[str, Meta(extra_json_schema={"enum": list(MODES)})]
ParallelCalls = Annotated[
    bool | None, Meta(description="Whether an answer may have several calls. Default true.")
]


class Function(Struct, kw_only=True):
    name: FunctionName
    description: _DESCRIPTION = None
    parameters: _PARAMETERS = None
    strict: _STRICT = None


class Tool(Struct, kw_only=True):
    """Chat's. `function` is absent only in tools of other types, which are refused."""

    type: FUNCTION
    function: Function | UnsetType = UNSET


class NamedFunction(Struct, kw_only=True):
    name: str


class FunctionChoice(Struct, kw_only=True):
    """Chat's."""

    type: FUNCTION
    function: NamedFunction | UnsetType = UNSET


class FunctionTool(Struct, kw_only=True):
    """The responses API's: as chat's, without the object inside."""

    type: FUNCTION
    name: FunctionName | UnsetType = UNSET
    description: _DESCRIPTION = None
    parameters: _PARAMETERS = None
    strict: _STRICT = None


class FlatChoice(Struct, kw_only=True):
    """The responses API's."""

    type: FUNCTION
    name: str | UnsetType = UNSET


ChatTools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None
ChatChoice = Annotated[MODE | FunctionChoice | None, _CHOICE]
ResponseTools = Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None
ResponseChoice = Annotated[MODE | FlatChoice | None, _CHOICE]


class CalledFunction(Struct, kw_only=True):
    name: FunctionName
    arguments: Annotated[str, Meta(description="A JSON object, as JSON.")]


class MessageCall(Struct, kw_only=True):
    """A call in an earlier answer."""

    id: str
    type: FUNCTION
    function: CalledFunction | UnsetType = UNSET


def set_tools(
    chat: v1.ChatInput,
    tools: Sequence[Tool | FunctionTool] | None,
    choice: str | FunctionChoice | FlatChoice | None,
    parallel: bool | None,
) -> bool:
    """Puts them into the contract's input; whether an answer may call. Raises ApiError."""
    for index, tool in enumerate(tools or ()):
        path = f"tools[{index}]"
        check_type(tool.type, path)
        function = tool.function if isinstance(tool, Tool) else tool
        if isinstance(function, UnsetType):
            raise missing(f"{path}.function")
        if isinstance(function.name, UnsetType):
            raise missing(f"{path}.name")
        chat.tools.add(
            name=function.name,
            description=function.description,
            parameters=None
            if function.parameters is None
            else msgspec.json.encode(function.parameters).decode(),
        )
    asked = _choice(choice)
    if not tools:
        if asked.name or asked.mode == v1.TOOL_MODE_REQUIRED:
            raise invalid("tool_choice cannot be set without tools", "tool_choice")
        return False
    if parallel is not None:
        asked.parallel = parallel
    chat.tool_choice.CopyFrom(asked)
    return asked.mode != v1.TOOL_MODE_NONE


def may_be_text(chat: v1.ChatInput) -> bool:
    """Whether an answer with tools need not be a call."""
    choice = chat.tool_choice
    return not choice.name and choice.mode != v1.TOOL_MODE_REQUIRED


def check_type(kind: str, path: str) -> None:
    if kind != "function":
        what = f"{path}.type ({kind[:40]!r}): only 'function' is supported"
        raise unsupported(f"{path}.type", what)


def client_name(path: str, *, flat: bool) -> str:
    """Of a path in the contract's chat: `tools[0].parameters.items` and its like."""
    if flat or not path.startswith("tools["):
        return path.removesuffix(".name") if path.startswith("tool_choice") else path
    tool, _, rest = path.partition("].")
    return f"{tool}].function.{rest}" if rest else path


def _choice(choice: str | FunctionChoice | FlatChoice | None) -> v1.ToolChoice:
    """Raises ApiError."""
    if choice is None:
        return v1.ToolChoice()
    if isinstance(choice, str):
        if choice not in MODES:
            raise _wrong_choice(choice)
        return v1.ToolChoice(mode=_MODES[choice])
    check_type(choice.type, "tool_choice")
    name = choice.name if isinstance(choice, FlatChoice) else choice.function
    if isinstance(name, UnsetType):
        raise missing(f"tool_choice.{'name' if isinstance(choice, FlatChoice) else 'function'}")
    return v1.ToolChoice(name=name if isinstance(name, str) else name.name)


def _wrong_choice(choice: str) -> ApiError:
    what = f"tool_choice ({choice[:40]!r}) is none of {', '.join(MODES)}, and no function"
    return invalid(what, "tool_choice", "invalid_value")
