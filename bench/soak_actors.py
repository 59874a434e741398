"""Who takes part in the soak: honest tenants that check what they get, credentials that end, and hostile clients."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import random
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from issuer import Issuer, garbage, request, user

SECRET = "whsec_" + base64.b64encode(b"a key of the soak, of thirty-two").decode()
_FAILED = (aiohttp.ClientError, ConnectionError, OSError, TimeoutError)


@dataclass
class Tally:
    """What the actors saw. `ends` are the seconds until ended credentials were refused; `wrong` are descriptions."""

    requests: int = 0
    hostile: int = 0
    busy: int = 0
    busy_without_fault: int = 0
    foreign: int = 0
    late: int = 0
    wrong: list[str] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    in_fault: int = 0
    faults: int = 0

    @contextlib.contextmanager
    def fault(self) -> Iterator[None]:
        """Marks the time of a fault: refusals with 503 are expected then."""
        self.in_fault += 1
        self.faults += 1
        try:
            yield
        finally:
            self.in_fault -= 1

    def quantiles(self) -> tuple[float, float]:
        """(p50, p99) of the honest requests, in milliseconds."""
        ordered = sorted(self.seconds) or [0.0]
        return ordered[len(ordered) // 2] * 1e3, ordered[int(len(ordered) * 0.99)] * 1e3


class Caller:
    """One client with a credential; it counts its answers."""

    def __init__(self, session: aiohttp.ClientSession, port: int, token: str, tally: Tally) -> None:
        self._session, self._tally, self._url = session, tally, f"http://127.0.0.1:{port}"
        self._headers = {"Authorization": f"Bearer {token}"}

    async def ask(self, method: str, path: str, expected: tuple[int, ...], body: Any = None) -> Any:
        """The JSON of the answer, or None for a 503 or 429. Any other status than `expected` is a wrong answer."""
        tally, began, fault = self._tally, time.monotonic(), self._tally.faults
        was_faulty = tally.in_fault
        tally.requests += 1
        try:
            async with self._session.request(method, self._url + path, headers=self._headers, json=body) as answer:
                text = await answer.read()
                status = answer.status
        except _FAILED as error:
            tally.wrong.append(f"{method} {path}: {error!r}")
            return None
        if status in (503, 429):
            faulty = was_faulty or tally.in_fault or tally.faults != fault
            tally.busy += bool(faulty)
            tally.busy_without_fault += not faulty
            return None
        if status not in expected:
            tally.wrong.append(f"{method} {path}: {status} {text[:80]!r}")
            return None
        if len(tally.seconds) < 2_000_000:
            tally.seconds.append(time.monotonic() - began)
        return json.loads(text) if text else {}

    async def status(self, path: str) -> int:
        """The status of a GET, uncounted; 0 where there was no answer."""
        try:
            async with self._session.get(self._url + path, headers=self._headers) as answer:
                await answer.read()
                return answer.status
        except _FAILED:
            return 0


async def honest(port: int, issuer: Issuer, number: int, tally: Tally, end: float) -> None:
    """A user who writes, reads and changes rows, and never sees another's."""
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < end:
            caller = Caller(session, port, issuer.token(number), tally)
            for rows in range(200):
                if time.monotonic() >= end:
                    return
                listed = await caller.ask("GET", "/api/data?limit=20", (200,))
                if listed is not None:
                    tally.foreign += sum(row["user_id"] != user(number) for row in listed)
                if rows % 10 == 0:
                    made = await caller.ask("POST", "/api/data", (201,), {"name": f"row {rows}"})
                    if made:
                        await caller.ask("PATCH", f"/api/data/{made['id']}", (200,), {"name": "changed"})
                me = await caller.ask("GET", "/api/me", (200,))
                if me is not None and me["user_id"] != user(number):
                    tally.foreign += 1
                await asyncio.sleep(random.uniform(0.02, 0.08))


async def ended(port: int, issuer: Issuer, tally: Tally, end: float) -> None:
    """Sessions end by Clerk's webhook; on every connection the token must be refused within a second."""
    number = 100_000
    async with contextlib.AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(aiohttp.ClientSession()) for _ in range(4)]
        while time.monotonic() + 5 < end:
            number += 1
            token = issuer.token(number)
            callers = [Caller(session, port, token, tally) for session in sessions]
            for caller in callers:
                await caller.ask("GET", "/api/me", (200,))
            if await deliver(sessions[0], port, f"sess_{number:024d}", number) == 204 and not tally.in_fault:
                await _wait_for_401(callers, tally)
            await asyncio.sleep(1)


async def _wait_for_401(callers: list[Caller], tally: Tally) -> None:
    began, fault = time.monotonic(), tally.faults
    while any([await caller.status("/api/me") not in (401, 503, 0) for caller in callers]):
        if time.monotonic() - began > 10:
            break
        await asyncio.sleep(0.02)
    if tally.faults == fault and not tally.in_fault:
        tally.ends.append(time.monotonic() - began)
        tally.late += tally.ends[-1] > 1.0


async def deliver(
    session: aiohttp.ClientSession, port: int, session_id: str, number: int, host: str = "127.0.0.1"
) -> int:
    """Send a signed `session.ended`; the status."""
    now = time.time()
    data = {"object": "session", "id": session_id, "user_id": user(number), "status": "ended", "created_at": round(now * 1000),
            "updated_at": round(now * 1000)}  # fmt: skip
    event = {"type": "session.ended", "object": "event", "timestamp": round(now * 1000), "data": data}
    raw, message = json.dumps(event).encode(), f"msg_{secrets.token_hex(8)}"
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.new(key, f"{message}.{int(now)}.".encode() + raw, hashlib.sha256).digest()).decode()
    headers = {"svix-id": message, "svix-timestamp": str(int(now)), "svix-signature": f"v1,{signature}"}
    url = f"http://{host}:{port}/api/webhooks/clerk"
    try:
        async with session.post(url, data=raw, headers={"Content-Type": "application/json", **headers}) as answer:
            return answer.status
    except _FAILED:
        return 0


async def keys(port: int, issuer: Issuer, tally: Tally, end: float) -> None:
    """Keys are made, used, rotated and revoked; what was ended is refused within a second."""
    async with aiohttp.ClientSession() as session:
        while time.monotonic() + 5 < end:
            owner = Caller(session, port, issuer.token(200_000), tally)
            made = await owner.ask("POST", "/api/keys", (201,), {"name": "soak"})
            if made:
                first = Caller(session, port, made["secret"], tally)
                await first.ask("GET", "/api/me", (200,))
                turned = await owner.ask("POST", f"/api/keys/{made['id']}/rotate", (200,), {})
                if turned:
                    await _wait_for_401([first], tally)
                    second = Caller(session, port, turned["secret"], tally)
                    await second.ask("GET", "/api/me", (200,))
                    if await owner.ask("DELETE", f"/api/keys/{made['id']}", (204,)) is not None:
                        await _wait_for_401([second], tally)
            await asyncio.sleep(1)


async def abuser(port: int, issuer: Issuer, tally: Tally, end: float) -> None:
    """A signed-in user who makes all the keys they may, and sends bodies that are large and wrong."""
    odd = {"name": "x", "payload": {"n" * 1000: ["\u0000"] * 5000}}
    async with aiohttp.ClientSession() as session:
        url, token = f"http://127.0.0.1:{port}", issuer.token(300_000)
        headers = {"Authorization": f"Bearer {token}"}
        while time.monotonic() < end:
            for path, body in (("/api/keys", {"name": "more"}), ("/api/data", odd), ("/api/data", {"name": "y" * 900_000})):
                tally.hostile += 1
                with contextlib.suppress(*_FAILED):
                    async with session.post(url + path, json=body, headers=headers) as answer:
                        await answer.read()
            await asyncio.sleep(0.2)


async def patches(port: int, issuer: Issuer, tally: Tally, end: float) -> None:
    """A signed-in user who changes one row a hundred times at once."""
    connector = aiohttp.TCPConnector(limit=100)
    async with aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {issuer.token(400_000)}"}) as session:
        url = f"http://127.0.0.1:{port}/api/data"

        async def change(row: str) -> None:
            with contextlib.suppress(*_FAILED):
                async with session.patch(f"{url}/{row}", json={"name": "again"}) as answer:
                    await answer.read()

        while time.monotonic() < end:
            with contextlib.suppress(*_FAILED, KeyError):
                async with session.post(url, json={"name": "mine"}) as made:
                    row = (await made.json())["id"]
                tally.hostile += 100
                await asyncio.gather(*(change(row) for _ in range(100)))
            await asyncio.sleep(5)


async def flood(port: int, kind: int, tally: Tally, end: float) -> None:
    """Requests of a stranger: invented credentials, no credential, and what no parser takes."""
    while time.monotonic() < end:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for number in range(50):
                raw = (request("/api/data", garbage(number)), request("/api/data"), b"nonsense\r\n\r\n")[kind]
                tally.hostile += 1
                writer.write(raw)
                await reader.read(65536)
                await asyncio.sleep(0.01)
            writer.close()
        await asyncio.sleep(0.05)


async def unread(port: int, issuer: Issuer, tally: Tally, end: float) -> None:
    """Clients that ask for much and take nothing."""
    much = request("/api/public/docs/swagger-ui-bundle.js") * 2
    while time.monotonic() < end:
        clients = []
        for number in range(40):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
                client.send(much if number % 2 else request("/api/data?limit=200", issuer.token(number)) * 20)
            tally.hostile += 2
            clients.append(client)
        await asyncio.sleep(min(45.0, max(1.0, end - time.monotonic())))
        for client in clients:
            client.close()
