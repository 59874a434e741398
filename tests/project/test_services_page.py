"""The pages on services and on other services' webhooks are true: their files are loaded as plugins of a running server."""

from __future__ import annotations

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

from tests.conftest import ADMIN_A, ALICE, Serve, TestDatabase

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
    with pytest.raises(Exception, match=r"shipping.url must be an https URL"):
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
    assert [(one["actor"], one["target"], one["row_id"], one["user_id"]) for one in audit] == [("webhook:stripe", "payments", "evt_1", None)]

    now, good = time.time(), signed(first)["Stripe-Signature"]
    for headers in (
        {}, {"Stripe-Signature": ""}, {"Stripe-Signature": "t=1"}, signed(first, secret="another"), signed(first + b" "),
        signed(first, at=now - 301), signed(first, at=now + 301), {"Stripe-Signature": good.replace("v1=", "v0=")},
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
