"""The playground in a browser: what it shows is what the API gives."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from PIL import Image
from playwright.sync_api import Browser

import gateway.playground
from gateway.infill import InfillSegment, set_template
from tests.conftest import RunningServer
from tests.gateway.browser import Tab, chromium
from tests.gateway.conftest import RunningGateway, eventually
from vdiff_grpc import keys, v1
from vdiff_grpc.client import template
from vdiff_grpc.client.requests import build_spec

PROMPT = "Once upon a time"
FILLED = ".run .cell.filled"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def tab_of(browser: Browser, gateway: RunningGateway) -> Iterator[Callable[..., Tab]]:
    """Tabs on the playground; none may complain or talk to anyone but its gateway."""
    tabs: list[Tab] = []

    def new(url: str = gateway.url, **context: Any) -> Tab:
        tabs.append(Tab(browser, url, **context))
        return tabs[-1]

    yield new
    for tab in tabs:
        tab.close()
        assert tab.complaints == []
        elsewhere = [url for url in tab.requests if not url.startswith((f"{tab.url}/", "blob:"))]
        assert elsewhere == []


@pytest.fixture
def tab(tab_of: Callable[..., Tab]) -> Tab:
    tab = tab_of()
    tab.open()
    tab.fill(prompt=PROMPT, seed="7", max_tokens="24")
    return tab


def asked(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, "seed": 7, "max_tokens": 24} | fields
    reply: dict[str, Any] = http.post("/v1/completions", json=body).raise_for_status().json()
    return reply


def saved(tab: Tab, kind: str) -> bytes:
    with tab.page.expect_download() as download:
        tab.page.click(f"[data-save={kind}]")
    assert download.value.suggested_filename == f"vdiff-replay.{kind}"
    return download.value.path().read_bytes()


def moment(tab: Tab) -> int:
    return int(tab.page.locator("#moment").input_value())


def num_filled(tab: Tab) -> int:
    return tab.page.locator(FILLED).count()


def test_a_run_fills_the_canvas_with_the_text_that_the_api_gives(
    tab: Tab, http: httpx.Client
) -> None:
    tab.run()
    reply = asked(http)
    text = reply["choices"][0]["text"]
    assert tab.answer() == text
    assert tab.page.locator(".text").text_content() == PROMPT + text
    canvas = tab.page.locator(".canvas").text_content()
    assert canvas == f"<|bos|>{PROMPT}{text}"
    assert tab.page.locator(".run .cell.masked").count() == 0
    passes = int(tab.figure("passes"))
    assert 1 < passes <= 24
    assert float(tab.figure("rate")) == pytest.approx(24 / passes, abs=0.005)
    assert tab.figure("filled") == "24 / 24"
    assert tab.page.locator(".seed").inner_text() == "seed 7"
    assert f"24 tokens in {passes} forward passes" in tab.page.locator("#status").inner_text()


def test_a_chat_is_answered(tab: Tab, http: httpx.Client) -> None:
    message = "Tell me a story about a dog."
    tab.page.locator(".choice").get_by_text("Chat").click()
    tab.fill(prompt=message)
    tab.run()
    body = {"messages": [{"role": "user", "content": message}], "seed": 7, "max_tokens": 24}
    reply = http.post("/v1/chat/completions", json=body).json()
    assert tab.answer() == reply["choices"][0]["message"]["content"] != ""


def test_the_gap_before_a_suffix_is_filled(tab: Tab, http: httpx.Client) -> None:
    suffix = " They lived in a forest."
    tab.fill(suffix=suffix)
    tab.run()
    text = asked(http, suffix=suffix)["choices"][0]["text"]
    assert tab.answer() == text
    assert tab.page.locator(".text").text_content() == PROMPT + text + suffix
    assert (tab.page.locator(".canvas").text_content() or "").endswith(suffix)
    # The gap may be as long as it takes.
    tab.fill(min_tokens="1", max_tokens="6")
    tab.run()
    chosen = asked(http, suffix=suffix, min_tokens=1, max_tokens=6)
    assert tab.answer() == chosen["choices"][0]["text"]
    length = chosen["usage"]["completion_tokens"]
    hole = tab.page.locator(".canvas .hole")
    assert hole.get_attribute("data-length") == str(length)
    assert (hole.get_attribute("title") or "").endswith(" of 1 to 6")


def test_a_document_is_filled_and_shows_its_holes(tab: Tab, http: httpx.Client) -> None:
    document = "Tom had a{{1..4}} ball. He{{2:regex= [a-z]+}} it and{{3}} home."
    tab.page.locator(".choice").get_by_text("Infill").click()
    assert tab.page.locator("[name=max_tokens]").is_hidden()
    tab.fill(document=document.replace("1..4", "1"))
    tab.run()
    segments = ["Tom had a", {"length": 1}, " ball. He", {"length": 2, "guided_regex": " [a-z]+"}]
    segments += [" it and", {"length": 3}, " home."]
    texts = asked(http, prompt="", max_tokens=None, infill=segments)["choices"][0]["hole_texts"]
    assert [one.text_content() for one in tab.page.locator(".text .answer").all()] == texts
    whole = "Tom had a{} ball. He{} it and{} home.".format(*texts)
    assert tab.page.locator(".text").text_content() == whole
    assert tab.page.locator(".canvas").text_content() == f"<|bos|>{whole}"
    holes = tab.page.locator(".canvas .hole")
    assert [one.get_attribute("data-length") for one in holes.all()] == ["1", "2", "3"]
    assert [one.text_content() for one in holes.all()] == texts
    assert holes.nth(1).get_attribute("title") == "Hole 2: 2 positions, regex  [a-z]+"
    holes.nth(2).locator(".cell").first.hover()
    assert "hole 3: 3 positions" in tab.page.locator(".run .hint").inner_text()
    assert tab.page.locator("#legend-hole").is_visible()
    # What is given stands from the first moment to the last.
    tab.page.locator("#moment").fill("0")
    given = "".join(one.text_content() or "" for one in tab.page.locator(".canvas .given").all())
    assert given == "<|bos|>Tomhadaball.Heitandhome."
    link = tab.page.url
    tab.fill(document="Tom had a{{1..4}} ball.")
    tab.run()
    length = holes.get_attribute("data-length")
    tab.page.locator(".canvas .hole .cell").first.hover()
    assert f"{length} position" in tab.page.locator(".run .hint").inner_text()
    assert " of 1 to 4" in tab.page.locator(".run .hint").inner_text()
    # Where it is no document, the field says why: here, and by the server.
    for wrong, words in (
        ("Tom {{two}}", "{{two}} is not a hole"),
        ("Tom {{2:choice=a|a}}{{9999}}", "(9999) is not in [1, "),
    ):
        tab.fill(document=wrong)
        tab.run()
        field = tab.page.locator("[name=document]")
        said = tab.page.locator(f"#{field.get_attribute('aria-errormessage')}")
        assert words in said.inner_text()
        assert field.get_attribute("aria-invalid") == "true"
    tab.fill(document="x")
    assert said.count() == 0
    tab.page.goto(link)
    assert tab.page.input_value("[name=document]") == document.replace("1..4", "1")
    assert tab.page.locator("[name=mode][value=infill]").is_checked()


def test_documents_are_read_as_the_client_reads_them(tab: Tab) -> None:
    for text in (
        "Tom had a{{2}} ball. He{{2..12}} home.",
        "{{1}}{{3}}",
        r"\{{4}} {{1}} \\{{2}}\n}} {{{{3}}}} \\\{{{",
        "a {{4:regex=[0-9]{2}}} b",
        "{{1..4:choice=red|dark blue}}",
        'a{{4:json_schema={"a": {"b": {}}, "c": 1}}} {"d": {}}',
        "none",
        "a {{2:color=red}}",
        "a {{2:regex=b",
        "{{2:json_schema={}",
    ):
        read = """async (text) => {
          const { parse, write } = await import("/playground/template.js");
          try {
            const segments = parse(text);
            return [segments, parse(write(segments))];
          } catch (error) {
            return error.param;
          }
        }"""
        told = tab.page.evaluate(read, text)
        try:
            segments = template(text)
        except ValueError:
            assert told == "infill"
            continue
        spec = v1.GenerationSpec()
        set_template(spec, msgspec.convert(told[0], list[InfillSegment]))
        for one in spec.infill.segments:
            if one.hole.constraint.HasField("json_schema"):
                one.hole.constraint.json_schema = json.dumps(
                    json.loads(one.hole.constraint.json_schema)
                )
        assert spec.infill == build_spec(infill=segments).infill
        assert told[1] == told[0]


def test_constraints_and_haste_are_asked_for_and_shown(tab: Tab) -> None:
    schema = {"type": "object", "properties": {"happy": {"type": "boolean"}}, "required": ["happy"]}
    problem = tab.page.get_by_role("alert")
    tab.page.select_option("[name=constraint]", "schema")
    tab.fill(schema=json.dumps(schema), block_length="8", steps="24", latency_budget_ms="1")
    with tab.page.expect_request("**/v1/completions") as sent:
        tab.run()
    assert problem.is_hidden()
    body = sent.value.post_data_json
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"schema": schema}}
    assert body["latency_budget_ms"] == 1
    assert json.loads(tab.answer()).keys() == {"happy"}
    badges = tab.page.locator(".badges li:visible")
    steps = tab.page.locator("#bars rect.hurried").count()
    assert steps > 0
    assert badges.all_inner_texts() == [
        "JSON schema",
        "budget 1 ms",
        f"hurried at {steps} step{'s' * (steps > 1)}",
    ]
    assert tab.figure("seconds").endswith(" / 0.001 s")
    assert tab.page.locator("#legend-hurried").is_visible()
    tab.page.locator("#moment").fill("0")
    assert badges.all_inner_texts() == ["JSON schema", "budget 1 ms"]
    # What cannot be asked for is said at its field.
    for wrong, words in (
        ("{", "The schema is not JSON: "),
        ('{"$dynamicRef": "#x"}', "$dynamicRef is not supported"),
    ):
        tab.fill(schema=wrong)
        tab.run()
        assert words in problem.inner_text()
        assert words in tab.page.locator("#why-schema").inner_text()
    tab.fill(latency_budget_ms="", block_length="", steps="")
    for kind, value in (("regex", "( red| green)"), ("choice", " red\n green")):
        tab.page.select_option("[name=constraint]", kind)
        assert tab.page.locator("[name=schema]").is_hidden()
        tab.fill(**{kind: value})
        tab.run()
        assert tab.answer() in (" red", " green")
        word = {"regex": "regex ( red| green)", "choice": "choice of 2"}[kind]
        assert badges.all_inner_texts() == [word]
    tab.fill(choice="")
    tab.run()
    assert "nothing to choose from" in tab.page.locator("#why-choice").inner_text()
    disabled = tab.page.locator("[name=cache] option[disabled]").all()
    assert {option.get_attribute("value") for option in disabled} == {"settled"}


def test_the_form_has_every_strategy_of_the_model_with_its_parameters(
    tab: Tab, demo: RunningServer
) -> None:
    options = tab.page.locator("[name='a.type'] option")
    offered = {option.get_attribute("value") for option in options.all()} - {""}
    assert offered == set(demo.model.GetModelInfo(v1.GetModelInfoRequest()).strategies)
    assert "uniform_noise" not in offered
    tab.page.select_option("[name='a.type']", "remdm")
    names = [
        field.get_attribute("name") for field in tab.page.locator("#a-parameters [name]").all()
    ]
    assert names == ["a.mode", "a.eta", "a.t_on", "a.t_off", "a.alpha_on"]


def test_strategy_and_settings_are_sent(tab: Tab) -> None:
    tab.page.select_option("[name='a.type']", "local_leap")
    tab.fill(**{"a.threshold": "0.8", "a.radius": "2", "seed": "18446744073709551615"})
    tab.fill(temperature="0.5", top_p="0.9", block_length="8", cfg_scale="0")
    with tab.page.expect_request("**/v1/completions") as sent:
        tab.run()
    raw = sent.value.post_data or ""
    assert json.loads(raw) == {
        "model": "demo",
        "prompt": PROMPT,
        "seed": 18446744073709551615,
        "max_tokens": 24,
        "temperature": 0.5,
        "top_p": 0.9,
        "block_length": 8,
        "cfg_scale": 0,
        "strategy": {"type": "local_leap", "threshold": 0.8, "radius": 2},
        "n": 1,
        "stream": True,
        "diffusing": True,
        "stream_options": {"include_usage": True},
    }
    assert tab.figure("filled") == "24 / 24"


def test_the_slider_replays_the_steps(tab: Tab, http: httpx.Client) -> None:
    tab.run()
    slider = tab.page.locator("#moment")
    last = int(slider.get_attribute("max") or 0)
    assert moment(tab) == last > 1
    text = asked(http)["choices"][0]["text"]
    filled = []
    for value in range(last + 1):
        slider.fill(str(value))
        filled.append(num_filled(tab))
        assert text.startswith(tab.answer())
        assert tab.page.locator(".run .fresh").count() == filled[-1] - ([0, *filled][value])
    assert filled[0] == 0
    assert filled[-1] == 24
    assert filled == sorted(filled)
    assert tab.answer() == text
    slider.fill("0")
    assert (tab.figure("passes"), tab.answer()) == ("0", "")
    tab.page.select_option("#speed", "4")
    tab.page.click("#play")
    assert tab.page.get_by_role("button", name="Pause").is_visible()
    tab.page.get_by_role("button", name="Play").wait_for()
    assert (moment(tab), tab.answer()) == (last, text)


def test_the_keyboard_alone_is_enough(tab: Tab) -> None:
    tab.page.focus("[name=prompt]")
    tab.page.keyboard.press("Control+Enter")
    tab.page.wait_for_selector("#status:has-text('24 tokens')")
    tab.page.focus("#moment")
    tab.page.keyboard.press("Home")
    assert (moment(tab), num_filled(tab)) == (0, 0)
    tab.page.keyboard.press("ArrowRight")
    assert moment(tab) == 1
    assert num_filled(tab) > 0
    tab.page.keyboard.press("End")
    assert num_filled(tab) == 24
    tab.page.keyboard.press("ArrowLeft")
    assert num_filled(tab) < 24
    assert "forward pass" in (tab.page.locator("#moment").get_attribute("aria-valuetext") or "")
    tab.page.keyboard.press(" ")
    tab.page.get_by_role("button", name="Play").wait_for()
    assert num_filled(tab) == 24
    # In a text field the same keys write.
    tab.page.focus("[name=prompt]")
    tab.page.keyboard.press("Home")
    tab.page.keyboard.press(" ")
    assert tab.page.input_value("[name=prompt]") == " " + PROMPT
    assert num_filled(tab) == 24


def test_two_strategies_stand_side_by_side_on_one_seed(tab: Tab, http: httpx.Client) -> None:
    tab.fill(seed="")
    tab.page.select_option("[name='a.type']", "confidence_threshold")
    tab.fill(**{"a.threshold": "0.5"})
    tab.page.check("[name=compare]")
    tab.page.select_option("[name='b.type']", "fixed_schedule")
    tab.run()
    seeds = [node.inner_text() for node in tab.page.locator(".seed").all()]
    assert len(seeds) == 2
    assert len(set(seeds)) == 1
    fields = {"seed": int(seeds[0].removeprefix("seed "))}
    threshold = {"type": "confidence_threshold", "threshold": 0.5}
    for run, strategy in enumerate((threshold, {"type": "fixed_schedule"})):
        assert tab.answer(run) == asked(http, strategy=strategy, **fields)["choices"][0]["text"]
    few, many = (int(tab.figure("passes", run)) for run in (0, 1))
    assert few < many == 24
    said = tab.page.locator("#comparison").inner_text()
    assert f"A took {few} forward passes, B took 24: {24 / few:.1f} times as many." in said
    # The replay sets them side by side by what they have cost.
    tab.page.locator("#moment").fill(str(few - 1))
    assert [tab.figure("passes", run) for run in (0, 1)] == [str(few - 1)] * 2


def test_what_is_masked_again_and_replaced_is_shown_as_such(tab: Tab) -> None:
    tab.page.select_option("[name='a.type']", "remdm")
    tab.fill(**{"a.eta": "1", "temperature": "1.5", "steps": "40"})
    tab.run()
    slider = tab.page.locator("#moment")
    found = {"remask": 0, "revise": 0}
    for value in range(int(slider.get_attribute("max") or 0) + 1):
        slider.fill(str(value))
        for kind in found:
            found[kind] += tab.page.locator(f".run .fresh.{kind}").count()
        assert tab.page.locator(".run .fresh.remask:not(.masked)").count() == 0
    assert found["remask"] > 0
    tab.page.select_option("[name='a.type']", "editing")
    tab.fill(**{"a.threshold": "0.1", "a.edit_threshold": "0", "steps": ""})
    tab.run()
    for value in range(int(slider.get_attribute("max") or 0) + 1):
        slider.fill(str(value))
        found["revise"] += tab.page.locator(".run .fresh.revise.filled").count()
    assert found["revise"] > 0


def test_a_snapshot_replaces_all_that_came_before(tab: Tab) -> None:
    def chunk(**diffusion: Any) -> str:
        return json.dumps({"choices": [{"index": 0, "text": ""}], "diffusion": diffusion})

    start = chunk(
        kind="start",
        token_ids=[5, 2, 2, 2],
        mask_token_id=2,
        spans=[{"kind": "prompt", "length": 1}, {"kind": "hole", "length": 3}],
        tokens=["A", "", "", ""],
    )
    unmask = {"token_ids": [7, 8], "tokens": [" x", " y"], "confidences": [0.5, 0.5]}
    at = {"step": 0, "block": 0, "forward_passes": 1}
    step = chunk(kind="unmask", positions=[1, 2], **unmask, **at)
    canvas = {"token_ids": [5, 7, 2, 9], "tokens": ["A", " x", "", " z"]}
    at = {"step": 4, "block": 0, "forward_passes": 5}
    snapshot = chunk(kind="snapshot", **canvas, confidences=[0, 0.5, 0, 0.95], **at)
    events = "".join(f"data: {one}\n\n" for one in (start, step, snapshot))
    error = json.dumps({"error": {"message": "The engine was restarted.", "param": None}})
    tab.page.route(
        "**/v1/completions",
        lambda route: route.fulfill(
            body=f"{events}data: {error}\n\n", content_type="text/event-stream"
        ),
    )
    tab.run()
    cells = [cell.get_attribute("class") for cell in tab.page.locator(".run .cell").all()]
    assert cells == [
        "cell given",
        "cell filled c5",
        "cell masked fresh remask",
        "cell filled c9 fresh unmask",
    ]
    assert tab.page.locator(".canvas").text_content() == "A x z"
    assert tab.figure("passes") == "5"
    # An error after the beginning leaves what was there, and is said.
    assert tab.page.locator("#problem").inner_text() == "The engine was restarted."


def test_an_error_is_told_in_words_and_marks_its_field(tab: Tab) -> None:
    tab.page.select_option("[name='a.type']", "factor")
    tab.fill(**{"a.factor": "0"})
    tab.run()
    problem = tab.page.get_by_role("alert")
    assert problem.inner_text().startswith("strategy.factor: ")
    assert tab.page.locator("[name='a.factor']").get_attribute("aria-invalid") == "true"
    assert tab.page.locator(".run .problem").is_visible()
    tab.fill(**{"a.factor": "1", "seed": "seven"})
    tab.page.click("#run")
    assert problem.inner_text() == "seed: The seed must be a whole number."
    tab.fill(seed="7")
    tab.run()
    assert problem.is_hidden()
    assert tab.page.locator("[aria-invalid]").count() == 0
    assert num_filled(tab) == 24


def test_a_gateway_that_is_gone_is_said_so(tab: Tab) -> None:
    tab.page.route("**/v1/completions", lambda route: route.abort())
    tab.run()
    assert tab.page.get_by_role("alert").inner_text() == "The gateway cannot be reached."


def test_a_key_is_asked_for_where_the_server_wants_one(
    tab_of: Callable[..., Tab],
    serve: Callable[..., RunningServer],
    gateway_over: Callable[..., RunningGateway],
    tmp_path: Path,
) -> None:
    key = keys.new_key()
    keys.save(tmp_path / "keys.json", [keys.KeyEntry("web", (keys.digest(key),))])
    server = serve(model="demo", api_keys=str(tmp_path / "keys.json"))
    tab = tab_of(gateway_over(server.address).url)
    tab.open()
    problem = tab.page.get_by_role("alert")
    assert problem.inner_text().endswith("Enter a key under “Model and key”.")
    tab.page.locator("summary", has_text="Model and key").click()
    tab.fill(key=key)
    tab.page.keyboard.press("Tab")
    problem.wait_for(state="hidden")
    tab.fill(max_tokens="8")
    tab.run()
    assert num_filled(tab) == 8


def test_stop_frees_the_row(tab: Tab, demo: RunningServer) -> None:
    aborted = demo.statistics().requests_aborted
    tab.page.select_option("[name='a.type']", "fixed_schedule")
    tab.fill(max_tokens="400")
    tab.page.click("#run")
    tab.page.locator(FILLED).nth(3).wait_for()
    tab.page.click("#stop")
    tab.page.wait_for_selector("#status:has-text('Stopped after')")
    assert tab.page.locator("#run").is_enabled()
    assert 3 < num_filled(tab) < 400
    eventually(lambda: demo.statistics().requests_aborted == aborted + 1)
    assert demo.statistics().running_rows == 0


def test_the_replay_is_saved_as_gif_png_and_json(tab: Tab) -> None:
    tab.page.check("[name=compare]")
    tab.run()
    num_moments = int(tab.page.locator("#moment").get_attribute("max") or 0) + 1
    with Image.open(io.BytesIO(saved(tab, "gif"))) as gif:
        assert (gif.format, gif.size[0], gif.n_frames) == ("GIF", 1120, num_moments)
        assert gif.info["loop"] == 0
        frames = []
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.append(gif.convert("RGB"))
        assert gif.info["duration"] == 2500
    assert all(a.tobytes() != b.tobytes() for a, b in pairwise(frames))
    with Image.open(io.BytesIO(saved(tab, "png"))) as strip:
        strip = strip.convert("RGB")
        height = frames[0].size[1]
        assert strip.size == (1120, 6 * height)
        # First and last picture of the strip are the film's, but for the film's fewer colours.
        for top, frame in ((0, frames[0]), (5 * height, frames[-1])):
            still = strip.crop((0, top, 1120, top + height)).tobytes()
            pairs = zip(still, frame.tobytes(), strict=True)
            assert max(abs(a - b) for a, b in pairs) < 48
    events = json.loads(saved(tab, "json"))
    assert events["seed"] == "7"
    for run, text in zip(events["runs"], (tab.answer(0), tab.answer(1)), strict=True):
        chunks = [event["chunk"] for event in run["events"]]
        assert "".join(c["choices"][0]["text"] for c in chunks if c["choices"]) == text


def test_a_link_carries_the_request_but_never_the_key(tab: Tab, tab_of: Callable[..., Tab]) -> None:
    tab.page.locator("summary", has_text="Model and key").click()
    tab.fill(key="secret-key", suffix=" The end.", max_tokens="12")
    tab.page.select_option("[name=model]", "demo-alias")
    tab.page.select_option("[name='a.type']", "klass")
    tab.fill(**{"a.threshold": "0.7"})
    with tab.page.expect_request("**/v1/completions") as sent:
        tab.run()
    assert sent.value.headers["authorization"] == "Bearer secret-key"
    assert "secret" not in tab.page.url
    stored = tab.page.evaluate("() => JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert (stored, tab.page.context.cookies()) == ("[{},{}]", [])
    other = tab_of()
    other.open("#" + tab.page.url.partition("#")[2])
    for name, value in (
        ("prompt", PROMPT),
        ("suffix", " The end."),
        ("seed", "7"),
        ("max_tokens", "12"),
        ("model", "demo-alias"),
        ("a.type", "klass"),
        ("a.threshold", "0.7"),
        ("key", ""),
    ):
        assert other.page.input_value(f"[name='{name}']") == value
    other.run()
    assert other.answer() == tab.answer()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(tab_of: Callable[..., Tab], scheme: str) -> None:
    tab = tab_of(color_scheme=scheme)
    tab.open()
    tab.fill(temperature="1.5", max_tokens="24", latency_budget_ms="1", suffix=" The end.")
    tab.run()
    tab.page.select_option("[name=constraint]", "schema")
    tab.page.evaluate("() => document.querySelector('#run').click()")  # no JSON: it says so
    selectors = [".run .cell:not(.masked)", "label > span", ".hint", "dt", "dd", "#legend > span"]
    worst = tab.page.evaluate(CONTRAST, [*selectors, ".badges li", ".why"])
    assert tab.page.locator(".badges .hurried").is_visible()
    assert tab.page.locator(".why").is_visible()
    assert worst >= 4.5
    light = tab.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    tab.page.click("#theme")
    if scheme == "light":
        tab.page.click("#theme")
    assert tab.page.evaluate("() => getComputedStyle(document.body).backgroundColor") != light


# The lowest contrast of text to what is behind it (WCAG 2), over all that the selectors find.
CONTRAST = """(selectors) => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const parts = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    const colour = parts(getComputedStyle(node).backgroundColor);
    return colour[3] === 255 ? colour : behind(node.parentElement);
  };
  const nodes = selectors.flatMap((selector) => [...document.querySelectorAll(selector)]);
  return Math.min(...nodes.filter((node) => node.offsetParent).map((node) => {
    const both = [parts(getComputedStyle(node).color), behind(node)].map(luminance);
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  }));
}"""


def test_a_phone_shows_all_without_scrolling_sideways(tab_of: Callable[..., Tab]) -> None:
    tab = tab_of(viewport={"width": 375, "height": 700}, has_touch=True)
    tab.open()
    tab.page.locator("summary", has_text="Settings").click()
    tab.page.check("[name=compare]")
    tab.page.select_option("[name='a.type']", "remdm")
    tab.fill(max_tokens="24")
    tab.run()
    assert tab.page.evaluate("() => document.documentElement.scrollWidth") == 375
    # The canvas has come into view.
    assert tab.page.locator(".canvas").first.bounding_box()["y"] < 700  # type: ignore[index]
    tab.page.locator(FILLED).first.tap()
    assert "confidence" in tab.page.locator(".run .hint").first.inner_text()
    tab.page.select_option("[name=constraint]", "schema")
    for mode in ("Infill", "Completion"):
        tab.page.locator(".choice").get_by_text(mode).click()
        assert tab.page.evaluate("() => document.documentElement.scrollWidth") == 375


def test_without_a_wish_for_less_motion_fresh_tokens_flash(tab_of: Callable[..., Tab]) -> None:
    names = []
    for motion in ("no-preference", "reduce"):
        tab = tab_of(reduced_motion=motion)
        tab.open()
        tab.fill(max_tokens="2")
        tab.run()
        fresh = tab.page.locator(".run .fresh").first
        names.append(fresh.evaluate("(node) => getComputedStyle(node).animationName"))
    assert names == ["flash", "none"]


def test_every_control_has_a_name(tab: Tab) -> None:
    tab.run()
    nameless = tab.page.evaluate("""() => [...document.querySelectorAll("input, select, textarea, button")]
      .filter((node) => !node.labels?.[0]?.textContent.trim() && !node.ariaLabel && !node.textContent.trim())
      .map((node) => node.outerHTML)""")
    assert nameless == []
    tree = tab.page.locator("main").aria_snapshot()
    assert 'slider "Moment of the replay"' in tree
    assert 'img "Canvas: 24 of 24 positions filled' in tree


def test_the_page_and_its_parts_allow_nothing_from_elsewhere(http: httpx.Client, tab: Tab) -> None:
    static = Path(gateway.playground.__file__).parent / "static"
    parts = {f"/playground/{path.name}" for path in (static / "playground").iterdir()}
    parts.add("/playground")
    assert parts <= {url.removeprefix(tab.url).partition("#")[0] for url in tab.requests}
    for path in parts:
        reply = http.get(path)
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
    for path in ("/playground/", "/playground/app", "/playground/../docs.html"):
        assert http.get(path, follow_redirects=False).status_code in (307, 404)


def test_the_documentation_leads_here(tab_of: Callable[..., Tab]) -> None:
    tab = tab_of()
    tab.page.goto(f"{tab.url}/docs")
    tab.page.get_by_role("link", name="playground", exact=True).click()
    tab.page.wait_for_selector("html[data-ready]")
    assert tab.page.url == f"{tab.url}/playground"
