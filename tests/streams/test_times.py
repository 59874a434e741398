"""Live answers end with their credential, and after their longest time."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from kits.live import LIVE, events, registry, until, websocket

from server.streams import clock
from server.testing.clerk import LoopbackClerk
from tests.conftest import ALICE, Serve


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("leeway", [0.0, 2.0])
async def test_a_stream_ends_at_exp_and_the_leeway(serve: Serve, leeway: float) -> None:
    async with LoopbackClerk() as clerk:
        client = await serve({**clerk.settings(), "clerk.leeway_seconds": leeway}, extra=LIVE)
        now = int(time.time())
        token = clerk.token("alice", now=now - 10, exp=now + 2)
        async with events(client, "/api/ticks", bearer(token)) as stream, websocket(client, "/api/echo", bearer(token)) as ws:
            assert (await stream.next())["event"] == "hello"
            assert await stream.end(8) == "token-expired"
            assert now + 2 + leeway <= time.time() < now + 2 + leeway + 0.4  # on a busy machine
            message = await ws.receive()
            assert (ws.close_code, message.extra) == (4401, "token-expired")
        assert (await client.get("/api/me", bearer(token))).status == 401


async def test_a_clock_that_jumps_ends_what_has_expired(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with LoopbackClerk() as clerk:
        client = await serve(clerk.settings(), extra=LIVE)
        async with events(client, "/api/ticks", bearer(clerk.token("alice", ttl=600))) as stream:
            assert (await stream.next())["event"] == "hello"
            monkeypatch.setattr(clock, "time", SimpleNamespace(time=lambda: time.time() + 3600))
            assert await stream.end(2) == "token-expired"


async def test_a_clock_that_is_set_back_ends_nothing_early(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with LoopbackClerk() as clerk:
        client = await serve({**clerk.settings(), "clerk.leeway_seconds": 0}, extra=LIVE)
        async with events(client, "/api/ticks", bearer(clerk.token("alice", ttl=2))) as stream:
            assert (await stream.next())["event"] == "hello"
            monkeypatch.setattr(clock, "time", SimpleNamespace(time=lambda: time.time() - 3600))
            with pytest.raises(TimeoutError):
                await stream.next(3)
            monkeypatch.undo()
            assert await stream.end(2) == "token-expired"


async def test_a_stream_ends_after_max_seconds(serve: Serve) -> None:
    client = await serve({"streams.max_seconds": 1}, extra=LIVE)
    async with events(client, "/api/ticks", ALICE) as stream, websocket(client, "/api/echo", ALICE) as ws:
        assert (await stream.next())["event"] == "hello"
        started = time.monotonic()
        assert await stream.end() == "too-long"
        assert time.monotonic() - started < 2.5
        message = await ws.receive()
        assert (ws.close_code, message.extra) == (4408, "too-long")
    await until(lambda: registry(client).number == 0)
    async with events(client, "/api/ticks", ALICE) as stream:  # it may connect again at once
        assert (await stream.next())["event"] == "hello"


async def test_a_comment_keeps_the_connection_alive(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    one: Any = registry(client)
    one._clock._slots = one._clock._slots[:2]  # a heartbeat a second
    one._clock._next_slot = iter([0, 1] * 10)
    async with events(client, "/api/ticks", ALICE) as stream:
        assert (await stream.next())["event"] == "hello"
        with pytest.raises(TimeoutError):
            await stream.next(2.5)
        assert 2 <= stream.comments <= 3


@pytest.mark.parametrize(
    ("settings", "ends"),
    [({"leeway": 5.0}, 5.0), ({"leeway": 0.0}, 0.0)],
)
async def test_every_provider_says_when_its_credentials_end(settings: Any, ends: float) -> None:
    from providers.clerk import session
    from providers.clerk.settings import ClerkSettings

    now = time.time()
    claims = {"sub": "u", "iss": "x", "exp": now + 60, "iat": now, "azp": "http://a"}
    read = ClerkSettings.read({"leeway_seconds": settings["leeway"], "publishable_key": None})
    identity, _ = session.identity({}, claims, read, now)
    assert identity.expires_at == pytest.approx(now + 60 + ends)
