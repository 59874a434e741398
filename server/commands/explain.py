"""Show how the gate treats METHOD PATH: its route, its access, why it is public or not, and what a caller gets."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from typing import Any

from aiohttp import web

from ..app import SETTINGS, TABLE, build
from ..auth.identity import Identity
from ..gate.verdict import GATE, ROWS, verdict
from ..http.path_prefix import path_prefix_of
from ..http.targets import malformed
from ..messages import nearest_name
from ..routing.matching import matched
from ..routing.patterns import Pattern
from ..routing.table import RouteRule
from ..schema.embedded_database import serving_and_owner
from ..schema.row_policies import row_verdict
from ..settings.sources import Settings
from .caller_arguments import add_caller, described
from .with_token import ask


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("path", metavar="PATH", help="a raw request target, as in a request line")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--token", metavar="T", help="a bearer token, which the real providers check; - reads it from standard input"
    )
    parser.add_argument("--row", nargs=2, metavar=("TABLE", "ID"), help="show whether each policy lets the caller see this row")
    add_caller(parser)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ask the real router, and with a caller the gate; print the answer. No handler runs and nothing is written. Returns 0.

    Raises ConfigError, StartFailed, and ValueError for arguments that exclude each other.
    """
    result = asyncio.run(_result(args, settings))
    if args.json:
        print(json.dumps(result))
        return 0
    row = result.pop("row", None)
    if result["answer"] == "401" and "status" in result:
        result["answer"] += " without a credential"
    lines = [f"{name + ':':9}{value}" for name, value in result.items() if value is not None]
    if row is not None:
        lines.append(f"row:     {row['why']}")
        lines += [f"         {name}: {'holds' if held else 'does not hold'}" for name, held in row["policies"].items()]
    print("\n".join(lines))
    return 0


async def _result(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    method, caller = args.method.upper(), described(args)
    if args.token and caller is not None:
        raise ValueError("explain: --token already identifies the caller: leave out the other arguments that describe one")
    app, prefix = build(settings), path_prefix_of(settings.get)
    path = (prefix.inside(args.path) if prefix else None) or args.path  # as clients see it, or as handlers do
    result: dict[str, Any] = await explain(app, method, path)
    if (match := await matched(app.router, method, path)) is None:
        return result | {"status": 400, "reason": None, "lock": GATE}
    rule = app[TABLE].rules.get(match.route)
    found = verdict(rule, caller, match, match.http_exception)
    if args.token:
        token = sys.stdin.readline().strip() if args.token == "-" else args.token
        sent = prefix.prefix + path if prefix and prefix.strips else path
        found, caller = await ask(settings, method, sent, token)
    result |= found._asdict()
    if args.row:
        result = await _with_row(result, settings, args.row, _scope(caller, rule), method)
    return result


def _scope(caller: Identity | None, rule: RouteRule | None) -> tuple[str, str, str]:
    """The scope in which the handler's SQL would run."""
    if caller is None:
        return ("", "", "")
    org = caller.org_id or ""
    return (caller.user_id or "", org, org if rule is not None and rule.access.as_admin else "")


async def _with_row(
    result: dict[str, Any], settings: Settings, row: list[str], scope: tuple[str, str, str], method: str
) -> dict[str, Any]:
    async with serving_and_owner(settings) as (serving, owner):
        seen = await row_verdict(serving, owner, row[0], row[1], scope, method)
    if result["status"] == 200 and not seen.visible:
        result |= {"status": 404, "reason": None, "lock": ROWS}
    return result | {"row": dataclasses.asdict(seen)}


async def explain(app: web.Application, method: str, target: str) -> dict[str, str]:
    """Returns the answer to this request without a credential: `route`, `answer`, `why`, and `access` where a route matches."""
    if malformed(target):
        why = "parsers could read it in different ways" if target.startswith("/") else "a path begins with /"
        return {"route": "none", "answer": "400", "why": f"the target is malformed: {why}"}
    if (match := await matched(app.router, method, target)) is None:
        return {"route": "none", "answer": "400", "why": "the target cannot be parsed"}
    rule = app[TABLE].rules.get(match.route)
    if rule is None:
        return _no_route(app, match.http_exception, target)
    return _access_of(app, method, rule)


def _no_route(app: web.Application, missing: web.HTTPException | None, target: str) -> dict[str, str]:
    """Returns the answer where no route matches: with the methods that the path has, or with the nearest path."""
    answers = "without a credential the answer is 401, with one it is"
    if isinstance(missing, web.HTTPMethodNotAllowed):
        methods = ", ".join(sorted(missing.allowed_methods))
        why = f"no route of this path has this method, only {methods}: {answers} 405"
        return {"route": "none", "answer": "401", "methods": methods, "why": why}
    near = nearest_name(target.partition("?")[0], [rule.template for rule in app[TABLE].rules.values()])
    why = f"no route matches{(near and f' (the nearest path is {near})') or ''}: {answers} 404"
    return {"route": "none", "answer": "401", "why": why}


def _access_of(app: web.Application, method: str, rule: RouteRule) -> dict[str, str]:
    """Returns what is known about a route: its access, its own limits if it has any, and why it is public or not."""
    found = _openness(app, method, rule)
    return found if rule.bounds is None else found | {"limits": rule.bounds.words()}


def _openness(app: web.Application, method: str, rule: RouteRule) -> dict[str, str]:
    route = f"{method} {rule.template}"
    patterns = [text for text in app[SETTINGS].words("public_routes") if Pattern(text).covers(rule.template)]
    if rule.public:
        opening = f"{patterns[0]!r} covers it" if patterns else "the setting resource.url opens it"
        why = f"declared @public{'(optional=True)' if rule.optional else ''}, and {opening}"
        return {"route": route, "access": rule.words, "answer": "open", "why": why}
    if rule.access.public:
        why = "declared @public, but no pattern in public_routes covers it"
    elif patterns:
        why = f"{patterns[0]!r} covers it, but it is not declared @public"
    else:
        why = "not declared @public"
    access = "signed in" if rule.access.public else rule.access.words()
    return {"route": route, "access": access, "answer": "401", "why": why}
