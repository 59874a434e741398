"""The log under gunicorn is that of `python -m server`: the same lines, levels, reasons and request ids, without credentials."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kits import ROOT, tokens, webhooks

from tests.conftest import ALICE, ALICE_ALONE, TestDatabase
from tests.serving.test_gunicorn import gunicorn, until_answers
from tests.serving.test_workers import running, url_of

pytestmark = pytest.mark.long

PLUGIN = '''
from aiohttp import web
from server import Conflict, answer, body, hookimpl, read, requires, scoped, signed_in
from pydantic import BaseModel

class Thing(BaseModel):
    name: str

routes = web.RouteTableDef()

@routes.post("/api/things")
@signed_in
async def things(request):
    return answer({"name": (await body(request, Thing)).name})

@routes.get("/api/fails")
@signed_in
async def fails(request):
    raise ValueError("a canary")

@routes.get("/api/no-grant")
@signed_in
async def no_grant(request):
    async with scoped(request) as db:
        await db.fetch("SELECT * FROM pg_authid")

@routes.get("/api/wrong-argument")
@signed_in
async def wrong_argument(request):
    return await read(request, "SELECT $1::int", "5")

@routes.get("/api/conflict")
@signed_in
async def conflict(request):
    raise Conflict("taken", detail="it is taken")

@routes.get("/api/system")
@requires(permission="org:sys_memberships:manage")
async def system(request):
    return answer({})

@hookimpl
def register_handlers():
    return routes
'''

JSON = {"Content-Type": "application/json"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def hook(raw: bytes, **how: Any) -> dict[str, str]:
    return {**JSON, **webhooks.headers(raw, "msg_1", how.pop("sent", int(time.time())), **how)}


def exchanges() -> list[tuple[str, str, Mapping[str, str], bytes, int]]:
    """(method, target, headers, body, status)"""
    now = time.time()
    event = json.dumps(webhooks.user("created", 0)).encode()
    return [
        ("GET", "/api/data", {}, b"", 401),
        ("GET", "/nowhere", {}, b"", 401),
        ("GET", "/api/data", bearer("gp_canary-canary-canary"), b"", 401),
        ("GET", "/api/data", bearer(tokens.encode(tokens.claims(now - 600))), b"", 401),
        ("GET", "/api/data", bearer(tokens.encode(tokens.claims(iss="https://clerk.other.example"))), b"", 401),
        ("GET", "/api/data", bearer(tokens.encode(tokens.claims(azp="https://other.example"))), b"", 401),
        ("GET", "/api/data", {**ALICE, "X-API-Key": "gp_canary-canary"}, b"", 400),
        ("GET", "/api/data?ticket=st_canary", ALICE, b"", 200),
        ("GET", "/nowhere", ALICE, b"", 404),
        ("PUT", "/api/data", ALICE, b"", 405),
        ("GET", "/api/data/%zz", ALICE, b"", 400),
        ("GET", "/api/data/11111111-1111-1111-1111-111111111111", ALICE, b"", 404),
        ("DELETE", "/api/data/11111111-1111-1111-1111-111111111111", ALICE, b"", 403),
        ("GET", "/api/invoices", ALICE_ALONE, b"", 403),
        ("GET", "/api/orgs/org_b/data", ALICE, b"", 403),
        ("GET", "/api/system", ALICE, b"", 403),
        ("GET", "/api/data?limit=0", ALICE, b"", 422),
        *(("POST", "/api/things", {**ALICE, **JSON}, raw, status) for raw, status in (
            (b"{", 400), (b"\xef\xbb\xbf{}", 400), (b'{"name": NaN}', 400), (b'{"name": 1e999}', 400), (b'{"name": 18446744073709551616}', 400),
            (b'{"name": "x", "name": "y"}', 400), (b"{}", 422), (b'{"name": 5}', 422), (b"", 400), (b'{"name": "x"}', 200))),
        ("POST", "/api/things", {**ALICE, "Content-Type": "text/plain"}, b"canary", 415),
        ("POST", "/api/things", {**ALICE, **JSON}, b'"' + b"x" * 2_000_000 + b'"', 413),
        ("GET", "/api/fails", ALICE, b"", 500),
        ("GET", "/api/no-grant", ALICE, b"", 500),
        ("GET", "/api/wrong-argument", ALICE, b"", 500),
        ("GET", "/api/conflict", ALICE, b"", 409),
        ("POST", webhooks.PATH, hook(event, secret=webhooks.OTHER), event, 400),
        ("POST", webhooks.PATH, hook(event, sent=int(now) - 900), event, 400),
        ("POST", webhooks.PATH, JSON, event, 400),
        ("POST", webhooks.PATH, hook(event), event, 204),
        ("GET", "/api/data", {"Bad Header": "canary"}, b"", 400),
        ("GET", "/api/data", {"X-Long": "canary" * 6000}, b"", 431),
    ]  # fmt: skip


async def exchange(url: str, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
    """The status and the request id of one exchange on a connection of its own."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        length = {"Content-Length": str(len(body))} if body or method == "POST" else {}
        lines = [f"{name}: {value}" for name, value in {"Host": "127.0.0.1", **headers, **length, "Connection": "close"}.items()]
        writer.write("\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode() + body)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode()
        found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])}
        return int(head.split()[1]), found["x-request-id"]
    finally:
        writer.close()


def told(text: str, number: Mapping[str, int]) -> list[dict[str, Any]]:
    """The lines of the log about these requests, in the order of the requests, without what differs from run to run."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    ours = [{**line, "request_id": number[line["request_id"]]} for line in lines if line.get("request_id") in number]
    return sorted(
        ({name: value for name, value in line.items() if name not in ("time", "seconds", "places")} for line in ours),
        key=lambda line: (line["request_id"], line["event"]),
    )


async def run(url: str) -> dict[str, int]:
    """Every exchange; the number of each by its request id."""
    number: dict[str, int] = {}
    for at, (method, target, headers, body, status) in enumerate(exchanges()):
        got, request_id = await exchange(url, method, target, headers, body)
        assert got == status, (method, target, body[:40], got)
        number[request_id] = at
    return number


# What each refusal's line says, by the number of its exchange above: the level, and the words `reason`, `detail`, `why` hold.
SAID = {
    0: ("info", "credential-missing"), 2: ("info", "credential-rejected"), 3: ("info", "token-expired"), 4: ("info", "token-issuer"),
    5: ("info", "token-authorized-party"), 6: ("info", "credentials-ambiguous"), 8: ("info", "no such path"), 10: ("info", "target-malformed"),
    11: ("info", "not-found"), 12: ("info", "role"), 13: ("info", "permission"), 14: ("info", "organization"), 16: ("info", "fields"),
    17: ("info", "json-malformed"), 18: ("info", "json-byte-order-mark"), 19: ("info", "json-number"), 27: ("info", "body-type"),
    28: ("info", "body-size"), 29: ("error", "ValueError"), 30: ("error", "permission denied for table pg_authid"), 31: ("error", "argument $1"),
    32: ("info", "taken"), 33: ("info", "webhook-signature"), 34: ("info", "webhook-time"), 35: ("info", "webhook-headers"),
}  # fmt: skip


async def test_every_line_is_that_of_the_own_server(db: TestDatabase, tmp_path: Path) -> None:
    (tmp_path / "things.py").write_text(PLUGIN)
    settings = {
        "DATABASE_URL": db.url, "GATEPOST_PROVIDERS": "stub,clerk,api_key", "GATEPOST_PLUGINS": "module:things",
        "GATEPOST_LOG_FORMAT": "json", "GATEPOST_LOG_REQUESTS": "true", "CLERK_PUBLISHABLE_KEY": tokens.PUBLISHABLE_KEY,
        "CLERK_JWT_KEY": tokens.pem(tokens.rsa_key()), "CLERK_WEBHOOK_SIGNING_SECRET": webhooks.SECRET,
        "CLERK_AUTHORIZED_PARTIES": tokens.PARTY,
    }  # fmt: skip
    async with gunicorn(tmp_path, "--access-logfile", "-", "--log-level", "debug", **settings) as (process, url, log):
        await until_answers(process, url, log)
        number = await run(url)
        process.terminate()
        await asyncio.wait_for(process.wait(), 120)
        text = log.read_text()
    by_gunicorn = told(text, number)
    await db.empty()
    more = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    async with running(db, tmp_path, **settings, **more) as process:
        assert process.stderr is not None
        errors = asyncio.create_task(process.stderr.read())  # at once: a full pipe would block the server
        number = await run(await url_of(process))
        process.terminate()
        await asyncio.wait_for(process.wait(), 120)
        by_itself = told((await errors).decode(), number)
    assert by_gunicorn == by_itself
    for at, (level, words) in SAID.items():
        (line, *_) = [one for one in by_gunicorn if one["request_id"] == at and one["event"] != "request"]
        assert line["level"] == level, line
        assert words in json.dumps(line), line
    # Neither gunicorn's own access log nor its debugging lines repeat what a client sent.
    assert "canary" not in text.partition("Booting worker")[2]
    assert "eyJ" not in text
    startup = [json.loads(line)["event"] for line in text.splitlines() if line.startswith("{")]
    assert any("org:sys_memberships:manage" in line for line in startup)
