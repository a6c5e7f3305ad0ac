"""Dashboard and alerts: made from the known names, and run in a real Prometheus over real processes."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.conftest import running, tiny_config
from tests.fetched import debian, kept
from tests.gateway.conftest import RunningGateway, eventually
from tests.server.calls import PROMPT
from tests.telemetry.test_metrics import free_port
from vdiff_grpc import telemetry

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "observability"
WINDOW = "4s"
_NAME = re.compile(r"\b(?:vdiff|rpc|gen_ai|http)_\w+")


def _generator() -> ModuleType:
    found = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "generate", module)
        found.loader.exec_module(module)
    return module


GENERATE = _generator()
PANELS = [query.expr for _, row in GENERATE.ROWS for panel in row for query in panel.queries]
ALERTS = {alert.name: alert for alert in GENERATE.ALERTS}


def tool(name: str) -> str:
    """Prometheus' programs: the system's, or Debian's, unpacked. Installing them would start one."""
    if found := shutil.which(name):
        return found
    return str(kept("prometheus", lambda folder: debian(folder, "prometheus")) / "usr/bin" / name)


def test_the_files_are_what_the_names_make_of_them() -> None:
    for name, text in GENERATE.files().items():
        assert (FOLDER / name).read_text() == text, f"run {FOLDER.name}/generate.py"


@pytest.mark.parametrize("query", PANELS + [alert.expr for alert in ALERTS.values()])
def test_a_query_uses_known_series_and_their_labels_alone(query: str) -> None:
    known = (*telemetry.SERVER_METRICS, *telemetry.GATEWAY_METRICS)
    series = {name for one in known for name in one.series}
    labels = {name for one in known for name in one.labels}
    used = set(_NAME.findall(re.sub(r'"[^"]*"', "", query)))
    assert used & series, query
    assert used <= series | labels, query


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set(_NAME.findall(" ".join(PANELS)))
    for one in (*telemetry.SERVER_METRICS, *telemetry.GATEWAY_METRICS):
        assert shown & set(one.series), one.name


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    subprocess.run(
        [tool("promtool"), "check", "config", str(FOLDER / "prometheus.yml")], check=True
    )


# For each alert: what is scraped every minute, first as it should not be, then as it should.
_GENERATE = 'instance="a",rpc_method="vdiff.v1.GenerationService/Generate"'
_CALLS = "rpc_server_call_duration_seconds_count"
SERIES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "VdiffQueueGrowing": (
        {"vdiff_rows_waiting": "10+5x30", "vdiff_rows_running": "4x30"},
        {"vdiff_rows_waiting": "0 20 0 20 0 20x2 0 0x22", "vdiff_rows_running": "4x30"},
    ),
    "VdiffErrorRate": (
        {
            f'{_CALLS}{{{_GENERATE},rpc_response_status_code="OK"}}': "0+90x30",
            f'{_CALLS}{{{_GENERATE},rpc_response_status_code="INTERNAL"}}': "0+10x30",
        },
        {
            f'{_CALLS}{{{_GENERATE},rpc_response_status_code="OK"}}': "0+90x30",
            f'{_CALLS}{{{_GENERATE},rpc_response_status_code="CANCELLED"}}': "0+50x30",
        },
    ),
    "VdiffNoProgress": (
        {
            "vdiff_rows_running": "1x30",
            "vdiff_rows_waiting": "0x30",
            "vdiff_engine_steps_total": "7x30",
        },
        {
            "vdiff_rows_running": "1x30",
            "vdiff_rows_waiting": "0x30",
            "vdiff_engine_steps_total": "7+1x30",
        },
    ),
    "VdiffTokensPerForwardDropping": (
        {
            "vdiff_request_tokens_per_forward_sum": "0+20x1440 28800+10x30",
            "vdiff_request_tokens_per_forward_count": "0+10x1470",
        },
        {
            "vdiff_request_tokens_per_forward_sum": "0+20x1440 28800+18x30",
            "vdiff_request_tokens_per_forward_count": "0+10x1470",
        },
    ),
    "VdiffEngineRestarts": (
        {"vdiff_engine_restarts_total": "0x20 1x10"},
        {"vdiff_engine_restarts_total": "3x30"},
    ),
    "VdiffNotReady": ({"vdiff_engine_ready": "0x30"}, {"vdiff_engine_ready": "0x10 1x20"}),
    "VdiffGatewayUpstreamErrors": (
        {
            "vdiff_gateway_upstream_errors_total": "0+10x30",
            "http_server_request_duration_seconds_count": "0+100x30",
        },
        {
            "vdiff_gateway_upstream_errors_total": "0+1x30",
            "http_server_request_duration_seconds_count": "0+100x30",
        },
    ),
}


def test_every_alert_fires_when_it_should_and_not_when_it_should_not(tmp_path: Path) -> None:
    assert SERIES.keys() == ALERTS.keys()
    tests = []
    for name, cases in SERIES.items():
        for series, fires in zip(cases, (True, False), strict=True):
            tests.append(_rule_test(name, series, fires=fires))
    file = tmp_path / "tests.yaml"  # JSON is YAML
    rules = {"rule_files": [str(FOLDER / "alerts.yaml")], "evaluation_interval": "1m"}
    file.write_text(json.dumps(rules | {"tests": tests}))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _rule_test(name: str, series: dict[str, str], *, fires: bool) -> dict[str, Any]:
    alert = ALERTS[name]
    minutes = 30 if "x1440" not in "".join(series.values()) else 1470
    check = {
        "interval": "1m",
        "input_series": [
            {"series": one if "{" in one else f'{one}{{instance="a"}}', "values": values}
            for one, values in series.items()
        ],
    }
    # counted, so that the texts need not be told twice
    counted = f'count(ALERTS{{alertname="{name}",alertstate="firing",severity="{alert.severity}"}})'
    samples = [{"labels": "{}", "value": 1}] if fires else []
    query = {"expr": counted, "eval_time": f"{minutes}m", "exp_samples": samples}
    return check | {"promql_expr_test": [query]}


class Prometheus:
    """A real one, that scrapes five times a second."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [target]}]}
                for job, target in targets.items()
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stderr=self._log,
        )

    def is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/-/ready").status_code == 200
        return False

    def query(self, expr: str) -> list[float]:
        reply = httpx.get(f"{self.url}/api/v1/query", params={"query": expr})
        assert reply.status_code == 200, reply.text
        return [float(one["value"][1]) for one in reply.json()["data"]["result"]]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Over a server and a gateway that are being used."""
    with running(tiny_config(metrics_port=free_port())) as server:
        gateway = RunningGateway(server.address, requests_per_minute=0)
        stop = threading.Event()
        user = threading.Thread(target=_use, args=(gateway.url, stop))
        user.start()
        targets = {
            "server": server.server.metrics_address,
            "gateway": gateway.url.removeprefix("http://"),
        }
        prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), targets)
        try:
            eventually(prometheus.is_ready, 30)
            yield prometheus
        finally:
            prometheus.close()
            stop.set()
            user.join()
            gateway.close()


def _use(url: str, stop: threading.Event) -> None:
    fields = {"prompt": PROMPT, "max_tokens": 4, "ignore_eos": True}
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stop.wait(0.05):
            client.post("/v1/completions", json=fields)
            client.post("/v1/completions", json=fields | {"stream": True})
            client.post("/v1/completions", json=fields | {"model": "none"})


def test_every_query_of_the_dashboard_has_an_answer(prometheus: Prometheus) -> None:
    left = {expr.replace(GENERATE.RATE, WINDOW) for expr in PANELS}

    def all_answered() -> bool:
        for expr in list(left):
            values = prometheus.query(expr)
            if values and all(map(math.isfinite, values)):
                left.remove(expr)
        return not left

    with suppress(AssertionError):
        eventually(all_answered, 40)
    assert not left


def test_no_alert_is_wrong_in_its_form_and_none_fires_in_good_times(
    prometheus: Prometheus,
) -> None:
    quiet = set(ALERTS) - {"VdiffGatewayUpstreamErrors"}  # a third of the requests is refused
    for name in quiet:
        assert prometheus.query(ALERTS[name].expr) == [], name
