"""The first two locks, whole and in parts, the limits, and every kind of credential. Part of locks.py."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from aiohttp import web
from inproc import Client, Step, cheapest
from issuer import garbage, org, request, user
from stage import FAR, Stage

from providers.api_key.key_format import digest_of
from providers.api_key.key_format import make as make_key
from server import Identity, answer, hookimpl, identity_of, requires, signed_in
from server.app import DISPATCHER, SERVER_DATABASE, build
from server.auth.access import access_of, check
from server.auth.identity import IDENTITY
from server.http.errors import Unauthorized
from server.plugins.providers import PROVIDERS
from server.settings.sources import Settings
from server.telemetry.metrics import Tally

_BARE = "/api/bench"
_MACHINES = "/api/bench/machines"
_GATE = "the gate for "
_KEY = make_key("production")


def price(lock: str, with_it: float, without: float) -> dict[str, Any]:
    """One row of the table, in CPU microseconds of the server."""
    return {"lock": lock, "server_us": with_it - without, "postgres_us": None}


@signed_in
async def bare(request: web.Request) -> web.StreamResponse:
    """A handler that does next to nothing."""
    return answer(b"{}")


@requires(accepts=["oauth_token", "m2m_token", "access_token"])  # the last one for `captured`
async def of_machines(request: web.Request) -> web.StreamResponse:
    """The same, for machine tokens."""
    return answer(b"{}")


@contextlib.asynccontextmanager
async def application(stage: Stage, more: Mapping[str, Any] | None = None) -> AsyncIterator[tuple[web.Application, Client]]:
    """The application as it is served, and one connection to it."""
    url = stage.postgres.url(stage.postgres.serving, stage.postgres.locked)
    key = {"id": "bench", "hash": "sha256:" + digest_of(_KEY.text).hex(), "user_id": user(0), "org_id": org(0)}
    given = {**stage.settings(more), "database.url": url, "clerk.jwt_key": stage.issuer.pem, "api_key.keys": [key]}
    offers = [web.get(_BARE, bare), web.get(_MACHINES, of_machines)]
    plugin = SimpleNamespace(register_handlers=hookimpl(lambda: offers, specname="register_handlers"))
    runner = web.AppRunner(app := build(Settings(environ={}, given=given), {"bench": plugin}), access_log=None)
    await runner.setup()
    client = Client(runner)
    try:
        yield app, client
    finally:
        client.close()
        await runner.cleanup()


class Open:
    """Replaces the gate and admits every request as the same caller. `seen` collects the requests, if given."""

    def __init__(self, gate: Any, identity: Identity, seen: list[web.Request] | None = None) -> None:
        self._identity, self._seen = identity, seen
        self.rule_of = gate.rule_of

    async def admit(self, request: web.Request, match: web.UrlMappingMatchInfo, started: float) -> web.StreamResponse:
        request[IDENTITY] = self._identity
        if self._seen is not None:
            self._seen.append(request)
        return await match.handler(request)


async def captured(app: web.Application, client: Client, sent: Iterable[bytes]) -> list[web.Request]:
    """These requests as the gate gets them."""
    front: Any = app[DISPATCHER]
    gate, seen = front._gate, []  # type: ignore[var-annotated]
    front._gate = Open(gate, Identity(provider="bench", user_id="user_bench"), seen)
    for one in sent:
        await client.must(one, b"200")
    front._gate = gate
    return seen


async def the_gate(stage: Stage, app: web.Application, client: Client, tokens: list[str]) -> list[dict[str, Any]]:
    """The gate against no gate, its parts by themselves, the handler's check, and the counting."""
    front: Any = app[DISPATCHER]
    for token in tokens:
        await client.must(request("/api/me", token), b"200")
    [seen] = await captured(app, client, [request(_BARE, tokens[0])])
    gate, tally, revocations, match = front._gate, Tally(), app[SERVER_DATABASE].revocations, seen.match_info
    await gate.admit(seen, match, 0.0)
    identity, handler = identity_of(seen), match.handler
    access: Any = access_of(handler)
    unwrapped: Any = handler.__wrapped__  # type: ignore[attr-defined]
    provider = next(one for one in app[PROVIDERS] if one.name == "clerk")
    opened, turn = Open(gate, identity), _in_turn("/api/me", tokens)

    async def locked() -> None:
        front._gate = gate
        await client.send(next(turn))

    async def unlocked() -> None:
        front._gate = opened
        await client.send(next(turn))

    async def who() -> None:
        provider.recall(seen)

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
        await unwrapped(seen)

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
    """The gate by itself, for every kind of credential: its answer, and no more of the request."""
    repetitions, batch = min(stage.args.repetitions, 20), max(1, stage.args.batch // 10)
    front: Any = app[DISPATCHER]
    admit = front._gate.admit

    async def shown(shows: Iterable[dict[str, Any]], ask: Any = admit, path: str = _BARE) -> Step:
        requests = itertools.cycle(await captured(app, client, [request(path, **show) for show in shows]))

        async def step() -> None:
            one = next(requests)
            with contextlib.suppress(Unauthorized):
                await ask(one, one.match_info, 0.0)

        return step

    async def let_in(request: web.Request, match: Any, started: float) -> None:
        await match.handler(request)

    async def turned_away(request: web.Request, match: Any, started: float) -> None:
        """What the counting itself costs."""

    fresh = [stage.issuer.token(n) for n in range(repetitions * batch)]
    machines = {"an OAuth token": stage.issuer.oauth, "an M2M token": stage.issuer.machine}
    known = {f"{kind} that is known": [make(n) for n in range(100)] for kind, make in machines.items()}
    new = {f"{kind} never seen before": [make(n) for n in range(repetitions * batch)] for kind, make in machines.items()}
    steps = {
        "let in": await shown([{"token": tokens[0]}], let_in),
        "turned away": await shown([{"token": tokens[0]}], turned_away),
        "a token that is known": await shown({"token": token} for token in tokens),
        "a token never seen before": await shown({"token": token} for token in fresh),
        **{name: await shown(({"token": token} for token in kind), path=_MACHINES) for name, kind in (known | new).items()},
        "an API key of the settings": await shown([{"key": _KEY.text}]),
        "no credential": await shown([{}]),
        "a forged token": await shown({"token": stage.issuer.forged(n)} for n in range(100)),
        "garbage": await shown({"token": garbage(n)} for n in range(100)),
    }
    us = {name: values[0] for name, values in (await cheapest(steps, repetitions, batch)).items()}
    base = dict.fromkeys(("a token that is known", "a token never seen before", *known, *new, "an API key of the settings"), us["let in"])
    return [price(f"({_GATE}{name})", us[name], base.get(name, us["turned away"])) for name in list(steps)[2:]]


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
