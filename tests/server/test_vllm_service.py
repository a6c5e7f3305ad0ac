"""What a router gets that speaks vLLM's contract, over real gRPC."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import re
import shlex
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import TINY, RunningServer, running, tiny_config
from tests.server.calls import PROMPT, generate, ids, reason, spec, violations
from tests.server.test_auth import READER, WRITER, bearer, entry, reflect
from tests.server.test_limits import wait_for
from tests.server.test_tools import BUF
from vdiff_grpc import keys, v1, vllm
from vdiff_grpc.engine.events import Finished, FinishReason, Output, Tokens
from vdiff_grpc.engine.strategies import FixedSchedule
from vdiff_grpc.engine.text import TextStream
from vdiff_grpc.engine.tokenizer import Tokenizer
from vdiff_grpc.engine.types import Granularity, ResolvedRequest, SamplingParams, Span, SpanKind
from vdiff_grpc.server.convert.vllm_replies import Replies

Serve = Callable[..., RunningServer]
NAME = "vllm.grpc.engine.VllmEngine"
STORY = "Once upon a time"


PARAMS = SamplingParams(
    max_new_tokens=1, temperature=0.0, top_p=1.0, top_k=0, seed=0, n=1, stop_strings=(),
    stop_token_ids=(), ignore_eos=True, block_length=1, steps=None, cfg_scale=0.0,
    strategy=FixedSchedule(), top_logprobs=0,
)  # fmt: skip
RESOLVED = ResolvedRequest("", (), (), PARAMS, (0,), False, Granularity.NONE, 1, 0)
OUTPUT = Output(0, 0, "", Tokens(), (), FinishReason.STOP, None, 1, 1, 1, 0, 0, ())


@pytest.fixture(scope="module")
def routed() -> Iterator[RunningServer]:
    """The tiny checkpoint with the service on; shared."""
    with running(tiny_config(vllm_service=True)) as server:
        yield server


@pytest.fixture(scope="module")
def demo() -> Iterator[RunningServer]:
    """The embedded model with the service on; shared."""
    with running(tiny_config(model="demo", served_model_name=(), vllm_service=True)) as server:
        yield server


def stub(server: RunningServer) -> vllm.VllmEngineStub:
    assert server.channel is not None
    return vllm.VllmEngineStub(server.channel)


def request(*, stream: bool = False, text: str = "", **params: Any) -> vllm.GenerateRequest:
    """As calls.spec(), which the same answer is asked of with."""
    params = {"seed": 1, "ignore_eos": True, "max_tokens": 16} | params
    asked = vllm.GenerateRequest(stream=stream, sampling_params=vllm.SamplingParams(**params))
    if text:
        asked.text = text
    else:
        asked.tokenized.input_ids.extend(PROMPT)
    return asked


def ask(server: RunningServer, asked: vllm.GenerateRequest) -> list[vllm.GenerateComplete]:
    """Answers in the order of their index; the chunks of each must make its ids."""
    told: dict[int, list[int]] = {}
    answers = {}
    for reply in stub(server).Generate(asked, timeout=60):
        if reply.WhichOneof("response") == "chunk":
            chunk = reply.chunk
            assert chunk.index not in answers, "a chunk after the end"
            assert chunk.completion_tokens == len(chunk.token_ids) > 0
            told.setdefault(chunk.index, []).extend(chunk.token_ids)
        else:
            answers[reply.complete.index] = reply.complete
    assert told == ({i: list(a.output_ids) for i, a in answers.items()} if asked.stream else {})
    for answer in answers.values():
        assert answer.completion_tokens == len(answer.output_ids)
    return [answers[index] for index in sorted(answers)]


def refused(server: RunningServer, asked: vllm.GenerateRequest) -> dict[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub(server).Generate(asked, timeout=60))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return violations(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_is_that_of_our_own_contract(routed: RunningServer, stream: bool) -> None:
    own = routed.generation.Generate(generate(spec(n=2, temperature=0.5, seed=7)))
    answers = ask(routed, request(stream=stream, n=2, temperature=0.5, seed=7))
    assert [list(answer.output_ids) for answer in answers] == ids(own)
    assert ids(own)[0] != ids(own)[1]
    for answer in answers:
        assert (answer.prompt_tokens, answer.finish_reason) == (4, "length")
        assert answer.WhichOneof("matched_stop") is None


def test_a_stream_comes_in_pieces(routed: RunningServer) -> None:
    asked = request(stream=True, max_tokens=120)
    kinds = [r.WhichOneof("response") for r in stub(routed).Generate(asked, timeout=60)]
    assert kinds.count("chunk") > 2
    assert kinds[-1] == "complete"
    assert kinds.count("complete") == 1


SET: dict[str, vllm.GenerateRequest] = {
    **{
        f"sampling_params.{name}": request(**{name: value})
        for name, value in {
            "min_p": 0.1,
            "frequency_penalty": -0.5,
            "presence_penalty": 0.5,
            "repetition_penalty": math.nan,
            "min_tokens": 1,
            "prompt_logprobs": 0,
            "truncate_prompt_tokens": -1,
            "logit_bias": {5: 0.0},
            "grammar_from_first_token": True,
            "json_schema": "{}",
            "regex": ".",
            "grammar": "x",
            "structural_tag": "x",
            "json_object": False,
            "choice": b"",
            # what our own contract refuses, in this one's words
            "temperature": 2.5,
            "top_p": -0.1,
            "top_k": 98,
            "max_tokens": 0,
            "logprobs": -1,
            "seed": -1,
            "n": 9,
            "stop": ["x"],
        }.items()
    },
    "sampling_params.stop_token_ids[0]": request(stop_token_ids=[97]),
    **{
        name: vllm.GenerateRequest(**{"tokenized": {"input_ids": PROMPT}, name: value})
        for name, value in {
            "kv_transfer_params": b"",
            "mm_inputs": b"",
            "kv_transfer_params_json": "",
            "media_refs": b"",
            "extra_mm_inputs": [b""],
            "data_parallel_rank": 1,
        }.items()
    },
    "tokenized.input_ids": vllm.GenerateRequest(tokenized=vllm.TokenizedInput()),
    "input": vllm.GenerateRequest(),
}


@pytest.mark.parametrize("field", SET)
def test_what_cannot_be_honoured_is_refused_by_its_name(routed: RunningServer, field: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub(routed).Generate(SET[field], timeout=60))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert list(violations(caught.value)) == [field]
    # routers show the message alone
    assert field.removeprefix("sampling_params.").partition("[")[0].replace(
        "stop_token_ids", "stop token id"
    ) in (caught.value.details() or "")


def test_a_refusal_leaves_the_neighbours_answer_as_it_was(routed: RunningServer) -> None:
    asked = request(stream=True, max_tokens=120, temperature=0.5)
    alone = ask(routed, asked)
    neighbour = stub(routed).Generate(asked, timeout=60)
    first = next(neighbour)
    for bad in SET.values():
        assert refused(routed, bad)
    assert [first, *neighbour][-1].complete == alone[0]


def test_all_that_is_wrong_is_told_at_once(routed: RunningServer) -> None:
    asked = request(min_p=0.5, regex="x", logit_bias={1: 1.0})
    wrong = {"sampling_params.min_p", "sampling_params.regex", "sampling_params.logit_bias"}
    assert set(refused(routed, asked)) == wrong


def test_a_field_of_a_later_version_is_refused_by_its_number(routed: RunningServer) -> None:
    late = request()
    late.sampling_params.MergeFromString(b"\xf8\x07\x01")  # field 127
    assert list(refused(routed, late)) == ["sampling_params.127"]


def test_values_that_ask_for_nothing_change_nothing(routed: RunningServer) -> None:
    asked = request(
        temperature=0.5,
        top_p=1,
        top_k=0,
        repetition_penalty=1,
        n=1,
        skip_special_tokens=True,
        spaces_between_special_tokens=True,
        include_stop_str_in_output=True,
    )
    asked.data_parallel_rank = 0
    asked.tokenized.original_text = "not what counts"
    assert ask(routed, asked) == ask(routed, request(temperature=0.5))


def test_an_explicit_zero_stays_a_zero(routed: RunningServer) -> None:
    own = routed.generation.Generate(generate(spec(temperature=0.5, seed=0)))
    assert [list(a.output_ids) for a in ask(routed, request(temperature=0.5, seed=0))] == ids(own)
    bare = ask(routed, request(logprobs=0))[0].output_logprobs
    assert (len(bare.token_logprobs), len(bare.top_logprobs)) == (16, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_our_own_contract(routed: RunningServer, stream: bool) -> None:
    own = routed.generation.Generate(generate(spec(top_logprobs=2))).outputs[0].tokens
    told: list[vllm.OutputLogProbs] = []
    for reply in stub(routed).Generate(request(stream=stream, logprobs=2), timeout=60):
        kind = reply.WhichOneof("response")
        if not stream or kind == "chunk":
            told.append(getattr(reply, kind).output_logprobs)
    assert [i for part in told for i in part.token_ids] == list(own.ids)
    logprobs = [value for part in told for value in part.token_logprobs]
    assert logprobs == pytest.approx([math.log(c) for c in own.confidences], rel=1e-5)
    tops = [top for part in told for top in part.top_logprobs]
    assert [list(top.token_ids) for top in tops] == [list(top.ids) for top in own.top_tokens]
    for top, one in zip(tops, own.top_tokens, strict=True):
        assert list(top.values) == pytest.approx(list(one.logprobs))


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_token_is_told_with_the_answer(routed: RunningServer, stream: bool) -> None:
    whole = list(ask(routed, request())[0].output_ids)
    stop = whole[9]
    first = whole.index(stop)
    answer = ask(routed, request(stream=stream, stop_token_ids=[stop]))[0]
    assert list(answer.output_ids) == whole[: first + 1]
    assert (answer.finish_reason, answer.matched_token_id) == ("stop", stop)


def test_the_models_own_end_is_not_told(demo: RunningServer) -> None:
    own = demo.generation.Generate(
        v1.GenerateRequest(
            spec={
                "chat": {"messages": [{"role": v1.ROLE_USER, "content": "Tell me a story"}]},
                "sampling": {"max_new_tokens": 48, "temperature": 0.0},
            }
        )
    )
    assert own.outputs[0].end.WhichOneof("stop_match") == "stop_token_id"
    asked = request(max_tokens=48, ignore_eos=False, temperature=0)
    del asked.tokenized.input_ids[:]
    tokenizer = Tokenizer.load(demo.server._engine.info.path)
    assert tokenizer is not None
    asked.tokenized.input_ids.extend(
        tokenizer.encode("<|bos|><|user|>Tell me a story<|assistant|>")
    )
    answer = ask(demo, asked)[0]
    assert list(answer.output_ids) == list(own.outputs[0].tokens.ids)
    assert (answer.finish_reason, answer.WhichOneof("matched_stop")) == ("stop", None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cut", [(2, 9), (0, 3), (10, 11)])
def test_ids_reach_to_the_end_of_a_stop_string(
    demo: RunningServer, stream: bool, cut: tuple[int, int]
) -> None:
    """For the caller looks for it in its own text, whose tokens need not end where it begins."""
    tokenizer = Tokenizer.load(demo.server._engine.info.path)
    assert tokenizer is not None

    def text(answer: vllm.GenerateComplete) -> str:
        return b"".join(map(tokenizer.token_bytes, answer.output_ids)).decode()

    whole = ask(demo, request(text=STORY))[0]
    stop = text(whole)[cut[0] : cut[1]]
    at = text(whole).index(stop)
    answer = ask(demo, request(text=STORY, stream=stream, stop=[stop]))[0]
    assert list(answer.output_ids) == list(whole.output_ids)[: len(answer.output_ids)]
    assert text(answer).startswith(text(whole)[: at + len(stop)])
    # and no further than the token that completes it
    assert len(text(answer).encode()) - len(tokenizer.token_bytes(answer.output_ids[-1])) < len(
        text(whole)[: at + len(stop)].encode()
    )
    assert (answer.finish_reason, answer.matched_stop_str) == ("stop", stop)


PIECES = (b"", b"a", b"ab", b"b a", b"\n", b"\xff", b"\x80", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac")


class Pieces:
    """A tokenizer of halves of characters, and of bytes that are none."""

    def token_bytes(self, token_id: int) -> bytes:
        return PIECES[token_id]


def test_any_stop_string_is_in_the_text_of_the_ids_wherever_tokens_and_characters_end() -> None:
    random, tokenizer, num_stopped = Random(7), cast(Tokenizer, Pieces()), 0
    for _ in range(3000):
        ids = random.choices(range(len(PIECES)), k=random.randint(1, 14))
        whole = b"".join(PIECES[i] for i in ids).decode("utf-8", "replace")
        begin = random.randrange(len(whole) + 1)
        stop = whole[begin : begin + random.randint(1, 4)]
        stream = TextStream(0, tokenizer, (stop,), frozenset(), (len(ids),))
        for position, token in enumerate(ids, start=2):
            stream.push(token, position, 0, 1.0)
        assert stream.end is not None
        if not stop or stream.end.stop != stop:
            continue
        num_stopped += 1
        resolved = replace(
            RESOLVED, spans=(Span(SpanKind.PROMPT, 2), Span(SpanKind.HOLE, len(ids)))
        )
        output = replace(
            OUTPUT, stop=stop, text=stream.text, tokens=stream.tokens, canvas=(0, 0, *ids)
        )
        made = Replies(resolved, tokenizer, streams=False, with_logprobs=False)
        (reply,) = made.of(Finished((output,), 0, 0, 0))
        told = list(reply.complete.output_ids)
        assert told == ids[: len(told)]
        assert stop in b"".join(PIECES[i] for i in told).decode("utf-8", "replace")
    assert num_stopped > 1000


def test_abort_ends_the_request_of_that_id_and_no_other(routed: RunningServer) -> None:
    asked = request(stream=True, max_tokens=120, n=8)
    asked.request_id = "chatcmpl-1"
    call = stub(routed).Generate(asked, timeout=60)
    next(call)
    stub(routed).Abort(vllm.AbortRequest(request_ids=["chatcmpl-2", ""]))
    next(call)
    stub(routed).Abort(vllm.AbortRequest(request_ids=["chatcmpl-2", "chatcmpl-1"]))
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert reason(caught.value) == "REQUEST_CANCELLED"
    wait_for(routed, lambda now: now.running_rows == 0)


def test_abort_takes_so_many_ids(routed: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub(routed).Abort(vllm.AbortRequest(request_ids=[""] * 1025))
    assert list(violations(caught.value)) == ["request_ids"]


def test_a_caller_who_leaves_frees_the_row(routed: RunningServer) -> None:
    before = routed.statistics().requests_aborted
    call = stub(routed).Generate(request(stream=True, max_tokens=120, n=8), timeout=60)
    next(call)
    call.cancel()
    wait_for(routed, lambda now: now.requests_aborted == before + 1 and now.running_rows == 0)


def test_a_router_learns_what_is_served(routed: RunningServer) -> None:
    model = stub(routed).GetModelInfo(vllm.GetModelInfoRequest())
    own = routed.model.GetModelInfo(v1.GetModelInfoRequest())
    assert (model.served_model_name, model.model_type) == ("tiny", own.family)
    assert (model.is_generation, model.vocab_size) == (True, own.vocab_size)
    assert model.max_context_length == own.limits.max_canvas_tokens
    assert model.max_req_input_len == own.limits.max_prompt_tokens
    assert list(model.eos_token_ids) == list(own.end_token_ids)
    assert str(TINY) not in str(model)
    info = stub(routed).GetServerInfo(vllm.GetServerInfoRequest())
    assert (info.server_type, info.data_parallel_size) == ("vdiff-grpc", 1)
    assert (info.model_dtype, info.max_num_seqs, info.is_paused) == ("float32", 32, False)
    assert info.uptime_seconds > 0


def test_loads_are_the_engines_rows(serve: Serve) -> None:
    server = serve(vllm_service=True, max_running_rows=1)
    call = stub(server).Generate(request(stream=True, max_tokens=120, n=8), timeout=60)
    next(call)
    loads = stub(server).GetLoads(vllm.GetLoadsRequest(include=["core"]))
    assert stub(server).GetServerInfo(vllm.GetServerInfoRequest()).active_requests == 1
    call.cancel()
    (load,) = loads.loads
    assert loads.dp_rank_count == 1
    assert loads.timestamp.endswith("+00:00")
    assert (load.num_running_reqs, load.utilization, load.max_running_requests) == (1, 1.0, 1)
    assert 0 < load.num_waiting_reqs < 8
    assert load.num_total_reqs == 1 + load.num_waiting_reqs
    with pytest.raises(grpc.RpcError) as caught:
        stub(server).GetLoads(vllm.GetLoadsRequest(dp_rank=1))
    assert list(violations(caught.value)) == ["dp_rank"]


def test_the_tokenizer_comes_as_one_archive(demo: RunningServer) -> None:
    chunks = list(stub(demo).GetTokenizer(vllm.GetTokenizerRequest()))
    data = b"".join(chunk.data for chunk in chunks)
    assert [chunk.sha256 for chunk in chunks[:-1]] == [""] * (len(chunks) - 1)
    assert chunks[-1].sha256 == hashlib.sha256(data).hexdigest()
    folder = Path(demo.server._engine.info.path)
    with zipfile.ZipFile(io.BytesIO(data)) as files:
        assert {"tokenizer.json", "tokenizer_config.json", "config.json"} <= set(files.namelist())
        for name in files.namelist():
            assert files.read(name) == (folder / name).read_bytes()
            assert files.getinfo(name).date_time[0] == 1980, "replicas would differ"


def test_without_a_tokenizer_there_is_none_to_give(routed: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub(routed).GetTokenizer(vllm.GetTokenizerRequest()))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the model tiny has no tokenizer" in (caught.value.details() or "")


@pytest.mark.parametrize("call", ["Embed", "FlushCache", "StartProfile", "SubscribeKvEvents"])
def test_a_call_that_is_not_served_is_unimplemented(routed: RunningServer, call: str) -> None:
    assert routed.channel is not None
    with pytest.raises(grpc.RpcError) as caught:
        routed.channel.unary_unary(f"/{NAME}/{call}")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_draining_server_says_so_and_takes_nothing(serve: Serve) -> None:
    server = serve(vllm_service=True)
    health = stub(server).HealthCheck(vllm.HealthCheckRequest())
    assert (health.healthy, health.message) == (True, "ready")
    server.call(server.server.drain())
    health = stub(server).HealthCheck(vllm.HealthCheckRequest())
    assert (health.healthy, health.message) == (False, "draining")
    assert stub(server).GetServerInfo(vllm.GetServerInfoRequest()).is_paused
    with pytest.raises(grpc.RpcError) as caught:
        list(stub(server).Generate(request(), timeout=60))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_documented_call_is_answered(demo: RunningServer) -> None:
    text = (Path(__file__).parents[2] / "docs" / "routers.md").read_text()
    (command,) = re.findall(r"^buf curl .+$", text, re.MULTILINE)
    arguments = shlex.split(command.replace("127.0.0.1:50051", demo.address))[1:]
    done = subprocess.run([BUF, *arguments], capture_output=True, check=True, timeout=60)
    answer = json.loads(done.stdout)["complete"]
    assert (len(answer["outputIds"]), answer["finishReason"]) == (8, "length")


def known(server: RunningServer) -> tuple[bool, bool]:
    """Whether health lists the service as serving, and reflection lists it."""
    health = health_pb2_grpc.HealthStub(server.channel)
    statuses = health.List(health_pb2.HealthListRequest()).statuses
    listed = reflect(server, ())[0].list_services_response.service
    is_serving = statuses[NAME].status == health_pb2.HealthCheckResponse.SERVING
    return is_serving, NAME in {service.name for service in listed}


def test_the_service_is_off_unless_it_is_asked_for(
    server: RunningServer, routed: RunningServer
) -> None:
    assert known(routed) == (True, True)
    assert known(server) == (False, False)
    with pytest.raises(grpc.RpcError) as caught:
        stub(server).HealthCheck(vllm.HealthCheckRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_keys_guard_it_as_they_guard_our_own(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    few = keys.new_key()
    keys.save(
        path,
        [
            entry("writer", WRITER, "generate"),
            entry("reader", READER, "inspect"),
            entry("few", few, "generate", requests_per_minute=1),
        ],
    )
    server = serve(vllm_service=True, api_keys=str(path))

    def code(call: str, message: Any, *key: str) -> grpc.StatusCode:
        metadata = bearer(*key) if key else ()
        try:
            reply = getattr(stub(server), call)(message, timeout=60, metadata=metadata)
            list(reply) if call == "Generate" else None
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    ok, denied = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
    asked = request()
    asked.request_id = "chatcmpl-7"
    assert code("HealthCheck", vllm.HealthCheckRequest()) is ok
    assert code("Generate", asked) is grpc.StatusCode.UNAUTHENTICATED
    assert code("Generate", asked, READER) is denied
    with caplog.at_level(logging.INFO):
        assert code("Generate", asked, WRITER) is ok
        server.wait_idle()
    (line,) = [r.fields for r in caplog.records if getattr(r, "fields", {}).get("code") == "OK"]
    assert (line["request_id"], line["rpc"]) == ("chatcmpl-7", "VllmEngine/Generate")
    assert (line["caller"], line["tokens"]) == ("writer", 16)
    assert code("GetModelInfo", vllm.GetModelInfoRequest(), READER) is ok
    assert code("GetLoads", vllm.GetLoadsRequest(), READER) is ok
    assert code("GetLoads", vllm.GetLoadsRequest(), WRITER) is denied
    assert code("Abort", vllm.AbortRequest(), READER) is denied
    assert code("Generate", asked, few) is ok
    assert code("Generate", asked, few) is grpc.StatusCode.RESOURCE_EXHAUSTED
