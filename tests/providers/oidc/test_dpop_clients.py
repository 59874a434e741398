"""DPoP end to end: tokens of npm oidc-provider, proofs by npm dpop and oauth4webapi, and the two clients of the guide."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from kits.dpop import SECRET
from kits.oidc_provider import MODULES, REDIRECT, RESOURCE, OidcProvider, oidc_provider
from kits.pages import blocks
from yarl import URL

from tests.conftest import Client, Serve

PAGE = "docs/guides/dpop.md"


@pytest.fixture
async def provider() -> AsyncIterator[OidcProvider]:
    if not (MODULES / "node_modules" / "dpop").exists():
        pytest.skip("dpop is not installed: make client-tools")
    async with oidc_provider(dpop_nonces=True) as made:
        yield made


async def served(serve: Serve, provider: OidcProvider, **members: Any) -> Client:
    table = {"issuer": provider.issuer, "audience": RESOURCE, "dpop": "required", **members}
    return await serve({"providers": ["oidc"], "oidc.issuers": [table], "oidc.dpop_nonce_secret": SECRET})


async def grant(provider: OidcProvider, user: str) -> dict[str, str]:
    """The form with which a client that `user` has signed in to asks for its tokens."""
    verifier = secrets.token_urlsafe(32)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    asked = {"client_id": "app", "response_type": "code", "redirect_uri": REDIRECT, "scope": "openid", "code_challenge": challenge,
             "code_challenge_method": "S256", "state": "s", "login_hint": user, "resource": RESOURCE}  # fmt: skip
    answer = await provider.follow(user, URL(provider.metadata["authorization_endpoint"]).with_query(asked))
    return {"grant_type": "authorization_code", "code": answer["code"], "redirect_uri": REDIRECT, "code_verifier": verifier,
            "client_id": "app", "resource": RESOURCE}  # fmt: skip


async def node(folder: Path, client: str, program: str, *arguments: str) -> Any:
    """What a program prints as JSON; `client` is a module beside it."""
    (folder / "node_modules").symlink_to(MODULES / "node_modules")
    (folder / "client.mjs").write_text(client)
    (folder / "program.mjs").write_text(program)
    found = shutil.which("node")
    assert found is not None
    process = await asyncio.create_subprocess_exec(
        found, "program.mjs", *arguments, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


THE_PAGES = """
import { send } from './client.mjs'
const [endpoint, form, api] = process.argv.slice(2)
const body = new URLSearchParams(JSON.parse(form))
const issued = await (await send(endpoint, { method: 'POST', body })).json()
const token = issued.access_token
const seen = []
const take = async (response) => seen.push([response.status, await response.json()])
await take(await send(`${api}/api/me?x=1`, { token }))
await take(await send(`${api}/api/me`, { token }))
const data = { method: 'POST', token, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ data: { a: 1 } }) }
await take(await send(`${api}/api/data`, data))
await take(await fetch(`${api}/api/me`, { headers: { Authorization: `Bearer ${token}` } }))
await take(await fetch(`${api}/api/me`, { headers: { Authorization: `DPoP ${token}` } }))
console.log(JSON.stringify({ type: issued.token_type, seen }))
"""


@pytest.mark.parametrize("nonce", [False, True])
async def test_the_javascript_of_the_guide(serve: Serve, provider: OidcProvider, tmp_path: Path, nonce: bool) -> None:
    client = await served(serve, provider, dpop_nonce=nonce)
    [block] = blocks("typescript", page=PAGE)
    arguments = (provider.metadata["token_endpoint"], json.dumps(await grant(provider, "alice")), f"http://127.0.0.1:{client.port}")
    said = await node(tmp_path, block.text, THE_PAGES, *arguments)
    assert said["type"] == "DPoP"
    me, again, written, bearer, unproved = said["seen"]
    assert (me[0], me[1]["user_id"], again[0]) == (200, "alice", 200), said["seen"]
    assert written[0] in (201, 422)
    assert [(status, body["reason"]) for status, body in (bearer, unproved)] == [(401, "proof-missing")] * 2


@pytest.mark.parametrize("nonce", [False, True])
async def test_the_python_of_the_guide(serve: Serve, provider: OidcProvider, nonce: bool) -> None:
    client = await served(serve, provider, dpop_nonce=nonce)
    [block] = blocks("python", page=PAGE)
    names: dict[str, Any] = {}
    exec(compile(block.text, PAGE, "exec"), names)
    async with aiohttp.ClientSession() as session:
        sender = names["Sender"](session)
        answer = await sender.send("POST", provider.metadata["token_endpoint"], data=await grant(provider, "alice"))
        issued = await answer.json()
        assert issued["token_type"] == "DPoP", issued
        for query in ("", "?x=1"):
            url = f"http://127.0.0.1:{client.port}/api/me{query}"
            answer = await sender.send("GET", url, issued["access_token"])
            assert (answer.status, (await answer.json())["user_id"]) == (200, "alice")


OAUTH4WEBAPI = """
import * as oauth from 'oauth4webapi'
const [issuer, form, api] = process.argv.slice(2)
const given = JSON.parse(form), insecure = { [oauth.allowInsecureRequests]: true }
const found = await oauth.discoveryRequest(new URL(issuer), insecure)
const as = await oauth.processDiscoveryResponse(new URL(issuer), found)
const client = { client_id: 'app' }, seen = []
for (const algorithm of ['ES256', 'Ed25519']) {
  const keys = await oauth.generateKeyPair(algorithm)
  const DPoP = oauth.DPoP(client, keys)
  const request = () => oauth.clientCredentialsGrantRequest(
    as, { client_id: 'service' }, oauth.ClientSecretBasic('canary-service'), given, { DPoP, ...insecure })
  const issue = async () => oauth.processClientCredentialsResponse(as, client, await request())
  const { access_token } = await issue().catch((error) => oauth.isDPoPNonceError(error) ? issue() : Promise.reject(error))
  const ask = () => oauth.protectedResourceRequest(access_token, 'GET', new URL(`${api}/api/me`), undefined, undefined, { DPoP, ...insecure })
  let asked = 1
  const answer = await ask().catch((error) => { asked++; return oauth.isDPoPNonceError(error) ? ask() : Promise.reject(error) })
  seen.push([algorithm, answer.status, asked])
}
console.log(JSON.stringify(seen))
"""


@pytest.mark.parametrize("nonce", [False, True])
async def test_oauth4webapi(serve: Serve, provider: OidcProvider, tmp_path: Path, nonce: bool) -> None:
    """Another library: it asks again by itself only where it understands the challenge."""
    client = await served(serve, provider, dpop_nonce=nonce)
    arguments = (provider.issuer, json.dumps({"resource": RESOURCE}), f"http://127.0.0.1:{client.port}")
    seen = await node(tmp_path, "", OAUTH4WEBAPI, *arguments)
    assert [algorithm for algorithm, _, _ in seen] == ["ES256", "Ed25519"]
    assert all(status in (200, 403) and asked == 1 + nonce for _, status, asked in seen), seen
