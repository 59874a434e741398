"""The docs page: its files over HTTP, and the page itself in a real browser, signed in with a development token."""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kits.chromium import CHROMIUM, browser

import handlers.docs as docs
from providers.clerk import token_command
from tests.conftest import ALICE, Client, Serve, TestDatabase

ASSETS = Path(docs.__file__).parent / "assets"
# Of the npm package swagger-ui-dist 5.35.0.
UPSTREAM = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}
ORIGIN = re.compile(r"(?:https?|wss?)://[^/]+")

# The files -------------------------------------------------------------------------------------------------------------


async def test_the_page_names_files_that_are_served_for_ever(client: Client) -> None:
    page = (await client.get("/api/public/docs")).raw.decode()
    links = re.findall(r'(?:href|src)="(docs/[^"]+)"', page)
    assert sorted(link.partition("?")[0] for link in links) == sorted(f"docs/{name}" for name in docs.FILES)
    for link in links:
        got = await client.get(f"/api/public/{link}")
        assert got.status == 200
        assert got.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert got.raw == (ASSETS / link.removeprefix("docs/").partition("?")[0]).read_bytes()


async def test_nothing_is_inline_and_nothing_is_elsewhere(client: Client) -> None:
    page = (await client.get("/api/public/docs")).raw.decode()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=|javascript:|https?://", page) == []
    assert "unsafe" not in docs.POLICY
    assert ORIGIN.findall(docs.POLICY) == []


async def test_another_version_is_not_kept_for_ever(client: Client) -> None:
    for query in ("", "?v=", "?v=0123456789abcdef", "?x=1"):
        assert (await client.get(f"/api/public/docs/page.css{query}")).headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("path", ["openapi.json", "docs", "docs/page.js", "docs/swagger-ui-bundle.js"])
async def test_who_has_it_already_is_told_so(client: Client, path: str) -> None:
    first = await client.get(f"/api/public/{path}")
    tag = first.headers["ETag"]
    for said in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await client.get(f"/api/public/{path}", {"If-None-Match": said})
        assert (again.status, again.raw) == (304, b"")
        # A 304 renews what is kept: it must say what the 200 said (RFC 9110 15.4.5).
        for name in ("ETag", "Cache-Control", "Vary", "Content-Security-Policy", "Content-Type"):
            assert again.headers[name] == first.headers[name]
    assert (await client.get(f"/api/public/{path}", {"If-None-Match": '"other"'})).status == 200


@pytest.mark.parametrize(
    "name", ["nothing.js", "page.html", "swagger-ui.LICENSE", "__init__.py", "..%2f__init__.py", "%2e%2e", "page.css%00", "PAGE.CSS"]
)
async def test_only_listed_files_are_served(client: Client, name: str) -> None:
    got = await client.get(f"/api/public/docs/{name}")
    assert got.status in (400, 401, 404)
    assert set(got.json()) <= {"error", "reason"}
    assert got.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(("name", "digest"), UPSTREAM.items())
def test_what_is_not_ours_is_unchanged(name: str, digest: str) -> None:
    assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest


def test_the_licences_are_beside_what_they_are_of() -> None:
    assert "Apache License" in (ASSETS / "swagger-ui.LICENSE").read_text("utf-8")
    assert "SmartBear" in (ASSETS / "swagger-ui.NOTICE").read_text("utf-8")
    assert (ASSETS / "swagger-ui-bundle.js.LICENSE.txt").exists()


# Who may call what -------------------------------------------------------------------------------------------------------


async def test_in_development_the_page_knows_who_may_call_what(serve: Serve) -> None:
    client = await serve({"env": "development"})
    assert "docs/access.js?v=" in (await client.get("/api/public/docs")).raw.decode()
    assert (await client.get("/api/public/docs/access.js")).status == 200
    got = await client.get("/api/public/docs/access.json")
    assert (got.status, got.headers["Cache-Control"]) == (200, "no-store")
    rows = {(row["method"], row["route"]): row for row in got.json()}
    assert rows["DELETE", "/api/data/{id}"]["callers"]["member"] == {"status": 403, "reason": "role"}
    assert rows["DELETE", "/api/data/{id}"]["callers"]["admin"] == {"status": 200, "reason": None}
    assert rows["GET", "/api/me"]["callers"]["no credential"] == {"status": 401, "reason": "credential-missing"}
    documented = (await client.get("/api/public/openapi.json")).json()["paths"]
    assert {(method.upper(), path) for path, methods in documented.items() for method in methods if method != "parameters"} == set(rows)


async def test_in_development_a_caller_is_described(serve: Serve) -> None:
    client = await serve({"env": "development"})
    path = "/api/public/docs/access.json?user=u&org=o&role=org:member&permission=org:invoices:read&permission=x"
    (row,) = [row for row in (await client.get(path)).json() if (row["method"], row["route"]) == ("GET", "/api/invoices")]
    assert row["callers"] == {"this caller": {"status": 200, "reason": None}}
    for query in ("?role=org:admin", "?user=u&plan=pro", "?token_type=none", "?usr=u", "?token_type=session_token"):
        got = await client.get(f"/api/public/docs/access.json{query}")
        assert (got.status, got.json()["error"]) == (400, "Bad Request"), query


PRODUCTION = {"env": "production", "providers": ["api_key"], "api_key": {"enabled": True}}


@pytest.mark.parametrize("settings", [{"env": "test"}, PRODUCTION], ids=["test", "production"])
async def test_elsewhere_the_page_and_its_files_say_no_more(serve: Serve, settings: dict[str, Any]) -> None:
    client = await serve(settings)
    for path in ("access.js", "access.json", "access.json?user=u", "access.json/"):
        got = await client.get(f"/api/public/docs/{path}")
        assert got.status in (401, 404)
        assert set(got.json()) <= {"error", "reason"}
    assert "access.js" not in (await client.get("/api/public/docs")).raw.decode()


# The page --------------------------------------------------------------------------------------------------------------

chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
LIST = "#operations-data-list_data"


async def development_token(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `python -m server token` prints beside this server."""
    parser = argparse.ArgumentParser()
    token_command.arguments(parser)
    args = parser.parse_args(["--user", "alice", "--org", "org_a"])
    context: Any = SimpleNamespace(env="test", folder=folder, settings={})
    capsys.readouterr()
    assert await token_command.run(args, context) == 0
    return capsys.readouterr().out.strip()


@chromium
@pytest.mark.long
async def test_authorize_and_try_it_in_a_browser(
    serve: Serve, db: TestDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = await serve({"providers": ["clerk", "api_key"]})
    await db.rows("INSERT INTO data (user_id, org_id, name) VALUES ('alice', 'org_a', 'the first row'), ('bob', 'org_a', 'of bob')")
    token = await development_token(tmp_path, capsys)
    home = f"http://127.0.0.1:{client.port}"
    async with browser() as tab:
        await tab.open(f"{home}/api/public/docs")
        await tab.until(f"document.querySelector('{LIST}')")
        assert await tab.run("document.title") == "Gatepost API"
        await tab.until("[...document.querySelectorAll('.access')].some((it) => it.textContent === 'role org:admin')")
        await tab.picture(tmp_path / "page.png")

        # A stranger gets the server's 401 shown.
        await tab.click(f"{LIST} .opblock-summary-control")
        await tab.click(f"{LIST} .execute")
        await tab.until(f"document.querySelector('{LIST} .live-responses-table')?.innerText.includes('credential-missing')")
        stranger = [one for one in tab.complaints if "401" not in one]
        tab.complaints.clear()

        await tab.click(".scheme-container button.authorize")
        await tab.type(".auth-container #auth-bearer-value", token)
        await tab.click(".auth-container .modal-btn.authorize")
        await tab.until("document.querySelector('.auth-container')?.innerText.includes('Authorized')")
        await tab.click(".close-modal")
        await tab.click(f"{LIST} .execute")
        await tab.until(f"document.querySelector('{LIST} .live-responses-table')?.innerText.includes('the first row')")
        shown = await tab.run(f"document.querySelector('{LIST} .live-responses-table').innerText")
        await tab.picture(tmp_path / "rows.png")
        kept = await tab.run("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")

    assert "of bob" not in shown
    assert stranger == []
    assert tab.complaints == []
    assert {found[0] for url in tab.requests if (found := ORIGIN.match(url))} == {home}
    assert {url.partition(":")[0] for url in tab.requests} <= {"http", "data"}
    assert token not in kept
    assert all(status in (200, 401) for status in tab.answers.values())


DELETE = "#operations-data-delete_data"


@chromium
@pytest.mark.long
async def test_a_caller_is_chosen_in_a_browser(serve: Serve, tmp_path: Path) -> None:
    """In development every route shows the gate's answer to the chosen caller."""
    client = await serve({"env": "development"})
    choose = """((name) => { const it = document.querySelector('.callers-choice');
      Object.getOwnPropertyDescriptor(HTMLSelectElement.prototype, 'value').set.call(it, name);
      it.dispatchEvent(new Event('change', { bubbles: true })); })"""
    beside = f"document.querySelector('{DELETE} .answer')?.innerText"
    async with browser() as tab:
        await tab.open(f"http://127.0.0.1:{client.port}/api/public/docs")
        await tab.until(f"document.querySelector('{DELETE}') && document.querySelectorAll('.callers-choice option').length > 5")
        assert await tab.run("document.querySelectorAll('.answer').length") == 0
        for name, shown in (("no credential", "401"), ("member", "403 role"), ("admin", "yes"), ("org\\'s key", "403 role")):
            await tab.run(f"{choose}('{name}')")
            await tab.until(f"{beside} === '{shown}'", 10)
            # Every route has its answer.
            assert await tab.run("document.querySelectorAll('.opblock').length === document.querySelectorAll('.answer').length")
        assert "routes" in await tab.run("document.querySelector('.callers-words').innerText")
        await tab.picture(tmp_path / "callers.png")

        await tab.run(f"{choose}('another caller')")
        await tab.until("document.querySelectorAll('.answer').length === 0")
        await tab.type(".callers-fields [name=role]", "org:admin")
        await tab.click(".callers-ask")
        await tab.until("document.querySelector('.callers-words').innerText.includes('a role needs an organisation')")
        tab.complaints[:] = [one for one in tab.complaints if "400" not in one]
        await tab.type(".callers-fields [name=user]", "u_1")
        await tab.type(".callers-fields [name=org]", "o_1")
        await tab.click(".callers-ask")
        await tab.until(f"{beside} === 'yes'", 10)
        await tab.picture(tmp_path / "another.png")
    assert tab.complaints == []


WATCH = "#operations-data-watch_data"
SHOWN = f"document.querySelector('{WATCH} .live')?.innerText"


@chromium
@pytest.mark.long
async def test_a_stream_is_shown_live(serve: Serve, db: TestDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows as they change, with the credential that the page has, until the user is signed out; and closed by the reader."""
    client = await serve({"providers": ["clerk", "api_key"]})
    token = await development_token(tmp_path, capsys)
    async with browser() as tab:
        await tab.open(f"http://127.0.0.1:{client.port}/api/public/docs")
        await tab.click(f"{WATCH} .opblock-summary-control")
        await tab.until(f"document.querySelector('{WATCH} .execute')?.innerText === 'Open the stream'")
        await tab.click(f"{WATCH} .live-open")
        await tab.until(f"{SHOWN}.includes('credential-missing')")
        tab.complaints.clear()

        await tab.click(".scheme-container button.authorize")
        await tab.type(".auth-container #auth-bearer-value", token)
        await tab.click(".auth-container .modal-btn.authorize")
        await tab.until("document.querySelector('.auth-container')?.innerText.includes('Authorized')")
        await tab.click(".close-modal")
        await tab.click(f"{WATCH} .live-open")
        await tab.until(f"{SHOWN}.includes('Open.')")
        await db.rows("INSERT INTO data (user_id, name) VALUES ('alice', 'the <b>first</b> row'), ('bob', 'of bob')")
        await tab.until(f"{SHOWN}.includes('the <b>first</b> row') && {SHOWN}.includes('created')")
        assert await tab.run(f"document.querySelectorAll('{WATCH} .live b').length") == 0
        assert "of bob" not in await tab.run(SHOWN)

        await tab.click(f"{WATCH} .live-open")
        await tab.until(f"{SHOWN}.includes('Closed.')")
        await tab.click(f"{WATCH} .live-open")
        await tab.until(f"{SHOWN}.includes('Open.')")
        await db.rows("SELECT gatepost_revoke('user', 'alice', NULL, now() + interval '1 hour')")
        await tab.until(f"{SHOWN}.includes('The stream has ended: session-revoked.')", 5)
        kept = await tab.run("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert tab.complaints == []
    assert token not in kept


@chromium
@pytest.mark.long
async def test_the_policy_stops_what_is_not_ours(client: Client) -> None:
    """So that the silence above means something: what breaks the policy is noticed."""
    assert (await client.get("/api/public/docs", ALICE)).status == 200
    async with browser() as tab:
        await tab.open(f"http://127.0.0.1:{client.port}/api/public/docs")
        await tab.until(f"document.querySelector('{LIST}')")
        assert tab.complaints == []
        await tab.run("document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">x</p>')")
        await tab.run("fetch('http://127.0.0.1:1/').catch(() => 'refused')")
        await tab.run("new Promise((done) => setTimeout(done, 200))")
    assert any("style-src" in one for one in tab.complaints)
    assert any("connect-src" in one for one in tab.complaints)
