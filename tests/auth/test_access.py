"""Access as data: what may be declared, what it refuses, and the handler's own lock."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from kits.app import ask, build_app, caller, routes_plugin, serving, stub

from server import Identity, identity_of, public, requires, signed_in
from server.auth.access import DEFAULT_TYPES, Access, access_of, check
from server.auth.identity import IDENTITY
from server.http.errors import ApiError, Forbidden, Unauthorized
from server.http.stamp import OPENED
from server.settings.setting import ConfigError


async def handler(request: web.Request) -> web.Response:
    return web.json_response({"ran": True})


def declared(**asked: Any) -> Access:
    access = access_of(requires(**asked)(handler))
    assert access is not None
    return access


def refusal(access: Access, identity: Identity | None, parameters: Mapping[str, str] | None = None) -> ApiError | None:
    try:
        check(access, identity, parameters or {})
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize(
    "asked",
    [{"role": ""}, {"role": " "}, {"role": "org: admin"}, {"role": "org:admin,org:member"}, {"role": "org:"}, {"role": "org:org:"},
     {"role": 5}, {"role": ["org:admin"]}, {"role": "x" * 201}, {"role": "a\x00b"}, {"permission": ""}, {"permission": "org:"},
     {"permission": "a b"}, {"feature": ""}, {"plan": "\t"}, {"organization": ""}, {"organization": True},
     {"scopes": []}, {"scopes": ""}, {"scopes": "read"}, {"scopes": "read write"}, {"scopes": ["read write"]}, {"scopes": [""]},
     {"scopes": [5]}, {"scopes": ['re"ad']}, {"scopes": ["re\\ad"]}, {"scopes": ["lésen"]},
     {"accepts": []}, {"accepts": "api_key"}, {"accepts": ["api-key"]}, {"accepts": ["session_token", "any"]}, {"accepts": [None]},
     {"reverification": ""}, {"reverification": "Strict"}, {"reverification": {}}, {"reverification": {"level": "first_factor"}},
     {"reverification": {"level": "first_factor", "afterMinutes": 0}}, {"reverification": True},
     {"allow_pending": "yes"}, {"allow_pending": 1}, {"user": 1}, {"user": "user_1"}, {}, {"role": None},
     {"impersonation": True}, {"impersonation": 0}, {"impersonation": "no"}, {"impersonation": None},
     {"role": None, "permission": None}],
    ids=str,
)  # fmt: skip
def test_what_is_ill_formed_fails_at_import(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="@requires"):
        requires(**asked)


@pytest.mark.parametrize("misspelt", ["rol", "permissions", "scope", "accept", "org", "roles", "public"])
def test_a_misspelt_keyword_fails_at_import(misspelt: str) -> None:
    with pytest.raises(TypeError):
        requires(**{misspelt: "org:admin"})  # type: ignore[arg-type]


def test_requires_without_its_brackets_fails_at_import() -> None:
    with pytest.raises(TypeError):
        requires(handler)  # type: ignore[misc]


@pytest.mark.parametrize("role", ["org:go", "org", "groog", "admin", "org:org:admin", "org:rog"])
def test_roles_of_odd_letters_are_roles(role: str) -> None:
    assert declared(role=role).role == role


@pytest.mark.parametrize(
    "asked",
    [{"scopes": ["read"]}, {"accepts": ["m2m_token"]}, {"organization": "org_id"}, {"allow_pending": True}, {"user": True},
     {"impersonation": False}],
)  # fmt: skip
def test_the_further_words_may_stand_alone(asked: dict[str, Any]) -> None:
    assert not declared(**asked).public


@pytest.mark.parametrize("first", [public, signed_in, requires(role="org:admin")])
@pytest.mark.parametrize("second", [public, signed_in, requires(role="org:admin")])
def test_access_is_declared_once(first: Any, second: Any) -> None:
    async def mine(request: web.Request) -> web.Response:
        return web.Response()

    with pytest.raises(TypeError, match="twice"):
        second(first(mine))


def plain_function(request: web.Request) -> web.Response:
    return web.Response()


class View(web.View):
    async def get(self) -> web.Response:
        return web.Response()


async def generator(request: web.Request) -> Any:
    yield web.Response()


@pytest.mark.parametrize("what", [plain_function, View, generator, "handler", None, lambda request: handler(request)])
@pytest.mark.parametrize("declare", [public, signed_in, requires(role="org:admin")])
def test_only_a_coroutine_function_is_a_handler(declare: Any, what: Any) -> None:
    with pytest.raises(TypeError, match="async def"):
        declare(what)


def test_a_method_is_no_handler() -> None:
    """Its wrapper would be called without the object: every request would be a 500."""
    with pytest.raises(TypeError, match="takes the request and nothing else"):

        class Pages:
            @signed_in
            async def show(self, request: web.Request) -> web.Response:
                return web.Response()


def test_requires_above_the_route_leaves_the_bare_handler_and_the_start_refuses_it() -> None:
    routes = web.RouteTableDef()

    @requires(role="org:admin")
    @routes.get("/api/upside-down")
    async def upside_down(request: web.Request) -> web.Response:
        return web.Response()

    with pytest.raises(ConfigError, match=r"GET /api/upside-down.*no access is declared.*below @routes"):
        build_app({"acme": routes_plugin(*routes)})


def test_the_declaration_is_frozen_and_survives_changes_of_what_it_was_made_from() -> None:
    scopes, fresh = ["read"], {"level": "first_factor", "afterMinutes": 5}
    access = declared(scopes=scopes, reverification=fresh)
    scopes.append("write")
    fresh["afterMinutes"] = 99_999
    assert access.scopes == ("read",)
    assert access.reverification == {"level": "first_factor", "afterMinutes": 5}
    with pytest.raises(AttributeError):
        access.role = "org:member"  # type: ignore[misc]


def test_the_wrapper_keeps_the_handlers_name() -> None:
    wrapped = signed_in(handler)
    assert (wrapped.__name__, wrapped.__module__) == ("handler", __name__)
    assert access_of(wrapped) == Access()
    assert access_of(handler) is None


ADMIN: dict[str, Any] = {"org_role": "org:admin", "org_permissions": ["org:a:b"], "scopes": ["read", "write"],
                         "claims": {"fea": "o:f", "pla": "u:p", "fva": [0, 0]}}  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "held", "status", "reason"),
    [
        ({"role": "org:admin"}, {"org_role": "org:member"}, 403, "role"),
        ({"permission": "org:a:b"}, {"org_permissions": []}, 403, "permission"),
        ({"feature": "f"}, {"claims": {}}, 403, "feature"),
        ({"plan": "p"}, {"claims": {}}, 403, "plan"),
        ({"scopes": ["read", "write"]}, {"scopes": ["read"]}, 403, "scope"),
        ({"scopes": ["read"]}, {"scopes": None}, 403, "scope"),
        ({"user": True}, {"user_id": None, "token_type": "api_key"}, 403, "user"),
        ({"reverification": "lax"}, {"claims": {}}, 403, "reverification"),
        ({"organization": "org_id"}, {"org_id": None}, 403, "organization"),
        ({"organization": "org_id"}, {"org_id": "org_2"}, 403, "organization"),
        ({"organization": "org_id"}, {"org_id": "ORG_1"}, 403, "organization"),
        ({"accepts": ["api_key"]}, {}, 401, "token-type"),
        ({"role": "org:admin"}, {"token_type": "m2m_token"}, 401, "token-type"),
        ({"role": "org:admin"}, {"claims": {"sts": "pending"}}, 401, "session-pending"),
        ({"user": False}, {"token_type": "oauth_token"}, 401, "token-type"),
        ({"impersonation": False}, {"impersonator": "user_2"}, 403, "impersonation"),
        ({"impersonation": False}, {"impersonator": "user_1"}, 403, "impersonation"),
        ({"impersonation": False, "accepts": ["access_token"]}, {"token_type": "access_token", "impersonator": "bot"}, 403, "impersonation"),
        ({"impersonation": False, "role": "org:admin"}, {"impersonator": "user_2", "org_role": "org:member"}, 403, "impersonation"),
    ],
)
def test_each_refusal_has_its_slug(asked: dict[str, Any], held: dict[str, Any], status: int, reason: str) -> None:
    access = declared(**asked)
    assert refusal(access, caller(**(ADMIN | {"token_type": _type_for(access)})), {"org_id": "org_1"}) is None, (
        "else it would prove nothing"
    )
    error = refusal(access, caller(**(ADMIN | held)), {"org_id": "org_1"})
    assert error is not None
    assert (error.status, error.reason) == (status, reason)


def _type_for(access: Access) -> str:
    return "session_token" if "session_token" in access.accepts else min(access.accepts)


def test_without_a_caller_every_check_is_a_401() -> None:
    for access in (Access(), declared(role="org:admin"), declared(allow_pending=True), declared(user=True)):
        error = refusal(access, None)
        assert isinstance(error, Unauthorized)
        assert error.reason == "credential-missing"
        assert error.headers == {"WWW-Authenticate": "Bearer"}


def test_the_order_of_refusals() -> None:
    access = declared(accepts=["session_token"], user=True, organization="org_id", role="r", permission="p:q", feature="f", plan="p",
                      scopes=["s"], reverification="strict")  # fmt: skip
    held: dict[str, Any] = {"token_type": "access_token", "claims": {"sts": "pending"}, "org_id": "org_2"}
    repairs: list[tuple[str, dict[str, Any]]] = [
        ("token-type", {"token_type": "session_token"}),
        ("session-pending", {"claims": {}}),
        ("organization", {"org_id": "org_1"}),
        ("role", {"org_role": "r"}),
        ("permission", {"org_permissions": ["org:p:q"]}),
        ("feature", {"claims": {"fea": "o:f"}}),
        ("plan", {"claims": {"fea": "o:f", "pla": "o:p"}}),
        ("scope", {"scopes": ["s", "t"]}),
        ("reverification", {"claims": {"fea": "o:f", "pla": "o:p", "fva": [0, 0]}}),
    ]
    for reason, repair in repairs:
        error = refusal(access, caller(**held), {"org_id": "org_1"})
        assert error is not None
        assert error.reason == reason
        held |= repair
    assert refusal(access, caller(**held), {"org_id": "org_1"}) is None


@pytest.mark.parametrize("parameters", [{}, {"org_id": ""}, {"org": "org_1"}, {"org_id": "org_1 "}, {"org_id": "org_10"}])
def test_the_paths_organisation_must_be_the_active_one(parameters: dict[str, str]) -> None:
    error = refusal(declared(organization="org_id"), caller(), parameters)
    assert isinstance(error, Forbidden)
    assert error.reason == "organization"


def test_an_organisation_parameter_without_a_name_opens_nothing() -> None:
    assert refusal(Access(organization=""), caller(), {"": "org_2"}) is not None
    assert refusal(Access(organization=""), caller(), {}) is not None


def test_a_missing_scope_is_challenged_as_rfc_6750_says() -> None:
    error = refusal(declared(scopes=["read", "write:all"]), caller(scopes=["read"]))
    assert error is not None
    assert error.response().headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope", scope="read write:all"'


@pytest.mark.parametrize(
    ("asked", "seconds"), [("strict", 600), ("lax", 86_400), ({"level": "first_factor", "afterMinutes": 2.5}, 150)]
)
def test_step_up_is_clerks_body_beside_the_challenge_of_rfc_9470(asked: Any, seconds: int) -> None:
    error = refusal(declared(reverification=asked), caller(claims={"fva": [2000, 2000]}))
    assert error is not None
    answer = error.response()
    assert answer.status == 403
    assert answer.content_type == "application/json"
    assert answer.headers["WWW-Authenticate"] == f'Bearer error="insufficient_user_authentication", max_age={seconds}'
    assert json.loads(answer.body) == {  # type: ignore[arg-type]
        "error": "Forbidden",
        "reason": "reverification",
        "clerk_error": {"type": "forbidden", "reason": "reverification-error", "metadata": {"reverification": asked}},
    }


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"role": "org:admin"}, "role org:admin"),
        ({"user": True}, "signed in, user"),
        ({"allow_pending": True}, "pending sessions too"),
        ({"organization": "org_id", "permission": "org:a:b"}, "organization {org_id}, permission org:a:b"),
        ({"accepts": ["oauth_token", "m2m_token"], "scopes": ["a", "b"]}, "scope a, scope b, accepts m2m_token oauth_token"),
        ({"reverification": "strict"}, "reverification strict"),
        ({"reverification": {"level": "first_factor", "afterMinutes": 2}}, "reverification custom"),
        ({"user": False}, "signed in"),
        ({"impersonation": False}, "no impersonation"),
        ({"impersonation": False, "accepts": ["api_key"]}, "accepts api_key, no impersonation"),
    ],
)
def test_words_for_people(asked: dict[str, Any], words: str) -> None:
    assert declared(**asked).words() == words


@pytest.mark.parametrize(
    ("role", "admin"),
    [("org:admin", True), ("admin", True), ("org:org:admin", True), ("org:owner", False), ("org:Admin", False)],
)
def test_only_the_admin_role_makes_an_admin_scope(role: str, admin: bool) -> None:
    assert declared(role=role).as_admin is admin
    assert not Access().as_admin
    assert not declared(permission="org:admin").as_admin


def test_the_everyday_types_hold_no_machine_of_clerks() -> None:
    assert {"session_token", "access_token", "api_key"} == DEFAULT_TYPES


# The second lock -------------------------------------------------------------------------------------------------------


async def called(access: Any, identity: Identity | None = None, *, opened: bool = False) -> int:
    request = make_mocked_request("GET", "/api/x", match_info={"org_id": "org_1"})
    if identity is not None:
        request[IDENTITY] = identity
    if opened:
        request[OPENED] = True

    async def mine(request: web.Request) -> web.Response:
        return web.Response()

    try:
        return int((await access(mine)(request)).status)
    except ApiError as error:
        return error.status


@pytest.mark.parametrize(
    "access", [public, signed_in, requires(role="org:admin"), requires(allow_pending=True), requires(user=False)]
)
async def test_a_handler_called_without_the_gate_raises(access: Any) -> None:
    assert await called(access) == 401


@pytest.mark.parametrize("access", [signed_in, requires(role="org:admin"), requires(user=False)])
async def test_the_mark_of_a_public_route_opens_no_other_handler(access: Any) -> None:
    assert await called(access, opened=True) == 401


async def test_the_wrapper_asks_the_same_question_as_the_gate() -> None:
    assert await called(public, opened=True) == 200
    assert await called(signed_in, caller()) == 200
    assert await called(requires(role="org:admin"), caller(org_role="org:member")) == 403
    assert await called(requires(role="org:admin"), caller(org_role="org:admin")) == 200
    assert await called(requires(organization="org_id"), caller(org_id="org_2")) == 403
    assert await called(requires(organization="org_id"), caller()) == 200


async def test_a_locked_public_handler_runs_for_a_known_caller() -> None:
    """A route that is declared @public but not on the operator's list requires a signed-in caller."""
    assert await called(public, caller()) == 200


def test_identity_of_without_a_caller_is_a_401() -> None:
    with pytest.raises(Unauthorized):
        identity_of(make_mocked_request("GET", "/api/public/x"))


async def test_through_a_real_server() -> None:
    async def who(request: web.Request) -> web.Response:
        return web.json_response({"user": identity_of(request).user_id})

    app = build_app(
        {"acme": routes_plugin(web.get("/api/admin/{org_id}", requires(role="org:admin", organization="org_id")(who)))}
    )
    async with serving(app) as port:
        assert (await ask(port, "GET", "/api/admin/org_1")).status == 401
        member = await ask(port, "GET", "/api/admin/org_1", stub(org_id="org_1", org_role="org:member"))
        assert (member.status, member.json) == (403, {"error": "Forbidden", "reason": "role"})
        other = await ask(port, "GET", "/api/admin/org_2", stub(org_id="org_1", org_role="org:admin"))
        assert (other.status, other.json["reason"]) == (403, "organization")
        admin = await ask(port, "GET", "/api/admin/org_1", stub(org_id="org_1", org_role="org:admin"))
        assert (admin.status, admin.json) == (200, {"user": "user_1"})
        assert (await ask(port, "HEAD", "/api/admin/org_1", stub(org_id="org_1", org_role="org:member"))).status == 403
