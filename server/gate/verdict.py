"""How the gate answers a caller of a route, decided from the declared access alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from aiohttp import web

from ..auth.access import check
from ..auth.identity import Identity
from ..http.errors import ApiError
from ..routing.table import RouteRule

GATE: Final = "gate"
ROWS: Final = "row-level security"


class Verdict(NamedTuple):
    """The status and reason of the refusal, and the lock that refuses; 200 and None if the handler is reached."""

    status: int
    reason: str | None = None
    lock: str | None = None


def verdict(
    rule: RouteRule | None, identity: Identity | None, parameters: Mapping[str, str], missing: web.HTTPException | None = None
) -> Verdict:
    """Returns what happens to a request of this caller (None: without a credential).

    rule        the route's rule; None: no route matches
    parameters  its path parameters
    missing     the router's answer if no route matches
    """
    if rule is not None and rule.public and (identity is None or not rule.optional):
        return Verdict(200)
    if identity is None:
        return Verdict(401, "credential-missing", GATE)
    if rule is None:
        return Verdict(missing.status if missing is not None else 404, None, GATE)
    try:
        check(rule.access, identity, parameters)
    except ApiError as error:
        return Verdict(error.status, error.reason, GATE)
    return Verdict(200)
