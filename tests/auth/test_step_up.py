"""Step-up and pending sessions, over HTTP with signed tokens; and the tokens of the command `token`."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from kits import app as app_kit

from providers import clerk as plugin
from server import CommandContext, identity_of, requires, signed_in
from server.commands import operator_scope
from server.testing.clerk import LoopbackClerk

pytest_plugins = ["pytester"]


async def ok(request: web.Request) -> web.Response:
    return web.json_response({"user_id": identity_of(request).user_id})


CUSTOM = {"level": "first_factor", "afterMinutes": 5}
LEVELS: dict[str, Any] = {"strict_mfa": "strict_mfa", "strict": "strict", "moderate": "moderate", "lax": "lax", "custom": CUSTOM}
SECONDS = {"strict_mfa": 600, "strict": 600, "moderate": 3600, "lax": 86400, "custom": 300}
# Clerk's own table: which of strict_mfa, strict, moderate, lax a token with this fva passes; and the custom one above.
FVA: list[tuple[Any, str]] = [
    ([0, -1], "TTTTT"), ([9, -1], "TTTTF"), ([10, -1], "FFTTF"), ([10, 9], "FTTTF"), ([9, 10], "FFTTF"), ([4, 2000], "FFFFT"),
    ([-1, 5], "FTTTF"), ([60, 60], "FFFTF"), ([1440, 1440], "FFFFF"), ([-1, -1], "FFFFF"), ([1], "FFFFF"), ([-2, 1], "FFFFF"),
    (["0", "0"], "FFFFF"), ([True, True], "FFFFF"), ([0, 0, 0], "FFFFF"), ("0,0", "FFFFF"), ({"0": 0}, "FFFFF"), (None, "FFFFF"),
]  # fmt: skip


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[tuple[LoopbackClerk, int]]:
    routes = [web.get(f"/x/{name}", requires(reverification=level)(ok)) for name, level in LEVELS.items()]
    routes += [
        web.get("/x/in", signed_in(ok)),
        web.get("/x/pending", requires(allow_pending=True)(ok)),
        web.get("/x/pending-admin", requires(allow_pending=True, role="org:admin")(ok)),
        web.get("/x/admin-strict", requires(role="org:admin", reverification="strict")(ok)),
        web.get("/x/feature", requires(feature="sso")(ok)),
        web.get("/x/plan", requires(plan="u:pro")(ok)),
        web.get("/x/read", requires(permission="org:invoices:read")(ok)),
    ]
    async with LoopbackClerk() as clerk:
        given = {name.replace(".", "__"): value for name, value in (settings or clerk.settings()).items()}
        async with app_kit.serving(app_kit.build_app({"x": app_kit.routes_plugin(*routes)}, **given)) as port:
            yield clerk, port


async def get(port: int, path: str, token: str) -> app_kit.Reply:
    return await app_kit.ask(port, "GET", path, ("Authorization", f"Bearer {token}"))


async def test_clerks_table_of_ages_for_every_level() -> None:
    async with running() as (clerk, port):
        for fva, passes in FVA:
            token = clerk.token(fva=fva)
            for name, expected in zip(LEVELS, passes, strict=True):
                got = await get(port, f"/x/{name}", token)
                assert (fva, name, got.status) == (fva, name, 200 if expected == "T" else 403)


async def test_the_403_is_one_that_clerks_browser_hook_knows() -> None:
    async with running() as (clerk, port):
        for name, level in LEVELS.items():
            got = await get(port, f"/x/{name}", clerk.token())
            metadata = {"reverification": level}
            assert got.json == {
                "error": "Forbidden",
                "reason": "reverification",
                "clerk_error": {"type": "forbidden", "reason": "reverification-error", "metadata": metadata},
            }
            assert got.headers["content-type"] == "application/json"
            challenge = f'Bearer error="insufficient_user_authentication", max_age={SECONDS[name]}'  # RFC 9470 3
            assert got.headers["www-authenticate"] == challenge


async def test_step_up_is_asked_after_the_role() -> None:
    async with running() as (clerk, port):
        member, admin = {"org_id": "org_1"}, {"org_id": "org_1", "org_role": "org:admin"}
        got = await get(port, "/x/admin-strict", clerk.token(fva=[0, 0], **member))
        assert (got.status, got.json["reason"]) == (403, "role")
        got = await get(port, "/x/admin-strict", clerk.token(fva=[20, 20], **admin))
        assert (got.status, got.json["reason"]) == (403, "reverification")
        assert (await get(port, "/x/admin-strict", clerk.token(fva=[0, 0], **admin))).status == 200


async def test_pending_sessions_are_signed_out_but_where_a_route_lets_them_in() -> None:
    async with running() as (clerk, port):
        for state in ("pending", "", "unknown", 1, True, ["active"]):
            token = clerk.token(sts=state, fva=[0, 0])
            for path in ("/x/in", "/x/lax"):
                got = await get(port, path, token)
                assert (got.status, got.json["reason"]) == (401, "session-pending")
            assert (await get(port, "/x/pending", token)).json == {"user_id": "user_1"}
            assert (await get(port, "/x/pending-admin", token)).status == 403
            assert (await get(port, "/x/nowhere", token)).status == 404
        for token in (clerk.token(sts="active"), clerk.token()):
            assert (await get(port, "/x/in", token)).status == 200
        admin = clerk.token(sts="pending", org_id="org_1", org_role="org:admin")
        assert (await get(port, "/x/pending-admin", admin)).status == 200


async def test_pending_sessions_by_cookie() -> None:
    async with running() as (clerk, port):
        jar = next(iter(clerk.cookies(clerk.token(sts="pending")).items()))
        got = await app_kit.ask(port, "GET", "/x/in", jar)
        assert (got.status, got.json["reason"]) == (401, "session-pending")
        assert (await app_kit.ask(port, "GET", "/x/pending", jar)).status == 200


# The `token` command ---------------------------------------------------------------------------------------------------


async def printed(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    command = plugin.register_commands()["token"]
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    context = CommandContext(env="test", folder=folder, settings={}, database=lambda: None, scoped=operator_scope)
    assert await command.run(parser.parse_args(words), context) == 0
    return capsys.readouterr().out.strip()


SHAPES = [
    ("/x/in", ["--v1"], 200, None),
    ("/x/in", ["--pending"], 401, "session-pending"),
    ("/x/pending", ["--pending", "--v1"], 200, None),
    ("/x/in", ["--expired"], 401, "token-expired"),
    ("/x/in", ["--expired", "--ttl", "5"], 401, "token-expired"),
    ("/x/in", ["--wrong-key"], 401, "credential-rejected"),
    ("/x/strict", ["--fva", "0,-1"], 200, None),
    ("/x/strict", ["--fva=-1,0"], 200, None),
    ("/x/strict", ["--fva", "10,10"], 403, "reverification"),
    ("/x/strict", [], 403, "reverification"),
    ("/x/feature", ["--feature", "sso"], 200, None),
    ("/x/feature", ["--feature", "u:sso", "--v1"], 200, None),
    ("/x/feature", ["--org", "o", "--permission", "org:invoices:read", "--feature", "u:x", "--feature", "sso"], 200, None),
    ("/x/feature", ["--feature", "other"], 403, "feature"),
    ("/x/plan", ["--plan", "pro"], 200, None),
    ("/x/plan", ["--plan", "pro", "--org", "org_1"], 403, "plan"),
    ("/x/plan", ["--plan", "u:pro", "--org", "org_1"], 200, None),
    ("/x/read", ["--org", "o", "--permission", "org:invoices:read", "--feature", "u:x", "--feature", "sso"], 200, None),
    ("/x/read", ["--org", "o", "--permission", "org:invoices:read", "--v1"], 200, None),
    ("/x/read", ["--org", "o", "--permission", "org:invoices:write"], 403, "permission"),
    ("/x/pending-admin", ["--org", "o", "--role", "org:admin", "--v1"], 200, None),
]


async def test_the_token_command_mints_every_shape(tmp_path, capsys) -> None:
    async with running(providers=["clerk"], data_folder=str(tmp_path)) as (_, port):
        for path, words, status, reason in SHAPES:
            got = await get(port, path, await printed(tmp_path, capsys, *words))
            assert (words, got.status, got.json.get("reason")) == (words, status, reason)


async def test_permissions_survive_features_beside_them(tmp_path, capsys) -> None:
    words = ["--org", "o", "--permission", "org:a:read", "--feature", "u:x", "--feature", "o:b", "--feature", "a"]
    claims = jwt.decode(await printed(tmp_path, capsys, *words), options={"verify_signature": False})
    assert (claims["fea"], claims["o"]["fpm"]) == ("o:a,o:b,u:x", "1")


@pytest.mark.parametrize(
    "words", [["--fva", "1"], ["--fva", "a,b"], ["--fva", "1,2,3"], ["--fva=-2,1"], ["--feature", "a,b"], ["--plan", "x:y:z"],
              ["--plan", ""], ["--v1", "--role", "org:admin"], ["--v1", "--permission", "org:a:b"]]
)  # fmt: skip
async def test_the_token_command_refuses(tmp_path, capsys, words) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        await printed(tmp_path, capsys, *words)


# The pytest plugin -----------------------------------------------------------------------------------------------------

USERS_TESTS = """
    import pytest
    from aiohttp import web
    from types import SimpleNamespace
    from server import hookimpl, identity_of, requires

    @requires(role="org:admin")
    async def mine(request):
        return web.json_response({"user_id": identity_of(request).user_id})

    @pytest.fixture
    def gatepost_plugins():
        routes = hookimpl(lambda: [web.get("/api/mine", mine)], specname="register_handlers")
        return {"mine": SimpleNamespace(register_handlers=routes)}

    @pytest.mark.asyncio
    async def test_mine(client_as):
        admin, member = await client_as("anna", org_id="org_1", org_role="org:admin"), await client_as("alice", org_id="org_1")
        async with admin.get("/api/mine") as answer:
            assert (answer.status, await answer.json()) == (200, {"user_id": "anna"})
        for client, status in ((member, 403), (await client_as(None), 401)):
            async with client.get("/api/mine") as answer:
                assert answer.status == status
        async with member.post("/api/data", json={"name": "a"}) as answer:
            assert answer.status == 201

    @pytest.mark.asyncio
    async def test_machine(gatepost, loopback_clerk, client_as):
        client = await client_as(None)
        headers = {"Authorization": f"Bearer {loopback_clerk.machine_token('user_1')}"}
        async with client.get("/api/me", headers=headers) as answer:
            assert answer.status == 401
"""


@pytest.mark.long
@pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="it names a server to make databases on, here, not a database")
def test_the_pytest_plugin_for_those_who_build_on_gatepost(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["server.testing"]')
    pytester.makepyfile(USERS_TESTS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-o", "asyncio_mode=strict")
    result.assert_outcomes(passed=2)
