"""`python -m server token`: session tokens of every shape, good and bad, signed with the development key."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa

from server import CommandContext

from . import development_key as development
from .settings import ClerkSettings

TYPES: Final = ("session_token", "oauth_token", "m2m_token")
_MAX_TTL: Final = 86_400
_FVA: Final = re.compile(r"(-1|[0-9]{1,6}),(-1|[0-9]{1,6})")
_SLUG: Final = re.compile(r"(?:(o|u|ou|uo):)?([^\s,:]+)")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("--user", default="user_1", help="the user's id (default: user_1)")
    add("--org", help="the active organisation's id")
    add("--role", help="the role in it, such as org:admin (default: org:member)")
    add(
        "--permission",
        action="extend",
        nargs="+",
        default=[],
        help="such as org:invoices:read; takes several, or may be repeated",
    )
    add(
        "--type",
        choices=TYPES,
        default=TYPES[0],
        help="a machine token instead, as a JWT: of an OAuth application, or of a machine",
    )
    add("--scope", action="append", default=[], help="a scope of a machine token; may be repeated")
    add("--feature", action="append", default=[], help="such as sso, o:sso or u:sso; may be repeated")
    add("--plan", action="append", default=[], help="such as pro, o:pro or u:pro; may be repeated")
    add("--fva", help="minutes since the first and the second factor were verified, such as 0,-1 (-1: never)")
    add("--impersonator", metavar="USER", help="who acts as the user: the claim act, as with Clerk's impersonation")
    add("--pending", action="store_true", help="a session with unfinished tasks")
    add("--v1", action="store_true", help="the older shape of Clerk's claims")
    add("--ttl", type=int, default=3600, help="its lifetime in seconds (default: 3600)")
    add("--expired", action="store_true", help="an expired token")
    add("--wrong-key", action="store_true", help="sign it with an unknown key")
    add("--json", action="store_true", help="print JSON: the token, its claims, and the header to send")


async def run(given: argparse.Namespace, context: CommandContext) -> int:
    """Print one token. Raises ValueError for a mistake."""
    if context.env == "production" or ClerkSettings.read(context.settings).configured:
        raise ValueError("development tokens are accepted only outside production and without any CLERK_ setting")
    for name in ("user", "org", "role"):
        if getattr(given, name) == "":
            raise ValueError(f"--{name} is empty: is the variable set that it is taken from?")
    claims = claims_of(given) if given.type == TYPES[0] else machine_claims_of(given)
    is_new = not (context.folder / development.FILE).exists()
    own = development.signing_key(context.folder)
    if is_new:
        print(
            f"a new development key was created in {context.folder.resolve()}: only a server with this data_folder knows it",
            file=sys.stderr,
        )
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048) if given.wrong_key else own
    token = development.mint(key, claims, given.type)
    printed = {"token": token, "claims": claims, "header": {"Authorization": f"Bearer {token}"}}
    print(json.dumps(printed) if given.json else token)
    return 0


def claims_of(given: argparse.Namespace) -> dict[str, Any]:
    """Returns the claims for these arguments. Raises ValueError."""
    ttl = _ttl(given)
    if given.scope:
        raise ValueError("--scope is for machine tokens: add --type oauth_token or m2m_token")
    if given.org is None and (given.role is not None or given.permission):
        raise ValueError("a role or a permission needs an organisation: add --org")
    make = development.claims_v1 if given.v1 else development.claims_v2
    now = time.time() - (given.ttl + 60 if given.expired else 0)
    claims = make(given.user, org=given.org, role=given.role, permissions=given.permission, ttl=ttl, now=now)
    scope = "o" if given.org is not None else "u"
    if given.feature:
        # The organisation's features come first: Clerk's own libraries read other orders differently.
        features = sorted(_scoped(given.feature, scope, "--feature"), key=lambda feature: feature.startswith("u:"))
        known = claims["fea"].split(",") if "fea" in claims else []
        claims["fea"] = ",".join(dict.fromkeys(known + features))
    if given.plan:
        claims["pla"] = ",".join(_scoped(given.plan, scope, "--plan"))
    if given.fva is not None:
        claims["fva"] = _ages(given.fva)
    if given.impersonator is not None:
        claims["act"] = {"iss": "https://dashboard.clerk.com", "sub": given.impersonator}
    if given.pending:
        claims["sts"] = "pending"
    return claims


def machine_claims_of(given: argparse.Namespace) -> dict[str, Any]:
    """Returns the claims of a machine token for these arguments. Raises ValueError for one that it cannot have."""
    names = ("role", "permission", "feature", "plan", "fva", "pending", "v1", *(("org",) if given.type == "m2m_token" else ()))
    for name in names:
        if getattr(given, name):
            raise ValueError(f"--{name} is not for a token of the type {given.type}")
    subject = given.user if given.type == "oauth_token" or given.user != "user_1" else "mch_1"
    if (given.type == "m2m_token") != subject.startswith("mch_"):
        raise ValueError("--user must be a machine such as mch_1 for m2m_token, and a user for oauth_token")
    now = time.time() - (given.ttl + 60 if given.expired else 0)
    claims = development.machine_claims(subject, given.type, scopes=given.scope, org=given.org, ttl=_ttl(given), now=now)
    if given.impersonator is not None:
        claims["act"] = {"iss": "https://dashboard.clerk.com", "sub": given.impersonator}
    return claims


def _ttl(given: argparse.Namespace) -> int:
    if not 0 < given.ttl <= _MAX_TTL:
        raise ValueError(f"--ttl must be from 1 to {_MAX_TTL} seconds")
    return int(given.ttl)


def _scoped(words: Iterable[str], scope: str, name: str) -> list[str]:
    found = [_SLUG.fullmatch(word) for word in words]
    if not all(found):
        raise ValueError(f"{name} must be a word, optionally with o: or u: before it")
    return [f"{match[1] or scope}:{match[2]}" for match in found if match]


def _ages(text: str) -> list[int]:
    match = _FVA.fullmatch(text)
    if match is None:
        raise ValueError("--fva must be two numbers of minutes such as 0,-1")
    return [int(match[1]), int(match[2])]
