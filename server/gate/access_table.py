"""Who may call what: the gate's answer to each kind of caller on each route, without a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from ..auth.described import MEMBERS, identity_from
from ..auth.identity import Identity
from ..routing.table import RouteRule, RouteTable
from .verdict import Verdict, verdict

Callers = Mapping[str, Identity | None]
Rules = Sequence[tuple[str, RouteRule]]
THIS_CALLER: Final = "this caller"
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
_RULES: Final = web.AppKey("access_table", list[tuple[str, RouteRule]])


def show_in_development(app: web.Application, table: RouteTable, env: str) -> None:
    """Let `access_table` answer for these routes, in development only."""
    if env == "development":
        app[_RULES] = rules_of(table)


def access_table(request: web.Request, caller: Mapping[str, Any] | None = None) -> list[dict[str, Any]] | None:
    """Returns who may call what on the server that answers this request; None outside development.

    caller  describes one caller by `user`, `org`, `role`, `token_type`, `impersonator`, and by lists `permission`, `scope`,
            `feature` and `plan`; None: the usual kinds of callers

    Each route is a dictionary: `method`, `route` (its template), `access` in words, and `callers`, which has for each caller
    the `status` (200: the handler is reached) and the `reason` of a refusal. Raises ValueError for an impossible caller.
    """
    if _RULES not in request.app:
        return None
    rules = request.app[_RULES]
    if caller is None:
        return table(rules, usual_callers(rules))
    if unknown := caller.keys() - set(MEMBERS):
        raise ValueError(f"a caller has no {min(unknown)!r}; known are {', '.join(MEMBERS)}")
    return table(rules, {THIS_CALLER: identity_from(caller)})


def rules_of(table: RouteTable) -> list[tuple[str, RouteRule]]:
    """Returns (method, rule) of every route, in the order of `routes`; HEAD is like GET."""
    found = [(route.method, rule) for route, rule in table.rules.items() if route.method != "HEAD"]
    return sorted(found, key=lambda one: (one[1].template, one[0]))


def usual_callers(rules: Rules) -> Callers:
    """Returns typical callers by kind; machines only if a route accepts them."""
    accepted = {token_type for _, rule in rules for token_type in rule.access.accepts}
    machines = {name: given for kind, (name, given) in _MACHINES.items() if kind in accepted}
    return {"no credential": None, **{name: identity_from(given) for name, given in {**_USUAL, **machines}.items()}}


def table(rules: Rules, callers: Callers) -> list[dict[str, Any]]:
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
