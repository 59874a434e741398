"""The first two locks, whole and in parts, the limits, and every kind of credential. Part of locks.py."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from inproc import Client, Step, cheapest
from issuer import garbage, org, request, user
from stage import FAR, Stage

from providers.api_key.secret import digest_of, make
from server import answer, hookimpl, identity_of, signed_in
from server.access import IDENTITY, check
from server.app import FRONT, STORAGE, build
from server.errors import Unauthorized
from server.metrics import Tally
from server.settings import Settings

_BARE = "/api/bench"
_KEY = make("production")
_SEEN: list[web.Request] = []


def price(lock: str, with_it: float, without: float) -> dict[str, Any]:
    """One row of the table, in CPU microseconds of the server."""
    return {"lock": lock, "server_us": with_it - without, "postgres_us": None}


@signed_in
async def bare(request: web.Request) -> web.StreamResponse:
    """A handler that does next to nothing."""
    _SEEN[:] = [request]
    return answer(b"{}")


@contextlib.asynccontextmanager
async def application(stage: Stage, more: Mapping[str, Any] | None = None) -> AsyncIterator[tuple[web.Application, Client]]:
    """The application as it is served, and one connection to it."""
    url = stage.postgres.url(stage.postgres.serving, stage.postgres.locked)
    key = {"id": "bench", "hash": "sha256:" + digest_of(_KEY.text).hex(), "user_id": user(0), "org_id": org(0)}
    given = {**stage.settings(more), "database.url": url, "clerk.jwt_key": stage.issuer.pem, "api_key.keys": [key]}
    offer = web.get(_BARE, bare)
    plugin = SimpleNamespace(register_handlers=hookimpl(lambda: [offer], specname="register_handlers"))
    runner = web.AppRunner(app := build(Settings(environ={}, given=given), {"bench": plugin}), access_log=None)
    await runner.setup()
    client = Client(runner)
    try:
        yield app, client
    finally:
        client.close()
        await runner.cleanup()


class Open:
    """Stands in for the gate and lets everybody in as the same caller."""

    def __init__(self, gate: Any, identity: Any) -> None:
        self._gate, self._identity = gate, identity
        self.plan_of = gate.plan_of

    async def admit(self, request: web.Request, match: web.UrlMappingMatchInfo) -> web.StreamResponse:
        request[IDENTITY] = self._identity
        return await match.handler(request)


async def the_gate(stage: Stage, app: web.Application, client: Client, tokens: list[str]) -> list[dict[str, Any]]:
    """The gate against no gate, its parts by themselves, the handler's check, and the counting."""
    front: Any = app[FRONT]
    for token in tokens:
        await client.must(request("/api/me", token), b"200")
    await client.must(request(_BARE, tokens[0]), b"200")
    seen, gate, tally, revocations = _SEEN[0], front._gate, Tally(), app[STORAGE].revocations
    identity, match = identity_of(seen), seen.match_info
    handler: Any = match.handler
    access, opened, turn = gate._plans[match.route].access, Open(gate, identity), _in_turn("/api/me", tokens)

    async def locked() -> None:
        front._gate = gate
        await client.send(next(turn))

    async def unlocked() -> None:
        front._gate = opened
        await client.send(next(turn))

    async def who() -> None:
        await gate._identify(seen)

    async def revoked() -> None:
        revocations.denies(identity)

    async def may() -> None:
        check(access, identity, match)

    async def counted() -> None:
        tally.add(200, 0.001)

    async def nothing() -> None:
        pass

    async def checked() -> None:
        await handler(seen)

    async def unchecked() -> None:
        await handler.__wrapped__(seen)

    us = await _cost(stage, locked, unlocked, who, revoked, may, counted, nothing, checked, unchecked)
    front._gate = gate
    return [
        price("1 the gate, whole (`GET /api/me` with a known token, against no gate)", us["locked"], us["unlocked"]),
        price("… who is it: the provider's answer for a known token", us["who"], us["nothing"]),
        price("… is the caller signed out: the revocations in memory", us["revoked"], us["nothing"]),
        price("… may they: the route's access", us["may"], us["nothing"]),
        price("2 the handler's own check", us["checked"], us["unchecked"]),
        price("(metrics: one request counted)", us["counted"], us["nothing"]),
    ]


async def credentials(stage: Stage, app: web.Application, client: Client, tokens: list[str]) -> list[dict[str, Any]]:
    """Who is it, for every kind of credential: the gate's question to the providers, and no more of the request."""
    repetitions, batch = min(stage.args.repetitions, 20), max(1, stage.args.batch // 10)
    await client.must(request(_BARE, tokens[0]), b"200")
    front: Any = app[FRONT]
    identify, match = front._gate._identify, _SEEN[0].match_info

    async def nobody(request: web.Request) -> None:
        """What the counting itself costs."""

    def shown(name: str, texts: Iterable[str], identify: Any = identify) -> Step:
        requests = itertools.cycle([make_mocked_request("GET", _BARE, {name: text}, match_info=match) for text in texts])

        async def step() -> None:
            with contextlib.suppress(Unauthorized):
                await identify(next(requests))

        return step

    fresh = [stage.issuer.token(n) for n in range(repetitions * batch)]
    steps = {
        "nothing": shown("Authorization", tokens[:1], nobody),
        "a token that is known": shown("Authorization", [f"Bearer {token}" for token in tokens]),
        "a token never seen before": shown("Authorization", [f"Bearer {token}" for token in fresh]),
        "a forged token": shown("Authorization", [f"Bearer {stage.issuer.forged(n)}" for n in range(100)]),
        "garbage": shown("Authorization", [f"Bearer {garbage(n)}" for n in range(100)]),
        "an API key of the settings": shown("X-API-Key", [_KEY.text]),
    }
    us = {name: values[0] for name, values in (await cheapest(steps, repetitions, batch)).items()}
    return [price(f"(who is it: {name})", us[name], us["nothing"]) for name in steps if name != "nothing"]


async def limits(stage: Stage, tokens: list[str]) -> dict[str, Any]:
    """The rate limits, on against off, for callers who are far from them."""
    off = dict.fromkeys(FAR, "off")
    async with application(stage) as (_, with_limits), application(stage, off) as (_, without):
        for token in tokens:
            await with_limits.must(request("/api/me", token), b"200")
            await without.must(request("/api/me", token), b"200")
        turn, other = _in_turn("/api/me", tokens), _in_turn("/api/me", tokens)

        async def limited() -> None:
            await with_limits.send(next(turn))

        async def unlimited() -> None:
            await without.send(next(other))

        us = await _cost(stage, limited, unlimited)
    return price("(rate limits: a caller who is far from theirs)", us["limited"], us["unlimited"])


def _in_turn(path: str, tokens: list[str]) -> Iterator[bytes]:
    return itertools.cycle([request(path, token) for token in tokens])


async def _cost(stage: Stage, *steps: Any) -> dict[str, float]:
    named: dict[str, Step] = {step.__name__: step for step in steps}
    return {name: us[0] for name, us in (await cheapest(named, stage.args.repetitions, stage.args.batch)).items()}
