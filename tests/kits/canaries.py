"""A server full of secrets, each with a text of its own that is found nowhere else, and requests that make it stumble.

`stumbles()` is a list of raw requests, of every 4xx and 5xx that there is, each with secrets in it. The handlers of the plugin
`kits.canaries` fail in ways that have the caller's credential in the exception.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from typing import Any
from urllib.parse import quote

from aiohttp import web

from kits.webhooks import headers as signed
from server import Unavailable, body, hookimpl, public, requires, scoped, signed_in
from server.testing.clerk import LoopbackClerk

BODY_SECONDS = 0.5
routes = web.RouteTableDef()


def shown(request: web.Request) -> str:
    """All that this request brought of secrets."""
    return f"{request.path_qs} {dict(request.headers)}"


@routes.get("/x/raise")
@signed_in
async def raise_it(request: web.Request) -> web.Response:
    raise RuntimeError(f"cannot do this for {shown(request)}")


@routes.get("/x/chain")
@signed_in
async def chain(request: web.Request) -> web.Response:
    try:
        return {}[shown(request)]  # type: ignore[no-any-return]
    except KeyError as error:
        error.add_note(shown(request))
        raise ExceptionGroup(shown(request), [ValueError(shown(request))]) from error


@routes.get("/x/http")
@signed_in
async def http(request: web.Request) -> web.Response:
    # Its text would be the `detail`, which the handler means for the caller.
    raise web.HTTPBadGateway(headers={"X-Shown": shown(request)[:40].replace("\r", "").replace("\n", "")})


@routes.get("/x/open")
@public
async def open_to_all(request: web.Request) -> web.Response:
    raise LookupError(shown(request))


@routes.get("/x/wrong")
@signed_in
async def wrong(request: web.Request) -> Any:
    return shown(request)


@routes.get("/x/task")
@signed_in
async def task(request: web.Request) -> web.Response:
    async def fail() -> None:
        raise RuntimeError(shown(request))

    asyncio.create_task(fail())  # noqa: RUF006 - nobody waits for it: asyncio tells of it in its own words
    await asyncio.sleep(0)
    return web.Response(status=500, text="")


@routes.get("/x/sql/{kind}")
@signed_in
async def sql(request: web.Request) -> web.Response:
    said = shown(request)
    statements = {"uuid": "SELECT $1::uuid", "int": "SELECT $1::text::int", "json": "SELECT $1::text::jsonb", "type": "SELECT $1::int",
                  "syntax": f"SELECT '{said.replace(chr(39), '')}' FROM nothing_here",
                  "unique": "INSERT INTO data (id, user_id, name) SELECT gen_random_uuid(), $1, 'x'"}  # fmt: skip
    async with scoped(request) as db:
        await db.fetch(statements[request.match_info["kind"]], *([] if request.match_info["kind"] == "syntax" else [said]))
    return web.Response()


@routes.get("/x/outage")
@signed_in
async def outage(request: web.Request) -> web.Response:
    try:
        raise ConnectionError(shown(request))
    except ConnectionError:
        raise Unavailable("the other service") from None


@routes.get("/x/machines")
@requires(accepts=["clerk_api_key"])
async def machines(request: web.Request) -> web.Response:
    return web.json_response({})


@routes.post("/x/body")
@signed_in
async def takes_a_body(request: web.Request) -> web.Response:
    await body(request, dict)
    return web.Response(status=204)


@hookimpl
def register_handlers(settings: Any) -> Any:
    return routes


class Secrets:
    """Makes secrets and remembers them. `found(text)` returns the names of those that a text contains."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}

    def new(self, name: str, shape: str = "{}") -> str:
        """A secret of this shape. Its core counts, and the spellings that a careless hand could give it."""
        core = "canary" + hashlib.sha256(f"{name} {time.time_ns()}".encode()).hexdigest()[:26]
        return self.keep(name, core, shape.format(core))

    def keep(self, name: str, core: str, whole: str | None = None) -> str:
        raw = core.encode()
        self.known[name] = [core, quote(core), base64.b64encode(raw).decode().rstrip("="), raw.hex(), core[len(core) // 2 :]]
        return core if whole is None else whole

    def found(self, text: str) -> set[str]:
        return {name for name, spellings in self.known.items() if any(spelling in text for spelling in spellings)}


class World:
    """The secrets of a server's settings, and the credentials of its callers."""

    def __init__(self, clerk: LoopbackClerk, database_url: str) -> None:
        self.secrets = Secrets()
        new = self.secrets.new
        clerk.secret_key = new("Clerk's secret key", "sk_test_{}")
        self.hook_key = new("the webhooks' secret").encode()
        self.hook = "whsec_" + base64.b64encode(self.hook_key).decode()
        self.secrets.keep("the webhooks' secret as it is set", self.hook.removeprefix("whsec_").rstrip("="))
        self.static_key = new("a static key", "gp_{}_of_the_settings")
        separator = "&" if "?" in database_url else "?"
        given = "" if "password" in database_url or ":" in database_url.split("@")[0].removeprefix("postgresql://") else "password=" + new("the database's password")
        self.database_url = database_url + (separator + given if given else "")
        if not given:
            self.secrets.keep("the database's password", database_url.split("@")[0].rpartition(":")[2])
        self.environment = {
            "CLERK_SECRET_KEY": clerk.secret_key, "CLERK_WEBHOOK_SIGNING_SECRET": self.hook, "CLERK_MACHINE_SECRET_KEY": new("the machines' key", "ak_{}"),
            "CLERK_PUBLISHABLE_KEY": clerk.publishable_key, "CLERK_API_URL": clerk.url, "CLERK_AUTHORIZED_PARTIES": clerk.party,
            "DATABASE_URL": self.database_url, "DATABASE_OWNER_URL": f"postgresql://owner:{new('the owner password')}@127.0.0.1:1/x",
            "GATEPOST_LIMITS_STORAGE": f"redis://:{new('the password')}@127.0.0.1:1/0",
        }  # fmt: skip
        self.table = {"token": new("a secret of the plugin's table")}
        self.clerk = clerk
        self.good = self._token("a good token", "user_canary")
        self.member = self._token("a member's token", "user_member", org_id="org_1")
        self.late = self._token("a late token", "user_canary", now=time.time() - 9000)
        self.foreign = self._token("a token for others", "user_canary", azp="https://evil.example")
        self.forged = self.good[:-30] + new("a forged signature")[:30]
        self.opaque = new("an opaque token", "ak_{}")
        self.unknown = new("an unknown key", "gp_{}_nobody_knows")

    def _token(self, name: str, user: str, **claims: Any) -> str:
        token = self.clerk.token(user, **claims)
        self.secrets.keep(name, token.split(".")[2])
        return token

    def credentials(self) -> dict[str, str]:
        """Header lines, good and bad."""
        return {
            "good": f"Authorization: Bearer {self.good}", "late": f"Authorization: Bearer {self.late}", "foreign": f"Authorization: Bearer {self.foreign}",
            "forged": f"Authorization: Bearer {self.forged}", "opaque": f"Authorization: Bearer {self.opaque}", "unknown": f"X-API-Key: {self.unknown}",
            "key": f"X-API-Key: {self.static_key}", "basic": f"Authorization: Basic {base64.b64encode(self.unknown.encode()).decode()}",
            "bare": f"Authorization: {self.unknown}", "cookie": f"Cookie: __session={self.forged}; __client_uat=1",
            "good cookie": "Cookie: " + self.clerk.cookies(self.good)["Cookie"], "proxy": f"Proxy-Authorization: Bearer {self.good}",
        }  # fmt: skip

    def stumbles(self) -> list[tuple[str, bytes]]:
        """(what it is, the bytes)"""
        who = self.credentials()
        made: list[tuple[str, bytes]] = []

        def add(what: str, line: str, *heads: str, data: bytes = b"", end: str = "\r\n\r\n") -> None:
            lines = [f"{line} HTTP/1.1", "Host: localhost", *heads, *([f"Content-Length: {len(data)}"] if data else [])]
            made.append((what, "\r\n".join(lines).encode("latin-1") + end.encode() + data))

        paths = ["/api/me", f"/api/data/{self.unknown}", f"/api/me?token={self.unknown}", "/unknown", "/x/machines", "/api/orgs/org_2/data", "/x/open", "/x/raise", "/x/chain",
                 "/x/http", "/x/wrong", "/x/task", "/x/outage", *[f"/x/sql/{kind}" for kind in ("uuid", "int", "json", "type", "syntax", "unique")]]  # fmt: skip
        for name, line in who.items():
            for path in paths:
                add(f"GET {path} as {name}", f"GET {path}", line)
            for path in ("/api/me", f"/api/data/{self.unknown}", "/api/data", "/api/webhooks/clerk", "/api/keys"):
                add(f"PATCH {path} as {name}", f"PATCH {path}", line, "Content-Type: application/json", data=b"{")
            add(f"a bad target as {name}", f"GET /api/%zz?{self.unknown}", line)
            for odd in ("{}\x00", "{}\r\n folded", "{}\n", "{}\x7f\x01"):
                add(f"a bad value as {name}", "GET /api/me", odd.format(line))
            add(f"a bad name as {name}", "GET /api/me", line.replace(":", " :", 1))
            add(f"a bad method as {name}", f"G{self.unknown} /api/me", line)
            add(f"a bad length as {name}", "POST /api/data", line, f"Content-Length: {self.unknown}")
            add(f"two lengths as {name}", "POST /api/data", line, "Content-Length: 1", "Transfer-Encoding: chunked", data=b"x")
            add(f"a large head as {name}", "GET /api/me", line, "X-Large: " + self.unknown * 400)
            add(f"a bad version as {name}", f"GET /api/me HTTP/{self.unknown}", line)
        add("two credentials", "GET /api/me", who["good"], who["key"])
        for name in ("good", "key", "member"):
            line = who.get(name, f"Authorization: Bearer {self.member}")
            json_ = "Content-Type: application/json"
            for what, data in self.bodies().items():
                for path in ("/api/data", "/x/body", "/api/keys"):
                    add(f"{what} to {path} as {name}", f"POST {path}", line, json_, data=data)
            add(f"no length as {name}", "POST /api/data", line, json_)
            add(f"a body too large as {name}", "POST /api/data", line, json_, "Content-Length: 99999999")
            add(f"another type as {name}", "POST /api/data", line, f"Content-Type: text/{self.unknown}", data=self.unknown.encode())
            add(f"a stalled body as {name}", "POST /api/data", line, json_, "Content-Length: 99")
            add(f"an odd key as {name}", "POST /api/data", line, json_, f"Idempotency-Key: {self.unknown * 12}", data=b'{"name": "x"}')
            add(f"an odd cursor as {name}", f"GET /api/data?cursor={self.unknown}&limit={self.unknown}", line)
            add(f"DELETE as {name}", f"DELETE /api/keys/{self.unknown}", line)
        for number in range(3):
            data = json.dumps({"name": "again"}).encode()
            add("a repeat of a key's making", "POST /api/keys", who["good"], "Content-Type: application/json", f"Idempotency-Key: {self.static_key}-{number // 2}", data=data)
        for what, raw, heads in self.hooks():
            add(f"a webhook: {what}", "POST /api/webhooks/clerk", "Content-Type: application/json", *heads, data=raw)
        return made

    def bodies(self) -> dict[str, bytes]:
        word = self.unknown
        return {
            "no JSON": word.encode(), "open JSON": f'{{"{word}'.encode(), "a member twice": f'{{"{word}": 1, "{word}": 2}}'.encode(), "not UTF-8": word.encode() + b"\xff",
            "an unknown member": json.dumps({"its name is told": word}).encode(), "a wrong type": json.dumps({"name": [word]}).encode(), "a list": json.dumps([word]).encode(),
            "NUL": json.dumps({"name": word + "\0"}).encode(), "deep": f'{{"{word}":'.encode() + b"[" * 90 + b"]" * 90 + b"}", "too long": json.dumps({"name": word * 99}).encode(),
        }  # fmt: skip

    def hooks(self) -> list[tuple[str, bytes, list[str]]]:
        now, raw = int(time.time()), json.dumps({"type": "user.updated", "data": {"id": self.unknown}}).encode()

        def lines(**how: Any) -> list[str]:
            secret = how.pop("secret", self.hook)
            return [f"{name}: {value}" for name, value in signed(raw, how.get("id", "msg_1"), how.get("sent", now), secret=secret).items()]

        other = "whsec_" + base64.b64encode(self.unknown.encode()).decode()
        return [
            ("odd data", raw, lines()), ("another secret", raw, lines(secret=other)), ("late", raw, lines(sent=now - 9000)), ("changed", raw + b" ", lines()),
            ("no JSON", self.unknown.encode(), lines()), ("an odd signature", raw, [*lines()[:2], f"svix-signature: {self.unknown}"]), ("nothing", raw, []),
        ]  # fmt: skip


