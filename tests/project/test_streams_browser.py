"""docs/guides/streams.md, "In the browser": its page, from another origin, in a real browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kits import webhooks
from kits.chromium import CHROMIUM, Tab, browser
from kits.live import registry, until
from kits.pages import blocks, free_port

from server.streams.ends import DRAINING
from server.streams.live_changes import CHANGES
from server.testing.clerk import LoopbackClerk
from tests.conftest import Client, Serve, TestDatabase

PAGE = "docs/guides/streams.md"
pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"), pytest.mark.long]
ROWS = "[...document.querySelectorAll('#rows li')].map((item) => item.textContent).join()"
STATE = "document.querySelector('#state').textContent"


@asynccontextmanager
async def page_at(port: int, api: str) -> AsyncIterator[str]:
    """The guide's page on an origin of its own, with the function of its last block; only the address of the API differs."""
    (html,) = blocks("html", page=PAGE)
    (script,) = [block for block in blocks("js", page=PAGE) if "new WebSocket" in block.text]
    text = html.text.replace("http://127.0.0.1:8080", api).replace("</script>", f"{script.text}window.openSocket = open;\n</script>")

    async def served(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/html")

    app = web.Application()
    app.router.add_get("/{path:.*}", served)  # and the browser's own question for an icon
    async with TestServer(app, host="127.0.0.1", port=port):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def opened(serve: Serve, **settings: Any) -> AsyncIterator[tuple[Client, Tab, LoopbackClerk]]:
    """A server, and a tab with the page, signed in as alice; the server allows the page's origin."""
    port = free_port()
    async with LoopbackClerk(party=f"http://127.0.0.1:{port}") as clerk:
        client = await serve({**clerk.settings(), "cors_origins": [clerk.party], **webhooks.SETTINGS}, **settings)
        async with page_at(port, f"http://127.0.0.1:{client.port}") as home, browser() as tab:
            await tab.open(home)
            await tab.type("#token", clerk.token("alice"))
            yield client, tab, clerk


async def test_rows_arrive_until_the_user_is_signed_out(serve: Serve, db: TestDatabase) -> None:
    await db.rows("INSERT INTO data (user_id, name) VALUES ('alice', 'before'), ('bob', 'of bob')")
    async with opened(serve) as (client, tab, clerk):
        await tab.click("#sign-in button")
        await tab.until(f"{STATE} === 'Live.' && {ROWS} === 'before'")
        alice = {"Authorization": f"Bearer {clerk.token('alice', sid='sess_elsewhere')}"}
        made = (await client.post("/api/data", alice, {"name": "<b>first</b>"})).json()
        await tab.until(f"{ROWS} === '<b>first</b>,before'")
        await db.rows("INSERT INTO data (user_id, name) VALUES ('bob', 'of bob, too')")
        await client.patch(f"/api/data/{made['id']}", alice, {"name": "second"})
        await tab.until(f"{ROWS} === 'second,before'")
        await db.rows("DELETE FROM data WHERE name = 'before'")
        await tab.until(f"{ROWS} === 'second'")

        # A server that drains: the page comes back with a fresh ticket, and has what it missed.
        (lease,) = registry(client)._clock.leases()
        registry(client).end(lease, DRAINING)
        await client.post("/api/data", alice, {"name": "third"})
        await tab.until(f"{STATE} === 'Live.' && {ROWS} === 'third,second'")

        # A connection that breaks without a word does the same.
        (lease,) = registry(client)._clock.leases()
        lease.transport.abort()
        await until(lambda: lease not in registry(client)._clock.leases())
        await tab.until(f"{STATE} === 'Live.'")
        await client.post("/api/data", alice, {"name": "fourth"})
        await tab.until(f"{ROWS} === 'fourth,third,second'")

        # The listening connection is lost: the stream goes on, and the list is read anew.
        await db.rows("SELECT pg_terminate_backend($1)", client.app[CHANGES].feed.process_id)
        await client.post("/api/data", alice, {"name": "fifth"})
        await tab.until(f"{ROWS} === 'fifth,fourth,third,second'")

        await webhooks.take(client, webhooks.session("ended", 1, id="sess_alice"))
        await tab.until(f"{STATE} === 'Ended: session-revoked'", 5)
        asked = [url for url in tab.requests if "/api/" in url]
        complaints = [one for one in tab.complaints if "ERR_" not in one]  # the broken connection
    tickets = [found[0] for url in asked if (found := re.search(r"st_[\w-]+", url))]
    assert len(tickets) == len(set(tickets)) == 3
    assert complaints == []


async def test_a_page_whose_token_is_bad_says_so(serve: Serve) -> None:
    async with opened(serve) as (_, tab, _):
        await tab.type("#token", "x")
        await tab.click("#sign-in button")
        await tab.until(f"{STATE} === 'Ended: credential-rejected'")


async def test_the_socket_of_the_page(serve: Serve) -> None:
    code = "\n".join(block.text for block in blocks("python", page=PAGE)[:2])
    scope: dict[str, Any] = {}
    exec(compile(code, PAGE, "exec", dont_inherit=True), scope)
    handlers = SimpleNamespace(register_handlers=scope["register_handlers"])
    async with opened(serve, extra={"acme": handlers}) as (client, tab, _):
        await tab.run("window.openSocket('/api/echo').then(() => 'opening')")
        await tab.until(f"{STATE} === 'alice: hello'")
        await webhooks.take(client, webhooks.session("ended", 1, id="sess_alice"))
        await tab.until(f"{STATE} === 'Closed: 4401 session-revoked'", 5)
        assert tab.complaints == []
