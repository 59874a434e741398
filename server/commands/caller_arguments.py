"""The arguments that describe a caller, for `explain` and `access`, and the identity that they describe."""

from __future__ import annotations

import argparse

from ..auth.described import MEMBERS, identity_from
from ..auth.identity import TOKEN_TYPES, Identity


def add_caller(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a caller."""
    group = parser.add_argument_group("the caller")
    group.add_argument("--user", help="the user's id")
    group.add_argument("--org", help="the active organisation's id")
    group.add_argument("--role", help="the role in it, such as org:admin")
    group.add_argument("--permission", action="append", default=[], help="such as org:invoices:read; may be repeated")
    group.add_argument("--scope", action="append", default=[], help="a scope of the credential; may be repeated")
    group.add_argument("--feature", action="append", default=[], help="such as o:sso or u:sso; may be repeated")
    group.add_argument("--plan", action="append", default=[], help="such as o:pro or u:pro; may be repeated")
    group.add_argument("--token-type", choices=sorted(TOKEN_TYPES), help="the kind of credential (default: session_token)")
    group.add_argument("--impersonator", help="the id of the user who acts as --user")


def described(args: argparse.Namespace) -> Identity | None:
    """Returns the caller that the arguments describe; None without such arguments. Raises ValueError."""
    given = {name: getattr(args, name) for name in MEMBERS}
    return identity_from(given) if any(given.values()) else None
