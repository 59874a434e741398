"""`python -m server keys …`: the operations of the routes for the operator, without checks of a caller's rights.

The serving role sees a tenant's keys in that tenant's scope only, so each command names the owner: `--user`, `--org` or both.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from server import Command, CommandContext, Identity

from .key_format import PREFIX, Key, digest_of, make, parse
from .models import LONGEST_OVERLAP, NewKey
from .statements import COLUMNS, INSERT, MINE, REVOKE, ROTATE

_LIST = f"SELECT {COLUMNS}, revoked_at FROM api_keys WHERE {MINE} ORDER BY created_at DESC, id DESC"  # noqa: S608
_OPERATOR = "operator"


def commands() -> Mapping[str, Command]:
    """Returns the commands of this provider by their names."""
    return {"keys": Command("API keys: create, list, revoke, rotate, or print the hash of one", _arguments, _run)}


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    create = _whose(actions.add_parser("create", help="create a key and print it; it is shown only once"))
    create.add_argument("--name", required=True, help="what it is for")
    create.add_argument("--role", help="its role in the organisation")
    create.add_argument("--permission", action="append", default=[], help="a permission in the organisation; may be repeated")
    create.add_argument("--scope", action="append", default=[], help="a scope of the key; may be repeated")
    create.add_argument("--expires", metavar="TIME", help="such as 2027-01-31T00:00:00Z (default: never)")
    create.add_argument("--days", type=int, help="the same, as a number of days from now")
    _whose(actions.add_parser("list", help="list the keys of a user or an organisation, including revoked ones"))
    revoke = _whose(actions.add_parser("revoke", help="revoke a key by its id, or by the key itself from standard input"))
    revoke.add_argument("id", help="its id; or - to read the key itself from standard input (without --user and --org)")
    rotate = _whose(actions.add_parser("rotate", help="give a key a new secret and print the new key; it is shown only once"))
    rotate.add_argument("id", help="its id")
    rotate.add_argument("--overlap", type=int, default=0, metavar="SECONDS", help="how long the old secret still works")
    actions.add_parser("hash", help="read a key from standard input and print its hash for [[api_key.keys]]")


def _whose(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--user", help="the user who owns the key")
    parser.add_argument("--org", help="the organisation that owns the key, or in which the user's key acts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


async def _run(args: argparse.Namespace, context: CommandContext) -> int:
    """Run one action; returns the exit status. Raises ValueError for a mistake."""
    if args.action == "hash":
        print("sha256:" + digest_of(_read_key()).hex())
        return 0
    async with context.database() as connection:
        if args.action == "revoke" and args.id == "-":
            await _name_owner(connection, args)
        if args.user is None and args.org is None:
            raise ValueError("specify --user, --org or both")
        async with context.scoped(connection, args.user, args.org):
            return await _ACTIONS[args.action](args, context, connection)


async def _create(args: argparse.Namespace, context: CommandContext, connection: Any) -> int:
    new, key = _checked(args), make(context.env)
    await _show(connection, args, key, INSERT, key.id, key.digest, new.name, args.user, args.org, new.org_role,
                new.org_permissions, new.scopes, _OPERATOR, None, new.expires_at)  # fmt: skip
    return 0


async def _list(args: argparse.Namespace, context: CommandContext, connection: Any) -> int:
    rows = [dict(row) for row in await connection.fetch(_LIST, args.user, args.org)]
    if args.json:
        print(json.dumps(rows, default=_plain))
        return 0
    for row in rows:
        print("  ".join(str(_plain(row[name])) for name in ("id", "owner", "user_id", "org_id", "org_role")), end="  ")
        print(f"{_state(row)}  last used {_plain(row['last_used_at'])}  {row['name']}")
    print("1 key" if len(rows) == 1 else f"{len(rows)} keys", file=sys.stderr)
    return 0


async def _revoke(args: argparse.Namespace, context: CommandContext, connection: Any) -> int:
    row = await connection.fetchrow(REVOKE, args.user, args.org, args.id)
    if row is None:
        raise ValueError("this owner has no such key")
    print(json.dumps(dict(row), default=_plain) if args.json else f"revoked: {row['id']} ({row['name']})")
    return 0


async def _rotate(args: argparse.Namespace, context: CommandContext, connection: Any) -> int:
    key = make(context.env, args.id)
    if not 0 <= args.overlap <= LONGEST_OVERLAP:
        raise ValueError(f"--overlap must be from 0 to {LONGEST_OVERLAP} seconds")
    if parse(key.text) is None:
        raise ValueError("not the id of a key")
    await _show(connection, args, key, ROTATE, args.user, args.org, args.id, key.digest, args.overlap, None)
    return 0


_ACTIONS = {"create": _create, "list": _list, "revoke": _revoke, "rotate": _rotate}


async def _show(connection: Any, args: argparse.Namespace, key: Key, sql: str, *values: Any) -> None:
    row = await connection.fetchrow(sql, *values)
    if row is None:
        raise ValueError("this owner has no such key")
    if args.json:
        print(json.dumps({**dict(row), "secret": key.text}, default=_plain))
        return
    print(f"{args.action}d: {row['id']} ({row['name']}). The key is shown only once:", file=sys.stderr)
    print(key.text)


async def _name_owner(connection: Any, args: argparse.Namespace) -> None:
    """Read a (leaked) key and set its id and owner in `args`. Raises ValueError for an unknown one."""
    rows = await connection.fetch("SELECT id, user_id, org_id FROM key_by_hash($1)", digest_of(_read_key()))
    if not rows:
        raise ValueError("no such key")
    args.id, args.user, args.org = rows[0]["id"], rows[0]["user_id"], rows[0]["org_id"]


def _checked(args: argparse.Namespace) -> NewKey:
    """Validate by the same rules as over HTTP. Raises ValueError for a mistake."""
    Identity(provider="api_key", user_id=args.user, org_id=args.org)  # raises for ids that no caller can have
    if args.org is None and (args.role is not None or args.permission):
        raise ValueError("a role or a permission needs an organisation: add --org")
    if args.days is not None:
        if args.expires is not None or not 0 < args.days <= 36_500:
            raise ValueError("--days must be from 1 to 36500, and not together with --expires")
        args.expires = (datetime.now(UTC) + timedelta(days=args.days)).isoformat()
    given = {"name": args.name, "scopes": args.scope, "org_role": args.role, "org_permissions": args.permission,
             "expires_at": args.expires}  # fmt: skip
    try:
        return NewKey.model_validate(given)
    except ValidationError as error:
        raise ValueError("; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())) from None


def _read_key() -> str:
    key = (getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not key.startswith(PREFIX) or len(key) < 16:
        raise ValueError(f"a key begins with {PREFIX!r} and has at least 16 characters")
    return key


def _state(row: Mapping[str, Any]) -> str:
    if row["revoked_at"] is not None:
        return "revoked"
    return "expired" if row["expires_at"] is not None and row["expires_at"] <= datetime.now(UTC) else "live"


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else "-" if value is None else value
