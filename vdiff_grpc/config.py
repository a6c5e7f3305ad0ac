"""What a server can be told, read once from flags and environment. Knows no gRPC and no torch.

Every option of `serve` is one field of ServerConfig: `--max-n 4` or `VDIFF_MAX_N=4`. The flag
wins; an empty variable counts as unset. The field's help is the flag's help.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from vdiff_grpc.engine.types import EngineConfig

DEMO = "demo"
DEMO_NAME = "vdiff-demo"
DEMO_TWIN = "demo-twin"
AUTO = "auto"
NONE = "none"

_DEMO_FOLDER = str(resources.files("vdiff_grpc") / "assets" / "demo")
_ENV_PREFIX = "VDIFF_"
_ENGINE = EngineConfig(model_path="")
_UNLIMITED = math.inf
_SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a field's text may be: a range for numbers; a pattern, with its words, for strings."""

    help: str
    minimum: float = 0
    maximum: float = _UNLIMITED
    pattern: str = ".+"
    allowed: str = "any text"


def _option(default: _T, text: str, **rule: Any) -> _T:
    """A dataclass field with its rule; typed as its value, as dataclasses.field is."""
    value: _T = field(default=default, metadata={"rule": _Rule(text, **rule)})
    return value


def _choice(default: str, text: str, *choices: str) -> str:
    return _option(default, text, pattern="|".join(choices), allowed=f"one of {', '.join(choices)}")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """All options of `vdiff-grpc serve`."""

    model: str = _option(
        DEMO, "checkpoint folder, or 'demo' for the embedded model", allowed="'demo' or a path"
    )
    aux_model: str = _option(
        AUTO,
        "autoregressive model beside it, for the strategy adaptive_parallel: a checkpoint folder, "
        "'demo-twin' for the embedded one, or 'none'; auto: the embedded one beside the embedded "
        "model, else none",
        allowed="'auto', 'demo-twin', 'none' or a path",
    )
    served_model_name: tuple[str, ...] = _option(
        (),
        "name in the API, and aliases after commas (default: the folder's name)",
        pattern=r"[^\s,]+(,[^\s,]+)*",
        allowed="names separated by commas, without spaces",
    )
    host: str = _option(
        "127.0.0.1", "address to listen on", pattern=r"\S+", allowed="a host name or address"
    )
    port: int = _option(50051, "TCP port; 0 takes any free one", maximum=65535)
    metrics_host: str = _option(
        "",
        "address of the metrics, for Prometheus to read at /metrics; empty: as --host",
        pattern=r"\S+",
        allowed="a host name or address",
    )
    metrics_port: int = _option(9464, "its TCP port; 0: no such page", maximum=65535)
    device: str = _option(
        _ENGINE.device,
        "auto (cuda, else mps, else cpu), cuda, cuda:N, mps or cpu",
        pattern=r"auto|cuda(:\d+)?|mps|cpu",
        allowed="one of auto, cuda, cuda:N, mps, cpu",
    )
    dtype: str = _choice(
        _ENGINE.dtype, "numbers of the weights", "auto", "float32", "bfloat16", "float16"
    )
    quantization: str = _choice(
        _ENGINE.quantization,
        "how the linear layers' weights are kept, by the package of that name",
        "none",
        "torchao-int8",
        "torchao-int4",
        "bitsandbytes-8bit",
        "bitsandbytes-4bit",
    )
    threads: int = _option(_ENGINE.threads, "CPU threads of the model; 0: one per core")
    attention: str = _choice(
        _ENGINE.attention,
        "what computes attention: auto (varlen where it works, else sdpa), sdpa, or on CUDA varlen "
        "(torch's FlashAttention over packed rows) or flex (FlexAttention, compiled when first used)",
        "auto",
        "sdpa",
        "varlen",
        "flex",
    )
    compile: bool = _option(
        _ENGINE.compile,
        "compile the network's layers with torch.compile at start, which takes up to minutes (on or "
        "off)",
    )
    tensor_parallel_size: int = _option(
        _ENGINE.tensor_parallel_size,
        "processes that the weights are split over, each on a GPU of its own; or all on the CPU",
        minimum=1,
    )
    batch_invariant: bool = _option(
        _ENGINE.batch_invariant,
        "compute every step in one constant shape, max_step_tokens: what keeps answers bit-equal "
        "in any company on a GPU (on or off)",
    )
    max_running_rows: int = _option(
        _ENGINE.max_running_rows, "rows (one per answer) that share a denoising step", minimum=1
    )
    max_waiting_rows: int = _option(
        _ENGINE.max_waiting_rows, "rows taken in beyond max_running_rows, to wait; more are refused"
    )
    max_step_tokens: int = _option(
        _ENGINE.max_step_tokens, "canvas tokens in one forward pass", minimum=2
    )
    max_prompt_step_tokens: int = _option(
        _ENGINE.max_prompt_step_tokens,
        "tokens of prompts that one step reads, of all rows, in whole pages, where attention looks "
        "back only: what a long prompt may add to the others' steps",
        minimum=1,
    )
    target_step_tokens: int = _option(
        _ENGINE.target_step_tokens,
        "canvas tokens of a step on average where the running rows want more: they then take turns, "
        "small ones more often; 0: every row is in every step",
    )
    max_canvas_tokens: int = _option(
        _ENGINE.max_canvas_tokens, "prompt and generated tokens of a row; 0: the model's limit"
    )
    cache_tokens: int = _option(
        _ENGINE.cache_tokens,
        "tokens whose keys and values can be kept, of all rows together, reserved at start; rows "
        "that find no place wait; 0: enough for max_running_rows whole canvases, up to 4096 with "
        "full attention, else 65536",
    )
    share_prompts: bool = _option(
        _ENGINE.share_prompts,
        "keep what was read of a prompt for later ones that begin alike, where attention looks back "
        "only (on or off)",
    )
    max_n: int = _option(_ENGINE.max_n, "answers per request", minimum=1)
    max_request_time_s: float = _option(
        _ENGINE.max_request_time_s,
        "seconds after which a request is ended, waiting included",
        minimum=0.001,
    )
    max_queue_time_s: float = _option(
        _ENGINE.max_queue_time_s,
        "seconds that a request may wait for its first step, then it is refused; 0: no limit",
    )
    overload: str = _choice(
        _ENGINE.overload,
        "a request whose latency_budget cannot be kept at the utmost haste: queue (it comes late) or "
        "refuse (it is turned away at once)",
        "queue",
        "refuse",
    )
    max_step_time_s: float = _option(
        120.0, "seconds after which a step counts as hung: the engine is started again; 0: never"
    )
    max_load_time_s: float = _option(1800.0, "the same for loading and warming up; 0: never")
    max_calls_per_caller: int = _option(
        0, "open calls of one key, or without keys of one address; 0: no limit"
    )
    max_tokens_in_flight: int = _option(
        0, "canvas tokens of all rows that are held, running or waiting; 0: no limit"
    )
    request_id_window_s: float = _option(
        60.0, "seconds for which an answered request_id is remembered; 0: ids are but names"
    )
    max_kept_answers: int = _option(1024, "request ids that are remembered")
    max_kept_bytes: int = _option(64 * 1024 * 1024, "size of all answers kept for them")
    quarantine_s: float = _option(
        600.0, "seconds for which a request that ended the engine is refused; 0: never"
    )
    default_max_new_tokens: int = _option(
        _ENGINE.default_max_new_tokens, "max_new_tokens of a request that says none", minimum=1
    )
    default_block_length: int = _option(
        _ENGINE.default_block_length, "block_length of a request that says none", minimum=1
    )
    grace_s: float = _option(30.0, "seconds that open calls have to finish after SIGTERM")
    drain_delay_s: float = _option(
        0.0, "seconds after SIGTERM in which health says NOT_SERVING and calls are still taken"
    )
    max_connection_age_s: float = _option(
        0.0, "seconds after which a connection is asked to go elsewhere; 0: never"
    )
    max_connection_age_grace_s: float = _option(
        0.0, "seconds that its calls then have; 0: as long as they take"
    )
    max_message_bytes: int = _option(
        4 * 1024 * 1024, "size of the largest request message", minimum=1024, maximum=2**31 - 1
    )
    max_pending_events: int = _option(
        64, "events kept for a slow reader before they are merged", minimum=1
    )
    tls_cert: str = _option(
        "", "the server's certificate chain, PEM; read again when it changes. Empty: no TLS"
    )
    tls_key: str = _option("", "its private key, PEM, unencrypted")
    tls_client_ca: str = _option(
        "", "CA certificates, PEM: callers need a certificate that one of them signed"
    )
    api_keys: str = _option(
        "",
        "file of API keys (docs/security.md), read again when it changes. Empty: no key is needed",
    )
    vllm_service: bool = _option(
        False, "vLLM's gRPC contract beside ours, for routers that speak it: on or off"
    )
    reflection: bool = _option(True, "server reflection: on or off")
    channelz: bool = _option(False, "gRPC's own statistics of connections: on or off")
    log_format: str = _choice("text", "log lines as text or json", "text", "json")
    log_level: str = _choice(
        "info", "least severe level to log", "debug", "info", "warning", "error"
    )

    @property
    def served_names(self) -> tuple[str, ...]:
        """The model's id, then its aliases."""
        if self.served_model_name:
            return self.served_model_name
        return (DEMO_NAME if self.model == DEMO else Path(self.model).resolve().name,)

    @property
    def model_path(self) -> str:
        return _DEMO_FOLDER if self.model == DEMO else self.model

    @property
    def aux_model_path(self) -> str:
        """Empty: there is none."""
        if self.aux_model == DEMO_TWIN or (self.aux_model == AUTO and self.model == DEMO):
            return str(Path(_DEMO_FOLDER) / "twin")
        return "" if self.aux_model in (AUTO, NONE) else self.aux_model

    def engine_config(self) -> EngineConfig:
        return EngineConfig(
            model_path=self.model_path,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            threads=self.threads,
            attention=self.attention,
            compile=self.compile,
            tensor_parallel_size=self.tensor_parallel_size,
            batch_invariant=self.batch_invariant,
            max_running_rows=self.max_running_rows,
            max_waiting_rows=self.max_waiting_rows,
            max_step_tokens=self.max_step_tokens,
            max_prompt_step_tokens=self.max_prompt_step_tokens,
            target_step_tokens=self.target_step_tokens,
            max_canvas_tokens=self.max_canvas_tokens,
            cache_tokens=self.cache_tokens,
            share_prompts=self.share_prompts,
            max_n=self.max_n,
            max_request_time_s=self.max_request_time_s,
            max_queue_time_s=self.max_queue_time_s,
            overload=self.overload,
            default_max_new_tokens=self.default_max_new_tokens,
            default_block_length=self.default_block_length,
            served_names=self.served_names,
            aux_model_path=self.aux_model_path,
        )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds one flag per field. Values stay text; `from_flags` reads them."""
    for option in fields(ServerConfig):
        default = _shown(option.default)
        suffix = (
            f" (default {default}, {_variable(option)})" if default else f" ({_variable(option)})"
        )
        parser.add_argument(
            _flag(option),
            metavar=_kind(option).__name__.upper().replace("TUPLE", "NAME,..."),
            help=_rule(option).help.replace("%", "%%") + suffix,
        )


def from_flags(namespace: argparse.Namespace, environ: Mapping[str, str]) -> ServerConfig:
    """The configuration, or exit code 2 with one line for every wrong value, as argparse does."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for option in fields(ServerConfig):
        source, text = _flag(option), getattr(namespace, option.name, None)
        if text is None:
            source, text = _variable(option), environ.get(_variable(option)) or None
        if text is None:
            continue
        try:
            values[option.name] = _parse(option, text)
        except ValueError:
            problems.append(f"{source}: {text!r} is not allowed; allowed: {_allowed(option)}")
    if problems:
        print(*(f"error: {problem}" for problem in problems), sep="\n", file=sys.stderr)
        raise SystemExit(2)
    return ServerConfig(**values)


def _parse(option: Field[Any], text: str) -> Any:
    """Raises ValueError for what the field's rule does not allow."""
    rule = _rule(option)
    kind = _kind(option)
    if kind is bool:
        if text.lower() not in _SWITCH:
            raise ValueError
        return _SWITCH[text.lower()]
    if kind in (int, float):
        number = kind(text)
        if not rule.minimum <= number <= rule.maximum or math.isinf(number):
            raise ValueError
        return number
    if re.fullmatch(rule.pattern, text) is None:
        raise ValueError
    return tuple(text.split(",")) if kind is tuple else text


def _allowed(option: Field[Any]) -> str:
    rule = _rule(option)
    kind = _kind(option)
    if kind is bool:
        return "on or off"
    if kind in (int, float):
        noun = "a whole number" if kind is int else "a number"
        if rule.maximum == _UNLIMITED:
            return f"{noun}, at least {rule.minimum}"
        return f"{noun} from {rule.minimum} to {rule.maximum}"
    return rule.allowed


def _rule(option: Field[Any]) -> _Rule:
    rule: _Rule = option.metadata["rule"]
    return rule


def _kind(option: Field[Any]) -> type:
    return type(option.default)


def _flag(option: Field[Any]) -> str:
    return "--" + option.name.replace("_", "-")


def _variable(option: Field[Any]) -> str:
    return _ENV_PREFIX + option.name.upper()


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return "" if default == () else str(default)
