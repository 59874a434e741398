"""Say what the gate makes of METHOD PATH: which route, which access, public or not and why."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from yarl import URL

from ..app import SETTINGS, TABLE, build
from ..http.targets import malformed
from ..routing.patterns import Pattern
from ..routing.table import RouteRule
from ..settings.sources import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("path", metavar="PATH", help="a raw request target, as it stands in a request line")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ask the real router; nothing is opened and nothing runs."""
    told = asyncio.run(explain(build(settings), args.method.upper(), args.path))
    if args.json:
        print(json.dumps(told))
    else:
        print("\n".join(f"{name + ':':9}{value}" for name, value in told.items()))
    return 0


@dataclass(frozen=True, slots=True)
class _Asked:
    """As much of a request as the router looks at."""

    method: str
    rel_url: URL


def _url(target: str) -> URL:
    """The target as aiohttp's parser reads it: what begins with a slash is a path, were it `//host/path`."""
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return URL.build(path=path, query_string=query, encoded=True)
    url = URL(target, encoded=True)
    if not url.raw_host:
        raise ValueError("no host")
    return url.relative()


async def explain(app: web.Application, method: str, target: str) -> dict[str, str]:
    """What would happen to this request without a credential, and why."""
    if malformed(target):
        return {"route": "none", "answer": "400", "why": "the target is malformed: it could be read in more than one way"}
    try:
        asked: Any = _Asked(method, _url(target))
    except ValueError:
        return {"route": "none", "answer": "400", "why": "the target cannot be parsed"}
    match = await app.router.resolve(asked)
    rule = app[TABLE].rules.get(match.route)
    if rule is None:
        status = match.http_exception.status if match.http_exception else 404
        return {"route": "none", "answer": "401", "why": f"a stranger learns nothing; a known caller gets {status}"}
    return _told(app, method, rule)


def _told(app: web.Application, method: str, rule: RouteRule) -> dict[str, str]:
    route = f"{method} {rule.template}"
    patterns = [text for text in app[SETTINGS].words("public_routes") if Pattern(text).covers(rule.template)]
    if rule.public:
        return {"route": route, "access": "public", "answer": "open", "why": f"declared @public, and {patterns[0]!r} covers it"}
    if rule.access.public:
        why = "declared @public, but no pattern of the operator's covers it"
    elif patterns:
        why = f"{patterns[0]!r} covers it, but it is not declared @public"
    else:
        why = "not declared @public"
    access = "signed in" if rule.access.public else rule.access.words()
    return {"route": route, "access": access, "answer": "401", "why": why}
