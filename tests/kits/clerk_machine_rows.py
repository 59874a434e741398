"""The case table of Clerk's machine tokens that are JWTs: what is changed in a valid token, and what follows.

A row is (kind of token, what is changed, header changes, claim changes, settings, outcome). The outcome is the token type as
which a route that names it accepts the token, or the reason of the refusal there. The good tokens are HEADERS and CLAIMS.
"""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

from kits.tokens import DROP, ISSUER, PARTY, SESSION_CAT, mint, rsa_key

OAUTH, M2M, SESSION = "oauth_token", "m2m_token", "session_token"
M2M_CAT, TEMPLATE_CAT, ANY_CAT = "cl_B7d4PD333AAA", "cl_B7d4PD222AAA", "cl_I7d4PD111III"
USER, ORG, MACHINE = "user_2xhFjEI5X2qWRvtV13BzSj8H6Dk", "org_2xhFjEI5X2qWRvtV13BzSj8H6Dk", "mch_2xhFjEI5X2qWRvtV13BzSj8H6Dk"
HEADERS: dict[str, dict[str, Any]] = {
    OAUTH: {"alg": "RS256", "typ": "at+jwt", "kid": "k1"},
    M2M: {"alg": "RS256", "typ": "JWT", "kid": "k1", "cat": M2M_CAT},
    SESSION: {"alg": "RS256", "typ": "JWT", "kid": "k1", "cat": SESSION_CAT},
}
CLAIMS: dict[str, dict[str, Any]] = {
    OAUTH: {"iss": ISSUER, "sub": USER, "client_id": "client_1", "jti": "oat_1", "scope": "profile user:org:read", "org_id": ORG},
    M2M: {"iss": ISSUER, "sub": MACHINE, "jti": "m2m_1", "scopes": "mch_a mch_b"},
    SESSION: {"iss": ISSUER, "sub": USER, "sid": "sess_1", "azp": PARTY, "jti": "s_1", "v": 2},
}
OURS = {"audience": ["https://api.example.com", "other"]}
REQUIRED = {**OURS, "require_audience": True}
PRE, TYPE, CLAIM, AUD, ISS = "credential-rejected", "token-type", "token-claims", "token-audience", "token-issuer"
EXPIRED, EARLY = "token-expired", "token-not-active-yet"


class Row(NamedTuple):
    """One case. Claims that are functions are called with the present time (Unix seconds)."""

    kind: str
    name: str
    header: dict[str, Any]
    claims: dict[str, Any]
    settings: dict[str, Any]
    outcome: str
    key: str = ""

    def token(self) -> str:
        """The token, signed now."""
        now = int(time.time())
        claims = {**CLAIMS[self.kind], "iat": now, "nbf": now, "exp": now + 600, **self.claims}
        claims = {name: value(now) if callable(value) else value for name, value in claims.items() if value is not DROP}
        header = {name: value for name, value in {**HEADERS[self.kind], **self.header}.items() if value is not DROP}
        return mint(claims, header, rsa_key(self.key) if self.key else None)


ROWS: list[Row] = []


def add(kind: str, name: str, outcome: str, claims: dict[str, Any] | None = None, settings: dict[str, Any] | None = None,
        key: str = "", **header: Any) -> None:  # fmt: skip
    ROWS.append(Row(kind, name, header, claims or {}, settings or {}, outcome, key))


def both(name: str, outcome: str, claims: dict[str, Any] | None = None, **more: Any) -> None:
    for kind in (OAUTH, M2M):
        add(kind, name, outcome or kind, claims, **more)


for kind in (OAUTH, M2M, SESSION):
    add(kind, "nothing", kind)
    add(kind, "signed with another key", PRE, key="attacker")
# Which kind it is.
add(OAUTH, "`typ` is `application/at+jwt`", OAUTH, typ="application/at+jwt")
for typ in ("JWT", DROP):
    add(OAUTH, f"`typ` is {'missing' if typ is DROP else '`JWT`'}", "token-authorized-party", typ=typ)
for typ in ("AT+JWT", "at+JWT", "jwt", "", None, 1, ["at+jwt"]):
    add(OAUTH, f"`typ` is `{json.dumps(typ)}`", PRE, typ=typ)
add(OAUTH, "`cat` is a session token's", OAUTH, cat=SESSION_CAT)
add(OAUTH, "`cat` says nothing", OAUTH, cat=ANY_CAT)
for name, cat in (("a template's", TEMPLATE_CAT), ("a machine's", M2M_CAT), ("a list", [SESSION_CAT]), ("null", None)):
    add(OAUTH, f"`cat` is {name}", TYPE, cat=cat)
add(OAUTH, "`sub` is a machine", TYPE, {"sub": MACHINE})
add(M2M, "`cat` is missing", M2M, cat=DROP)
for name, cat in (("a session token's", SESSION_CAT), ("a template's", TEMPLATE_CAT), ("one that says nothing", ANY_CAT),
                  ("unknown", "cl_X"), ("null", None), ("empty", "")):  # fmt: skip
    add(M2M, f"`cat` is {name}", TYPE, cat=cat)
add(M2M, "`typ` is missing", M2M, typ=DROP)
for typ in ("at+jwt", "application/at+jwt"):
    add(M2M, f"`typ` is `{typ}`", TYPE, typ=typ)
for name, sub in (("a user", USER), ("`MCH_…`", MACHINE.upper()), ("` mch_…`", " " + MACHINE)):
    add(M2M, f"`sub` is {name}", TYPE, {"sub": sub})
add(SESSION, "`cat` is a template's", TYPE, cat=TEMPLATE_CAT)
add(SESSION, "`cat` is a machine's", TYPE, cat=M2M_CAT)
add(SESSION, "`sub` is a machine", TYPE, {"sub": MACHINE})
add(SESSION, "`typ` is `at+jwt`", OAUTH, typ="at+jwt")
add(SESSION, "an ID token: no `azp`, `aud` is the client, `nonce`", "token-authorized-party",
    {"azp": DROP, "sid": DROP, "aud": "client_1", "nonce": "n"}, cat=DROP)  # fmt: skip
# Signature and header.
for alg in ("none", "HS256", "PS256", "ES256"):
    both(f"`alg` is `{alg}`", PRE, alg=alg)
both("`crit` in the header", PRE, crit=["exp"])
both("`kid` is empty", PRE, kid="")
both("`kid` is a list", PRE, kid=["k1"])
# Who.
for name, sub in (("missing", DROP), ("null", None), ("a number", 7), ("empty", ""), ("a list", [USER])):
    add(OAUTH, f"`sub` is {name}", CLAIM, {"sub": sub})
add(OAUTH, "`sub` is an organisation", CLAIM, {"sub": ORG})
add(OAUTH, "`sub` is its `client_id`", CLAIM, {"sub": "client_1"})
add(OAUTH, "`client_id` is a number", CLAIM, {"client_id": 1})
both("`jti` is a number", CLAIM, {"jti": 1})
both("`jti` is missing", "", {"jti": DROP})
add(M2M, "`sub` has a line break", CLAIM, {"sub": MACHINE + "\n"})
both("`cnf` binds it to a key", TYPE, {"cnf": {"jkt": "x"}})
both("`act` names who acts", "", {"act": {"sub": "user_9"}})
for name, act in (("a text", "user_9"), ("null", None), ("an object without `sub`", {"iss": ISSUER}), ("an object with a list as `sub`", {"sub": ["user_9"]})):
    both(f"`act` is {name}", CLAIM, {"act": act})
# Organisation.
add(OAUTH, "`org_id` is missing", OAUTH, {"org_id": DROP})
add(OAUTH, "`org_id` is null", OAUTH, {"org_id": None})
for name, org in (("a number", 7), ("a list", [ORG]), ("an object", {"id": ORG}), ("two lines", f"{ORG}\n{ORG}"), ("`true`", True)):
    add(OAUTH, f"`org_id` is {name}", CLAIM, {"org_id": org})
# Scopes.
add(OAUTH, "`scope` is missing", OAUTH, {"scope": DROP})
add(OAUTH, "`scp` is a list", OAUTH, {"scp": ["profile", "email"], "scope": DROP})
add(OAUTH, "`scp` and `scope` differ", OAUTH, {"scp": ["profile", "todos:write"], "scope": "profile todos:read"})
for name, scope in (("a list", ["profile"]), ("a number", 1), ("null", None), ("an object", {})):
    add(OAUTH, f"`scope` is {name}", CLAIM, {"scope": scope})
for name, scope in (("a text", "profile email"), ("a list of numbers", [1]), ("null", None), ("an object", {})):
    add(OAUTH, f"`scp` is {name}", CLAIM, {"scp": scope})
add(M2M, "`scopes` is missing, `aud` a list", M2M, {"scopes": DROP, "aud": ["mch_a"]})
for name, scope in (("a list", ["mch_a"]), ("a number", 1), ("an object", {})):
    add(M2M, f"`scopes` is {name}", CLAIM, {"scopes": scope})
# Audience.
for name, aud in (("foreign", "https://other.example"), ("a number", 7), ("an empty list", []), ("null", None)):
    both(f"no audience configured, `aud` is {name}", "", {"aud": aud})
both("`aud` is ours", "", {"aud": "other"}, settings=OURS)
both("`aud` names ours and another", "", {"aud": ["x", "https://api.example.com"]}, settings=OURS)
for name, aud in (("foreign", "https://other.example"), ("a list of others", ["a", "b"]), ("a prefix of ours", "https://api.example"),
                  ("ours with a slash", "https://api.example.com/"), ("an empty list", []), ("empty", ""), ("null", None), ("a number", 7),
                  ("an object", {"https://api.example.com": 1}), ("a list with a number", ["other", 7])):  # fmt: skip
    both(f"`aud` is {name}", AUD, {"aud": aud}, settings=OURS)
both("`aud` is missing", "", settings=OURS)
both("`aud` is missing, `CLERK_REQUIRE_AUDIENCE`", AUD, settings=REQUIRED)
both("`aud` is foreign, `CLERK_AUDIENCE_MODE=observe`", "", {"aud": "x"}, settings={**REQUIRED, "audience_mode": "observe"})
# Issuer.
for name, iss in (("another instance", "https://clerk.other.example"), ("missing", DROP), ("a list", [ISSUER]), ("ours with a slash", ISSUER + "/")):
    both(f"`iss` is {name}", ISS, {"iss": iss})
# Times.
both("`exp` is missing", CLAIM, {"exp": DROP})
both("`exp` is a text", CLAIM, {"exp": lambda now: str(now + 60)})
both("`exp` is past", EXPIRED, {"exp": lambda now: now - 6, "iat": lambda now: now - 60, "nbf": DROP})
both("`exp` is past by less than the leeway", "", {"exp": lambda now: now - 1, "iat": lambda now: now - 60, "nbf": DROP})
both("`nbf` is to come", EARLY, {"nbf": lambda now: now + 60})
both("`nbf` is a text", CLAIM, {"nbf": "0"})
both("`iat` is to come", EARLY, {"iat": lambda now: now + 60})
both("it lives longer than `CLERK_MAX_TOKEN_SECONDS`", CLAIM, {"exp": lambda now: now + 90_000})
