"""Every secret has a text that is found nowhere else; then the server is made to stumble in every way, and all that it says is searched.

The real program, in both forms of its log; its answers, its operations port, its commands, and what its objects say of themselves.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import hashlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from kits import ROOT, canaries
from kits.app import Client
from kits.canaries import BODY_SECONDS, World
from kits.pages import free_port

from server.app import SERVER_DATABASE, SETTINGS, build
from server.plugins.providers import PROVIDERS
from server.settings.sources import Settings
from server.testing.clerk import LoopbackClerk
from tests.conftest import TestDatabase
from tests.serving.test_workers import running, url_of

SECURE = {"cache-control": "no-store", "x-content-type-options": "nosniff", "server": "gatepost", "referrer-policy": "no-referrer",
          "content-security-policy": "default-src 'none'; frame-ancestors 'none'"}  # fmt: skip


@pytest.fixture
async def world(db: TestDatabase) -> AsyncIterator[World]:
    async with LoopbackClerk() as clerk:
        yield World(clerk, db.url)


def settings_file(world: World, folder: Path) -> Path:
    path = folder / "gatepost.toml"
    digest = hashlib.sha256(world.static_key.encode()).hexdigest()
    path.write_text(f"""
providers = ["clerk", "api_key"]
plugins = ["module:kits.canaries"]
public_routes = ["/api/webhooks(.*)", "/api/health", "/api/public(.*)", "/x/open"]
limits = {{ body_seconds = {BODY_SECONDS}, address = "off", caller = "500/day" }}
[api_key]
keys = [{{ id = "static", hash = "sha256:{digest}", user_id = "user_static" }}]
[kits]
token = "{world.table["token"]}"
""")
    return path


def environment(world: World, folder: Path) -> dict[str, str]:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return {**world.environment, "GATEPOST_CONFIG": str(settings_file(world, folder)), "PYTHONPATH": paths, "GATEPOST_PROVIDERS": "clerk,api_key"}


async def stumble(port: int, what: str, raw: bytes) -> tuple[str, int, str, dict[str, str]]:
    async with Client(port) as client:
        await client.send(raw)
        reply = await client.reply(timeout=15)
        return what, reply.status, reply.raw.decode("latin-1"), reply.headers


@pytest.mark.parametrize("form", ["json", pytest.param("human", marks=pytest.mark.long)])
async def test_no_secret_in_any_answer_log_or_page(form: str, world: World, db: TestDatabase, tmp_path: Path) -> None:
    more = environment(world, tmp_path) | {"GATEPOST_LOG_FORMAT": form, "GATEPOST_LOG_REQUESTS": "true"}
    counts: collections.Counter[int] = collections.Counter()
    ops = free_port()
    more["GATEPOST_OPS_PORT"] = str(ops)
    async with running(db, tmp_path, **more) as process:
        port = int((await url_of(process)).rpartition(":")[2])
        assert process.stderr is not None
        logged = asyncio.create_task(process.stderr.read())  # at once: a pipe that nobody reads stops whoever writes
        told: list[tuple[str, str]] = []
        stumbles = world.stumbles()
        world.clerk.mode = "500"  # of machine tokens; sessions need no Backend API
        for start in range(0, len(stumbles), 8):
            for what, status, text, headers in await asyncio.gather(*(stumble(port, *one) for one in stumbles[start : start + 8])):
                counts[status] += 1
                if status >= 300:  # an answer with a new key has its secret, this once
                    told.append((what, text))
                    assert {name: headers.get(name) for name in SECURE} == SECURE, (what, status)
                    assert re.fullmatch("[0-9a-f]{24}", headers["x-request-id"]), what
        for status, text in await hammer(port, f"Authorization: Bearer {world.member}", 520):
            counts[status] += 1
            told.append(("one too many", text))
        for path in ("/livez", "/readyz", "/metrics", "/metrics.json", f"/{world.unknown}", f"/livez?{world.unknown}"):
            told.append((path, (await stumble(ops, path, request(path, world)))[2]))
        for odd in (request("/metrics", world, "\x00"), b"G" + request("/metrics", world)):
            told.append(("the operations port", (await stumble(ops, "", odd))[2]))
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)
        assert process.stdout is not None
        out, err = await process.stdout.read(), await logged
    told += [("standard output", out.decode()), *(("the log", line) for line in err.decode().splitlines())]
    shown = {(what, *sorted(found)) for what, text in told if (found := world.secrets.found(text))}
    assert not shown
    assert {400, 401, 403, 404, 405, 408, 409, 411, 413, 415, 422, 429, 431, 500, 503} <= set(counts)
    log = err.decode()
    assert log.count("handler failed") >= 15, "else nothing was logged that could have held a secret"
    for word in ("RuntimeError", "ExceptionGroup", "LookupError", "denied", "request refused", "provider unavailable"):
        assert word in log, word
    if form == "json":
        assert all(isinstance(json.loads(line), dict) for line in log.splitlines())
    print(f"drill: canaries ({form}): {len(world.secrets.known)} secrets, {sum(counts.values())} requests {dict(sorted(counts.items()))}, "
          f"{len(log.splitlines())} log lines, none with a secret")  # fmt: skip


async def hammer(port: int, line: str, number: int) -> list[tuple[int, str]]:
    """One caller, more often than it may."""
    async with Client(port) as client:
        await client.send(f"GET /api/me HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n".encode() * number)
        replies = [await client.reply() for _ in range(number)]
    return [(reply.status, reply.raw.decode("latin-1")) for reply in replies if reply.status != 200]


def request(path: str, world: World, odd: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.good}{odd}\r\n\r\n".encode()


async def command(db: TestDatabase, folder: Path, *words: str, **more: str) -> tuple[int | None, str]:
    async with running(db, folder, *words, **more) as process:
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, out.decode() + err.decode()


@pytest.mark.long
async def test_no_secret_in_what_a_command_says(world: World, db: TestDatabase, tmp_path: Path) -> None:
    given = environment(world, tmp_path)
    for status, *words in ((0, "check"), (0, "check", "--json"), (0, "routes"), (0, "explain", "GET", f"/api/data/{world.static_key[:4]}"), (0, "openapi"), (0, "keys", "list", "--user", "user_static")):
        got, said = await command(db, tmp_path, *words, **given)
        assert got == status, (words, said)
        assert len(said) > 10 or words[0] == "keys"
        assert not world.secrets.found(said), words


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLERK_SECRET_KEY", "{}"),
        ("CLERK_WEBHOOK_SIGNING_SECRET", "whsec_{}\nmore"),
        ("CLERK_WEBHOOK_SIGNING_SECRET", "whsec_!{}"),
        ("CLERK_MACHINE_SECRET_KEY", "ak {}"),
        ("CLERK_JWT_KEY", "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----"),
        ("GATEPOST_LIMITS_STORAGE", "redis://:{}@"),
        ("GATEPOST_LIMITS_STORAGE", "memcached://:{}@localhost"),
        ("DATABASE_URL", "postgresql://app:{}@127.0.0.1:1/x"),
        ("DATABASE_URL", "postgresql://app:{}@[::1/x"),
        ("DATABASE_URL", "postgresql://app:{}@localhost:port/x"),
        ("DATABASE_URL", "mysql://app:{}@localhost/x"),
        ("DATABASE_URL", "{}"),
        ("DATABASE_URL", "postgresql://app:{}@127.0.0.1:1/x?sslmode={}"),
    ],
)
async def test_a_mistake_in_a_secret_is_not_repeated(name: str, value: str, world: World, db: TestDatabase, tmp_path: Path) -> None:
    wrong = world.secrets.new("the mistaken one")
    given = environment(world, tmp_path) | {name: value.replace("{}", wrong)}
    for words in (("check",), ("serve",)):
        got, said = await command(db, tmp_path, *words, **given)
        assert got in (1, 2), (words, said)
        assert "Traceback" not in said
        assert not world.secrets.found(said), words


async def test_no_secret_in_what_objects_say_of_themselves(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "tests")])
    settings = Settings(file=settings_file(world, tmp_path), environ=environment(world, tmp_path) | {"GATEPOST_ENV": "test"}, given={"data_folder": str(tmp_path)})
    app = build(settings)
    seen: list[str] = [repr(settings), str(settings), repr(settings.explain()), repr(app[SETTINGS])]
    for one in app[PROVIDERS]:
        seen += [one.name, *deep(one.provider, 4)]
    seen += [*deep(app[SERVER_DATABASE], 3), *deep(app, 2)]
    assert len(seen) >= 30
    assert not {text[:80] for text in seen if world.secrets.found(text)}


def deep(thing: Any, levels: int) -> list[str]:
    """The repr of a thing of ours, and of all that it holds, but for plain values: those are the secrets themselves."""
    said = [] if isinstance(thing, str | bytes | dict) else [repr(thing), str(thing)]
    if levels:
        names = [*getattr(thing, "__dict__", {}), *getattr(type(thing), "__slots__", ())]
        for name in names:
            inner = getattr(thing, name, None)
            if type(inner).__module__.startswith(("server", "providers")):
                said += deep(inner, levels - 1)
    return said


def test_the_sweep_finds_what_it_looks_for() -> None:
    secrets = canaries.Secrets()
    core = secrets.new("one", "sk_{}")
    bare = core.removeprefix("sk_")
    for text in (core, f"x{bare}y", quote(core), base64.b64encode(bare.encode()).decode(), bare.encode().hex(), f"...{bare[-16:]}"):
        assert secrets.found(text) == {"one"}
    assert not secrets.found("nothing of it")
