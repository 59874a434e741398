"""What the two peers of bench/streams.py share: a table, a hub that broadcasts rows in the process, and their settings.

Generous to the peers: a row is encoded once for all streams, nothing is filtered by caller, and a stream that cannot keep up
loses events in silence. Environment: PEER_DATABASE is a Postgres URL, PEER_KEY the PEM that tokens are signed for.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import uvicorn

ISSUER = "https://clerk.example.com"
KEY = os.environ["PEER_KEY"]
INSERT = """INSERT INTO data (user_id, org_id, name) VALUES ('user_bench', $1, $2)
            RETURNING id, user_id, org_id, name, payload, created_at, updated_at"""


class Hub:
    """A queue for each stream of an organisation."""

    def __init__(self) -> None:
        self._queues: dict[str, set[asyncio.Queue[str]]] = {}
        self.pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        self.pool = await asyncpg.create_pool(os.environ["PEER_DATABASE"], min_size=4, max_size=4)

    async def close(self) -> None:
        assert self.pool is not None
        await self.pool.close()

    async def rows(self, org: str) -> AsyncIterator[str]:
        """The JSON of each row that is added to the organisation from now on."""
        queue: asyncio.Queue[str] = asyncio.Queue(1000)
        self._queues.setdefault(org, set()).add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues[org].discard(queue)

    async def add(self, org: str, name: str) -> float:
        """Write a row, commit, broadcast it; the time just before the COMMIT, by the machine's monotonic clock."""
        assert self.pool is not None
        async with self.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            row = await connection.fetchrow(INSERT, org, name)
            committing = time.monotonic()
            await transaction.commit()
        text = json.dumps(dict(row), default=str)
        for queue in self._queues.get(org, ()):
            if not queue.full():
                queue.put_nowait(text)
        return committing


def serve(app: Any, name: str) -> None:
    """Run the application on a free port; prints where it serves."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(2048)
    print(f"{name} serves on 127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning", backlog=2048)
    uvicorn.Server(config).run([listening])
