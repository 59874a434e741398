"""The provider `oidc` over real HTTP, with tokens and keys that another library makes."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from aiohttp.test_utils import unused_port
from kits import doc_page, tokens
from kits import oidc as oidc_kit
from kits.oidc import AUDIENCE, DROP, Issuer, key

from providers import oidc
from providers.jwt import jwks as keyset
from providers.oidc import claims as claims_room
from providers.oidc import discovery as discovery_room
from providers.oidc import settings as settings_room
from providers.oidc.discovery import Discovery
from providers.oidc.mapping import lookup
from providers.oidc.provider import OidcProvider
from server import Answer, CredentialRejected, Identity, Unavailable
from server.settings.setting import ConfigError
from tests.conftest import Serve

Clock = Any
REJECTED = "credential-rejected"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[tokens.TestHouse]:
    made = tokens.TestHouse(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with oidc_kit.serve() as made:
        yield made


def table(*issuers: Issuer | str, **members: Any) -> dict[str, Any]:
    """The table [oidc] for these issuers; `members` are the first one's."""
    urls = [one if isinstance(one, str) else one.url for one in issuers]
    tables = [{"issuer": url, "audience": AUDIENCE} for url in urls]
    if len(tables) > 1:
        for number, one in enumerate(tables):
            one["namespace"] = f"n{number}"
    tables[0] = oidc_kit.without({**tables[0], **members})
    return {"issuers": tables}


@asynccontextmanager
async def opened(house: tokens.TestHouse, given: Mapping[str, Any], **more: Any) -> AsyncIterator[OidcProvider]:
    provider = OidcProvider(given, **more)
    await provider.open(house)
    try:
        yield provider
    finally:
        await provider.close()


async def asked(provider: OidcProvider, token: str) -> Identity | str | None:
    """The identity, or the slug."""
    try:
        return await provider.authenticate(tokens.bearer(token))
    except CredentialRejected as refused:
        assert token not in refused.detail
        return refused.reason


async def outcome(provider: OidcProvider, token: str) -> str | None:
    """The user, the slug, or `503`."""
    try:
        found = await asked(provider, token)
    except Unavailable:
        return "503"
    return found.user_id if isinstance(found, Identity) else found


async def known(provider: OidcProvider, token: str) -> Identity:
    found = await asked(provider, token)
    assert isinstance(found, Identity), found
    return found


# What is taken -----------------------------------------------------------------------------------------------------------


async def test_an_access_token(house: tokens.TestHouse, issuer: Issuer) -> None:
    async with opened(house, table(issuer)) as provider:
        token = issuer.token(scope="read write", sid="s1", extra={"deep": ["x"]})
        one = await known(provider, token)
        assert (one.provider, one.token_type, one.user_id, one.org_id) == ("oidc", "access_token", "alice", None)
        assert (one.scopes, one.session_id) == (("read", "write"), "s1")
        assert one.claims is not None
        assert one.issued_at == one.claims["iat"]
        with pytest.raises(TypeError):
            one.claims["extra"]["deep"] = ()  # type: ignore[index]
        assert one.claims["extra"]["deep"] == ("x",)
        assert await known(provider, token) is one
        assert issuer.seen == ["/.well-known/openid-configuration", "/keys"]
        assert provider.not_ready() is None
        assert provider.issuers == {issuer.url}
        assert provider.namespaces == {""}


@pytest.mark.parametrize("alg", oidc_kit.ALGORITHMS)
async def test_every_algorithm_where_it_is_allowed(house: tokens.TestHouse, issuer: Issuer, alg: str) -> None:
    issuer.keys = {alg: key(alg)}
    async with opened(house, table(issuer, algorithms=[alg])) as provider:
        assert (await known(provider, issuer.token({"alg": alg}))).user_id == "alice"
        head, payload, signature = issuer.token({"alg": alg}).split(".")
        flipped = ("A" if signature[20] != "A" else "B").join((signature[:20], signature[21:]))
        assert await asked(provider, f"{head}.{payload}.{flipped}") == REJECTED
        assert await asked(provider, issuer.token({"alg": alg}, key(alg, "attacker"))) == REJECTED


@pytest.mark.parametrize("alg", oidc_kit.ALGORITHMS)
async def test_only_rs256_and_es256_by_default(house: tokens.TestHouse, issuer: Issuer, alg: str) -> None:
    issuer.keys = {"RS256": key("RS256"), "ES256": key("ES256"), alg: key(alg)}
    async with opened(house, table(issuer)) as provider:
        found = await asked(provider, issuer.token({"alg": alg}))
        assert isinstance(found, Identity) if alg in ("RS256", "ES256") else found == REJECTED


TYPES = [("at+jwt", True), ("AT+JWT", True), ("application/at+jwt", True), ("Application/AT+jwt", True), ("JWT", False),
         ("at+jwt ", False), ("application/x/at+jwt", False), ("", False), (DROP, False), ("logout+jwt", False),
         ("dpop+jwt", False), ("id_token", False)]  # fmt: skip


@pytest.mark.parametrize(("typ", "fine"), TYPES, ids=repr)
async def test_typ_is_the_access_tokens(house: tokens.TestHouse, issuer: Issuer, typ: Any, fine: bool) -> None:
    async with opened(house, table(issuer)) as provider:
        found = await asked(provider, issuer.token({"typ": typ}))
        assert isinstance(found, Identity) if fine else found == "token-type"


NOW = 1_800_000_000  # the time of the rows, so that a slow machine changes nothing


# (members of the issuer's table, header, claims) -> the identity's fields
ORG = {"claims": {"org_id": "org", "org_role": "role", "org_permissions": "perms", "org_slug": "slug"}}
DEEP = {"claims": {"user_id": "https://acme.example/user", "org_id": "https://acme.example/app.org.id",
                   "org_role": "a.b.c", "org_permissions": "realm_access.roles", "scopes": "perm.scopes"}}  # fmt: skip
FINE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "aud in a list": ({}, {}, {"aud": ["x", AUDIENCE]}, {}),
    "several audiences": ({"audience": ["other", AUDIENCE]}, {}, {}, {}),
    "audience in another claim": ({"audience_claim": "client_id", "audience": "app"}, {}, {"aud": DROP}, {}),
    "typ JWT": ({"typ": "JWT", "require": {"kind": "access"}}, {"typ": "JWT"}, {"kind": "access"}, {}),
    "typ jwt of a list": ({"typ": ["at+jwt", "JWT"], "require": {"kind": "a"}}, {"typ": "jwt"}, {"kind": "a"}, {}),
    "no typ": ({"typ": "", "require": {"token_use": "access"}}, {"typ": DROP}, {"token_use": "access"}, {}),
    "a required value of several": ({"require": {"azp": ["a", "b"]}}, {}, {"azp": "b"}, {}),
    "a required member of a list": ({"require": {"groups": "staff"}}, {}, {"groups": ["x", "staff"]}, {}),
    "a required value deep inside": ({"require": {"a.b": True}}, {}, {"a": {"b": True}}, {}),
    "exp within the leeway": ({}, {}, {"iat": -100, "exp": -4}, {}),
    "nbf at the end of the leeway": ({}, {}, {"nbf": 5}, {}),
    "a long life where none is too long": ({"max_token_seconds": 0}, {}, {"exp": 10**9}, {}),
    "no iat": ({}, {}, {"iat": DROP}, {"issued_at": None}),
    "scp as a list": ({}, {}, {"scp": ["a", "b"]}, {"scopes": ("a", "b")}),
    "scp as a text": ({}, {}, {"scp": "a b"}, {"scopes": ("a", "b")}),
    "scope before scp": ({}, {}, {"scp": ["a"], "scope": ""}, {"scopes": ()}),
    "no scope": ({}, {}, {}, {"scopes": ()}),
    "a sid that is no text": ({}, {}, {"sid": 7}, {"session_id": None}),
    "a sid that cannot be logged": ({}, {}, {"sid": "a\nb"}, {"session_id": None}),
    "an organisation": (
        ORG, {}, {"org": "o1", "role": "admin", "perms": ["invoices:read", "org:x:y"], "slug": "one"},
        {"org_id": "o1", "org_role": "org:admin", "org_permissions": ("org:invoices:read", "org:x:y"), "org_slug": "one"},
    ),
    "a prefix twice": (ORG, {}, {"org": "o1", "role": "org:org:a", "perms": ["org:org:b"]}, {"org_role": "org:a", "org_permissions": ("org:b",)}),
    "permissions as a text": (ORG, {}, {"org": "o1", "perms": "a  b"}, {"org_permissions": ("org:a", "org:b"), "org_role": None}),
    "a role without its organisation": (ORG, {}, {"role": "admin", "perms": ["a"]}, {"org_id": None, "org_role": None, "org_permissions": None}),
    "an empty organisation": (ORG, {}, {"org": "", "role": "admin"}, {"org_id": None, "org_role": None}),
    "no organisation of the listed": ({**ORG, "orgs": ["o1"]}, {}, {}, {"org_id": None}),
    "a listed organisation": ({**ORG, "orgs": ["o1", "o2"], "namespace": "n"}, {}, {"org": "o2"}, {"org_id": "n|o2", "user_id": "n|alice"}),
    "claims nobody mapped": ({}, {}, {"org_id": "o1", "org_role": "admin", "o": {"id": "o1"}}, {"org_id": None, "org_role": None}),
    "paths and URLs": (
        DEEP, {},
        {"https://acme.example/user": "u", "https://acme.example/app": {"org": {"id": "o"}}, "a": {"b": {"c": "r"}},
         "realm_access": {"roles": ["p"]}, "perm.scopes": "literal", "perm": {"scopes": "path"}},
        {"user_id": "u", "org_id": "o", "org_role": "org:r", "org_permissions": ("org:p",), "scopes": ("literal",)},
    ),
    "a namespace": ({"namespace": "acme"}, {}, {"sub": "a|b"}, {"user_id": "acme|a|b"}),
    "nobody else acts": ({}, {}, {}, {"impersonator": None}),
    "an actor (RFC 8693 4.1)": ({}, {}, {"act": {"sub": "admin"}}, {"user_id": "alice", "impersonator": "admin"}),
    "an actor in the namespace": ({"namespace": "n"}, {}, {"act": {"sub": "admin"}}, {"impersonator": "n|admin"}),
    "an actor of another issuer": (
        {"namespace": "n"}, {}, {"act": {"iss": "https://b.example", "sub": "admin"}}, {"impersonator": "https://b.example admin"},
    ),
    "an actor before the actor": ({}, {}, {"act": {"sub": "b", "act": {"sub": "a", "act": 7}}}, {"impersonator": "b"}),
    "who could act is not who acts": ({}, {}, {"may_act": {"sub": "admin"}}, {"impersonator": None}),
    "the longest sub": ({"namespace": "acme"}, {}, {"sub": "x" * 250}, {"user_id": "acme|" + "x" * 250}),
}  # fmt: skip


def moved(members: Mapping[str, Any]) -> dict[str, Any]:
    """Times of a row are relative to NOW."""
    return {n: v + NOW if n in ("iat", "nbf", "exp") and type(v) is int else v for n, v in members.items()}


@pytest.mark.parametrize("row", FINE)
async def test_what_is_taken(house: tokens.TestHouse, issuer: Issuer, row: str) -> None:
    members, head, said, wanted = FINE[row]
    issuer.now = NOW
    async with opened(house, table(issuer, **members), clock=lambda: NOW) as provider:
        found = await known(provider, issuer.token(head, **moved(said)))
        assert {name: getattr(found, name) for name in wanted} == wanted


# What is refused ---------------------------------------------------------------------------------------------------------

AUD, TYPE, CLAIMS = "token-audience", "token-type", "token-claims"
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "another audience": ({}, {}, {"aud": "https://other.example"}, AUD),
    "an audience that begins like ours": ({}, {}, {"aud": AUDIENCE + "/x"}, AUD),
    "a part of ours": ({}, {}, {"aud": AUDIENCE[:-1]}, AUD),
    "ours with a slash": ({}, {}, {"aud": AUDIENCE + "/"}, AUD),
    "ours in capitals": ({}, {}, {"aud": AUDIENCE.upper()}, AUD),
    "no audience": ({}, {}, {"aud": DROP}, AUD),
    "an empty list": ({}, {}, {"aud": []}, AUD),
    "a number": ({}, {}, {"aud": 7}, AUD),
    "a number beside ours": ({}, {}, {"aud": [AUDIENCE, 7]}, AUD),
    "an object": ({}, {}, {"aud": {AUDIENCE: 1}}, AUD),
    "the audience in the wrong claim": ({"audience_claim": "client_id"}, {}, {}, AUD),
    "an ID token by typ": ({}, {"typ": "JWT"}, {}, TYPE),
    "an ID token by nonce": ({}, {}, {"nonce": "n"}, TYPE),
    "an ID token by at_hash": ({}, {}, {"at_hash": "h"}, TYPE),
    "an ID token by c_hash": ({}, {}, {"c_hash": "h"}, TYPE),
    "an ID token by token_use": ({"typ": "", "require": {"a": 1}}, {"typ": DROP}, {"token_use": "id", "a": 1}, TYPE),
    "an ID token by Keycloak's typ": ({"typ": "JWT", "require": {"a": 1}}, {"typ": "JWT"}, {"typ": "ID", "a": 1}, TYPE),
    "a logout token": ({"typ": "JWT", "require": {"a": 1}}, {"typ": "JWT"}, {"events": {}, "a": 1}, TYPE),
    "a token bound to a key": ({}, {}, {"cnf": {"jkt": "x"}}, TYPE),
    "at+jwt where only JWT is allowed": ({"typ": "JWT", "require": {"a": 1}}, {}, {"a": 1}, TYPE),
    "what is required is missing": ({"require": {"token_use": "access"}}, {}, {}, CLAIMS),
    "what is required is another": ({"require": {"token_use": "access"}}, {}, {"token_use": "Access"}, CLAIMS),
    "1 is not true": ({"require": {"mfa": True}}, {}, {"mfa": 1}, CLAIMS),
    "true is not 1": ({"require": {"level": 1}}, {}, {"level": True}, CLAIMS),
    "null is not a value": ({"require": {"mfa": True}}, {}, {"mfa": None}, CLAIMS),
    "one of two is missing": ({"require": {"a": 1, "b": 1}}, {}, {"a": 1}, CLAIMS),
    "no exp": ({}, {}, {"exp": DROP}, CLAIMS),
    "exp as a text": ({}, {}, {"exp": "9999999999"}, CLAIMS),
    "exp as true": ({}, {}, {"exp": True}, CLAIMS),
    "iat as null": ({}, {}, {"iat": None}, CLAIMS),
    "expired": ({}, {}, {"iat": -100, "exp": -5}, "token-expired"),
    "expired without leeway": ({"leeway_seconds": 0}, {}, {"iat": -100, "exp": 0}, "token-expired"),
    "nbf to come": ({}, {}, {"nbf": 6}, "token-not-active-yet"),
    "iat to come": ({}, {}, {"iat": 6}, "token-not-active-yet"),
    "iat after exp": ({}, {}, {"iat": 3, "exp": 1}, CLAIMS),
    "too long a life": ({"max_token_seconds": 60}, {}, {}, CLAIMS),
    "too long a life without iat": ({"max_token_seconds": 60}, {}, {"iat": DROP}, CLAIMS),
    "ten years": ({}, {}, {"exp": 10**9}, CLAIMS),
    "no sub": ({}, {}, {"sub": DROP}, CLAIMS),
    "an empty sub": ({}, {}, {"sub": ""}, CLAIMS),
    "a blank sub": ({}, {}, {"sub": " "}, CLAIMS),
    "a number as sub": ({}, {}, {"sub": 1}, CLAIMS),
    "a list as sub": ({}, {}, {"sub": ["alice"]}, CLAIMS),
    "NUL in sub": ({}, {}, {"sub": "a\0"}, CLAIMS),
    "a sub of 256 characters": ({}, {}, {"sub": "x" * 256}, CLAIMS),
    "a sub too long with its namespace": ({"namespace": "acme"}, {}, {"sub": "x" * 251}, CLAIMS),
    "no user where it is mapped": ({"claims": {"user_id": "uid"}}, {}, {}, CLAIMS),
    "an organisation that is not listed": ({**ORG, "orgs": ["o1"]}, {}, {"org": "o2"}, CLAIMS),
    "a listed one in other letters": ({**ORG, "orgs": ["o1"]}, {}, {"org": "O1"}, CLAIMS),
    "a listed one with the namespace": ({**ORG, "orgs": ["o1"], "namespace": "n"}, {}, {"org": "n|o1"}, CLAIMS),
    "an organisation that is a list": (ORG, {}, {"org": ["o1"]}, CLAIMS),
    "an organisation that is a number": (ORG, {}, {"org": 1}, CLAIMS),
    "a role that is a list": (ORG, {}, {"org": "o1", "role": ["admin"]}, CLAIMS),
    "permissions that are an object": (ORG, {}, {"org": "o1", "perms": {"a": 1}}, CLAIMS),
    "permissions with a number": (ORG, {}, {"org": "o1", "perms": ["a", 1]}, CLAIMS),
    "scopes that are a number": ({}, {}, {"scope": 1}, CLAIMS),
    "an act that is a text": ({}, {}, {"act": "admin"}, CLAIMS),
    "an act that is null": ({}, {}, {"act": None}, CLAIMS),
    "an act that is a list": ({}, {}, {"act": [{"sub": "admin"}]}, CLAIMS),
    "an act without sub": ({}, {}, {"act": {"client_id": "app"}}, CLAIMS),
    "an act with a number": ({}, {}, {"act": {"sub": 1}}, CLAIMS),
    "an act that cannot be logged": ({}, {}, {"act": {"sub": "a\nb"}}, CLAIMS),
    "an act of a list of issuers": ({}, {}, {"act": {"sub": "admin", "iss": ["https://b.example"]}}, CLAIMS),
    "an act too long with its namespace": ({"namespace": "acme"}, {}, {"act": {"sub": "x" * 251}}, CLAIMS),
    "an act too long with its issuer": ({}, {}, {"act": {"sub": "x" * 240, "iss": "https://b.example"}}, CLAIMS),
    "PS256 where it is not allowed": ({}, {"alg": "PS256", "kid": "RS256"}, {"aud": "x"}, REJECTED),
    "an unknown kid": ({}, {"kid": "k9"}, {"aud": "x"}, REJECTED),
    "no kid": ({}, {"kid": DROP}, {"aud": "x"}, REJECTED),
    "another key's kid": ({}, {"kid": "ES256"}, {"aud": "x"}, REJECTED),
    "another one's key": ({}, {"kid": "RS256", "signer": "attacker"}, {"aud": "x"}, REJECTED),
}  # fmt: skip


@pytest.mark.parametrize("row", BAD)
async def test_what_is_refused(house: tokens.TestHouse, issuer: Issuer, row: str) -> None:
    members, head, said, slug = BAD[row]
    head, issuer.now = dict(head), NOW
    signer = key("RS256", head.pop("signer", "own")) if head.get("alg", "RS256")[:2] in ("RS", "PS") else None
    async with opened(house, table(issuer, **members), clock=lambda: NOW) as provider:
        token = issuer.token(head, signer, **moved(said))
        assert await asked(provider, token) == slug
        assert await asked(provider, token) == slug  # nothing of it was kept


def segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def test_forged_tokens(house: tokens.TestHouse, issuer: Issuer) -> None:
    """All of these name our issuer, and none has its signature."""
    allowed = ["RS256", "PS256", "ES256"]
    issuer.keys["rs-only"], issuer.odd = key("RS256", "o"), []
    async with opened(house, table(issuer, algorithms=allowed)) as provider:
        good = issuer.token()
        head, payload, signature = good.split(".")
        spki = key("RS256").as_pem(private=False)
        es = {"alg": "ES256", "kid": "ES256", "typ": "at+jwt"}
        with_pss = oidc_kit.sign({"alg": "PS256"}, "x", key("RS256")).split(".")[2]
        rows = {
            "none": f"{segment({'alg': 'none', 'kid': 'RS256', 'typ': 'at+jwt'})}.{payload}.{signature}",
            "a key in the header": issuer.token(
                {"jwk": key("RS256", "attacker").as_dict(private=False)}, key("RS256", "attacker")
            ),
            "crit": f"{segment({'alg': 'RS256', 'kid': 'RS256', 'typ': 'at+jwt', 'crit': ['exp']})}.{payload}.{signature}",
            "HS256 with the public key": jwt_hs256(issuer, spki),
            "psychic": f"{segment(es)}.{payload}.{segment(bytes(64))}",
            "r and s too short": f"{segment(es)}.{payload}.{segment(bytes(63))}",
            "the header of PS256 over RS256": f"{segment({'alg': 'PS256', 'kid': 'RS256', 'typ': 'at+jwt'})}.{payload}.{signature}",
            "RS256 with a PSS signature": f"{head}.{payload}.{with_pss}",
            "typ that is no text": f"{segment({'alg': 'RS256', 'kid': 'RS256', 'typ': ['at+jwt']})}.{payload}.{signature}",
            "ES256 for an RSA key": f"{segment({'alg': 'ES256', 'kid': 'RS256', 'typ': 'at+jwt'})}.{payload}.{signature}",
            "a signature that is another token's": f"{head}.{payload}.{issuer.token(sub='bob').split('.')[2]}",
        }
        assert isinstance(await asked(provider, good), Identity)
        for name, token in rows.items():
            assert await asked(provider, token) == REJECTED, name


def jwt_hs256(issuer: Issuer, secret: bytes) -> str:
    import hashlib
    import hmac

    message = f"{segment({'alg': 'HS256', 'kid': 'RS256', 'typ': 'at+jwt'})}.{segment(issuer.claims())}"
    return f"{message}.{segment(hmac.new(secret, message.encode(), hashlib.sha256).digest())}"


async def test_a_payload_with_two_readings_is_refused(house: tokens.TestHouse, issuer: Issuer) -> None:
    """Signed by the issuer: `iss` twice, the last of which chose us, or the first."""
    async with opened(house, table(issuer)) as provider:
        text = json.dumps(issuer.claims())
        head = {"alg": "RS256", "kid": "RS256", "typ": "at+jwt"}
        for payload in ('{"iss":"https://other.example",' + text[1:], '{"sub":"bob",' + text[1:], "\ufeff" + text):
            assert await asked(provider, oidc_kit.sign(head, payload, key("RS256"))) in (REJECTED, None)


@pytest.mark.parametrize("change", [
    lambda url: url + "/", lambda url: url[:-1], lambda url: url.upper(), lambda url: "x" + url, lambda url: [url],
    lambda url: None, lambda url: DROP, lambda url: url.replace("http", "https"), lambda url: f" {url}",
])  # fmt: skip
async def test_another_iss_is_not_ours(house: tokens.TestHouse, issuer: Issuer, change: Any) -> None:
    """Such a token belongs to no issuer here, whichever key signed it; the gate refuses it if no other provider accepts it."""
    async with opened(house, table(issuer)) as provider:
        assert await asked(provider, issuer.token(iss=change(issuer.url))) is None


def test_iss_is_compared_once_more_after_the_signature() -> None:
    (one,) = settings_room.read(table("https://a.example"))
    said = {"iss": "https://a.example/", "aud": AUDIENCE, "sub": "x", "exp": 2}
    with pytest.raises(CredentialRejected) as refused:
        claims_room.read({"typ": "at+jwt"}, said, one, 1)
    assert refused.value.reason == "token-issuer"


@pytest.mark.parametrize("headers", [
    {}, {"Authorization": "Bearer"}, {"Authorization": "Bearer abc"}, {"Authorization": "Bearer gp_" + "x" * 20},
    {"Authorization": "Bearer a.b.c"}, {"Authorization": "Bearer eyJ9.e30.AA"}, {"Authorization": "Basic e30.e30.e30"},
    {"Authorization": "Bearer e30.!!.AA"}, {"Authorization": "Bearer e30.W10.AA"}, {"Authorization": "Bearer e30.AB.AA"},
])  # fmt: skip
async def test_what_is_not_a_jwt_of_ours_is_left_to_others(
    house: tokens.TestHouse, issuer: Issuer, headers: dict[str, str]
) -> None:
    async with opened(house, table(issuer)) as provider:
        given = [headers["Authorization"]] if headers else []
        assert await provider.authenticate(tokens.request(*given)) is None


async def test_a_token_in_two_headers_is_not_chosen_from(house: tokens.TestHouse, issuer: Issuer) -> None:
    async with opened(house, table(issuer)) as provider:
        token = issuer.token()
        assert await provider.authenticate(tokens.request(f"Bearer {token}", f"Bearer {token}")) is None
        assert await provider.authenticate(tokens.request(f"bEARER {token}")) is not None


# Time --------------------------------------------------------------------------------------------------------------------


async def test_a_kept_token_ends_at_its_exp(house: tokens.TestHouse, issuer: Issuer) -> None:
    now, issuer.now = [float(NOW)], NOW
    async with opened(house, table(issuer), clock=lambda: now[0]) as provider:
        token = issuer.token()
        await known(provider, token)
        now[0] += 304
        await known(provider, token)  # within the leeway
        now[0] += 3
        assert await asked(provider, token) == "token-expired"
        now[0] -= 700
        assert await asked(provider, token) == "token-not-active-yet"


# Keys --------------------------------------------------------------------------------------------------------------------


async def test_rotation(house: tokens.TestHouse, issuer: Issuer) -> None:
    async with opened(house, table(issuer)) as provider:
        old = issuer.token()
        await known(provider, old)
        issuer.keys = {"next": key("RS256", "next")}
        fresh = issuer.token({"kid": "next"})
        assert await known(provider, fresh) is await known(provider, fresh)
        assert issuer.seen == ["/.well-known/openid-configuration", "/keys"] * 2
        assert await asked(provider, old) == REJECTED  # although it was kept
        forged = [issuer.token({"kid": f"k{number}"}, key("RS256")) for number in range(50)]
        answers = [await outcome(provider, one) for one in forged]
        assert answers == [REJECTED] * 3 + ["503"] * 47
        assert len(issuer.seen) == 4 + 2 * 3
        assert await outcome(provider, old) == REJECTED
        assert await outcome(provider, fresh) == "alice"


async def test_odd_keys_are_left_out_and_the_good_ones_stay(house: tokens.TestHouse, issuer: Issuer) -> None:
    private = {**key("RS256", "p").as_dict(private=True), "kid": "private"}
    public = key("RS256", "q").as_dict(private=False)
    issuer.odd = [
        None, {"kty": "oct", "k": "AAAA", "kid": "oct"}, private, {**public, "kid": "enc", "use": "enc"},
        {**public, "kid": "ops", "key_ops": ["encrypt"]}, {**public, "kid": "ps", "alg": "PS256"},
        tokens.jwk(tokens.rsa_key("short", 1024), "short"),
        {**public, "kid": "twice"}, {**key("RS256", "r").as_dict(private=False), "kid": "twice"}, {"kty": "EC", "kid": "x"},
    ]  # fmt: skip
    signers = {"private": "p", "enc": "q", "ops": "q", "ps": "q", "twice": "q"}
    async with opened(house, table(issuer)) as provider:
        await known(provider, issuer.token())
        for kid, name in signers.items():
            assert await asked(provider, issuer.token({"kid": kid}, key("RS256", name))) == REJECTED, kid


OUTAGES: dict[str, dict[str, Any]] = {
    "no document": {"status": 500},
    "a refusal": {"status": 401},
    "another issuer": {"document": {"issuer": "https://other.example"}},
    "a slash more": {"document": {"issuer": "SLASH"}},
    "no issuer": {"document": {"issuer": DROP}},
    "no jwks_uri": {"document": {"jwks_uri": DROP}},
    "a jwks_uri without TLS": {"document": {"jwks_uri": "http://keys.example/jwks"}},
    "a jwks_uri of a file": {"document": {"jwks_uri": "file:///etc/passwd"}},
    "a jwks_uri that is no text": {"document": {"jwks_uri": ["https://keys.example"]}},
    "a jwks_uri with a user": {"document": {"jwks_uri": "https://u:p@keys.example/jwks"}},
    "garbage for keys": {"raw": b"<html>"},
    "no key": {"raw": b'{"keys":[]}'},
    "too many bytes": {"raw": b" " * 1_100_000},
}


@pytest.mark.parametrize("fault", OUTAGES)
async def test_without_usable_keys_it_is_503_and_not_ready(house: tokens.TestHouse, issuer: Issuer, fault: str) -> None:
    for name, value in OUTAGES[fault].items():
        setattr(issuer, name, {"issuer": issuer.url + "/"} if value == {"issuer": "SLASH"} else value)
    async with opened(house, table(issuer)) as provider:
        assert issuer.url in (provider.not_ready() or "")
        with pytest.raises(Unavailable):
            await provider.authenticate(tokens.bearer(issuer.token()))


@pytest.mark.parametrize("where", ["openid-configuration", "keys"])
async def test_no_redirect_is_followed(house: tokens.TestHouse, issuer: Issuer, where: str) -> None:
    async with oidc_kit.serve() as other:
        issuer.location, issuer.redirected = other.url + "/keys", (where,)
        async with opened(house, table(issuer)) as provider:
            with pytest.raises(Unavailable):
                await provider.authenticate(tokens.bearer(issuer.token()))
        assert other.seen == []


async def test_a_named_jwks_uri_needs_no_discovery(house: tokens.TestHouse, issuer: Issuer) -> None:
    async with opened(house, table(issuer, jwks_uri=issuer.url + "/keys?x=1")) as provider:
        await known(provider, issuer.token())
    assert issuer.seen == ["/keys"]


@pytest.mark.parametrize("path", ["/", "/realms/acme", "/tenant/"])
async def test_the_document_of_an_issuer_with_a_path(house: tokens.TestHouse, path: str) -> None:
    async with oidc_kit.serve(path) as issuer, opened(house, table(issuer)) as provider:
        await known(provider, issuer.token())
        assert issuer.seen[0] == f"{path.rstrip('/')}/.well-known/openid-configuration"


async def test_an_issuer_that_comes_later(house: tokens.TestHouse, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at first: the start goes on, the other issuer works, and the late one does when it is there."""
    monkeypatch.setattr(keyset, "_RETRY", 0.02)
    port = unused_port()
    late_url = f"http://127.0.0.1:{port}"
    late = oidc_kit.Issuer()
    late.url = late_url
    async with opened(house, table(issuer, late_url)) as provider:
        assert late_url in (provider.not_ready() or "")
        assert issuer.url not in (provider.not_ready() or "")
        with pytest.raises(Unavailable):
            await provider.authenticate(tokens.bearer(late.token()))
        assert (await known(provider, issuer.token())).user_id == "n0|alice"
        async with oidc_kit.serve(port=port) as here:
            assert here.url == late_url
            async with asyncio.timeout(5):
                while provider.not_ready():
                    await asyncio.sleep(0.02)
            assert (await known(provider, here.token())).user_id == "n1|alice"


async def test_keys_outlive_an_outage(house: tokens.TestHouse, issuer: Issuer) -> None:
    async with opened(house, table(issuer)) as provider:
        issuer.status = 500
        await known(provider, issuer.token())
        with pytest.raises(Unavailable):  # an unknown key cannot be told from a new one now
            await provider.authenticate(tokens.bearer(issuer.token({"kid": "k9"}, key("RS256"))))
        assert provider.not_ready() is None


class FakeHouse:
    """Answers with this document, for issuers that are not on this machine."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document, self.asked = document, []

    async def fetch(self, url: str, **more: Any) -> Answer:
        self.asked.append(url)
        return Answer(200, json.dumps(self.document).encode(), {})


@pytest.mark.parametrize(
    ("uri", "fine"), [("https://keys.example/k", True), ("http://127.0.0.1/k", False), ("http://[::1]/k", False)]
)
async def test_a_remote_issuer_cannot_send_us_to_this_machine(uri: str, fine: bool) -> None:
    (one,) = settings_room.read(table("https://a.example/"))
    remote: Any = FakeHouse({"issuer": "https://a.example/", "jwks_uri": uri})
    if fine:
        await Discovery(remote, one).keys()
    else:
        with pytest.raises(Unavailable):
            await Discovery(remote, one).keys()
    assert remote.asked == ["https://a.example/.well-known/openid-configuration", *([uri] if fine else [])]


async def test_discovery_and_keys_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = settings_room.read(table("https://a.example"))
    monkeypatch.setattr(discovery_room, "_FETCH_SECONDS", 0.02)

    class Slow:
        async def fetch(self, url: str, **more: Any) -> Answer:
            await asyncio.sleep(5)
            return Answer(200, b"", {})

    slow: Any = Slow()
    with pytest.raises(Unavailable, match="longer than"):
        await Discovery(slow, one).keys()


async def test_before_it_is_open_it_cannot_tell(issuer: Issuer) -> None:
    provider = OidcProvider(table(issuer))
    assert provider.not_ready()
    with pytest.raises(Unavailable):
        await provider.authenticate(tokens.bearer(issuer.token()))
    await provider.close()


# Several issuers ---------------------------------------------------------------------------------------------------------


async def test_two_issuers_and_the_same_sub(house: tokens.TestHouse, issuer: Issuer) -> None:
    async with oidc_kit.serve() as other:
        other.keys = {"RS256": key("RS256", "other")}
        given = table(issuer, other, claims={"org_id": "org"})
        given["issuers"][1]["claims"] = {"org_id": "org"}
        async with opened(house, given) as provider:
            mine, others = issuer.token(org="acme"), other.token(org="acme")
            for _ in range(2):  # verified, then kept
                assert [((await known(provider, t)).user_id, (await known(provider, t)).org_id) for t in (mine, others)] == [
                    ("n0|alice", "n0|acme"),
                    ("n1|alice", "n1|acme"),
                ]
            # The same kid, and each other's key: an issuer signs for itself alone.
            assert await asked(provider, issuer.token(iss=other.url)) == REJECTED
            assert await asked(provider, other.token(iss=issuer.url)) == REJECTED
            other.keys = {"next": key("RS256", "next")}
            await known(provider, other.token({"kid": "next"}))
            assert await asked(provider, others) == REJECTED
            await known(provider, mine)


AMBIGUOUS = ["b|x", "|x", "x", "b", "a-b|x", "a|x", "|", "||", "a|", "a", "ab", "ab|x", "b|", "a|b|x"]


def test_no_two_issuers_give_the_same_id() -> None:
    """Whatever the subs are: every pair (namespace, sub) has an id of its own, or none."""
    spaces = ["a", "ab", "a-b", "b", ""]
    tables = [{"issuer": f"https://{n}.example", "audience": "x", "namespace": space} for n, space in enumerate(spaces)]
    by_space = {one.namespace: one for one in settings_room.read({"issuers": tables})}
    seen: dict[str, tuple[str, str]] = {}
    for space, one in by_space.items():
        for sub in AMBIGUOUS:
            try:
                made = one.own(sub)
            except ValueError:
                assert space == ""
                assert sub.partition("|")[0] in spaces
                continue
            assert seen.setdefault(made, (space, sub)) == (space, sub)


@pytest.mark.parametrize("sub", ["n1|alice", "n1|", "n1|n1|alice"])
async def test_an_issuer_without_a_namespace_cannot_speak_for_another(
    house: tokens.TestHouse, issuer: Issuer, sub: str
) -> None:
    given = table(issuer, "https://other.example", namespace="", claims={"org_id": "org"})
    given["issuers"][1]["jwks_uri"] = issuer.url + "/keys"
    async with opened(house, given) as provider:
        assert await asked(provider, issuer.token(sub=sub)) == CLAIMS
        assert await asked(provider, issuer.token(org=sub)) == CLAIMS
        assert (await known(provider, issuer.token(sub="auth0|x", org="n1"))).user_id == "auth0|x"


# The settings ------------------------------------------------------------------------------------------------------------

A = {"issuer": "https://a.example", "audience": "x", "namespace": "a"}
B = {"issuer": "https://b.example", "audience": "x", "namespace": "b"}
MISTAKES: dict[str, tuple[Any, str]] = {
    "no issuer": ([], r"add \[\[oidc.issuers\]\]"),
    "issuer missing": ([{"audience": "x"}], r"oidc.issuers\[0\]: issuer is missing"),
    "issuer without TLS": ([{**A, "issuer": "http://a.example"}], "https"),
    "issuer with a query": ([{**A, "issuer": "https://a.example?x"}], "query"),
    "issuer with a fragment": ([{**A, "issuer": "https://a.example#x"}], "https"),
    "issuer with a user": ([{**A, "issuer": "https://u@a.example"}], "https"),
    "issuer that is no URL": ([{**A, "issuer": "a.example"}], "https"),
    "issuer with a bad port": ([{**A, "issuer": "https://a.example:99999"}], "https"),
    "the address of its configuration": (
        [{**A, "issuer": "https://a.example/.well-known/openid-configuration"}], "the issuer ends before /.well-known",
    ),
    "audience missing": ([{"issuer": "https://a.example"}], "audience is missing"),
    "audience empty": ([{**A, "audience": []}], "audience must name"),
    "audience with an empty text": ([{**A, "audience": [""]}], "audience must be"),
    "audience of a number": ([{**A, "audience": 7}], "audience must be"),
    "an unknown member": ([{**A, "audiance": "x"}], "unknown member 'audiance'; the nearest known one is 'audience'"),
    "an unknown member like none": ([{**A, "zzzz": "x"}], "unknown member 'zzzz'; known: issuer, "),
    "an unknown claim": ([{**A, "claims": {"orgid": "x"}}], "claims: unknown member 'orgid'; the nearest known one is 'org_id'"),
    "a claim that is no text": ([{**A, "claims": {"org_id": 1}}], "org_id must be"),
    "claims that are no table": ([{**A, "claims": "sub"}], "claims must be a table"),
    "a role without an organisation": ([{**A, "claims": {"org_role": "r"}}], "org_id is missing"),
    "orgs without an organisation": ([{**A, "orgs": ["o"]}], "orgs has no effect"),
    "orgs that are empty": ([{**A, "orgs": [], "claims": {"org_id": "o"}}], "orgs must name"),
    "an unknown algorithm": ([{**A, "algorithms": ["HS256"]}], "'HS256' is not one of"),
    "none as an algorithm": ([{**A, "algorithms": ["none"]}], "'none' is not one of"),
    "no algorithm": ([{**A, "algorithms": []}], "algorithms must name"),
    "typ JWT and nothing required": ([{**A, "typ": "JWT"}], "typ other than at.jwt needs `require`"),
    "no typ and nothing required": ([{**A, "typ": ["at+jwt", ""]}], "needs `require`"),
    "an empty list of typ": ([{**A, "typ": []}], "typ is empty"),
    "a typ of two words": ([{**A, "typ": "at jwt"}], "is not a type"),
    "a required table": ([{**A, "require": {"a": {"b": 1}}}], "'a' must be"),
    "a required empty list": ([{**A, "require": {"a": []}}], "'a' must be"),
    "a required empty text": ([{**A, "require": {"a": ""}}], "'a' must be"),
    "a namespace with the delimiter": ([{**A, "namespace": "a|b"}], "namespace must be"),
    "a namespace in capitals": ([{**A, "namespace": "Acme"}], "namespace must be"),
    "a namespace of 33": ([{**A, "namespace": "a" * 33}], "namespace must be"),
    "a dpop of another word": ([{**A, "dpop": "on"}], "dpop 'on' is not one of off, accept, required"),
    "a dpop of true": ([{**A, "dpop": True}], "dpop must be"),
    "dpop_seconds without dpop": ([{**A, "dpop_seconds": 60}], "dpop_seconds has no effect while dpop is"),
    "dpop_nonce while it is off": ([{**A, "dpop": "off", "dpop_nonce": False}], "dpop_nonce has no effect"),
    "dpop_seconds of 0": ([{**A, "dpop": "accept", "dpop_seconds": 0}], "dpop_seconds must be .* from 1 to 300"),
    "dpop_seconds of an hour": ([{**A, "dpop": "accept", "dpop_seconds": 3600}], "dpop_seconds must be"),
    "dpop_nonce of a word": ([{**A, "dpop": "accept", "dpop_nonce": "yes"}], "dpop_nonce must be true or false"),
    "dpop_nonce without a secret": ([{**A, "dpop": "accept", "dpop_nonce": True}], "dpop_nonce needs oidc.dpop_nonce_secret"),
    "proofs by HMAC": ([{**A, "dpop": "accept", "dpop_algorithms": ["HS256"]}], "dpop_algorithms 'HS256' is not one of"),
    "proofs by nothing": ([{**A, "dpop": "accept", "dpop_algorithms": []}], "dpop_algorithms must name"),
    "a leeway of an hour": ([{**A, "leeway_seconds": 3600}], "leeway_seconds must be"),
    "a leeway of true": ([{**A, "leeway_seconds": True}], "leeway_seconds must be"),
    "a negative life": ([{**A, "max_token_seconds": -1}], "max_token_seconds must be"),
    "a jwks_uri without TLS": ([{**A, "jwks_uri": "http://a.example/k"}], "jwks_uri must be"),
    "the same issuer twice": ([A, {**B, "issuer": "https://a.example"}], "duplicate issuer 'https://a.example'"),
    "the same namespace twice": ([A, {**B, "namespace": "a"}], "duplicate namespace 'a'"),
    "no namespace twice": ([{**A, "namespace": ""}, {**B, "namespace": ""}], "duplicate namespace ''"),
    "a namespace not said": ([A, {"issuer": "https://b.example", "audience": "x"}], "namespace is missing"),
}  # fmt: skip


@pytest.mark.parametrize("row", MISTAKES)
def test_mistakes_prevent_startup(row: str) -> None:
    tables, said = MISTAKES[row]
    with pytest.raises(ValueError, match=said):
        OidcProvider({"issuers": tables})


@pytest.mark.parametrize("url", ["http://localhost:1/x", "http://127.0.0.1", "http://[::1]:8080", "https://a.example:8443/b/"])
def test_urls_that_are_safe(url: str) -> None:
    assert OidcProvider(table(url)).issuers == {url}


def test_lookup_takes_the_longest_name_that_exists() -> None:
    said = {"a": {"b": {"c": 1}}, "a.b": {"c": 2}, "x.y": 3, "x": {"y": 4}, "n": None, "t": "text", "": {"a": 5}}
    rows = {"a.b.c": 2, "x.y": 3, "a": said["a"], "a.x": None, "t.x": None, "n": None, "n.x": None, ".a": None, "": {"a": 5}}
    assert {name: lookup(said, name) for name in rows} == rows


# On the server -----------------------------------------------------------------------------------------------------------

CLERK = {"clerk.publishable_key": tokens.PUBLISHABLE_KEY}


def clerk() -> dict[str, Any]:
    return {**CLERK, "clerk.jwt_key": tokens.pem(tokens.rsa_key())}


def authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("order", [["clerk", "oidc", "api_key"], ["oidc", "clerk"]], ids=["clerk first", "oidc first"])
async def test_clerk_and_oidc_together(serve: Serve, issuer: Issuer, order: list[str]) -> None:
    client = await serve({"providers": order, "oidc.issuers": table(issuer, namespace="acme")["issuers"], **clerk()})
    by_clerk = tokens.encode(tokens.claims(sub="alice"))
    for token, wanted in (
        (by_clerk, ("clerk", "session_token", "alice")),
        (issuer.token(), ("oidc", "access_token", "acme|alice")),
    ):
        got = await client.get("/api/me", authorization(token))
        assert got.status == 200
        me = got.json()
        assert (me["provider"], me["token_type"], me["user_id"]) == wanted
    refused = {
        issuer.token(aud="x"): "token-audience",
        issuer.token({"typ": "JWT"}): "token-type",
        issuer.token(iss="https://unknown.example"): REJECTED,  # Clerk's, and not signed by Clerk
        issuer.token(iss=tokens.ISSUER): REJECTED,
        tokens.encode(tokens.claims(iss=issuer.url)): REJECTED,
    }
    for token, slug in refused.items():
        got = await client.get("/api/me", authorization(token))
        assert (got.status, got.json()["reason"]) == (401, slug)


async def test_without_clerk_an_unknown_issuer_is_401(serve: Serve, issuer: Issuer) -> None:
    client = await serve({"providers": ["oidc"], "oidc.issuers": table(issuer)["issuers"]})
    got = await client.get("/api/me", authorization(issuer.token(iss="https://unknown.example")))
    assert (got.status, got.json()["reason"]) == (401, REJECTED)


async def test_an_unreachable_issuer_is_503_on_the_server(serve: Serve) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    late = oidc_kit.Issuer()
    late.url = url
    client = await serve({"providers": ["oidc", "stub"], "oidc.issuers": table(url)["issuers"]})
    got = await client.get("/api/me", authorization(late.token()))
    assert (got.status, got.json()) == (503, {"error": "Service Unavailable"})
    assert got.headers["Retry-After"]
    assert (await client.get("/api/me", {"Authorization": 'Stub user_id="alice"'})).status == 200


@pytest.mark.parametrize("namespace", ["", DROP], ids=repr)
async def test_beside_clerk_every_issuer_needs_a_namespace(serve: Serve, namespace: Any) -> None:
    tables = table("https://a.example", namespace=namespace)["issuers"]
    with pytest.raises(ConfigError, match="'clerk' and 'oidc' both have ids without a namespace"):
        await serve({"providers": ["clerk", "oidc"], "oidc.issuers": tables, **clerk()})


async def test_clerk_and_oidc_cannot_have_one_issuer(serve: Serve) -> None:
    tables = table(tokens.ISSUER, namespace="acme")["issuers"]
    with pytest.raises(ConfigError, match="both 'clerk' and 'oidc' answer for the issuer"):
        await serve({"providers": ["clerk", "oidc"], "oidc.issuers": tables, **clerk()})


async def test_beside_keys_and_the_stub_no_namespace_is_needed(serve: Serve, issuer: Issuer) -> None:
    client = await serve({"providers": ["oidc", "api_key", "stub"], "oidc.issuers": table(issuer)["issuers"]})
    assert (await client.get("/api/me", authorization(issuer.token()))).json()["user_id"] == "alice"


def test_the_hooks() -> None:
    assert set(oidc.register_settings()) == {"issuers", "dpop_nonce_secret"}
    made = oidc.register_providers()["oidc"](MappingProxyType({"issuers": [A]}))
    assert isinstance(made, OidcProvider)


# The page ----------------------------------------------------------------------------------------------------------------

# A payload of the form that each product's documentation shows (no tenant of any of them was asked) -> what becomes of it.
SHOWN: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Auth0": (
        {"typ": "at+jwt"},
        {"sub": "auth0|123456", "aud": ["https://api.acme.example", "https://acme.eu.auth0.com/userinfo"], "client_id": "c",
         "jti": "j", "scope": "openid profile", "org_id": "org_9", "permissions": ["invoices:read"], "https://acme.example/role": "admin"},
        {"user_id": "auth0|auth0|123456", "org_id": "auth0|org_9", "org_role": "org:admin", "org_permissions": ("org:invoices:read",),
         "scopes": ("openid", "profile")},
    ),
    "Keycloak": (
        {"typ": "JWT"},
        {"sub": "f3a1", "aud": ["gatepost", "account"], "typ": "Bearer", "azp": "spa", "sid": "s", "scope": "email",
         "org_id": "acme", "org_role": "member", "realm_access": {"roles": ["invoices:read"]}},
        {"user_id": "keycloak|f3a1", "org_id": "keycloak|acme", "org_role": "org:member", "org_permissions": ("org:invoices:read",),
         "session_id": "keycloak|s"},
    ),
    "Okta": (
        {},
        {"ver": 1, "jti": "AT.x", "aud": "api://default", "cid": "0oa1abcd", "uid": "00u1", "scp": ["openid"], "sub": "a@b.example",
         "org_id": "acme", "groups": ["invoices:read"]},
        {"user_id": "okta|00u1", "org_id": "okta|acme", "org_permissions": ("org:invoices:read",), "scopes": ("openid",)},
    ),
    "Entra ID": (
        {"typ": "JWT"},
        {"ver": "2.0", "aud": "11111111-1111-1111-1111-111111111111", "azp": "22222222-2222-2222-2222-222222222222",
         "oid": "aaaa", "sub": "pairwise", "tid": "33333333-3333-3333-3333-333333333333", "scp": "access_as_user",
         "roles": ["invoices:read"]},
        {"user_id": "entra|aaaa", "org_id": "entra|33333333-3333-3333-3333-333333333333", "org_permissions": ("org:invoices:read",),
         "scopes": ("access_as_user",)},
    ),
    "Cognito": (
        {},
        {"sub": "aaaa", "token_use": "access", "client_id": "1example23456789", "scope": "openid", "version": 2, "event_id": "e",
         "org_id": "acme", "cognito:groups": ["invoices:read"]},
        {"user_id": "cognito|aaaa", "org_id": "cognito|acme", "org_permissions": ("org:invoices:read",)},
    ),
}  # fmt: skip


def examples() -> dict[str, dict[str, Any]]:
    """The page's examples: product -> its issuer's table."""
    text = doc_page("oidc.md").read_text("utf-8")
    found = re.findall(r"^### (.+?)\n.*?```toml\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    return {name: tomllib.loads(block)["oidc"]["issuers"][0] for name, block in found}


def test_the_page_has_an_example_for_each() -> None:
    assert list(examples()) == list(SHOWN)


@pytest.mark.parametrize("product", SHOWN)
def test_an_example_of_the_page(product: str) -> None:
    (one,) = settings_room.read({"issuers": [examples()[product]]})
    head, said, wanted = SHOWN[product]
    now = int(time.time())
    usual = {"iss": one.issuer, "iat": now, "exp": now + 3600}
    identity, _, key = claims_room.read(head, {**usual, **said}, one, now)
    assert {name: getattr(identity, name) for name in wanted} == wanted
    assert key is None


def test_all_examples_of_the_page_together() -> None:
    assert len(OidcProvider({"issuers": list(examples().values())}).namespaces) == len(SHOWN)


@pytest.mark.parametrize("page", ["oidc.md", "sign-out.md"])
def test_every_block_of_the_page_is_one_that_the_server_reads(page: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary")
    blocks = re.findall(r"```toml\n(.*?)```", doc_page(page).read_text("utf-8"), re.DOTALL)
    for block in blocks:
        settings_room.read(tomllib.loads(block.replace("/run/secrets/introspection", str(secret)))["oidc"])
    assert blocks


def test_every_member_is_on_the_page() -> None:
    text = doc_page("oidc.md").read_text("utf-8")
    for name in (*settings_room._MEMBERS, *settings_room._CLAIMS):
        assert f"`{name}`" in text, name
