"""docs/configuration.md is what its generator writes, and has every option once."""

from __future__ import annotations

import re
from dataclasses import fields

from docs import make_configuration
from gateway.config import GatewayConfig
from vdiff_grpc.config import ServerConfig

PAGE = make_configuration.PAGE.read_text(encoding="utf-8")


def test_the_reference_is_the_generators_own() -> None:
    assert make_configuration.page() == PAGE, "run: python -m docs.make_configuration"


def test_every_option_of_server_and_gateway_has_its_row() -> None:
    rows = re.findall(r"^\| `--([a-z-]+)` \| `([A-Z_]+)` \|", PAGE, re.M)
    wanted = [
        (option.name.replace("_", "-"), prefix + option.name.upper())
        for config, prefix in ((ServerConfig, "VDIFF_"), (GatewayConfig, "VDIFF_GATEWAY_"))
        for option in fields(config)
    ]
    assert rows == wanted
