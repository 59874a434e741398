"""Show who may call what: a table of routes and callers; with --check, compare it with a file of expectations."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from ..app import TABLE, build
from ..auth.described import identity_from
from ..auth.identity import Identity
from ..gate import expectations
from ..gate.verdict import Verdict, verdict
from ..routing.table import RouteRule
from ..settings.sources import Settings
from .caller_arguments import add_caller, described
from .columns import aligned

Callers = Mapping[str, Identity | None]
_ORG: Final = {"org": "org_1"}
_USUAL: Final[Mapping[str, Mapping[str, str]]] = {
    "user": {"user": "user_1"},
    "member": {"user": "user_1", **_ORG, "role": "org:member"},
    "admin": {"user": "user_1", **_ORG, "role": "org:admin"},
    "user's key": {"user": "user_1", "token_type": "api_key"},
    "org's key": {**_ORG, "token_type": "api_key"},
}
_MACHINES: Final = {
    "m2m_token": ("machine", {"token_type": "m2m_token"}),
    "oauth_token": ("OAuth app", {"user": "user_1", **_ORG, "token_type": "oauth_token"}),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with the expectations in this TOML file")
    add_caller(parser)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the table, or what differs from a file. Nothing is opened and no handler runs.

    Returns 0, or 1 if an expectation does not hold. Raises ConfigError, ValueError.
    """
    app = build(settings)
    if args.check is not None:
        return _checked(app, args.check)
    caller = described(args)
    rules = _rules(app)
    rows = table(rules, usual_callers(rules) if caller is None else {"no credential": None, "this caller": caller})
    if args.json:
        print(json.dumps(rows))
    else:
        print(as_markdown(rows) if args.markdown else as_text(rows))
    return 0


def _checked(app: web.Application, file: Path) -> int:
    expected = expectations.read_file(file)
    wrong = asyncio.run(expectations.differences(app.router, app[TABLE], expected))
    print("\n".join([*wrong, f"{file}: {len(expected) - len(wrong)} of {len(expected)} expectations hold"]))
    return 1 if wrong else 0


def _rules(app: web.Application) -> list[tuple[str, RouteRule]]:
    """Returns (method, rule) of every route, in the order of `routes`; HEAD is like GET."""
    found = [(route.method, rule) for route, rule in app[TABLE].rules.items() if route.method != "HEAD"]
    return sorted(found, key=lambda one: (one[1].template, one[0]))


def usual_callers(rules: Sequence[tuple[str, RouteRule]]) -> Callers:
    """Returns typical callers by kind; machines only if a route accepts them."""
    accepted = {token_type for _, rule in rules for token_type in rule.access.accepts}
    machines = {name: given for kind, (name, given) in _MACHINES.items() if kind in accepted}
    return {"no credential": None, **{name: identity_from(given) for name, given in {**_USUAL, **machines}.items()}}


def table(rules: Sequence[tuple[str, RouteRule]], callers: Callers) -> list[dict[str, Any]]:
    """Returns a dictionary for each route: `method`, `route`, `access`, and `callers` with the status and reason for each.

    A path parameter that names the organisation has that of the caller: in another organisation the answer is always a 403.
    """
    return [
        {
            "method": method,
            "route": rule.template,
            "access": rule.words,
            "callers": {name: _answer(rule, caller) for name, caller in callers.items()},
        }
        for method, rule in rules
    ]


def _answer(rule: RouteRule, caller: Identity | None) -> dict[str, Any]:
    named = rule.access.organization
    own = {named: caller.org_id} if named and caller is not None and caller.org_id else {}
    found: Verdict = verdict(rule, caller, own)
    return {"status": found.status, "reason": found.reason}


def as_text(rows: list[dict[str, Any]]) -> str:
    """Returns the table in aligned columns, one line for each route."""
    return aligned(_cells(rows), _style)


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown."""
    head, *body = ["| " + " | ".join(row) + " |" for row in _cells(rows)]
    return "\n".join([head, "|" + "---|" * (head.count(" | ") + 1), *body])


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    callers = list(rows[0]["callers"]) if rows else []
    lines = [["METHOD", "ROUTE", *callers]]
    for row in rows:
        lines.append([row["method"], row["route"], *(_cell(row["callers"][name]) for name in callers)])
    return lines


def _style(cell: str) -> str | None:
    return {"yes": "green", "401": "dim", "403": "yellow"}.get(cell.partition(" ")[0])


def _cell(answer: Mapping[str, Any]) -> str:
    if answer["status"] == 200:
        return "yes"
    return " ".join([str(answer["status"]), *([answer["reason"]] if answer["status"] != 401 and answer["reason"] else [])])
