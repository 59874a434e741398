"""Show how the gate treats METHOD PATH: its route, its access, and why it is public or not."""

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
    parser.add_argument("path", metavar="PATH", help="a raw request target, as in a request line")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ask the real router and print its answer; nothing is opened and no handler runs. Returns 0."""
    result = asyncio.run(explain(build(settings), args.method.upper(), args.path))
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name + ':':9}{value}" for name, value in result.items()))
    return 0


@dataclass(frozen=True, slots=True)
class _Target:
    """The parts of a request that the router reads."""

    method: str
    rel_url: URL


def _url(target: str) -> URL:
    """As aiohttp's parser reads it: a target with a leading slash is a path, even `//host/path`. Raises ValueError."""
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return URL.build(path=path, query_string=query, encoded=True)
    url = URL(target, encoded=True)
    if not url.raw_host:
        raise ValueError("no host")
    return url.relative()


async def explain(app: web.Application, method: str, target: str) -> dict[str, str]:
    """What happens to this request without a credential: `route`, `answer`, `why`, and `access` where a route matches."""
    if malformed(target):
        return {"route": "none", "answer": "400", "why": "the target is malformed: parsers could read it in different ways"}
    try:
        request: Any = _Target(method, _url(target))
    except ValueError:
        return {"route": "none", "answer": "400", "why": "the target cannot be parsed"}
    match = await app.router.resolve(request)
    rule = app[TABLE].rules.get(match.route)
    if rule is None:
        status = match.http_exception.status if match.http_exception else 404
        return {
            "route": "none",
            "answer": "401",
            "why": f"no route matches: without a credential the answer is 401, with one it is {status}",
        }
    return _access_of(app, method, rule)


def _access_of(app: web.Application, method: str, rule: RouteRule) -> dict[str, str]:
    """What is known of a route: its access, its own limits if it has any, and why it is public or not."""
    found = _openness(app, method, rule)
    return found if rule.bounds is None else found | {"limits": rule.bounds.words()}


def _openness(app: web.Application, method: str, rule: RouteRule) -> dict[str, str]:
    route = f"{method} {rule.template}"
    patterns = [text for text in app[SETTINGS].words("public_routes") if Pattern(text).covers(rule.template)]
    if rule.public:
        why = f"declared @public{'(optional=True)' if rule.optional else ''}, and {patterns[0]!r} covers it"
        return {"route": route, "access": rule.words, "answer": "open", "why": why}
    if rule.access.public:
        why = "declared @public, but no pattern in public_routes covers it"
    elif patterns:
        why = f"{patterns[0]!r} covers it, but it is not declared @public"
    else:
        why = "not declared @public"
    access = "signed in" if rule.access.public else rule.access.words()
    return {"route": route, "access": access, "answer": "401", "why": why}
