"""`python -m server keys …`: what the operator can do, and with what words it fails. One test runs the real command line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from kits import ROOT

from providers.api_key.commands import commands
from providers.api_key.key_format import make, parse
from server import CommandContext
from server.commands import operator_scope
from tests.conftest import ALICE, Client, Serve, TestDatabase


class Run:
    """The command, in this process, as the serving role."""

    def __init__(self, db: TestDatabase, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._db, self._capsys, self._monkeypatch = db, capsys, monkeypatch
        self.env = "test"

    async def __call__(self, *words: str, stdin: str = "") -> str:
        """What it prints. Raises what the command raises."""
        @contextlib.asynccontextmanager
        async def database() -> AsyncIterator[asyncpg.Connection]:
            async with self._db.server.connected(self._db.server.serving_role, self._db.name) as connection:
                yield connection

        parser = argparse.ArgumentParser()
        command = commands()["keys"]
        command.arguments(parser)
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        self._capsys.readouterr()
        context = CommandContext(self.env, Path("."), {"keys": (), "scopes": ()}, database, operator_scope)
        assert await command.run(parser.parse_args(list(words)), context) == 0
        return self._capsys.readouterr().out

    async def json(self, *words: str, stdin: str = "") -> Any:
        return json.loads(await self(*words, "--json", stdin=stdin))


@pytest.fixture
def run(db: TestDatabase, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(db, capsys, monkeypatch)


async def me(client: Client, key: str) -> Any:
    return (await client.get("/api/me", {"X-API-Key": key})).json()


async def test_a_users_key(run: Run, client: Client) -> None:
    secret = (await run("create", "--user", "alice", "--name", "robot")).strip()
    assert "\n" not in secret  # nothing but the key: it can be piped into a file
    assert parse(secret) is not None
    got = await me(client, secret)
    assert (got["user_id"], got["org_id"], got["org_role"], got["scopes"]) == ("alice", None, None, [])


async def test_an_organisations_key_with_everything(run: Run, client: Client) -> None:
    run.env = "production"
    row = await run.json("create", "--org", "org_a", "--name", "ci", "--role", "admin", "--permission", "org:x", "--permission", "y",
                         "--scope", "any", "--days", "30")  # fmt: skip
    assert row["secret"].startswith(f"gp_live_{row['id']}_")
    assert (row["owner"], row["created_by"], row["created_by_key"]) == ("organization", "operator", None)
    got = await me(client, row["secret"])
    assert (got["user_id"], got["org_id"], got["org_role"], got["org_permissions"], got["scopes"]) == (None, "org_a", "org:admin", ["org:x", "org:y"], ["any"])
    both = await run.json("create", "--user", "alice", "--org", "org_a", "--role", "org:member", "--name", "n", "--expires", "2999-01-31T00:00:00Z")
    assert both["expires_at"].startswith("2999-01-31T00:00:00")
    got = await me(client, both["secret"])
    assert (got["user_id"], got["org_id"], got["org_role"]) == ("alice", "org_a", "org:member")


async def test_lists(run: Run, client: Client) -> None:
    first = await run.json("create", "--user", "alice", "--name", "first")
    await run("create", "--user", "bob", "--name", "second")
    await run("create", "--org", "org_a", "--name", "third")
    await run("revoke", first["id"], "--user", "alice")
    said = await run("list", "--user", "alice")
    assert "revoked" in said
    assert "first" in said
    assert "second" not in said
    for whose, names in ((["--user", "bob"], ["second"]), (["--org", "org_a"], ["third"]), (["--user", "bob", "--org", "org_a"], ["third", "second"]),
                         (["--user", "nobody"], [])):  # fmt: skip
        rows = await run.json("list", *whose)
        assert [row["name"] for row in rows] == names
        assert not any("hash" in name or "secret" in name for row in rows for name in row)


async def test_revoke_is_known_to_a_running_server_within_a_second(run: Run, client: Client) -> None:
    for words, whose in ((["--user", "alice"], ["--user", "alice"]), (["--org", "org_a"], ["--org", "org_a"]), (["--user", "alice"], None)):
        row = await run.json("create", "--name", "k", *words)
        assert "reason" not in await me(client, row["secret"])
        if whose is None:
            await run("revoke", "-", stdin=row["secret"] + "\n")  # a key that was found somewhere: whose it is, it says itself
        else:
            await run("revoke", row["id"], *whose)
        end = time.monotonic() + 1
        while (await me(client, row["secret"])).get("reason") != "key-revoked":
            assert time.monotonic() < end
            await asyncio.sleep(0.02)


async def test_rotate(run: Run, client: Client) -> None:
    row = await run.json("create", "--user", "alice", "--name", "k")
    turned = await run.json("rotate", row["id"], "--user", "alice", "--overlap", "60")
    assert turned["id"] == row["id"]
    assert (await me(client, turned["secret"]))["user_id"] == (await me(client, row["secret"]))["user_id"] == "alice"
    last = (await run("rotate", row["id"], "--user", "alice")).strip()
    assert (await me(client, last))["user_id"] == "alice"
    await asyncio.sleep(0.9)
    assert (await me(client, turned["secret"]))["reason"] == "credential-rejected"


async def test_the_rows_are_those_of_the_routes(run: Run, serve: Serve) -> None:
    client = await serve()
    row = await run.json("create", "--user", "alice", "--name", "k")
    listed = (await client.get("/api/keys", ALICE)).json()
    assert [one["id"] for one in listed] == [row["id"]]
    assert set(listed[0]) == set(row) - {"secret"}


MISTAKES = [
    (["create", "--name", "k"], "specify"), (["list"], "specify"), (["revoke", "x"], "specify"), (["rotate", "x"], "specify"),
    (["create", "--user", "a", "--name", ""], "name"), (["create", "--user", "", "--name", "k"], "user_id"),
    (["create", "--user", "a", "--name", "k", "--role", "org:admin"], "--org"), (["create", "--user", "a", "--name", "k", "--permission", "x"], "--org"),
    (["create", "--org", "a", "--name", "k", "--role", "org:"], "org_role"), (["create", "--user", "a", "--name", "k", "--scope", "two words"], "scopes"),
    (["create", "--user", "a", "--name", "k", "--expires", "2020-01-01T00:00:00Z"], "future"), (["create", "--user", "a", "--name", "k", "--expires", "soon"], "RFC 3339"),
    (["create", "--user", "a", "--name", "k", "--days", "0"], "--days"),
    (["create", "--user", "a", "--name", "k", "--days", "1", "--expires", "2999-01-01T00:00:00Z"], "--days"),
    (["revoke", "0123456789abcdef", "--user", "a"], "no such key"), (["rotate", "0123456789abcdef", "--user", "a"], "no such key"),
    (["rotate", "short", "--user", "a"], "not the id"), (["rotate", "0123456789abcdef", "--user", "a", "--overlap", "604801"], "--overlap"),
    (["revoke", "-"], "begins with"), (["hash"], "begins with"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
async def test_mistakes(run: Run, db: TestDatabase, words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        await run(*words, stdin="\n")
    assert await db.count("api_keys") == 0


async def test_more_mistakes(run: Run) -> None:
    with pytest.raises(ValueError, match="no such key"):
        await run("revoke", "-", stdin=make("test").text)
    row = await run.json("create", "--user", "alice", "--name", "k")
    for words in (["revoke", row["id"], "--user", "bob"], ["rotate", row["id"], "--org", "org_a"]):
        with pytest.raises(ValueError, match="no such key"):
            await run(*words)
    await run("revoke", row["id"], "--user", "alice")
    with pytest.raises(ValueError, match="no such key"):
        await run("rotate", row["id"], "--user", "alice")


async def test_hash(run: Run) -> None:
    key = "gp_any-text-of-old"
    assert await run("hash", stdin=key + "\n") == "sha256:" + hashlib.sha256(key.encode()).hexdigest() + "\n"


@pytest.mark.long
def test_the_real_command_line(db: TestDatabase, tmp_path: Path) -> None:
    def server(*words: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATABASE_URL": db.url, "GATEPOST_ENV": "test"}
        return subprocess.run([sys.executable, "-m", "server", *words], cwd=tmp_path, env=environ, text=True, capture_output=True, check=False)

    made = server("keys", "create", "--user", "alice", "--name", "k", "--json")
    assert (made.returncode, made.stderr) == (0, "")
    row = json.loads(made.stdout)
    assert parse(row["secret"]) is not None
    wrong = server("keys", "revoke", row["id"], "--user", "bob")
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", "gatepost: this owner has no such key\n")
    assert server("keys", "revoke", row["id"], "--user", "alice").returncode == 0
