"""The serving benchmark's parts: its ideal, its checkpoint, and all of it at its smallest."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report, serving, serving_page, serving_peers
from benchmarks.gateways import PeerError
from benchmarks.ideal import Arrival, StepTimes, fixed_schedule, latencies
from benchmarks.serving_library import Peers
from benchmarks.serving_work import NEW_TOKENS, TOKENS_PER_STEP, Size
from tests.engine.tools import LogitsRecorder, add, run_all, tiny_engine
from vdiff_grpc.engine.prompt_types import TokensPrompt
from vdiff_grpc.engine.strategies import FixedSchedule
from vdiff_grpc.engine.types import Request, RequestParams


def seconds(tokens: int, heads: int) -> float:
    return tokens + heads / 100


TWO = ((10, 4), (10, 2))


def test_alone_a_request_takes_the_sum_of_its_steps() -> None:
    assert latencies([Arrival(3.0, TWO)], seconds, 32) == pytest.approx([20.06])


def test_who_arrives_during_a_step_joins_at_the_next_and_shares_it() -> None:
    both = [Arrival(0.0, TWO), Arrival(1.0, TWO)]
    # 0 to 10.04 the first alone, to 30.10 both, to 40.12 the second alone.
    assert latencies(both, seconds, 32) == pytest.approx([30.10, 39.12])


def test_who_finds_no_row_waits_for_one() -> None:
    both = [Arrival(0.0, TWO), Arrival(1.0, TWO)]
    assert latencies(both, seconds, 1) == pytest.approx([20.06, 39.12])


def test_nothing_runs_between_one_request_and_a_later_one() -> None:
    apart = [Arrival(0.0, TWO), Arrival(100.0, TWO)]
    assert latencies(apart, seconds, 32) == pytest.approx([20.06, 20.06])


def test_times_are_interpolated_and_extended() -> None:
    times = StepTimes(body=((10, 1.0), (20, 3.0)), head=((8, -0.5), (32, 0.0), (64, 2.0)))
    assert times(15, 32) == pytest.approx(2.0)
    assert times(30, 48) == pytest.approx(5.0 + 1.0)
    assert times(10, 8) == pytest.approx(0.5)


def test_the_schedule_is_what_the_engine_asks_of_its_model() -> None:
    engine = tiny_engine(early_end=False)
    recorder = LogitsRecorder.install(engine)
    params = RequestParams(
        max_new_tokens=24, block_length=12, steps=10, temperature=0.0, strategy=FixedSchedule()
    )
    add(engine, 1, Request(TokensPrompt((3, 4, 5)), params))
    run_all(engine)
    asked = [len(logits) for logits in recorder.seen[1, 0]]
    assert [heads for _, heads in fixed_schedule(3, 24, 12, 10)] == asked


@pytest.mark.long
def test_a_tiny_run_has_ours_in_every_table_and_its_page_keeps_what_was_written_by_hand(
    tmp_path: Path,
) -> None:
    checkpoint = tmp_path / "tiny"
    serving_peers.write_checkpoint(checkpoint, tmp_path, width=64, layers=1, vocab_size=2000)
    size = Size(clients=(1, 4), rounds=1, loads=(0.5,), arrivals=4)
    figures = serving.measure(checkpoint, Peers(), tmp_path, size)
    assert [row["by"] for row in figures["in process"]] == ["ours"]
    assert figures["answers equal"], figures["skipped"]
    for row in figures["throughput"]:
        # nobody else asked
        assert row["tokens"] == NEW_TOKENS * row["requests"]
        assert row["forwards"] == NEW_TOKENS // TOKENS_PER_STEP * row["requests"]
        assert row["steps"] <= row["forwards"]
    assert {row["server"] for row in figures["throughput"]} == {"ours, gRPC", "ours, HTTP"}
    for row in figures["latency"]:
        assert row["p95 s"] >= row["p50 s"] > 0
        assert row["p50 ratio"] > 0.5  # nobody is faster than the model itself
    figures |= {"shape": {"width": 64, "layers": 1, "vocabulary": 2000}, "skipped": ["dlmserve"]}
    page = serving_page.page(figures, f"old\n{serving_page.BY_HAND}\n\nmine\n")
    assert report.table(figures["latency"])
    assert "Left out: dlmserve" in page
    assert page.endswith(f"{serving_page.BY_HAND}\n\nmine\n")
    assert "old\n" not in page


def test_a_peer_that_cannot_be_had_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(PeerError, match="cannot be had"):
        serving_peers.packages(tmp_path)
