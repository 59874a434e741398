"""The case table of session tokens: what is changed in a valid token, the settings, and the expected result.

A row is (name, settings, header changes, claim changes, outcome). The outcome is a dict of what the Identity says, or
the reason and detail of the refusal. The clock stands at NOW; the good token is the one of kits.tokens.
"""

from typing import Any

from kits.tokens import DROP, ISSUER, PARTY

NOW = 1_800_000_000
OK: dict[str, Any] = {"user_id": "user_1"}
PRE = "credential-rejected"
CLAIMS, KIND, PARTY_BAD, ISS, AUD = (
    "token-claims",
    "token-type",
    "token-authorized-party",
    "token-issuer",
    "token-audience",
)
EXPIRED, EARLY = "token-expired", "token-not-active-yet"
TEXT = "is not 1 to 255 characters of printable text"
AUDIENCE = {"audience": ["api", "other"]}
LENIENT = {"allow_missing_azp": True}
NO_PARTIES = {"authorized_parties": None}
O = {"id": "org_1", "slg": "acme", "rol": "admin", "per": "read,create", "fpm": "3"}  # noqa: E741 - the claim's name
V2 = {"v": 2, "fea": "o:invoices", "o": O}
V1 = {"org_id": "org_1", "org_slug": "acme", "org_role": "org:admin", "org_permissions": ["org:invoices:read"]}
ORG = {"org_id": "org_1", "org_slug": "acme", "org_role": "org:admin"}
NO_ORG = {"org_id": None, "org_slug": None, "org_role": None, "org_permissions": None}


def o(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**O, **changes}.items() if value is not DROP}


Row = tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], Any]
ROWS: list[Row] = [("as it is", {}, {}, {}, {"user_id": "user_1", "session_id": "sess_1", "issued_at": NOW, **NO_ORG})]


def add(name: str, claims: dict[str, Any], outcome: Any, settings: dict[str, Any] | None = None, **header: Any) -> None:
    ROWS.append((name, settings or {}, header, claims, outcome))


# Header: kind of token.
add("no category", {}, OK, cat=DROP)
add("category that says nothing", {}, OK, cat="cl_I7d4PD111III")
for name, cat in [
    ("template", "cl_B7d4PD222AAA"),
    ("machine", "cl_B7d4PD333AAA"),
    ("unknown", "cl_X"),
    ("empty", ""),
    ("null", None),
    ("list", ["cl_B7d4PD111AAA"]),
    ("lower case", "cl_b7d4pd111aaa"),
    ("number", 1),
]:
    add(f"category {name}", {}, (KIND, "cat is not a session token's"), cat=cat)
# An id that looks like another issuer's with its namespace.
FOREIGN = (CLAIMS, "an id of Clerk's has no '|', which ends the namespace of another issuer's ids")
for name, changes in {
    "sub": {"sub": "acme|alice"},
    "sid": {"sid": "acme|s"},
    "org_id": {**V1, "org_id": "acme|org_1"},
    "o.id": {**V2, "o": o(id="acme|org_1")},
    "act.sub": {"act": {"sub": "acme|alice"}},
}.items():
    add(f"another issuer's {name}", changes, FOREIGN)
add("machine's sub", {"sub": "mch_1"}, (KIND, "the route does not accept m2m_token"))
add("machine's sub without category", {"sub": "mch_1"}, (KIND, "the route does not accept m2m_token"), cat=DROP)
add("organisation's sub", {"sub": "org_1"}, (KIND, "sub is not a user"))
add("bound to a key", {"cnf": {"jkt": "x"}}, (KIND, "cnf binds the token to a key"))
add("bound to a key, emptily", {"cnf": None}, (KIND, "cnf binds the token to a key"))
add("category beats expiry", {"exp": NOW - 99}, (KIND, "cat is not a session token's"), cat="cl_B7d4PD222AAA")
# Header: before the signature.
for typ in ("jwt", "", None, "AT+JWT", "at+jwt ", "application/AT+jwt", "jwt+at", 1, ["at+jwt"]):
    add(f"typ {typ!r}", {}, (PRE, "typ is not allowed"), typ=typ)
for typ in ("at+jwt", "application/at+jwt"):
    add(f"typ {typ!r}", {}, (KIND, "the route does not accept oauth_token"), typ=typ)
add("no typ", {}, OK, typ=DROP)
for alg in ("none", "None", "HS256", "PS256", "ES256", "EdDSA", "", None, ["RS256"], DROP):
    add(f"alg {alg!r}" if alg is not DROP else "no alg", {}, (PRE, "alg is not allowed"), alg=alg)
add("RS384", {}, OK, alg="RS384")
add("RS512", {}, OK, alg="RS512")
for name in ("crit", "b64", "enc", "zip"):
    add(f"{name} in the header", {}, (PRE, f"{name} in the header is refused"), **{name: ["exp"]})
for kid in ("", 1, None, ["k1"], "k" * 256):
    add(f"kid {str(kid)[:9]!r}", {}, (PRE, "kid is not a string of 1 to 255 characters"), kid=kid)
add("no kid with a PEM", {}, OK, kid=DROP)
add("any kid with a PEM", {}, OK, kid="../../dev/null")
for name in ("jku", "x5u", "jwk", "x5c", "oiat", "unknown"):
    add(f"{name} in the header is ignored", {}, OK, **{name: "http://127.0.0.1:1/"})
# sub, sid.
add("no sub", {"sub": DROP}, (CLAIMS, "sub is missing"))
for sub in (None, 1, True, [], {}, "", " ", "user_\x00", "user_1\n", "u" * 256, "user_\u2028"):
    add(f"sub {str(sub)[:9]!r}", {"sub": sub}, (CLAIMS, f"sub {TEXT}"))
add("sub of 255 characters", {"sub": "u" * 255}, {"user_id": "u" * 255})
add("sub that is not ASCII", {"sub": "user_é"}, {"user_id": "user_é"})
add("no sid", {"sid": DROP}, {"session_id": None})
for sid in (None, 1, "", "s\x00"):
    add(f"sid {sid!r}", {"sid": sid}, (CLAIMS, f"sid {TEXT}"))
# azp.
add("no azp", {"azp": DROP}, (PARTY_BAD, "azp is missing"))
add("no azp, lenient", {"azp": DROP}, OK, LENIENT)
add("no azp, none configured", {"azp": DROP}, OK, NO_PARTIES)
add("foreign azp, none configured", {"azp": "https://evil.example"}, OK, NO_PARTIES)
for azp in (
    "https://evil.example",
    PARTY + "/",
    PARTY.upper(),
    "http://app.example.com",
    PARTY + ":443",
    PARTY[:-1],
    PARTY + ".evil.example",
    " " + PARTY,
    "",
    None,
    1,
    [PARTY],
    {},
):
    add(f"azp {azp!r}", {"azp": azp}, (PARTY_BAD, "azp is not an authorized party"))
add("foreign azp, lenient", {"azp": "https://evil.example"}, (PARTY_BAD, "azp is not an authorized party"), LENIENT)
add("empty azp, lenient", {"azp": ""}, (PARTY_BAD, "azp is not an authorized party"), LENIENT)
add("the second party", {"azp": "https://b.example.com"}, OK, {"authorized_parties": [PARTY, "https://b.example.com"]})
# aud.
add("aud, none configured", {"aud": "anything"}, OK)
add("odd aud, none configured", {"aud": 5}, OK)
add("no aud, configured", {}, OK, AUDIENCE)
for aud in ("api", ["api"], ["x", "other"]):
    add(f"aud {aud!r}", {"aud": aud}, OK, AUDIENCE)
for aud in ("", "ap", "apis", "API", "api,other", [], ["x"], [""]):
    add(f"aud {aud!r}", {"aud": aud}, (AUD, "aud names none of ours"), AUDIENCE)
for aud in (None, 1, {"api": 1}, [1], ["api", 1], [["api"]], True):
    add(f"aud {aud!r}", {"aud": aud}, (AUD, "aud is neither a string nor a list of strings"), AUDIENCE)
# iss.
for iss in (
    ISSUER + "/",
    ISSUER.upper(),
    ISSUER[:-1],
    ISSUER + ".evil.example",
    "http://clerk.example.com",
    "",
    "clerk.example.com",
):
    add(f"iss {iss!r}", {"iss": iss}, (ISS, "iss is not one of ours"))
for iss in (DROP, None, [ISSUER], 1, {ISSUER: 1}):
    add("no iss" if iss is DROP else f"iss {iss!r}", {"iss": iss}, (ISS, "iss is missing or not a string"))
add("an issuer of the setting", {"iss": "https://proxy.example.com"}, OK, {"issuer": ["https://proxy.example.com"]})
add("the setting replaces the derived", {}, (ISS, "iss is not one of ours"), {"issuer": ["https://proxy.example.com"]})
add("no issuer known: none is asked", {"iss": DROP}, OK, {"publishable_key": None})
add("no issuer known: any is taken", {"iss": "https://x.example"}, OK, {"publishable_key": None})
add("no issuer known: but a text", {"iss": 1}, (ISS, "iss is missing or not a string"), {"publishable_key": None})
# Times.
add("no exp", {"exp": DROP}, (CLAIMS, "exp is missing"))
for name in ("exp", "nbf", "iat"):
    for value in (str(NOW + 30), f" {NOW} ", "٣", True, False, None, [], {}, 1e308, 2**63, -1):
        add(f"{name} {value!r}", {name: value}, (CLAIMS, f"{name} is not a time"))
add("exp that is a fraction", {"exp": NOW + 30.5}, OK)
add("exp 4 s ago", {"exp": NOW - 4, "iat": NOW - 64}, OK)
add("exp 4.9 s ago", {"exp": NOW - 4.9, "iat": NOW - 64}, OK)
add("exp 5 s ago", {"exp": NOW - 5, "iat": NOW - 65}, (EXPIRED, "exp is past"))
add("exp now, no leeway", {"exp": NOW, "iat": NOW - 60}, (EXPIRED, "exp is past"), {"leeway_seconds": 0.0})
add("exp in 1 s, no leeway", {"exp": NOW + 1}, OK, {"leeway_seconds": 0.0})
for name in ("nbf", "iat"):
    add(f"{name} in 5 s", {name: NOW + 5}, OK)
    add(f"{name} in 6 s", {name: NOW + 6}, (EARLY, f"{name} is to come"))
    add(f"no {name}", {name: DROP}, OK)
add("no times but exp", {"nbf": DROP, "iat": DROP}, {"issued_at": None})
add("exp before iat", {"iat": NOW + 3, "exp": NOW - 1}, (CLAIMS, "iat is after exp"))
add("exp before nbf", {"nbf": NOW + 3, "exp": NOW - 1, "iat": DROP}, (CLAIMS, "nbf is after exp"))
LONG = "the token lives longer than clerk.max_token_seconds"
add("ten years", {"exp": NOW + 315_360_000}, (CLAIMS, LONG))
add("a day", {"exp": NOW + 86_400}, OK)
add("a day and a second", {"exp": NOW + 86_401}, (CLAIMS, LONG))
add("ten years without iat", {"exp": NOW + 315_360_000, "iat": DROP}, (CLAIMS, LONG))
add("ten years, bound off", {"exp": NOW + 315_360_000}, OK, {"max_token_seconds": 0.0})
add("a minute, bound 59 s", {}, (CLAIMS, LONG), {"max_token_seconds": 59.0})
# The order of several faults is Clerk's.
add("azp before exp", {"azp": DROP, "exp": NOW - 99}, (PARTY_BAD, "azp is missing"))
add("azp before iss", {"azp": DROP, "iss": "https://x.example"}, (PARTY_BAD, "azp is missing"))
add("aud before azp", {"aud": "x", "azp": DROP}, (AUD, "aud names none of ours"), AUDIENCE)
add("iss before exp", {"iss": "https://x.example", "exp": NOW - 99}, (ISS, "iss is not one of ours"))
# Organisations, version 2.
BOTH = ("org:invoices:read", "org:invoices:create")
add("v2", V2, {**ORG, "org_permissions": BOTH})
add("v2 as 2.0", {**V2, "v": 2.0}, {**ORG, "org_permissions": BOTH})
for version in ("2", 3, 1, None, True, [2], 2.5):
    add(f"v {version!r} is not v2", {**V2, "v": version}, NO_ORG)
add("v2 without o", {"v": 2}, NO_ORG)
add("v2 with o null", {"v": 2, "o": None}, NO_ORG)
add("v2 ignores v1 claims", {"v": 2, **V1}, NO_ORG)
add("v2 beats v1 claims", {**V2, **V1, "org_id": "org_2", "org_role": "org:owner"}, {**ORG, "org_permissions": BOTH})
add("v2, prefixed role stays double", {**V2, "o": o(rol="org:admin")}, {"org_role": "org:org:admin"})
add("v2, no role", {**V2, "o": o(rol=DROP)}, {"org_id": "org_1", "org_role": None})
add("v2, no slug", {**V2, "o": o(slg=DROP)}, {"org_slug": None, "org_role": "org:admin"})
for name in ("per", "fpm"):
    add(f"v2, no {name}", {**V2, "o": o(**{name: DROP})}, {**ORG, "org_permissions": ()})
    add(f"v2, empty {name}", {**V2, "o": o(**{name: ""})}, {**ORG, "org_permissions": ()})
    add(f"v2, {name} a list", {**V2, "o": o(**{name: ["3"]})}, (CLAIMS, "fea, o.per or o.fpm is not a string"))
add("v2, no fea", {"v": 2, "o": O}, {**ORG, "org_permissions": ()})
add("v2, fea a list", {**V2, "fea": ["o:invoices"]}, (CLAIMS, "fea, o.per or o.fpm is not a string"))
add("v2, fea without scope", {**V2, "fea": "invoices"}, (CLAIMS, "an element of fea has no scope"))
add("v2, fea with a hole", {**V2, "fea": "o:invoices,,o:a"}, (CLAIMS, "an element of fea has no scope"))
for value in ("org_1", [], 1, True):
    add(f"v2, o {value!r}", {"v": 2, "o": value}, (CLAIMS, "o is not an object"))
add("v2, o without id", {**V2, "o": o(id=DROP)}, (CLAIMS, "o has no id"))
for value in ("", None, 1, "org\x00", "o" * 256):
    add(f"v2, o.id {str(value)[:5]!r}", {**V2, "o": o(id=value)}, (CLAIMS, f"id {TEXT}"))
add("v2, o.rol a list", {**V2, "o": o(rol=["admin"])}, (CLAIMS, f"rol {TEXT}"))
# Organisations, version 1.
add("v1", V1, {**ORG, "org_permissions": ("org:invoices:read",)})
add("v1 without permissions", {**V1, "org_permissions": DROP}, {**ORG, "org_permissions": None})
add("v1, role without organisation", {**V1, "org_id": DROP}, NO_ORG)
add("v1, null organisation", {**V1, "org_id": None}, NO_ORG)
for value in (1, ["org_1"], "org\x00"):
    add(f"v1, org_id {value!r}", {**V1, "org_id": value}, (CLAIMS, f"org_id {TEXT}"))
add("v1, org_role a number", {**V1, "org_role": 1}, (CLAIMS, f"org_role {TEXT}"))
for value in ("org:invoices:read", [1], {}, 1):
    add(
        f"v1, org_permissions {value!r}",
        {**V1, "org_permissions": value},
        (CLAIMS, "org_permissions is not a list of strings"),
    )
# What is passed through.
add("pending", {"sts": "pending"}, {"pending": True})
add("active", {"sts": "active"}, {"pending": False})
add("unknown status", {"sts": "new"}, {"pending": True})
# Impersonation: the same in both versions of the claims.
for version in ({}, V1, V2):
    named = f"impersonation, {'v1' if version is V1 else 'v2' if version is V2 else 'no organisation'}"
    add(named, {**version, "act": {"sub": "user_2"}}, {**OK, "impersonator": "user_2"})
    add(f"{named}, malformed", {**version, "act": {"sub": ["user_2"]}}, (CLAIMS, f"act.sub {TEXT}"))
DASHBOARD = {"iss": "https://dashboard.clerk.com", "sid": "sess_9", "sub": "user_9"}
add("impersonation from the dashboard", {"act": DASHBOARD}, {**OK, "impersonator": "user_9"})
add("an agent", {"act": {"sub": "agent_1", "type": "agent"}}, {**OK, "impersonator": "agent_1"})
add("an actor before the actor is not looked at", {"act": {"sub": "user_2", "act": {"sub": 1}}}, {**OK, "impersonator": "user_2"})
add("nobody else acts", {}, {**OK, "impersonator": None})
for value in (None, "user_2", ["user_2"], [{"sub": "user_2"}], 1, True, False, ""):
    add(f"act {value!r}", {"act": value}, (CLAIMS, "act is not an object"))
for value in ({}, {"id": "user_2"}, {"act": {"sub": "user_2"}}):
    add(f"act {value!r}", {"act": value}, (CLAIMS, "act has no sub"))
for value in (None, 1, "", " ", "a\nb", "x" * 256, {}, ["user_2"]):
    add(f"act.sub {str(value)[:5]!r}", {"act": {"sub": value}}, (CLAIMS, f"act.sub {TEXT}"))
for name in ("iss", "sid"):
    for value in (None, 1, "a\x00"):
        add(f"act.{name} {value!r}", {"act": {**DASHBOARD, name: value}}, (CLAIMS, f"act.{name} {TEXT}"))
