"""Who may call the gateway, and how often: its own API keys, the rate limit, proxies, CORS."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from gateway.app import Gateway
from gateway.config import GatewayConfig, load_config
from gateway.rate_limit import RateLimits, network_of
from tests.conftest import RunningServer
from tests.gateway.conftest import RunningGateway, eventually
from tests.gateway.test_refusals import TEXT, error_of
from vdiff_grpc import keys
from vdiff_grpc.keys import KeyEntry, KeyFileError

GatewayOver = Callable[..., RunningGateway]
KEY, READER, SLOW = keys.new_key(), keys.new_key(), keys.new_key()
SECOND = 10**9


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    entries = [
        KeyEntry("web", (keys.digest(KEY),)),
        KeyEntry("reader", (keys.digest(READER),), ("inspect",)),
        KeyEntry("slow", (keys.digest(SLOW),), requests_per_minute=2),
    ]
    keys.save(path, entries)
    return path


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1

    def __call__(self) -> int:
        return self.now_ns


# --- keys -------------------------------------------------------------------


def test_the_gateways_own_keys_are_asked_for_under_v1_only(
    demo: RunningServer, gateway_over: GatewayOver, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = gateway_over(demo.address, api_keys=str(key_file))
    before = demo.statistics().requests
    with httpx.Client(base_url=gateway.url) as http:
        for headers in (
            {},
            bearer("vdiff_wrong"),
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
            [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
        ):
            for path in ("/v1/completions", "/v1/chat/completions", "/v1/nothing"):
                reply = http.post(path, json=TEXT, headers=headers)
                assert reply.status_code == 401
                error = error_of(reply)
                assert (error["type"], error["code"]) == (
                    "invalid_request_error",
                    "invalid_api_key",
                )
                assert reply.headers["www-authenticate"] == "Bearer"
                assert reply.headers["x-request-id"]
            assert http.get("/v1/models", headers=headers).status_code == 401
        denied = http.post("/v1/completions", json=TEXT, headers=bearer(READER))
        assert (denied.status_code, error_of(denied)["code"]) == (403, "permission_denied")
        assert http.get("/v1/models", headers=bearer(READER)).status_code == 200
        for path in ("/health", "/health/live", "/metrics", "/docs", "/openapi.json", "/version"):
            assert http.get(path).status_code == 200
        assert demo.statistics().requests == before
        assert http.post("/v1/completions", json=TEXT, headers=bearer(KEY)).status_code == 200
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
        assert client.completions.create(model="demo", prompt="The", max_tokens=2).choices
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-no") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    log = "".join(json.dumps(vars(record), default=str) for record in caplog.records)
    assert not any(key in log for key in (KEY, READER, "vdiff_wrong"))
    assert '"caller": "web"' in log


def test_a_key_that_is_taken_out_of_the_file_is_refused_within_seconds(
    demo: RunningServer, gateway_over: GatewayOver, key_file: Path
) -> None:
    gateway = gateway_over(demo.address, api_keys=str(key_file))
    with httpx.Client(base_url=gateway.url) as http:
        assert http.get("/v1/models", headers=bearer(KEY)).status_code == 200
        keys.save(key_file, keys.load(key_file)[1:])
        eventually(lambda: http.get("/v1/models", headers=bearer(KEY)).status_code == 401)
        assert http.get("/v1/models", headers=bearer(READER)).status_code == 200


async def test_a_key_file_that_cannot_be_honoured_is_named_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for text, words in (("{", "is not JSON"), (None, "cannot be read")):
        if text is not None:
            path.write_text(text)
        else:
            path.unlink()
        with pytest.raises(KeyFileError, match=words):
            await Gateway.start(GatewayConfig(port=0, api_keys=str(path)))
    for setting in ("tokens_per_minute", "min_priority", "latency_budget_s"):
        keys.save(path, [KeyEntry("web", (keys.digest(KEY),), **{setting: 5})])
        with pytest.raises(KeyFileError, match=f"{setting} of 'web'"):
            await Gateway.start(GatewayConfig(port=0, api_keys=str(path)))


# --- rate limit -------------------------------------------------------------


def test_the_request_over_the_limit_is_429_and_every_reply_says_where_one_stands(
    demo: RunningServer, gateway_over: GatewayOver
) -> None:
    gateway = gateway_over(demo.address, requests_per_minute=3)
    before = demo.statistics().requests
    with httpx.Client(base_url=gateway.url) as http:
        replies = [http.post("/v1/completions", json=TEXT) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200] * 3
        assert [r.headers["x-ratelimit-remaining-requests"] for r in replies] == ["2", "1", "0"]
        assert {r.headers["x-ratelimit-limit-requests"] for r in replies} == {"3"}
        assert 59 < float(replies[-1].headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
        for stream in (False, True):
            refused = http.post("/v1/completions", json=TEXT | {"stream": stream})
            assert refused.status_code == 429
            error = error_of(refused)
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert "more than 3 requests in a minute" in error["message"]
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            assert refused.headers["x-request-id"]
        assert http.get("/health").status_code == 200
        assert "x-ratelimit-limit-requests" not in http.get("/health").headers
        metrics = http.get("/metrics").text
        assert "vdiff_gateway_rate_limited_requests_total 2.0" in metrics
    assert demo.statistics().requests == before + 3
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.completions.create(model="demo", prompt="The")
    assert caught.value.code == "rate_limit_exceeded"


def test_each_key_has_a_window_of_its_own_and_may_have_a_limit_of_its_own(
    demo: RunningServer, gateway_over: GatewayOver, key_file: Path
) -> None:
    gateway = gateway_over(demo.address, api_keys=str(key_file), requests_per_minute=4)

    def ask(key: str) -> httpx.Response:
        return httpx.get(f"{gateway.url}/v1/models", headers=bearer(key))

    assert [ask(SLOW).status_code for _ in range(3)] == [200, 200, 429]
    assert ask(KEY).headers["x-ratelimit-limit-requests"] == "4"
    # Whoever guesses at keys has the window of its address.
    assert [ask(f"guess-{i}").status_code for i in range(5)] == [401] * 4 + [429]
    assert [ask(KEY).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_a_client_is_named_by_its_proxy_only_where_that_is_trusted(
    demo: RunningServer, gateway_over: GatewayOver
) -> None:
    def statuses(gateway: RunningGateway, *clients: str) -> list[int]:
        with httpx.Client(base_url=gateway.url) as http:
            return [
                http.get("/v1/models", headers={"x-forwarded-for": client}).status_code
                for client in clients
            ]

    trusting = gateway_over(
        demo.address, requests_per_minute=1, trusted_proxies="10.0.0.0/8, 127.0.0.1"
    )
    assert statuses(trusting, "1.1.1.1", "1.1.1.2", "1.1.1.1") == [200, 200, 429]
    # What a client itself writes into the header stands to the left of what proxies add.
    assert statuses(trusting, "9.9.9.9, 1.1.1.3", "8.8.8.8, 1.1.1.3, 10.1.2.3") == [200, 429]
    assert statuses(trusting, "2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:2::1") == [
        200,
        429,
        200,
    ]
    doubting = gateway_over(demo.address, requests_per_minute=1)
    assert statuses(doubting, "1.1.1.1", "1.1.1.2") == [200, 429]


def test_what_stands_for_an_address() -> None:
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1")
    assert network_of("2001:db8::1") == "2001:db8::/64"
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("") == ""
    assert len(network_of("x" * 1000)) == 64


def test_the_limits_remember_so_many_callers_and_let_go_of_idle_ones() -> None:
    clock = Clock()
    limits = RateLimits(clock, max_callers=3)
    for caller in "abc":
        assert limits.take(caller, 1).admitted
    assert not limits.take("a", 1).admitted
    assert limits.take("d", 1).admitted  # in the place of b
    assert len(limits) == 3
    assert limits.take("b", 1).admitted  # in the place of c
    assert not limits.take("a", 1).admitted
    clock.now_ns += 60 * SECOND
    assert limits.take("e", 1).admitted
    assert len(limits) == 1


def test_where_a_caller_stands_is_what_it_then_meets() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    first = limits.take("a", 2)
    assert (first.admitted, first.remaining, first.retry_after_s) == (True, 1, 0)
    clock.now_ns += 20 * SECOND
    second = limits.take("a", 2)
    assert (second.remaining, second.reset_s, second.retry_after_s) == (0, 60, 40)
    third = limits.take("a", 2)
    assert (third.admitted, third.reset_s, third.retry_after_s) == (False, 60, 40)
    clock.now_ns += 40 * SECOND - 1
    assert not limits.take("a", 2).admitted
    clock.now_ns += 1
    assert limits.take("a", 2).admitted
    # A limit that was lowered holds at once.
    assert limits.take("b", 2).admitted
    assert not limits.take("b", 1).admitted


# --- CORS -------------------------------------------------------------------


def test_pages_of_the_named_origins_may_call(
    demo: RunningServer, gateway_over: GatewayOver
) -> None:
    gateway = gateway_over(demo.address, cors_origins="https://a.example, http://localhost:3000")
    ours, other = {"origin": "https://a.example"}, {"origin": "https://b.example"}
    with httpx.Client(base_url=gateway.url) as http:
        asked = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
        }
        preflight = http.options("/v1/chat/completions", headers=ours | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://a.example"
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        assert http.options("/v1/chat/completions", headers=other | asked).status_code == 400
        reply = http.post("/v1/completions", json=TEXT, headers=ours)
        assert reply.headers["access-control-allow-origin"] == "https://a.example"
        assert "x-request-id" in reply.headers["access-control-expose-headers"]
        # A page must be able to read what is wrong, too.
        for path, status in (("/v1/completions", 400), ("/v1/nothing", 404)):
            wrong = http.post(path, json={}, headers=ours)
            assert wrong.status_code == status
            assert wrong.headers["access-control-allow-origin"] == "https://a.example"
        refused = http.post("/v1/completions", json=TEXT, headers=other)
        assert "access-control-allow-origin" not in refused.headers


def test_without_origins_no_page_but_the_gateways_own_may_call(http: httpx.Client) -> None:
    headers = {"origin": "https://a.example"}
    assert not any(
        name.startswith("access-control")
        for name in http.post("/v1/completions", json=TEXT, headers=headers).headers
    )
    preflight = {"access-control-request-method": "POST"} | headers
    assert http.options("/v1/completions", headers=preflight).status_code == 405


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--cors-origins", "a.example"),
        ("--cors-origins", "https://a.example/path"),
        ("--trusted-proxies", "10.0.0.0/33"),
        ("--requests-per-minute", "-1"),
        ("--retry-attempts", "0"),
        ("--server", "a.example:1,b.example:2"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_value(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_config([f"{flag}={value}"], {})
    said = capsys.readouterr().err
    assert flag.removeprefix("--").replace("-", "_") in said
    assert value.split(",")[0] in said
