"""Tickets where several processes serve: as the real program with two workers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
from kits.live import events

from tests.conftest import stub
from tests.serving.test_workers import children, running, url_of
from tests.streams.test_drains import beside, port_of  # noqa: F401


async def test_of_two_processes_one_accepts_the_ticket(db: Any, tmp_path: Path, beside: dict[str, str]) -> None:  # noqa: F811
    """Many connections race for each ticket; the connections are spread over both processes."""
    async with running(db, tmp_path, "--workers", "2", **beside) as process:
        url = await url_of(process)
        port, served = port_of(url), set[int]()

        async def race(ticket: str) -> int:
            async with events(port, f"/api/ticks?ticket={ticket}") as stream:
                if stream.response.status == 200:
                    served.add(int((await stream.next(30))["data"]))
                return stream.response.status

        for _ in range(20):
            async with aiohttp.ClientSession() as session, session.post(
                f"{url}/api/stream-tickets", json={"path": "/api/ticks"}, headers=stub("alice")
            ) as response:
                ticket = (await response.json())["ticket"]
            assert sorted(await asyncio.gather(*(race(ticket) for _ in range(6)))) == [200] + [401] * 5
            if served == children(process):
                break
        assert served == children(process)
