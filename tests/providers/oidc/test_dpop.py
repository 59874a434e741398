"""DPoP over real HTTP: every rule of RFC 9449 4.3 and 7 broken one by one, with proofs that another library makes."""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from joserfc.jwk import OctKey
from kits import oidc as oidc_kit
from kits.dpop import SECRET, Holder, ath_of
from kits.oidc import AUDIENCE, DROP, Issuer, key, sign
from kits.tokens import b64

from providers.oidc.dpop_nonce import SECONDS, Nonces
from providers.oidc.dpop_proof import InvalidProof, ProofReader
from server import requires, signed_in
from server.http.errors import Unauthorized
from tests.conftest import Client, Serve, TestDatabase, plugin

ALGS = "ES256 ES384 ES512 Ed25519 EdDSA PS256 RS256"
PATH = "/api/me"


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with oidc_kit.serve() as made:
        yield made


def given(issuer: Issuer, mode: str = "accept", **members: Any) -> dict[str, Any]:
    more = {"oidc.dpop_nonce_secret": SECRET} if members.get("dpop_nonce") else {}
    return {"providers": ["oidc", "stub", "api_key"],
            "oidc.issuers": [{"issuer": issuer.url, "audience": AUDIENCE, "dpop": mode, **members}], **more}  # fmt: skip


@pytest.fixture
async def client(serve: Serve, issuer: Issuer) -> Client:
    return await serve(given(issuer))


def url(client: Client, path: str = PATH) -> str:
    return f"http://127.0.0.1:{client.port}{path}"


HOLDER = Holder()


# What is taken ------------------------------------------------------------------------------------------------------------


async def test_a_bound_token_with_its_proof(client: Client, issuer: Issuer) -> None:
    for alg in ALGS.split():
        holder = Holder(alg)
        token = holder.token(issuer)
        for _ in range(3):  # verified, then known: a proof each time
            got = await client.get(PATH, holder.headers(token, "GET", url(client)))
            assert got.status == 200, (alg, got.json())
        assert got.json()["user_id"] == "alice"


@pytest.mark.parametrize("alg", ["ES384", "PS512"])
async def test_only_the_algorithms_that_are_listed(serve: Serve, issuer: Issuer, alg: str) -> None:
    client = await serve(given(issuer, dpop_algorithms=["ES256"]))
    holder = Holder(alg)
    got = await client.get(PATH, holder.headers(holder.token(issuer), "GET", url(client)))
    assert (got.status, got.json()["reason"]) == (401, "proof-rejected")
    assert got.headers["WWW-Authenticate"] == 'DPoP error="invalid_dpop_proof", algs="ES256"'


async def test_an_unbound_token_stays_a_bearer_token(client: Client, issuer: Issuer) -> None:
    token = issuer.token()
    for _ in range(2):
        assert (await client.get(PATH, {"Authorization": f"Bearer {token}"})).status == 200
        got = await client.get(PATH, {"Authorization": f"Bearer {token}", "DPoP": "anything"})
        assert got.status == 200, "a bearer token needs no proof, so none is read"
        got = await client.get(PATH, HOLDER.headers(token, "GET", url(client)))
        assert (got.status, got.json()["reason"]) == (401, "token-unbound")
        assert got.headers["WWW-Authenticate"].startswith('DPoP error="invalid_token"')


async def test_the_scheme_in_any_case_and_one_space(client: Client, issuer: Issuer) -> None:
    token = HOLDER.token(issuer)
    for scheme, fine in [("dpop", True), ("DPOP", True), ("DPoP ", False), ("DPoP\t", False)]:
        proof = HOLDER.proof(token, "GET", url(client))
        got = await client.get(PATH, {"Authorization": f"{scheme} {token}", "DPoP": proof})
        assert (got.status == 200) == fine, scheme


async def test_the_proof_in_a_header_of_any_case(client: Client, issuer: Issuer) -> None:
    token = HOLDER.token(issuer)
    async with client.wire() as wire:
        proof = HOLDER.proof(token, "GET", url(client))
        await wire.send(f"GET {PATH}", {"authorization": f"DPoP {token}", "dpop": proof})
        assert (await wire.answer())[0] == 200


# Never a bearer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["off", "accept", "required"])
async def test_a_bound_token_is_never_a_bearer(serve: Serve, issuer: Issuer, mode: str) -> None:
    client = await serve(given(issuer, mode))
    token = HOLDER.token(issuer)
    for known in (False, True):
        if known and mode != "off":  # a token that was verified with its proof is no bearer's either
            assert (await client.get(PATH, HOLDER.headers(token, "GET", url(client)))).status == 200
        for headers in ({}, {"DPoP": HOLDER.proof(token, "GET", url(client))}):
            got = await client.get(PATH, {"Authorization": f"Bearer {token}", **headers})
            assert got.status == 401
            assert got.json()["reason"] == ("token-type" if mode == "off" else "proof-missing")
            assert got.headers.getall("WWW-Authenticate")[0].startswith('Bearer error="invalid_token"')
            assert ("DPoP" in str(got.headers.getall("WWW-Authenticate"))) == (mode != "off")


async def test_off_takes_no_proof(serve: Serve, issuer: Issuer) -> None:
    client = await serve(given(issuer, "off"))
    for token in (HOLDER.token(issuer), issuer.token()):
        got = await client.get(PATH, HOLDER.headers(token, "GET", url(client)))
        assert (got.status, got.json()["reason"]) == (401, "credential-rejected")
        assert "DPoP" not in got.headers["WWW-Authenticate"]
        assert "dpop" not in got.headers["Vary"].lower()


async def test_required_refuses_every_unbound_token(serve: Serve, issuer: Issuer) -> None:
    client = await serve(given(issuer, "required"))
    token = issuer.token()
    got = await client.get(PATH, {"Authorization": f"Bearer {token}"})
    assert (got.status, got.json()["reason"]) == (401, "token-unbound")
    assert (await client.get(PATH, HOLDER.headers(token, "GET", url(client)))).json()["reason"] == "token-unbound"
    bound = HOLDER.token(issuer)
    assert (await client.get(PATH, HOLDER.headers(bound, "GET", url(client)))).status == 200


async def test_one_issuer_off_and_another_on(serve: Serve, issuer: Issuer) -> None:
    async with oidc_kit.serve() as other:
        settings = given(issuer, namespace="a")
        settings["oidc.issuers"].append({"issuer": other.url, "audience": AUDIENCE, "namespace": "b"})
        client = await serve(settings)
        token = HOLDER.token(other)
        got = await client.get(PATH, HOLDER.headers(token, "GET", url(client)))
        assert (got.status, got.json()["reason"]) == (401, "token-type")
        got = await client.get(PATH, HOLDER.headers(other.token(), "GET", url(client)))
        assert (got.status, got.json()["reason"]) == (401, "credential-rejected")


X5T = "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"
BINDINGS = {
    "mutual TLS": {"x5t#S256": X5T},
    "mutual TLS beside": {"jkt": HOLDER.jkt, "x5t#S256": X5T},
    "a key id": {"kid": "x"},
    "a whole key": {"jwk": HOLDER.jwk},
    "an unknown member": {"jkt": HOLDER.jkt, "new": 1},
    "empty": {},
    "null": None,
    "a text": HOLDER.jkt,
    "a list": [{"jkt": HOLDER.jkt}],
    "a short thumbprint": {"jkt": HOLDER.jkt[:-1]},
    "a padded thumbprint": {"jkt": HOLDER.jkt + "="},
    "a thumbprint with loose bits": {"jkt": "A" * 42 + "B"},
    "a number": {"jkt": 7},
    "a null thumbprint": {"jkt": None},
    "in capitals": {"JKT": HOLDER.jkt},
}


async def test_another_binding_is_refused_with_and_without_a_proof(client: Client, issuer: Issuer) -> None:
    for name, cnf in BINDINGS.items():
        token = issuer.token(cnf=cnf)
        for headers in (HOLDER.headers(token, "GET", url(client)), {"Authorization": f"Bearer {token}"}):
            got = await client.get(PATH, headers)
            assert (got.status, got.json()["reason"]) == (401, "token-type"), name


# RFC 9449 4.3, rule by rule ------------------------------------------------------------------------------------------------

RSA = key("RS256", "attacker")
PRIVATE = HOLDER.key.as_dict(private=True)
Broken = tuple[dict[str, Any], str]
BROKEN: dict[str, Broken] = {
    "typ of a JWT": ({"head": {"typ": "JWT"}}, "proof-rejected"),
    "typ of an access token": ({"head": {"typ": "at+jwt"}}, "proof-rejected"),
    "typ in capitals": ({"head": {"typ": "DPOP+JWT"}}, "proof-rejected"),
    "no typ": ({"head": {"typ": DROP}}, "proof-rejected"),
    "no jwk": ({"head": {"jwk": DROP}}, "proof-rejected"),
    "jwk null": ({"head": {"jwk": None}}, "proof-rejected"),
    "jwk a list": ({"head": {"jwk": [HOLDER.jwk]}}, "proof-rejected"),
    "jwk empty": ({"head": {"jwk": {}}}, "proof-rejected"),
    "jwk a set": ({"head": {"jwk": {"keys": [HOLDER.jwk]}}}, "proof-rejected"),
    "jwk private": ({"head": {"jwk": PRIVATE}}, "proof-rejected"),
    "jwk private, empty": ({"head": {"jwk": {**HOLDER.jwk, "d": ""}}}, "proof-rejected"),
    "jwk symmetric": ({"head": {"jwk": {"kty": "oct", "k": "AAAA"}}}, "proof-rejected"),
    "jwk symmetric beside": ({"head": {"jwk": {**HOLDER.jwk, "k": "AAAA"}}}, "proof-rejected"),
    "jwk for encryption": ({"head": {"jwk": {**HOLDER.jwk, "use": "enc"}}}, "proof-rejected"),
    "jwk of another alg": ({"head": {"jwk": {**HOLDER.jwk, "alg": "ES384"}}}, "proof-rejected"),
    "jwk of a number": ({"head": {"jwk": {**HOLDER.jwk, "x": 7}}}, "proof-rejected"),
    "jwk off the curve": ({"head": {"jwk": {**HOLDER.jwk, "y": HOLDER.jwk["x"]}}}, "proof-rejected"),
    "jwk of another key": ({"head": {"jwk": Holder(name="attacker").jwk}}, "proof-rejected"),
    "jwk huge": ({"head": {"jwk": {**HOLDER.jwk, "x": "A" * 4000}}}, "proof-rejected"),
    "jwk of RSA, huge": ({"head": {"jwk": {"kty": "RSA", "n": "A" * 4000, "e": "AQAB"}}}, "proof-rejected"),
    "jwk with an empty kid": ({"head": {"jwk": {**HOLDER.jwk, "kid": ""}}}, "proof-rejected"),
    "another key's signature": ({"signer": key("ES256", "attacker")}, "proof-rejected"),
    "another key in full": ({"head": {"jwk": Holder(name="attacker").jwk}, "signer": key("ES256", "attacker")}, "proof-rejected"),
    "crit": ({"head": {"crit": ["exp"], "exp": 1}}, "proof-rejected"),
    "b64": ({"head": {"b64": True}}, "proof-rejected"),
    "no jti": ({"jti": DROP}, "proof-rejected"),
    "jti empty": ({"jti": ""}, "proof-rejected"),
    "jti a number": ({"jti": 7}, "proof-rejected"),
    "jti of 256": ({"jti": "x" * 256}, "proof-rejected"),
    "no htm": ({"htm": DROP}, "proof-rejected"),
    "htm a list": ({"htm": ["GET"]}, "proof-rejected"),
    "htm of POST": ({"htm": "POST"}, "proof-target"),
    "htm of HEAD": ({"htm": "HEAD"}, "proof-target"),
    "htm in lower case": ({"htm": "get"}, "proof-target"),
    "htm empty": ({"htm": ""}, "proof-target"),
    "no htu": ({"htu": DROP}, "proof-rejected"),
    "htu null": ({"htu": None}, "proof-rejected"),
    "htu a path": ({"htu": PATH}, "proof-target"),
    "htu empty": ({"htu": ""}, "proof-target"),
    "no iat": ({"iat": DROP}, "proof-rejected"),
    "iat a text": ({"iat": "now"}, "proof-rejected"),
    "iat true": ({"iat": True}, "proof-rejected"),
    "iat negative": ({"iat": -1}, "proof-rejected"),
    "iat 0": ({"iat": 0}, "proof-expired"),
    "iat far away": ({"iat": 2**39}, "proof-expired"),
    "no ath": ({"ath": DROP}, "proof-rejected"),
    "ath null": ({"ath": None}, "proof-rejected"),
    "ath of another token": ({"ath": ath_of("x")}, "proof-token"),
    "ath padded": ({"ath": ath_of("x") + "="}, "proof-token"),
    "ath not ASCII": ({"ath": "\u00e4" * 43}, "proof-token"),
    "ath half a character": ({"ath": "\ud800"}, "proof-rejected"),
    "exp past": ({"exp": 1}, "proof-expired"),
    "exp a text": ({"exp": "x"}, "proof-rejected"),
    "nbf to come": ({"nbf": 2**39}, "proof-expired"),
    "nonce a number": ({"nonce": 7}, "proof-rejected"),
}


async def test_every_broken_proof(client: Client, issuer: Issuer) -> None:
    token = HOLDER.token(issuer)
    for known in (False, True):
        for name, (wrong, reason) in BROKEN.items():
            got = await client.get(PATH, HOLDER.headers(token, "GET", url(client), **wrong))
            assert (got.status, got.json()["reason"]) == (401, reason), name
            assert got.headers["WWW-Authenticate"] == f'DPoP error="invalid_dpop_proof", algs="{ALGS}"', name
            assert got.headers["Cache-Control"] == "no-store"
        if not known:  # and once more when token and header are remembered
            assert (await client.get(PATH, HOLDER.headers(token, "GET", url(client)))).status == 200


def _unsigned(token: str, target: str) -> str:
    _, payload, signature = HOLDER.proof(token, "GET", target).split(".")
    head = b64(json.dumps({"typ": "dpop+jwt", "alg": "none", "jwk": HOLDER.jwk}).encode())
    return f"{head}.{payload}.{signature}"


def _symmetric(token: str, target: str) -> str:
    """HS256 with the public key as the secret."""
    payload = json.dumps({"jti": "1", "htm": "GET", "htu": target, "iat": int(time.time()), "ath": ath_of(token)})
    return sign({"typ": "dpop+jwt", "alg": "HS256", "jwk": HOLDER.jwk}, payload, OctKey.import_key(json.dumps(HOLDER.jwk)))


def _twice(token: str, target: str) -> str:
    """A duplicate member in the payload."""
    usual = f'"jti": "1", "htm": "GET", "iat": {int(time.time())}, "ath": "{ath_of(token)}"'
    head = {"typ": "dpop+jwt", "alg": "ES256", "jwk": HOLDER.jwk}
    return sign(head, f'{{{usual}, "htu": "http://evil.example/", "htu": "{target}"}}', HOLDER.key)


def _flipped(token: str, target: str) -> str:
    head, payload, signature = HOLDER.proof(token, "GET", target).split(".")
    return f"{head}.{payload}.{('A' if signature[9] != 'A' else 'B').join((signature[:9], signature[10:]))}"


TEXTS: dict[str, Callable[[str, str], str]] = {
    "empty": lambda token, target: "",
    "a word": lambda token, target: "proof",
    "two proofs with a comma": lambda token, target: ", ".join(HOLDER.proof(token, "GET", target) for _ in range(2)),
    "a proof and a blank": lambda token, target: HOLDER.proof(token, "GET", target) + " x",
    "the access token": lambda token, target: token,
    "four segments": lambda token, target: HOLDER.proof(token, "GET", target) + ".x",
    "padding": lambda token, target: HOLDER.proof(token, "GET", target) + "=",
    "not signed": _unsigned,
    "HS256 with the public key": _symmetric,
    "a duplicate member": _twice,
    "a changed signature": _flipped,
    "a JSON text": lambda token, target: sign({"typ": "dpop+jwt", "alg": "ES256", "jwk": HOLDER.jwk}, '"x"', HOLDER.key),
    "no JSON": lambda token, target: sign({"typ": "dpop+jwt", "alg": "ES256", "jwk": HOLDER.jwk}, "x", HOLDER.key),
}


async def test_what_is_no_proof(client: Client, issuer: Issuer) -> None:
    token = HOLDER.token(issuer)
    for name, text in TEXTS.items():
        got = await client.get(PATH, {"Authorization": f"DPoP {token}", "DPoP": text(token, url(client))})
        assert (got.status, got.json()["reason"]) == (401, "proof-rejected"), name
        assert got.headers["WWW-Authenticate"] == f'DPoP error="invalid_dpop_proof", algs="{ALGS}"'


def test_a_proof_of_more_than_8_kib_is_not_read(issuer: Issuer) -> None:
    reader = ProofReader(["ES256"])
    assert reader.read(HOLDER.proof("x", "GET", "http://x/", more="x" * 5500), HOLDER.jkt).htm == "GET"
    with pytest.raises(InvalidProof, match="8 KiB"):
        reader.read(HOLDER.proof("x", "GET", "http://x/", more="x" * 6500), HOLDER.jkt)


async def test_exactly_one_header(client: Client, issuer: Issuer) -> None:
    token = HOLDER.token(issuer)
    got = await client.get(PATH, {"Authorization": f"DPoP {token}"})
    assert (got.status, got.json()["reason"]) == (401, "proof-missing")
    async with client.wire() as wire:
        proofs = [HOLDER.proof(token, "GET", url(client)) for _ in range(2)]
        await wire.send(f"GET {PATH}", {"Authorization": f"DPoP {token}", "DPoP": proofs[0], "dpop": proofs[1]})
        status, _, body = await wire.answer()
        assert (status, json.loads(body)["reason"]) == (401, "proof-rejected")


async def test_a_weak_key_is_refused_even_if_the_token_names_it(client: Client, issuer: Issuer) -> None:
    """The issuer binds the token to the key, and the key is still held to the rules of every key."""
    holder = Holder("RS256")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        holder.key = oidc_kit.RSAKey.generate_key(1024)
    holder.jwk = {name: value for name, value in holder.key.as_dict(private=False).items() if name != "kid"}
    token = holder.token(issuer)
    got = await client.get(PATH, holder.headers(token, "GET", url(client)))
    assert (got.status, got.json()["reason"]) == (401, "proof-rejected")


async def test_a_bad_token_with_a_good_proof(client: Client, issuer: Issuer) -> None:
    for token, reason in [
        (HOLDER.token(issuer, exp=1, iat=0), "token-expired"),
        (HOLDER.token(issuer, aud="x"), "token-audience"),
        (HOLDER.token(issuer, signer=key("RS256", "attacker")), "credential-rejected"),
        (HOLDER.token(issuer, nonce="x"), "token-type"),
    ]:
        got = await client.get(PATH, HOLDER.headers(token, "GET", url(client)))
        assert (got.status, got.json()["reason"]) == (401, reason)
        assert got.headers["WWW-Authenticate"] == f'DPoP error="invalid_token", algs="{ALGS}"'


async def test_another_keys_proof_for_a_known_token(client: Client, issuer: Issuer) -> None:
    token = HOLDER.token(issuer)
    assert (await client.get(PATH, HOLDER.headers(token, "GET", url(client)))).status == 200
    for thief in (Holder(name="attacker"), Holder("RS256", "attacker"), Holder("Ed25519", "attacker")):
        for _ in range(2):  # also where the thief's header is remembered from a token of their own
            got = await client.get(PATH, thief.headers(token, "GET", url(client)))
            assert (got.status, got.json()["reason"]) == (401, "proof-rejected")
            own = thief.token(issuer)
            assert (await client.get(PATH, thief.headers(own, "GET", url(client)))).status == 200


# Time and replay -----------------------------------------------------------------------------------------------------------


async def test_clocks_that_differ(client: Client, issuer: Issuer) -> None:
    token = HOLDER.token(issuer)
    for off, fine in [(-50, True), (50, True), (-70, False), (70, False)]:
        got = await client.get(PATH, HOLDER.headers(token, "GET", url(client), iat=int(time.time()) + off))
        assert (got.status == 200) == fine, off
        assert fine or got.json()["reason"] == "proof-expired"


async def test_a_proof_counts_once(client: Client, issuer: Issuer) -> None:
    token = HOLDER.token(issuer)
    headers = HOLDER.headers(token, "GET", url(client))
    assert (await client.get(PATH, headers)).status == 200
    for _ in range(2):
        got = await client.get(PATH, headers)
        assert (got.status, got.json()["reason"]) == (401, "proof-replayed")
    for wrong in ({"jti": "same"}, {"jti": "same", "more": 1}):  # the same jti in another proof is a repeat too
        got = await client.get(PATH, HOLDER.headers(token, "GET", url(client), **wrong))
        assert got.status == (401 if "more" in wrong else 200)
    other = Holder(name="other")  # and another client's jti is its own
    headers = other.headers(other.token(issuer), "GET", url(client), jti="same")
    assert (await client.get(PATH, headers)).status == 200


async def test_a_refused_proof_is_not_used_up(client: Client, issuer: Issuer) -> None:
    token = HOLDER.token(issuer)
    headers = HOLDER.headers(token, "GET", url(client))
    assert (await client.get(PATH + "?x=1", {**headers, "Authorization": "DPoP x.y.z"})).status == 401
    assert (await client.post("/api/data", headers, json={})).json()["reason"] == "proof-target"
    assert (await client.get(PATH, headers)).status == 200


async def test_of_many_at_once_one_is_served(client: Client, issuer: Issuer) -> None:
    for known in (False, True):
        token = HOLDER.token(issuer)
        if known:
            assert (await client.get(PATH, HOLDER.headers(token, "GET", url(client)))).status == 200
        headers = HOLDER.headers(token, "GET", url(client))
        statuses = [got.status for got in await asyncio.gather(*(client.get(PATH, headers) for _ in range(20)))]
        assert sorted(statuses) == [200, *([401] * 19)]


async def test_a_retry_needs_a_new_proof(client: Client, issuer: Issuer) -> None:
    token, target = HOLDER.token(issuer), url(client, "/api/data")
    body = {"name": "n", "value": {"a": 1}}
    headers = {**HOLDER.headers(token, "POST", target), "Idempotency-Key": "k1"}
    first = await client.post("/api/data", headers, json=body)
    assert first.status in (201, 422), first.json()
    assert (await client.post("/api/data", headers, json=body)).json()["reason"] == "proof-replayed"
    again = await client.post("/api/data", {**HOLDER.headers(token, "POST", target), "Idempotency-Key": "k1"}, json=body)
    assert again.status == first.status


async def test_a_revocation_ends_a_known_bound_token(client: Client, issuer: Issuer, db: TestDatabase) -> None:
    token = HOLDER.token(issuer, sid="sess_9")
    assert (await client.get(PATH, HOLDER.headers(token, "GET", url(client)))).status == 200
    await db.rows("INSERT INTO revocations (kind, subject, expires_at) VALUES ('session', 'sess_9', now() + interval '1 hour')")
    async with asyncio.timeout(5):
        while (got := await client.get(PATH, HOLDER.headers(token, "GET", url(client)))).status == 200:
            await asyncio.sleep(0.05)
    assert (got.status, got.json()["reason"]) == (401, "session-revoked")
    assert got.headers["WWW-Authenticate"] == f'DPoP error="invalid_token", algs="{ALGS}"'


# Challenges, CORS, other credentials --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["DPoP", "dpop"])
async def test_the_error_of_a_refusal_is_in_the_challenge_of_the_scheme(serve: Serve, issuer: Issuer, scheme: str) -> None:
    """RFC 9449 7.1: the provider, the gate or a handler refuses a token that was sent under `DPoP`."""

    @requires(scopes=["a", "b"])
    async def scopes(request: web.Request) -> web.Response:
        return web.Response()

    @requires(accepts=["session_token"])
    async def sessions(request: web.Request) -> web.Response:
        return web.Response()

    @requires(reverification="strict")
    async def verified(request: web.Request) -> web.Response:
        return web.Response()

    @signed_in
    async def handlers_own(request: web.Request) -> web.Response:
        raise Unauthorized("session-revoked")

    routes = {"/scopes": scopes, "/sessions": sessions, "/verified": verified, "/own": handlers_own}
    bad = 'error="invalid_token"'
    refusals = {
        "/scopes": (403, "scope", 'error="insufficient_scope", scope="a b"'),
        "/sessions": (401, "token-type", bad),
        "/verified": (403, "reverification", 'error="insufficient_user_authentication", max_age=600'),
        "/own": (401, "session-revoked", bad),
    }
    for settings in ({}, {"resource.url": "https://api.acme.example"}):
        client = await serve({**given(issuer), **settings}, extra={"acme": plugin(*(web.get(path, one) for path, one in routes.items()))})
        known = HOLDER.token(issuer)
        strange = [(PATH, token, (401, "credential-rejected", bad)) for token in ("x", "gp_nobody-knows-this-key", HOLDER.token(issuer, iss="https://other.example"))]
        for path, token, (status, reason, error) in [*((path, known, refusal) for path, refusal in refusals.items()), *strange]:
            address = f"{settings['resource.url']}{path}" if settings else url(client, path)
            headers = HOLDER.headers(token, "GET", address)
            got = await client.get(path, {**headers, "Authorization": f"{scheme} {token}"})
            assert (got.status, got.json()["reason"]) == (status, reason)
            (challenge,) = got.headers.getall("WWW-Authenticate")
            metadata = f', resource_metadata="https://api.acme.example/.well-known/oauth-protected-resource{path}"' if settings else ""
            assert challenge == f'DPoP {error}, algs="{ALGS}"{metadata}'
        # Under `Bearer` the error stays in the challenge of that scheme.
        got = await client.get("/scopes", {"Authorization": f"Bearer {issuer.token()}"})
        assert got.headers["WWW-Authenticate"].startswith('Bearer error="insufficient_scope", scope="a b"')
        got = await client.get(PATH, {"Authorization": "Bearer x"})
        assert got.headers["WWW-Authenticate"].startswith(f"Bearer {bad}")
        assert got.headers["WWW-Authenticate"].endswith(f', DPoP algs="{ALGS}"')


async def test_where_no_issuer_takes_proofs_the_scheme_has_no_challenge(serve: Serve, issuer: Issuer) -> None:
    client = await serve(given(issuer, "off"))
    token = HOLDER.token(issuer)
    got = await client.get(PATH, HOLDER.headers(token, "GET", url(client)))
    assert (got.status, got.headers["WWW-Authenticate"]) == (401, 'Bearer error="invalid_token"')


async def test_the_challenge_names_the_algorithms(client: Client) -> None:
    got = await client.get(PATH)
    assert (got.status, got.json()["reason"]) == (401, "credential-missing")
    challenges = ", ".join(got.headers.getall("WWW-Authenticate"))
    assert challenges == f'Bearer, DPoP algs="{ALGS}"'
    got = await client.get(PATH, {"DPoP": HOLDER.proof("x", "GET", url(client))})
    assert got.json()["reason"] == "credential-missing", "a proof alone is no credential"


async def test_pages_may_send_proofs_and_read_nonces(serve: Serve, issuer: Issuer) -> None:
    origin = "https://app.example.com"
    client = await serve({**given(issuer), "cors_origins": [origin]})
    asked = {"Origin": origin, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "dpop"}
    got = await client.send("OPTIONS", PATH, asked)
    assert "DPoP" in got.headers["Access-Control-Allow-Headers"].split(", ")
    got = await client.get(PATH, {"Origin": origin})
    assert {"DPoP-Nonce", "WWW-Authenticate"} <= set(got.headers["Access-Control-Expose-Headers"].split(", "))
    assert "DPoP" in got.headers["Vary"]


async def test_two_credentials_stay_ambiguous(client: Client, issuer: Issuer) -> None:
    token = HOLDER.token(issuer)
    got = await client.get(PATH, {**HOLDER.headers(token, "GET", url(client)), "X-API-Key": "gp_x"})
    assert (got.status, got.json()["reason"]) == (400, "credentials-ambiguous")
    async with client.wire() as wire:
        await wire.send(f"GET {PATH}", HOLDER.headers(token, "GET", url(client)), {"authorization": f"Bearer {issuer.token()}"})
        assert (await wire.answer())[0] == 400


async def test_a_proof_does_not_disturb_other_credentials(client: Client) -> None:
    for headers in ({"Authorization": 'Stub user_id="user_1"'}, {"X-API-Key": "gp_x"}):
        plain = await client.get(PATH, headers)
        proved = await client.get(PATH, {**headers, "DPoP": HOLDER.proof("x", "GET", url(client))})
        assert (plain.status, plain.json()) == (proved.status, proved.json())


async def test_nothing_of_a_proof_is_logged(client: Client, issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    token = HOLDER.token(issuer)
    headers = HOLDER.headers(token, "GET", url(client), jti="canary-of-a-jti", htu="http://canary.example/")
    with caplog.at_level("DEBUG"):
        assert (await client.get(PATH, headers)).status == 401
    text = caplog.text + str([record.__dict__ for record in caplog.records])
    assert not [word for word in ("canary", token, headers["DPoP"], HOLDER.jkt) if word in text]


# Nonces ---------------------------------------------------------------------------------------------------------------------


async def test_a_nonce_of_any_process(serve: Serve, issuer: Issuer) -> None:
    one = await serve(given(issuer, dpop_nonce=True))
    two = await serve(given(issuer, dpop_nonce=True))
    token = HOLDER.token(issuer)
    got = await one.get(PATH, HOLDER.headers(token, "GET", url(one)))
    assert (got.status, got.json()["reason"]) == (401, "proof-nonce")
    assert got.headers["WWW-Authenticate"] == f'DPoP error="use_dpop_nonce", algs="{ALGS}"'
    nonce = got.headers["DPoP-Nonce"]
    for client in (one, two):
        assert (await client.get(PATH, HOLDER.headers(token, "GET", url(client), nonce=nonce))).status == 200
    changed = ("A" if nonce[5] != "A" else "B").join((nonce[:5], nonce[6:]))
    for wrong in ("", "x", nonce[:-1], nonce + "A", nonce.swapcase(), changed, "\u00e4" * 32, "A" * 32, nonce * 100):
        got = await one.get(PATH, HOLDER.headers(token, "GET", url(one), nonce=wrong))
        assert (got.status, got.json()["reason"]) == (401, "proof-nonce")
        assert got.headers["DPoP-Nonce"]


def test_a_nonce_ends() -> None:
    now = [1_800_000_000.0]
    nonces = Nonces(SECRET, lambda: now[0])
    nonce = nonces.make()
    assert nonces.valid(nonce)
    assert not Nonces(SECRET + "x", lambda: now[0]).valid(nonce)
    for later, fine in [(SECONDS - 1, True), (SECONDS + 1, False), (-4, True), (-7, False)]:
        now[0] = 1_800_000_000.0 + later
        assert nonces.valid(nonce) == fine
