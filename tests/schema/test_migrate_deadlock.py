"""`migrate` beside a server that writes: where the two lock tables in different orders, migrate is repeated and not given up."""

from __future__ import annotations

import asyncio
from typing import Any

from server.schema.migrate import migrate

BLOCKED = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'public.idempotency_keys'::regclass"


async def test_a_deadlock_with_a_write_is_not_the_end(postgres: Any) -> None:
    name = await postgres.create_database("gp_deadlock")
    try:
        async with postgres.as_admin(name) as owner, postgres.as_admin(name) as writer, postgres.as_admin(name) as watcher:
            await migrate(owner, serving_role=postgres.serving_role)
            await writer.execute("SET deadlock_timeout = '1min'")  # so that migrate is the one that Postgres ends
            transaction = writer.transaction()
            await transaction.start()
            await writer.execute("LOCK TABLE idempotency_keys IN ROW EXCLUSIVE MODE")  # as a request with Idempotency-Key
            running = asyncio.create_task(migrate(owner, serving_role=postgres.serving_role))
            async with asyncio.timeout(20):
                while not await watcher.fetchval(BLOCKED):
                    await asyncio.sleep(0.01)
            await asyncio.wait_for(writer.execute("LOCK TABLE data IN ROW EXCLUSIVE MODE"), 20)
            ended = await watcher.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = $1", name)
            await transaction.commit()
            await asyncio.wait_for(running, 30)
            async with asyncio.timeout(10):
                while not ended:
                    await asyncio.sleep(0.1)
                    ended = await watcher.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = $1", name)
    finally:
        await postgres.drop_database(name)
