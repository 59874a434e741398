"""`python -m server revoke`: what ends, how fast, what stays, and with what words it fails."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kits import ROOT
from kits import oidc as issuers
from kits.live import events
from kits.webhooks import empty

from server import answer, event_stream, identity_of, requires
from server.auth.identity import Identity
from server.auth.revocation import Revocations
from server.testing.clerk import LoopbackClerk
from tests.conftest import ALICE, Client, Serve, TestDatabase, plugin


@pytest.fixture
async def clerk() -> AsyncIterator[LoopbackClerk]:
    async with LoopbackClerk() as instance:
        yield instance


@requires(accepts=["oauth_token", "m2m_token", "session_token", "access_token"])
async def who(request: web.Request) -> web.Response:
    return answer({"user_id": identity_of(request).user_id})


class Run:
    """The real command line, in an empty folder."""

    def __init__(self, db: TestDatabase, folder: Path) -> None:
        self.db, self.folder, self.more = db, folder, ""

    async def __call__(self, *words: str) -> tuple[int, str, str]:
        """Its status, and what it printed on both streams."""
        (self.folder / "gatepost.toml").write_text(f"env = 'test'\n{self.more}")
        environment = {**{name: value for name, value in os.environ.items() if not name.startswith(("CLERK_", "GATEPOST_"))},
                       "PYTHONPATH": str(ROOT), "DATABASE_URL": self.db.url}  # fmt: skip
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "server", "revoke", *words, cwd=self.folder, env=environment,
                                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        out, error = await process.communicate()
        return process.returncode or 0, out.decode(), error.decode()


@pytest.fixture
def run(db: TestDatabase, tmp_path: Path) -> Run:
    (tmp_path / "command").mkdir()
    return Run(db, tmp_path / "command")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def ended(client: Client, token: str, within: float = 1.5) -> None:
    """The token is refused, soon."""
    begun = time.monotonic()
    while (got := await client.get("/who", bearer(token))).status == 200:
        assert time.monotonic() - begun < within, "it still works"
        await asyncio.sleep(0.02)
    assert (got.status, got.json()) == (401, {"error": "Unauthorized", "reason": "session-revoked"})


async def works(client: Client, *tokens: str) -> None:
    for token in tokens:
        assert (await client.get("/who", bearer(token))).status == 200


async def start(serve: Serve, clerk: LoopbackClerk, db: TestDatabase, **more: Any) -> tuple[Client, Client]:
    """Two processes, as far as the database can tell."""
    await empty(db)
    settings = {**clerk.settings(), **{name.replace("__", "."): value for name, value in more.items()}}
    return (await serve(settings, extra={"acme": plugin(web.get("/who", who))}), await serve(settings, extra={"acme": plugin(web.get("/who", who))}))


KINDS = ["oauth_token", "m2m_token", "session_token", "opaque"]


def made(clerk: LoopbackClerk, kind: str, number: int) -> tuple[str, str]:
    """A token of this kind, and its id."""
    if kind == "opaque":
        token = clerk.machine_token(f"user_{number}", "oauth_token")
        return token, clerk.answers[token]["id"]
    name = f"token_{number}"
    if kind == "session_token":
        return clerk.token(f"user_{number}", jti=name), name
    return clerk.machine_jwt(f"{'mch' if kind == 'm2m_token' else 'user'}_{number}", kind, jti=name), name


@pytest.mark.parametrize("kind", KINDS)
async def test_one_token(serve: Serve, clerk: LoopbackClerk, db: TestDatabase, run: Run, kind: str) -> None:
    """In every process, also where it is known from memory; another token of the same caller works on."""
    servers = await start(serve, clerk, db)
    (token, name), (other, _) = made(clerk, kind, 1), made(clerk, kind, 2)
    for server in servers:
        await works(server, token, other)
    assert await run("--jti", name) == (0, f"revoked: the token {name!r}\n", "")
    for server in servers:
        await ended(server, token)
        await works(server, other)


async def test_a_session(serve: Serve, clerk: LoopbackClerk, db: TestDatabase, run: Run) -> None:
    servers = await start(serve, clerk, db)
    token, other = clerk.token("alice", sid="sess_1"), clerk.token("alice", sid="sess_2")
    later = clerk.token("alice", sid="sess_1", now=time.time() + 3)
    await works(servers[0], token, other)
    assert await run("--session", "sess_1") == (0, "revoked: every token of the session 'sess_1'\n", "")
    for server in servers:
        for one in (token, later):
            await ended(server, one)
        await works(server, other)


async def test_a_user(serve: Serve, clerk: LoopbackClerk, db: TestDatabase, run: Run) -> None:
    """The tokens of every kind that were issued until now. A later one is valid, and so are keys and other users."""
    servers = await start(serve, clerk, db, providers=["clerk", "api_key", "stub"])
    then = time.time() - 5
    old = [clerk.token("user_1", now=then), clerk.machine_jwt("user_1", now=then), clerk.token("user_2", act={"sub": "user_1"}, now=then)]
    others = [clerk.token("user_2", now=then), clerk.machine_jwt("user_2", now=then), clerk.machine_jwt("mch_1", "m2m_token", now=then)]
    await works(servers[0], *old, *others)
    status, out, error = await run("--user", "user_1")
    assert (status, error) == (0, "")
    assert out.startswith("revoked: every token of the user 'user_1' that was issued until 2")
    for server in servers:
        for token in old:
            await ended(server, token)
        await works(server, *others, clerk.token("user_1", now=time.time() + 2), clerk.machine_jwt("user_1", now=time.time() + 2))


async def test_a_machine(serve: Serve, clerk: LoopbackClerk, db: TestDatabase, run: Run) -> None:
    servers = await start(serve, clerk, db)
    then = time.time() - 5
    tokens = [clerk.machine_jwt("mch_1", "m2m_token", now=then) for _ in range(2)]
    other = clerk.machine_jwt("mch_2", "m2m_token", now=then)
    await works(servers[0], *tokens, other)
    assert (await run("--user", "mch_1"))[0] == 0
    for server in servers:
        for token in tokens:
            await ended(server, token)
        await works(server, other, clerk.machine_jwt("mch_1", "m2m_token", now=time.time() + 2))


async def test_a_user_of_another_issuer(serve: Serve, db: TestDatabase, run: Run) -> None:
    """The issuer's namespace is added; without --issuer the id is the one of the Identity."""
    await empty(db)
    async with issuers.serve() as one:
        table = {"issuer": one.url, "audience": [issuers.AUDIENCE], "namespace": "acme"}
        client = await serve({"providers": ["oidc"], "oidc.issuers": [table]}, extra={"acme": plugin(web.get("/who", who))})
        then = time.time() - 5
        tokens = {name: one.token(sub=name, iat=int(then), exp=int(then) + 600, jti=f"jti-{name}") for name in ("a", "b", "c", "d")}
        await works(client, *tokens.values())
        run.more = f"providers = ['oidc']\n[[oidc.issuers]]\nissuer = '{one.url}'\naudience = ['{issuers.AUDIENCE}']\nnamespace = 'acme'\n"
        assert "'acme|a'" in (await run("--user", "a", "--issuer", one.url))[1]
        await ended(client, tokens["a"])
        assert (await run("--user", "acme|b"))[0] == 0
        await ended(client, tokens["b"])
        assert (await run("--jti", "jti-c", "--issuer", one.url))[0] == 0
        await ended(client, tokens["c"])
        await works(client, tokens["d"])
        of_session = one.token(sub="e", sid="s1")
        assert "'acme|s1'" in (await run("--session", "s1", "--issuer", one.url))[1]
        await ended(client, of_session)
        status, out, error = await run("--user", "d", "--issuer", "https://nobody.example")
        assert (status, out) == (2, "")
        assert error == f"gatepost: revoke: no provider has the issuer 'https://nobody.example'; known: {one.url}\n"


@requires(accepts=["oauth_token", "m2m_token", "session_token"])
async def ticks(request: web.Request) -> web.StreamResponse:
    async with event_stream(request) as stream:
        await stream.send("hello", event="hello")
        await asyncio.Event().wait()
    return stream.response


@pytest.mark.parametrize("kind", ["oauth_token", "m2m_token", "session_token"])
@pytest.mark.parametrize("by", ["jti", "user"])
async def test_a_live_answer_ends_with_its_token(serve: Serve, clerk: LoopbackClerk, db: TestDatabase, kind: str, by: str) -> None:
    """And the one of another token goes on."""
    await empty(db)
    client = await serve(clerk.settings(), extra={"acme": plugin(web.get("/ticks", ticks))})
    (token, name), (other, _) = made(clerk, kind, 1), made(clerk, kind, 2)
    who = "mch_1" if kind == "m2m_token" else "user_1"
    async with events(client, "/ticks", bearer(token)) as stream, events(client, "/ticks", bearer(other)) as stays:
        assert (await stream.next())["data"] == (await stays.next())["data"]
        async with db.server.connected(db.server.serving_role, db.name) as serving:
            await serving.execute("SELECT revoke_access($1, $2, '1 day')", by, name if by == "jti" else who)
        assert await stream.end(1.5) == "session-revoked"
        with pytest.raises(TimeoutError):
            await stays.next(0.3)
    assert (await client.get("/ticks", bearer(token))).status == 401


async def test_it_is_audited_once_and_by_the_operator(db: TestDatabase, run: Run) -> None:
    await empty(db)
    for words in (("--jti", "j1"), ("--session", "sess_1"), ("--user", "user_1"), ("--user", "user_1")):
        assert (await run(*words))[0] == 0
    rows = await db.rows("SELECT actor, action, target, row_id FROM audit_log WHERE target = 'revocations' ORDER BY created_at")
    assert [tuple(row.values()) for row in rows] == [("operator", "insert", "revocations", "j1"), ("operator", "insert", "revocations", "sess_1"),
                                                     ("operator", "insert", "revocations", "user_1"), ("operator", "update", "revocations", "user_1")]  # fmt: skip


async def test_other_revocations_leave_no_such_entry(client: Client, db: TestDatabase) -> None:
    key = (await client.post("/api/keys", ALICE, {"name": "k"})).json()
    assert (await client.delete(f"/api/keys/{key['id']}", ALICE)).status == 204
    assert await db.rows("SELECT 1 FROM audit_log WHERE target = 'revocations'") == []
    assert await db.count("revocations") > 0


async def test_json(db: TestDatabase, run: Run) -> None:
    status, out, _ = await run("--jti", "j1", "--json")
    told = json.loads(out)
    assert (status, told["kind"], told["subject"]) == (0, "jti", "j1")
    (row,) = await db.rows("SELECT kind, subject, issued_before, expires_at::text AS until FROM revocations")
    assert (row["kind"], row["subject"], row["issued_before"]) == ("jti", "j1", None)
    assert told["until"][:10] == row["until"][:10]


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "one of the arguments"), (("--jti", "a", "--user", "b"), "not allowed with"), (("--jti", ""), "printable"), (("--user", "a\nb"), "printable"),
     (("--session", "x" * 256), "printable"), (("--jti", "a", "b"), "unrecognized")],
    ids=["nothing", "two", "empty", "line break", "long", "more"],
)  # fmt: skip
async def test_mistakes(run: Run, words: tuple[str, ...], said: str) -> None:
    status, out, error = await run(*words)
    assert (status, out) == (2, "")
    assert said in error


async def test_a_database_that_is_not_there_is_status_1(run: Run) -> None:
    run.db = TestDatabase(run.db.server, "nowhere")
    status, out, error = await run("--jti", "j1")
    assert (status in (1, 2), out, error.count("\n")) == (True, "", 1)


async def test_an_older_schema_is_one_line(db: TestDatabase, run: Run) -> None:
    await db.rows("ALTER FUNCTION revoke_access(text, text, interval) RENAME TO revoke_access_away")
    try:
        assert await run("--jti", "j1") == (2, "", "gatepost: revoke: the database has an older schema: run `python -m server migrate`\n")
    finally:
        await db.rows("ALTER FUNCTION revoke_access_away(text, text, interval) RENAME TO revoke_access")


async def test_the_function_takes_no_other_kind_and_no_other_role(db: TestDatabase) -> None:
    for kind in ("keys", "organization", "role", "", "JTI"):
        async with db.server.connected(db.server.serving_role, db.name) as serving:
            with pytest.raises(Exception, match="can be revoked"):
                await serving.execute(f"SELECT revoke_access('{kind}', 'x', '1 day')")
    async with db.server.connected(db.server.owner_role, db.name) as owner:
        with pytest.raises(Exception, match="permission denied"):
            await owner.execute("SELECT revoke_access('jti', 'x', '1 day')")
    assert await db.count("revocations") == 0


# In memory -----------------------------------------------------------------------------------------------------------------


class Row(dict[str, Any]):
    """A row of the table."""


def row(kind: str, subject: str, ends: Any = None) -> dict[str, Any]:
    return {"kind": kind, "subject": subject, "issued_before": None, "expires_at": ends}


def test_a_token_id_is_only_compared_with_token_ids() -> None:
    revocations = Revocations(max_staleness=10, clock=lambda: 0.0)
    revocations.replace([row("jti", "user_1"), row("session", "t1"), row("user", "t2")], 0.0)
    for denied, fields in ((False, {"user_id": "user_1"}), (False, {"token_id": "t1"}), (False, {"token_id": "t2"}), (True, {"token_id": "user_1"}),
                           (False, {"token_id": None}), (False, {"key_id": "user_1"})):  # fmt: skip
        assert revocations.denies(Identity(provider="p", **{"user_id": "someone", **fields})) is denied


def test_expired_ones_are_forgotten_and_the_set_is_bounded() -> None:
    from datetime import UTC, datetime

    revocations = Revocations(max_staleness=10, clock=lambda: 0.0, most=10)
    soon = datetime.fromtimestamp(100, UTC)
    revocations.replace([row("jti", "a", soon), row("jti", "b")], 0.0)
    revocations.forget(100.0)
    assert revocations._tokens == {"b"}
    revocations.add([row("jti", f"t{number}") for number in range(20)], 0.0)
    assert len(revocations._tokens) <= 10
    assert len(revocations) <= 10
    revocations.replace([], 0.0)
    assert revocations._tokens == set()
