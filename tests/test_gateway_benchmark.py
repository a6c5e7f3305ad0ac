"""The gateway's benchmark at its smallest: it measures what it says, over a real gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gateway_page, gateways
from benchmarks.gateway import MODES, measure
from benchmarks.gateways import Kind, PeerError


def test_a_tiny_run_has_a_row_for_each_mode_and_its_page_keeps_what_was_written_by_hand() -> None:
    figures = measure([gateways.ours()], "", rounds=2, requests=3, load=40, starts=1)
    latency, (process,) = figures["latency"], figures["processes"]
    assert [(row["mode"], row["gateway"]) for row in latency] == [
        (mode, "vdiff-gateway") for mode in MODES
    ]
    for row in latency:
        # Another process is asked over the gateway than without it.
        assert row["p50 ms"] > figures["floor ms"][row["mode"]]
        assert row["p99 ms"] >= row["p50 ms"]
    assert process["idle MiB"] > 20
    assert 0 < process["start s"] <= process["first answer s"]
    page = gateway_page.page(figures, ["smg: no wheel"], f"old\n{gateway_page.BY_HAND}\n\nmine\n")
    assert page.count("| vdiff-gateway |") == 3
    assert page.endswith("Left out: smg: no wheel.\n\n## With a load tool\n\nmine\n")
    assert "old\n" not in page


def test_a_gateway_that_ends_at_once_is_an_error_and_not_a_figure() -> None:
    broken = Kind("broken", "0", ("/bin/false",), "/", "vdiff.v1")
    with pytest.raises(PeerError, match="broken has ended with 1"):
        measure([broken], "", rounds=1, requests=1, load=8, starts=1)


def test_a_peer_that_cannot_be_installed_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PeerError, match="smg cannot be installed"):
        gateways.smg(tmp_path)
