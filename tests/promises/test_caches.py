"""Caches that nothing invalidates: what they hold follows from their key alone. docs/explanation/performance.md lists them all."""

from __future__ import annotations

from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from kits.app import build_app, caller

from server.database.one_write import one_write
from server.database.statements import SETTINGS, one_statement
from server.routing.resolver import Resolver


def test_the_statement_that_is_remembered_holds_no_caller() -> None:
    """Its key is the handler's SQL and the number of arguments; the caller is further arguments."""
    text = one_statement("SELECT name FROM data WHERE user_id = $1", 1)
    assert one_statement("SELECT name FROM data WHERE user_id = $1", 1) is text
    assert [f"'gatepost.{name}', ${n}" in text for n, name in enumerate(("user_id", "org_id", "admin_org_id"), 2)] == [True] * 3
    assert one_statement("SELECT name FROM data WHERE user_id = $1", 2) != text
    delete = "DELETE FROM data WHERE user_id = $1 RETURNING id"
    assert one_write(delete, 1, 1.0) is one_write(delete, 1, 1.0)
    assert [f"'{name}', ${n}" in one_write(delete, 1, 1.0) for n, name in enumerate(SETTINGS, 2)] == [True] * 5


def test_what_is_derived_belongs_to_one_identity() -> None:
    """Two callers share nothing, not even where they are equal in every field."""
    one, same, other = caller(), caller(), caller(user_id="user_2")
    one.derived["me"] = b"of user_1"
    assert same.derived == other.derived == {}


async def test_the_short_way_and_the_router_lead_to_the_same_route() -> None:
    app = build_app()
    app.freeze()
    lookup, found = Resolver(app), 0
    for resource in app.router.resources():
        for route in resource:
            path = resource.canonical.replace("{", "").replace("}", "")
            for asked in (path, path + "/", path + "?a=1", path.upper()):
                request = make_mocked_request(route.method, asked)
                short = lookup.at_once(request)
                if short is not None:
                    found += 1
                    assert short.route is (await app.router.resolve(request)).route
                    assert vars_of(short) == vars_of(await lookup.resolve(request))
    assert found >= 10


def vars_of(match: web.UrlMappingMatchInfo) -> tuple[object, ...]:
    """All that a match is made of."""
    slots = (getattr(match, name) for kind in type(match).__mro__ for name in getattr(kind, "__slots__", ()))
    return (dict(match), *(value for value in slots))
