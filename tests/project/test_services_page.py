"""The pages on services and on other services' webhooks are true: their files are loaded as plugins of a running server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import example, given
from hypothesis import strategies as st
from kits import ROOT
from kits.pages import blocks

from server.plugins.services import SERVICES as SERVICES_OF_APP
from server.schema.safety import problems
from server.settings.setting import StartFailed
from tests.conftest import ADMIN_A, ALICE, BOB, Serve, TestDatabase, url_of

PARCEL = "8a6e0804-2bd0-4672-b79d-d97027f9071a"


def files(page: str) -> dict[str, str]:
    """The blocks of a page that are files, by the file name before them."""
    text = (ROOT / page).read_text("utf-8")
    return dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def module(page: str, file: str) -> Any:
    """A file of a page, as a plugin."""
    made = ModuleType(file.removesuffix(".py"))
    exec(compile(files(page)[file], file, "exec", dont_inherit=True), made.__dict__)
    return made


# An HTTP client ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def shipping() -> AsyncIterator[str]:
    """The other service, on loopback; its URL."""

    async def parcel(request: web.Request) -> web.Response:
        if request.match_info["id"] != PARCEL:
            raise web.HTTPServiceUnavailable
        return web.json_response({"at": "Utrecht"})

    app = web.Application()
    app.router.add_get("/parcels/{id}", parcel)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.close()


async def test_the_http_client(serve: Serve) -> None:
    async with shipping() as url:
        client = await serve({"shipping.url": url}, extra={"shipping": module("docs/guides/services.md", "shipping.py")})
        got = await client.get(f"/api/parcels/{PARCEL}", ALICE)
        assert (got.status, got.json()) == (200, {"at": "Utrecht"})
        assert (await client.get(f"/api/parcels/{PARCEL}")).status == 401
        assert (await client.get(f"/api/parcels/{PARCEL[::-1]}", ALICE)).status == 404
        assert (await client.get(f"/api/parcels/{PARCEL.replace('8', '9')}", ALICE)).status == 503
    assert (await client.get(f"/api/parcels/{PARCEL}", ALICE)).status == 503


async def test_its_mistake_in_the_settings(make_app: Any) -> None:
    with pytest.raises(Exception, match=r"shipping\.url \(GATEPOST_SHIPPING_URL\) must be an https URL"):
        make_app({"shipping.url": "http://shipping.example"}, {"shipping": module("docs/guides/services.md", "shipping.py")})


# Stripe ------------------------------------------------------------------------------------------------------------------

WEBHOOKS = "docs/guides/receive-webhooks.md"
SECRET = "of-this-test"
PATHS = ["/api/webhooks/stripe", "/api/webhooks(.*)", "/api/health", "/api/public(.*)"]


def event(org_id: str = "org_a", id: str = "evt_1", type: str = "checkout.session.completed") -> bytes:
    told = {"id": id, "type": type, "data": {"object": {"client_reference_id": org_id, "amount_total": 1250}}}
    return json.dumps(told, indent=2).encode()  # with white space, as Stripe sends it


def signed(body: bytes, *, secret: str = SECRET, at: float | None = None) -> dict[str, str]:
    seconds = str(int(time.time() if at is None else at))
    mac = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={seconds},v1={mac},v0=0123"}


@pytest.fixture
async def paid(db: TestDatabase) -> AsyncIterator[TestDatabase]:
    """The database with the page's table."""
    (table,) = blocks("sql", page=WEBHOOKS)
    async with db.server.as_admin(db.name) as admin:
        await admin.execute(table.text.replace("gatepost_app", db.server.serving_role))
        try:
            yield db
        finally:
            await admin.execute("DROP TABLE payments")


async def test_stripes_webhook(serve: Serve, paid: TestDatabase) -> None:
    settings = {"billing.stripe_secret": SECRET, "public_routes": PATHS}
    client = await serve(settings, extra={"billing": module(WEBHOOKS, "billing.py")})

    async def send(body: bytes, headers: dict[str, str]) -> int:
        return (await client.send("POST", "/api/webhooks/stripe", headers, data=body)).status

    first = event()
    assert await send(first, signed(first)) == 200
    assert await send(first, signed(first)) == 200  # a repeat
    assert await send(event("org_b"), signed(event("org_b"))) == 200  # another tenant's, with the same id
    assert await send(event(type="charge.failed", id="evt_2"), signed(event(type="charge.failed", id="evt_2"))) == 200
    rows = await paid.rows("SELECT organization_id, event_id, cents FROM payments ORDER BY organization_id")
    assert rows == [{"organization_id": org, "event_id": "evt_1", "cents": 1250} for org in ("org_a", "org_b")]
    audit = (await client.get("/api/orgs/org_a/audit", ADMIN_A)).json()
    assert [(one["actor"], one["target"], one["user_id"], one["request_id"]) for one in audit] == [("webhook:stripe", "payments", None, None)]

    now, good = time.time(), signed(first)["Stripe-Signature"]
    for headers in (
        {}, {"Stripe-Signature": ""}, {"Stripe-Signature": "t=1"}, signed(first, secret="another"), signed(first + b" "),
        signed(first, at=now - 330), signed(first, at=now + 330), {"Stripe-Signature": good.replace("v1=", "v0=")},
        {"Stripe-Signature": f"t={int(now)},{good}"}, {"Stripe-Signature": good.replace("v1=", "v1=0")}, {**ALICE},
    ):  # fmt: skip
        assert await send(first, headers) == 400, headers
    assert await send(first, {"Stripe-Signature": good.replace("v1=", "v1=00,v1=")}) == 200  # while a secret is rolled
    assert await paid.count("payments") == 2
    assert (await client.get("/api/orgs/org_b/data", ADMIN_A)).status == 403


@given(st.text(max_size=40) | st.from_regex(r"t=\d{0,14},v1=[0-9a-f]{0,6}", fullmatch=True))
@example("t=\u0661,v1=\u00e9")
@example("t=1,v1=\udcff")
def test_no_header_passes_or_fails_the_function(header: str) -> None:
    assert module(WEBHOOKS, "billing.py").is_signed(header, b"{}", SECRET, 1.0) is False


# A queue of jobs ---------------------------------------------------------------------------------------------------------

SERVICES = "docs/guides/services.md"


@pytest.fixture
async def queue(db: TestDatabase) -> AsyncIterator[str]:
    """The database with the page's tables, role and queue; the queue's URL."""
    pytest.importorskip("pgqueuer", reason="pgqueuer is not installed (make deploy-tools)")
    from pgqueuer import Queries

    role = f"jobs_{db.server.run}"
    table, own = [block.text.replace("gatepost_app", db.server.serving_role).replace("jobs_app", role) for block in blocks("sql", page=SERVICES)]
    async with db.server.as_admin(db.name) as admin:
        await admin.execute(table)
        await admin.execute(own)
        async with db.server.connected(role, db.name) as connection:
            await Queries.from_asyncpg_connection(connection).install()
        try:
            yield url_of(db.server, role, db.name)
        finally:
            await admin.execute(f"DROP TABLE reports; DROP SCHEMA jobs CASCADE; DROP OWNED BY {role}; DROP ROLE {role}")


async def test_the_queue_of_jobs(serve: Serve, db: TestDatabase, queue: str) -> None:
    client = await serve({"reports.queue_url": queue}, extra={"reports": module(SERVICES, "reports.py")})
    reports: Any = client.app[SERVICES_OF_APP].get("reports")
    for _ in range(3):
        await client.post("/api/orgs/org_a/data", ALICE, {"name": "x"})
    await client.post("/api/orgs/org_b/data", BOB, {"name": "x"})

    async def rows(number: int) -> list[dict[str, Any]]:
        for _ in range(100):
            if len(found := await db.rows("SELECT organization_id, total FROM reports ORDER BY created_at")) >= number:
                break
            await asyncio.sleep(0.1)
        return found

    assert (await client.post("/api/orgs/org_a/reports", ALICE)).status == 202
    assert (await client.post("/api/orgs/org_b/reports", ALICE)).status == 403
    assert await rows(1) == [{"organization_id": "org_a", "total": 3}]
    await db.rows("INSERT INTO jobs.nightly VALUES ('org_b') RETURNING 1")
    await reports.every_night(None)
    assert (await rows(2))[1] == {"organization_id": "org_b", "total": 1}
    audit = await db.rows("SELECT org_id, actor, user_id, target FROM audit_log WHERE target = 'reports' ORDER BY created_at")
    assert audit == [{"org_id": org, "actor": "job:report", "user_id": None, "target": "reports"} for org in ("org_a", "org_b")]

    # A job whose tenant is another's in the payload alone does nothing to others; what cannot be a tenant fails and is kept.
    await reports.ask(" ")
    for _ in range(100):
        if held := await db.rows("SELECT status::text FROM jobs.pgqueuer WHERE status = 'failed'"):
            break
        await asyncio.sleep(0.1)
    assert held == [{"status": "failed"}]
    assert len(await rows(2)) == 2

    began = time.monotonic()
    await client.server.close()
    assert time.monotonic() - began < 8


async def test_the_queue_and_the_handlers_see_nothing_of_each_other(db: TestDatabase, queue: str) -> None:
    role = f"jobs_{db.server.run}"
    async with db.server.connected(role, db.name) as jobs, db.server.connected(db.server.serving_role, db.name) as serving:
        for connection, sql in ((jobs, "SELECT * FROM public.data"), (jobs, "SELECT * FROM public.reports"), (serving, "SELECT * FROM jobs.pgqueuer")):
            with pytest.raises(Exception, match="permission denied"):
                await connection.fetch(sql)
        assert await problems(serving) == []  # what `check` and the start say


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/x"])
async def test_a_queue_that_cannot_be_reached_prevents_startup(make_app: Any, queue: str, url: str) -> None:
    runner = web.AppRunner(make_app({"reports.queue_url": url}, {"reports": module(SERVICES, "reports.py")}))
    with pytest.raises(StartFailed, match="plugin 'reports': service 'reports' failed to open: ConnectionRefusedError"):
        await runner.setup()
