"""Session tokens through the provider: each row is taken or refused for the reason that it states."""

import json
import logging

import pytest
from kits import tokens as kit
from kits.clerk_rows import NOW, ROWS, Row

from providers.clerk.permissions import OddPermissions, pack, unpack
from providers.clerk.provider import ClerkProvider
from server import CredentialRejected, Identity


def settings(**changes):
    base = {
        "publishable_key": kit.PUBLISHABLE_KEY,
        "jwt_key": kit.pem(kit.rsa_key()),
        "authorized_parties": [kit.PARTY],
    }
    return {**base, **changes}


async def opened(tmp_path, table, env="test", issuers=None, clock=lambda: NOW):
    provider = ClerkProvider(table, clock=clock)
    await provider.open(kit.TestHouse(tmp_path, env, issuers))
    return provider


async def outcome(provider, token):
    try:
        return await provider.authenticate(kit.bearer(token))
    except CredentialRejected as refused:
        return refused.reason, kit.without_values(refused.detail)


def test_the_table_is_large_and_its_names_differ():
    assert len(ROWS) >= 200
    assert len({(row[0], str(row[1])) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
async def test_row(row: Row, tmp_path) -> None:
    _, changed, header, claims, wanted = row
    provider = await opened(tmp_path, settings(**changed))
    token = kit.mint(kit.claims(NOW, **claims), kit.header(**header))
    for _ in range(2):  # the second time from the cache, where it was taken
        got = await outcome(provider, token)
        if isinstance(wanted, tuple):
            assert got == wanted
        else:
            assert isinstance(got, Identity), got
            assert {name: getattr(got, name) for name in wanted} == wanted
            assert (got.provider, got.token_type) == ("clerk", "session_token")
            assert json.loads(json.dumps(got.claims, default=dict)) == kit.claims(NOW, **claims)


G = kit.mint(kit.claims(NOW))
H, P, S = G.split(".")
PRE = "credential-rejected"
RAW_HEADER = json.dumps(kit.header()).encode()
RAW_CLAIMS = json.dumps(kit.claims(NOW)).encode()


def spaced(**changes):
    return json.dumps(kit.claims(NOW, **changes)).encode()


RAW = [
    ("signature of another key", kit.mint(kit.claims(NOW), key=kit.rsa_key("attacker")), (PRE, "bad signature")),
    ("RS256 header, PSS signature", kit.raw_token(RAW_HEADER, RAW_CLAIMS, None, "PS256"), (PRE, "bad signature")),
    ("RS256 header, RS512 signature", kit.raw_token(RAW_HEADER, RAW_CLAIMS, None, "RS512"), (PRE, "bad signature")),
    ("signature of zeros", f"{H}.{P}.{kit.b64(bytes(256))}", (PRE, "bad signature")),
    ("signature with a byte more", f"{H}.{P}.{kit.b64(b'0' * 257)}", (PRE, "bad signature")),
    ("signature of one byte", f"{H}.{P}.AA", (PRE, "bad signature")),
    ("another payload under the signature", f"{H}.{kit.b64(spaced(sub='admin'))}.{S}", (PRE, "bad signature")),
    ("another header over the signature", f"{kit.b64(RAW_HEADER + b' ')}.{P}.{S}", (PRE, "bad signature")),
    (
        "attacker's key in jwk",
        kit.mint(kit.claims(NOW), kit.header(jwk=kit.jwk(kit.rsa_key("attacker"))), kit.rsa_key("attacker")),
        (PRE, "bad signature"),
    ),
    (
        "signature not canonical",
        f"{H}.{P}.{S[:-1]}{'B' if S[-1] != 'B' else 'C'}",
        (PRE, "a segment is not canonical base64url"),
    ),
    ("signature with a length of 1 mod 4", f"{H}.{P}.AAAAA", (PRE, "a segment is not canonical base64url")),
    (
        "payload not canonical",
        f"{H}.{P}B.{S}" if len(P) % 4 == 1 else f"{H}.AB.{S}",
        (PRE, "bad signature"),
    ),
    ("header that is no object", kit.raw_token(b'{"a"]', RAW_CLAIMS), (PRE, "the header is not JSON")),
    (
        "header with two alg",
        kit.raw_token(RAW_HEADER[:-1] + b',"alg":"RS256"}', RAW_CLAIMS),
        (PRE, "the header has duplicate members"),
    ),
    (
        "header with two kid",
        kit.raw_token(RAW_HEADER[:-1] + b',"kid":"k1"}', RAW_CLAIMS),
        (PRE, "the header has duplicate members"),
    ),
    (
        "deep header",
        kit.raw_token(b'{"a":' * 40 + b"1" + b"}" * 40, RAW_CLAIMS),
        (PRE, "the header is nested too deeply"),
    ),
    (
        "payload with two sub",
        kit.raw_token(RAW_HEADER, RAW_CLAIMS[:-1] + b',"sub":"admin"}'),
        (PRE, "the payload has duplicate members"),
    ),
    (
        "payload with NaN",
        kit.raw_token(RAW_HEADER, spaced(exp=float("nan"))),
        (PRE, "the payload holds NaN or Infinity"),
    ),
    (
        "payload with 1e400",
        kit.raw_token(RAW_HEADER, RAW_CLAIMS[:-1] + b',"x":1e400}'),
        (PRE, "the payload holds too large a number"),
    ),
    (
        "payload with a huge integer",
        kit.raw_token(RAW_HEADER, RAW_CLAIMS[:-1] + b',"x":' + b"9" * 5000 + b"}"),
        (PRE, "the payload holds too large a number"),
    ),
    (
        "payload with half a character",
        kit.raw_token(RAW_HEADER, spaced(x="\ud800")),
        (PRE, "the payload holds half a character"),
    ),
    (
        "UTF-16 payload",
        kit.raw_token(RAW_HEADER, RAW_CLAIMS.decode().encode("utf-16")),
        (PRE, "the payload is not UTF-8"),
    ),
    (
        "payload with a byte order mark",
        kit.raw_token(RAW_HEADER, b"\xef\xbb\xbf" + RAW_CLAIMS),
        (PRE, "the payload starts with a byte order mark"),
    ),
    ("payload that is not UTF-8", kit.raw_token(RAW_HEADER, RAW_CLAIMS[:-1] + b',"x":"\xff"}'), (PRE, None)),
    ("payload that is a list", kit.raw_token(RAW_HEADER, b"[]"), (PRE, "the payload is not a JSON object")),
    ("payload that is a text", kit.raw_token(RAW_HEADER, b'"foo"'), (PRE, "the payload is not a JSON object")),
    (
        "payload nested 6,000 deep",
        kit.raw_token(RAW_HEADER, b'{"a":' + b"[" * 6000),
        (PRE, "the payload is not JSON"),
    ),
    (
        "payload nested 40 deep",
        kit.raw_token(RAW_HEADER, RAW_CLAIMS[:-1] + b',"x":' + b"[" * 40 + b"]" * 40 + b"}"),
        (PRE, "the payload is nested too deeply"),
    ),
    ("header that is not base64 of an object", f"77u_e30.{P}.{S}", None),
    ("two segments", f"{H}.{P}", None),
    ("four segments", f"{G}.x", None),
    ("five segments (JWE)", f"{G}.x.y", None),
    ("padding", f"{G}=", None),
    ("standard alphabet", f"{H}.{P}.+/{S[2:]}", None),
    ("second space", f" {G}", None),
    ("space after", f"{G} ", None),
    ("tab after", f"{G}\t", None),
    ("two tokens", f"{G}, {G}", None),
    ("empty signature", f"{H}.{P}.", None),
    ("opaque ak_", "ak_0123456789abcdef", None),
    ("opaque mt_", "mt_0123456789abcdef", None),
    ("opaque oat_", "oat_0123456789abcdef", None),
    ("a Gatepost key", "gp_0123456789abcdef", None),
    ("garbage", "abc.def", None),
    ("nothing", "", None),
    ("more than 16 KiB", f"{H}.{'A' * 17_000}.{S}", None),
]


@pytest.mark.parametrize(("token", "wanted"), [row[1:] for row in RAW], ids=[row[0] for row in RAW])
async def test_raw(token, wanted, tmp_path) -> None:
    provider = await opened(tmp_path, settings())
    got = await outcome(provider, token)
    if wanted is not None and wanted[1] is None:
        assert got[0] == wanted[0]
        assert "payload is not" in got[1]
    else:
        assert got == wanted


@pytest.mark.parametrize(
    "secret", [kit.pem(kit.rsa_key()), kit.pem(kit.rsa_key()).strip(), json.dumps(kit.jwk(kit.rsa_key())), ""]
)
async def test_a_secret_made_of_the_public_key_signs_nothing(secret, tmp_path) -> None:
    import hashlib
    import hmac

    head = kit.b64(json.dumps(kit.header(alg="HS256")).encode())
    message = f"{head}.{P}"
    token = f"{message}.{kit.b64(hmac.digest(secret.encode() or b'', message.encode(), hashlib.sha256))}"
    assert await outcome(await opened(tmp_path, settings()), token) == (PRE, "alg is not allowed")


@pytest.mark.parametrize(
    ("values", "taken"),
    [
        ([f"Bearer {G}"], True),
        ([f"bearer {G}"], True),
        ([f"BEARER {G}"], True),
        ([f"Bearer  {G}"], False),
        ([f"Bearer\t{G}"], False),
        ([G], False),
        ([f"Basic {G}"], False),
        ([f"Token {G}"], False),
        (["Bearer"], False),
        (["Bearer "], False),
        ([], False),
        ([f"Bearer {G}", f"Bearer {G}"], False),
        ([f"Bearer {G},Bearer {G}"], False),
    ],
)
async def test_carriers(values, taken, tmp_path) -> None:
    provider = await opened(tmp_path, settings())
    got = await provider.authenticate(kit.request(*values))
    assert (got is not None) == taken


async def test_a_jwt_of_another_providers_issuer_is_not_mine_whatever_it_looks_like(tmp_path) -> None:
    provider = await opened(tmp_path, settings(), issuers={"https://idp.example": "oidc", kit.ISSUER: "clerk"})
    theirs = kit.claims(NOW, iss="https://idp.example")
    assert await outcome(provider, kit.mint(theirs)) is None
    assert await outcome(provider, kit.mint(theirs, kit.header(alg="ES256", typ="at+jwt"))) is None
    assert isinstance(await outcome(provider, G), Identity)
    nobodys = await outcome(provider, kit.mint(kit.claims(NOW, iss="https://nobody.example")))
    assert nobodys == ("token-issuer", "iss is not one of ours")


async def test_a_clock_that_jumps_counts_on_every_request(tmp_path) -> None:
    clock = [NOW]
    provider = await opened(tmp_path, settings(), clock=lambda: clock[0])
    for at, wanted in [
        (0, None),
        (59, None),
        (64, None),
        (65, "token-expired"),
        (-16, "token-not-active-yet"),
        (30, None),
    ]:
        clock[0] = NOW + at
        got = await outcome(provider, G)
        assert (got[0] if isinstance(got, tuple) else None) == wanted, at


async def test_the_shared_identity_cannot_be_changed(tmp_path) -> None:
    provider = await opened(tmp_path, settings())
    token = kit.mint(kit.claims(NOW, fva=[1, -1], v=2, o={"id": "org_1"}))
    first, second = await outcome(provider, token), await outcome(provider, token)
    assert first is second
    with pytest.raises(TypeError):
        first.claims["o"]["id"] = "org_2"
    with pytest.raises(TypeError):
        first.claims["fva"][0] = 0


@pytest.mark.parametrize(
    ("fea", "per", "fpm", "wanted"),
    [
        ("o:dashboard,o:teams", "manage,read", "3,2", "dashboard:manage dashboard:read teams:read"),
        (
            "o:repositories,uo:projects,u:goldprofileborder",
            "read,create,update,delete,revoke",
            "7,21,0",
            "repositories:read repositories:create repositories:update projects:read projects:update projects:revoke",
        ),
        ("o:a,o:b,o:c", "x,y", "1,0,6", "a:x c:y"),
        ("o:m", ",".join(f"p{n}" for n in range(54)), "9007199254740993", "m:p0 m:p53"),
        (" o:a , o:b", " x , y ", " 1 , 3 ", "a:x b:x b:y"),
        ("o:a,o:b", "x,y", "-1,3", "b:x b:y"),
        ("o:a,o:b", "x,y", "1.5,3", "b:x b:y"),
        ("o:a,o:b", "x,y", "0x3,3", "b:x b:y"),
        ("o:a,o:b", "x,y", ",3", "b:x b:y"),
        ("o:a,o:b", "x,y", "٣,3", "b:x b:y"),
        ("o:a,o:b", "x,y", "3", "a:x a:y"),
        ("o:a", "x,y", "3,3", "a:x a:y"),
        ("ou:a", "x", "1", "a:x"),
        ("q:a", "x", "1", ""),
        ("O:a", "x", "1", ""),
        ("o:a:b", "x", "1", "a:b:x"),
        # The two readings disagree: only what both grant.
        ("u:a,o:b", "x,y", "0,3", ""),
        ("u:a,o:b", "x,y", "3", ""),
        ("u:a,o:b,o:c", "x,y", "0,3,1", "c:x"),
        ("u:a,o:b", "x,y", "3,1", "b:x"),
        ("o:z,u:a,o:b", "x", "1,1,1", "z:x b:x"),
        ("q:a,o:b", "x", "0,1", ""),
        ("", "x", "1", ""),
        ("o:a", "", "1", ""),
        ("o:a", "x", "", ""),
        ("o:a", "x", "9" * 2000, ""),
    ],
)
def test_permission_masks(fea, per, fpm, wanted) -> None:
    assert unpack(fea, per, fpm) == tuple(f"org:{name}" for name in wanted.split())


@pytest.mark.parametrize("fea", ["a", "o:a,b", ",", "o:a,", " "])
def test_features_without_a_scope_cannot_be_decoded(fea) -> None:
    with pytest.raises(OddPermissions):
        unpack(fea, "x", "1")


def test_a_disputed_reading_is_logged_once_without_the_claims(caplog, monkeypatch) -> None:
    monkeypatch.setattr("providers.clerk.permissions._warned", set())
    caplog.set_level(logging.WARNING)
    for _ in range(5):
        unpack("u:secretfeature,o:b", "x", "1,1")
    assert len(caplog.records) == 1
    assert "secretfeature" not in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["org:invoices:read"],
        ["org:a:x", "org:b:y", "org:a:y"],
        ["org:a:b:x"],
        [f"org:f{n}:v{n}" for n in range(70)],
    ],
)
def test_packing_is_undone_by_unpacking(names) -> None:
    assert sorted(unpack(*pack(names))) == sorted(names)


@pytest.mark.parametrize(
    "name", ["read", "org:read", "invoices:read", "org::read", "org:a:", "org:a,b:c", "org:org:a:b,"]
)
def test_what_is_no_permission_cannot_be_packed(name) -> None:
    with pytest.raises(ValueError, match="a permission must have the form"):
        pack([name])
