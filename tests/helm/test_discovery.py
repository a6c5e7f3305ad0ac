"""A new replica is found by DNS within the time that the chart reckons with. Real names, real gRPC."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import Any

import httpx
import pytest

from gateway.app import Gateway
from gateway.config import GatewayConfig
from tests.conftest import RunningServer, running, tiny_config

# Of the chart: minReadySeconds >= 1.1 * max_connection_age_s + 30.
AGE_S = 2.0
FOUND_S = 1.1 * AGE_S + 30.0
_A, _IN, _TTL_S = 1, 1, 5


class Names(asyncio.DatagramProtocol):
    """A name server that has these IPv4 addresses for every name, and no others of other kinds."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.port: int = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        (kind,) = struct.unpack("!H", data[end - 4 : end - 2])
        known = self.addresses if kind == _A else []
        head = data[:2] + struct.pack("!HHHHH", 0x8580, 1, len(known), 0, 0)
        answers = b"".join(
            struct.pack("!HHHIH", 0xC00C, _A, _IN, _TTL_S, 4) + socket.inet_aton(address)
            for address in known
        )
        self.transport.sendto(head + data[12:end] + answers, addr)


@pytest.mark.long
async def test_a_gateway_finds_a_new_server_after_its_connections_age() -> None:
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(
        lambda: Names("127.0.0.1"), local_addr=("127.0.0.1", 0)
    )
    with running(tiny_config(max_connection_age_s=AGE_S)) as old:
        port = int(old.address.rpartition(":")[2])
        target = f"dns://127.0.0.1:{names.port}/servers.models.svc:{port}"
        gateway = await Gateway.start(GatewayConfig(port=0, server=target, requests_per_minute=0))
        ask = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 1}
        try:
            async with httpx.AsyncClient(base_url=gateway.url) as client:
                assert (await client.post("/v1/completions", json=ask)).status_code == 200
                config = tiny_config(host="127.0.0.2", port=port, max_connection_age_s=AGE_S)
                new = await asyncio.to_thread(RunningServer, config)
                new.start()
                await asyncio.to_thread(new.wait_ready)
                try:
                    names.addresses.append("127.0.0.2")
                    begin = time.monotonic()
                    # each call in turn: one of them reaches the new server once it is known
                    while not new.statistics().requests_finished:
                        assert time.monotonic() - begin < FOUND_S + 5
                        assert (await client.post("/v1/completions", json=ask)).status_code == 200
                        await asyncio.sleep(0.1)
                    print(f"found after {time.monotonic() - begin:.1f} s")
                finally:
                    await asyncio.to_thread(new.close)
        finally:
            gateway.stop_now()
            await gateway.stop()
            transport.close()
