"""A server with canned answers: what stands behind the gateways while they are measured.

    python -m benchmarks.standin [--vllm-stubs DIR]

One process that speaks vdiff.v1, vLLM's gRPC contract (with its stubs) and OpenAI's HTTP. Every
answer is the same text in the same 48 pieces, encoded beforehand; nothing is computed and nobody
waits. Knows nothing of gateways, nor of time.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Any, cast

import uvloop
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio, unary_stream_rpc_method_handler, unary_unary_rpc_method_handler
from grpc import method_handlers_generic_handler as generic_handler
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tokenizers import Tokenizer

from vdiff_grpc import v1

MODEL = "demo"
NUM_STEPS = 48
PROMPT_TOKENS = 12
_STORY = (
    "Once upon a time there was a little girl who had a red ball and a small dog. They went to the "
    "park and played in the sun. The dog ran fast, and the girl laughed. Then they went home, and "
    "her mom gave them some cake."
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def model_folder() -> str:
    """The embedded model's, with the tokenizer that made the pieces."""
    return str(resources.files("vdiff_grpc") / "assets" / "demo")


def vllm_stubs(folder: str) -> tuple[Any, Any]:
    """Messages and services of vLLM's contract, from where smg-grpc-proto is installed."""
    if folder not in sys.path:
        sys.path.append(folder)  # last: of what both have, ours is taken
    return (
        importlib.import_module("smg_grpc_proto.generated.vllm_engine_pb2"),
        importlib.import_module("smg_grpc_proto.generated.vllm_engine_pb2_grpc"),
    )


def pieces() -> tuple[list[int], list[str]]:
    """Token ids of the answer and the text of each, which joined are the answer."""
    tokenizer = Tokenizer.from_file(f"{model_folder()}/tokenizer.json")
    ids: list[int] = tokenizer.encode(_STORY, add_special_tokens=False).ids[:NUM_STEPS]
    texts = [tokenizer.decode([one]) for one in ids]
    assert "".join(texts) == tokenizer.decode(ids)
    return ids, texts


# --- vdiff.v1 ---------------------------------------------------------------------


def _tokens(ids: list[int], texts: list[str], first: int) -> v1.Tokens:
    """As the server tells them, every column filled."""
    places = range(first, first + len(ids))
    offsets = [sum(map(len, texts[:i])) for i in range(len(texts))]
    return v1.Tokens(
        ids=ids,
        positions=[PROMPT_TOKENS + place for place in places],
        steps=places,
        confidences=[0.9] * len(ids),
        token_bytes=[text.encode() for text in texts],
        text_offsets=offsets,
    )


def _ours(ids: list[int], texts: list[str]) -> dict[str, tuple[bytes, ...]]:
    resolved = v1.ResolvedParams(
        sampling=v1.SamplingParams(
            max_new_tokens=NUM_STEPS, temperature=0.0, top_p=1.0, top_k=0, seed=1, n=1
        ),
        diffusion=v1.DiffusionParams(
            block_length=NUM_STEPS, steps=NUM_STEPS, fixed_schedule=v1.FixedSchedule()
        ),
    )
    end = v1.OutputEnd(
        index=0,
        seed=1,
        finish_reason=v1.FINISH_REASON_LENGTH,
        forward_passes=NUM_STEPS,
        completion_tokens=NUM_STEPS,
    )
    usage = v1.Usage(prompt_tokens=PROMPT_TOKENS, completion_tokens=NUM_STEPS)
    metrics = v1.Metrics(
        forward_passes=NUM_STEPS, tokens_per_forward=1.0, steps=NUM_STEPS, blocks=1
    )
    reply = v1.GenerateResponse(
        request_id="canned",
        model=MODEL,
        model_revision="canned",
        outputs=[v1.Output(index=0, text="".join(texts), tokens=_tokens(ids, texts, 0), end=end)],
        usage=usage,
        metrics=metrics,
        resolved=resolved,
    )
    layout = v1.CanvasLayout(
        spans=[
            v1.CanvasSpan(kind=v1.SPAN_KIND_PROMPT, length=PROMPT_TOKENS),
            v1.CanvasSpan(kind=v1.SPAN_KIND_HOLE, length=NUM_STEPS),
        ],
        mask_token_id=1,
    )
    started = v1.Started(
        request_id="canned",
        model=MODEL,
        model_revision="canned",
        resolved=resolved,
        prompt_tokens=PROMPT_TOKENS,
        layout=layout,
    )
    events = [v1.StreamGenerateResponse(started=started)]
    for i, (one, text) in enumerate(zip(ids, texts, strict=True)):
        committed = v1.Committed(output_index=0, text=text, tokens=_tokens([one], [text], i))
        events.append(v1.StreamGenerateResponse(committed=committed))
    finished = v1.Finished(ends=[end], usage=usage, metrics=metrics)
    events.append(v1.StreamGenerateResponse(finished=finished))
    info = v1.GetModelInfoResponse(
        model=MODEL,
        revision="canned",
        family="llada",
        has_tokenizer=True,
        has_chat_template=True,
        limits=v1.Limits(max_canvas_tokens=512, max_new_tokens=256, max_n=8),
        defaults=resolved,
    )
    server = v1.GetServerInfoResponse(
        version="0", state=v1.ENGINE_STATE_READY, model=MODEL, start_time=Timestamp(seconds=1)
    )
    return {
        "GenerationService/Generate": _encoded(reply),
        "GenerationService/StreamGenerate": _encoded(*events),
        "ModelService/GetModelInfo": _encoded(info),
        "ModelService/GetServerInfo": _encoded(server),
    }


# --- vLLM's contract --------------------------------------------------------------


class _VllmEngine:
    """`vllm.grpc.engine.VllmEngine` as far as smg needs it. What it asks for besides has no
    method here and is UNIMPLEMENTED."""

    def __init__(self, pb2: Any, ids: list[int]) -> None:
        counts = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": NUM_STEPS}
        chunks = [
            pb2.GenerateResponse(
                chunk=pb2.GenerateStreamChunk(
                    token_ids=[one], prompt_tokens=PROMPT_TOKENS, completion_tokens=i + 1
                )
            )
            for i, one in enumerate(ids)
        ]
        # The last chunk carries the text to its end: `complete` of a stream tells no new tokens.
        complete = pb2.GenerateComplete(output_ids=ids, finish_reason="length", **counts)
        self._chunks = _encoded(*chunks, pb2.GenerateResponse(complete=complete))
        self._whole = _encoded(pb2.GenerateResponse(complete=complete))
        self._request = pb2.GenerateRequest
        info = pb2.GetModelInfoResponse(
            model_path=model_folder(),
            is_generation=True,
            max_context_length=512,
            vocab_size=4096,
            served_model_name=MODEL,
            tokenizer_path=model_folder(),
            model_type="llada",
            architectures=["LLaDAModelLM"],
            max_req_input_len=512,
        )
        self._canned = {
            "HealthCheck": _encoded(pb2.HealthCheckResponse(healthy=True, message="ok")),
            "GetModelInfo": _encoded(info),
            "GetServerInfo": _encoded(pb2.GetServerInfoResponse(server_type="vllm-grpc")),
            "Abort": _encoded(pb2.AbortResponse()),
            "GetLoads": _encoded(pb2.GetLoadsResponse(dp_rank_count=1)),
        }

    def handlers(self) -> dict[str, Any]:
        handlers = {name: _handler(answers) for name, answers in self._canned.items()}
        handlers["Generate"] = unary_stream_rpc_method_handler(
            self._generate, request_deserializer=self._request.FromString
        )
        return handlers

    async def _generate(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        for answer in self._chunks if request.stream else self._whole:
            yield answer


# --- OpenAI's HTTP ----------------------------------------------------------------


class _OpenAI(asyncio.Protocol):
    """HTTP/1.1 with keep-alive: a body with `"stream": true` is answered with events."""

    def __init__(self, answer: bytes, events: list[bytes]) -> None:
        self._answer = answer
        self._events = events
        self._data = b""
        self._streams: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, _, body = self._data.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length:")
        if len(body) < int(length.partition(b"\r\n")[0] or 0):
            return
        self._data = b""
        if b'"stream":true' in body.replace(b": ", b":"):
            task = asyncio.ensure_future(self._stream())
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
        else:
            self._transport.write(self._answer)

    async def _stream(self) -> None:
        self._transport.write(_STREAM_HEAD)
        for event in self._events:
            self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.sleep(0)  # a write of its own, as each step has
        self._transport.write(b"0\r\n\r\n")


def _openai(texts: list[str]) -> Callable[[], _OpenAI]:
    head = {"id": "chatcmpl-canned", "created": 1, "model": MODEL}
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": NUM_STEPS,
        "total_tokens": PROMPT_TOKENS + NUM_STEPS,
    }
    message = {"role": "assistant", "content": "".join(texts)}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    body = json.dumps(
        {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
    ).encode()
    answer = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": text}, None) for text in texts]
    deltas.append(({}, "length"))
    events = []
    for delta, reason in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        events.append(b"data: %b\n\n" % json.dumps(chunk).encode())
    events.append(b"data: [DONE]\n\n")
    return lambda: _OpenAI(answer, events)


# --- the process ------------------------------------------------------------------


def _encoded(*messages: Message) -> tuple[bytes, ...]:
    return tuple(message.SerializeToString() for message in messages)


def _handler(answers: tuple[bytes, ...]) -> Any:
    """Says the same whatever is asked: neither request nor answer is looked at."""
    if len(answers) == 1:

        async def answer(request: bytes, context: Any) -> bytes:
            return answers[0]

        return unary_unary_rpc_method_handler(answer)

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for one in answers:
            yield one

    return unary_stream_rpc_method_handler(stream)


async def _serve(stubs: str) -> None:
    ids, texts = pieces()
    server = aio.server()
    for method, answers in _ours(ids, texts).items():
        service, _, name = method.partition("/")
        handler = generic_handler(f"vdiff.v1.{service}", {name: _handler(answers)})
        server.add_generic_rpc_handlers((handler,))
    checks = health.aio.HealthServicer()
    for service in ("", "vdiff.v1.GenerationService"):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    if stubs:
        engine = _VllmEngine(vllm_stubs(stubs)[0], ids)
        handler = generic_handler("vllm.grpc.engine.VllmEngine", engine.handlers())
        server.add_generic_rpc_handlers((handler,))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop = asyncio.get_running_loop()
    http = await loop.create_server(_openai(texts), "127.0.0.1", 0)
    print(f"127.0.0.1:{grpc_port} 127.0.0.1:{http.sockets[0].getsockname()[1]}", flush=True)
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    http.close()
    await server.stop(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vllm-stubs", default="", metavar="DIR")
    uvloop.run(_serve(parser.parse_args().vllm_stubs))


if __name__ == "__main__":
    main()
