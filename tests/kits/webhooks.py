"""Clerk's side of webhooks: events as it sends them, and its signature over them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any

from tests.conftest import Client, Got, TestDatabase

PATH = "/api/webhooks/clerk"
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
OTHER = "whsec_" + base64.b64encode(b"another key, of thirty-two bytes").decode()
SETTINGS = {"clerk.webhook_signing_secret": SECRET}
SYNCED = ("users", "organizations", "memberships", "webhook_inbox", "revocations", "endings")
T0 = int(time.time()) - 3600
"""Seconds: when the histories of the tests begin."""


def signature(raw: bytes, message: str, sent: object, secret: str = SECRET) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_") + "==")
    return "v1," + base64.b64encode(hmac.new(key, f"{message}.{sent}.".encode() + raw, hashlib.sha256).digest()).decode()


def headers(raw: bytes, message: str, sent: object, *, secret: str = SECRET, family: str = "svix") -> dict[str, str]:
    return {f"{family}-id": message, f"{family}-timestamp": str(sent), f"{family}-signature": signature(raw, message, sent, secret)}


async def deliver(client: Client, body: Any, message: str | None = None, **how: Any) -> Got:
    """Send one event, signed now; `body` is JSON, or bytes as they are."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    signed = headers(raw, message or f"msg_{secrets.token_hex(8)}", how.pop("sent", int(time.time())), **how)
    return await client.post(PATH, {"Content-Type": "application/json", **signed}, data=raw)


def event(kind: str, at: float, **data: Any) -> dict[str, Any]:
    """The envelope; `at` is seconds after T0."""
    return {"type": kind, "object": "event", "timestamp": round((T0 + at) * 1000), "instance_id": "ins_1", "data": data,
            "event_attributes": {"http_request": {"client_ip": "203.0.113.5", "user_agent": "hidden-agent"}}}


def user(kind: str, at: float, id: str = "alice", **more: Any) -> dict[str, Any]:
    """user.created or user.updated, changed at `at`; it was created at T0."""
    return event(f"user.{kind}", at, **{
        "id": id, "object": "user", "first_name": id.title(), "last_name": "A", "username": None, "external_id": None,
        "image_url": "https://img.example/1", "primary_email_address_id": "idn_2", "banned": False, "locked": False,
        "email_addresses": [
            {"id": "idn_1", "email_address": f"old-{id}@example.com", "verification": {"status": "unverified"}},
            {"id": "idn_2", "email_address": f"{id}@example.com", "verification": {"status": "verified"}},
        ],
        "public_metadata": {"plan": "gold", "token": "a public word"}, "private_metadata": {"note": "hunter2"},
        "unsafe_metadata": {"note": "hunter2"}, "password_enabled": True, "created_at": T0 * 1000,
        "updated_at": round((T0 + at) * 1000), **more})  # fmt: skip


def user_deleted(at: float, id: str = "alice") -> dict[str, Any]:
    return event("user.deleted", at, id=id, object="user", deleted=True)


def organization(kind: str, at: float, id: str = "org_a", **more: Any) -> dict[str, Any]:
    return event(f"organization.{kind}", at, **{
        "id": id, "object": "organization", "name": id, "slug": id.replace("_", "-"), "created_by": "alice",
        "public_metadata": {}, "private_metadata": {"note": "hunter2"}, "created_at": T0 * 1000,
        "updated_at": round((T0 + at) * 1000), **more})  # fmt: skip


def organization_deleted(at: float, id: str = "org_a") -> dict[str, Any]:
    return event("organization.deleted", at, id=id, object="organization", slug="x", deleted=True)


def membership(kind: str, at: float, *, id: str = "orgmem_1", who: str = "alice", org: str = "org_a", born: float = 0,
               role: str = "org:member", permissions: list[str] | None = None) -> dict[str, Any]:  # fmt: skip
    return event(f"organizationMembership.{kind}", at, id=id, object="organization_membership", role=role,
                 permissions=permissions or ["org:invoices:read"], created_at=round((T0 + born) * 1000),
                 updated_at=round((T0 + at) * 1000), public_metadata={}, private_metadata={"note": "hunter2"},
                 organization={"id": org, "slug": "a", "private_metadata": {"note": "hunter2"}},
                 public_user_data={"user_id": who, "identifier": f"{who}@example.com"})  # fmt: skip


def session(kind: str, at: float, id: str = "sess_1", user_id: str = "alice") -> dict[str, Any]:
    return event(f"session.{kind}", at, id=id, object="session", user_id=user_id, status=kind, client_id="client_1",
                 user=user("updated", at)["data"], updated_at=round((T0 + at) * 1000), created_at=T0 * 1000)  # fmt: skip


async def take(client: Client, *events: dict[str, Any]) -> None:
    """Deliver these one after the other; every one must be taken."""
    for one in events:
        got = await deliver(client, one)
        assert got.status == 204, (one["type"], got.raw)


async def empty(db: TestDatabase) -> None:
    for table in SYNCED:
        await db.rows(f"DELETE FROM {table}")


async def sweep(db: TestDatabase) -> None:
    """Wait until all that hangs on what has ended is tidied up."""
    while await db.rows("SELECT sweep_ended(100) AS pending") != [{"pending": 0}]:
        await asyncio.sleep(0.01)


async def revocations(db: TestDatabase) -> dict[tuple[str, str], float | None]:
    """What is revoked, and how long after T0 a credential may have been issued (None: all). Not: whose keys to look up again."""
    rows = await db.rows("SELECT kind, subject, issued_before FROM revocations WHERE kind <> 'keys'")
    return {(row["kind"], row["subject"]): row["issued_before"] and round(row["issued_before"].timestamp() - T0, 3) for row in rows}
