"""Strangers' plugins: every mistake is one clear line at the start, and no provider can open the gate by failing."""

import asyncio
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from kits.app import ask, build_app, provider_plugin, routes_plugin, serving, settings, stub

from server import (
    Command,
    CredentialRejected,
    Identity,
    Setting,
    Unavailable,
    hookimpl,
    identity_of,
    public,
    requires,
    signed_in,
)
from server.app import TABLE, build
from server.commands import run as run_command
from server.settings.setting import ConfigError
from server.settings.sources import Settings


async def handler(request: web.Request) -> web.Response:
    return web.json_response({"ran": True})


async def nobody(request: web.Request) -> Identity | None:
    return None


def nothing() -> dict[str, Any]:
    return {}


def plugin(**hooks: Callable[..., Any]) -> object:
    return SimpleNamespace(**{name: hookimpl(hook, specname=name) for name, hook in hooks.items()})


def refusal(acme: object | None = None, **given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_app({"acme": acme} if acme is not None else None, **given)
    said = str(caught.value)
    assert "\n" not in said, "one clear line"
    return said


def offers(**providers: object) -> object:
    return plugin(register_providers=lambda: providers)


def get(path: str, access: Any = signed_in) -> web.RouteDef:
    return web.get(path, access(handler))


# What cannot be loaded -------------------------------------------------------------------------------------------------


def test_what_is_not_installed_is_named() -> None:
    assert "'acme' is not installed" in refusal(plugins=["acme"])


def test_what_is_built_in_need_not_be_named() -> None:
    assert "'health' is built in" in refusal(plugins=["health"])


@pytest.mark.parametrize("name", ["module:no_such_module_of_ours", "module:json.nothing"])
def test_a_module_that_is_not_there_is_named(name: str) -> None:
    said = refusal(plugins=[name])
    assert repr(name) in said
    assert "cannot be imported" in said


def test_a_module_without_a_path_is_named() -> None:
    assert refusal(plugins=["module:"]) == "plugins: 'module:' is not an import path: write module:<import path>"


def test_a_module_that_raises_at_import_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_raises.py").write_text("raise RuntimeError('first\\nsecond')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "RuntimeError: first second" in refusal(plugins=["module:acme_raises"])


@pytest.mark.parametrize(
    "what", [SimpleNamespace(), object(), SimpleNamespace(register_providers=nothing)], ids=["empty", "object", "unmarked"]
)
def test_a_plugin_without_a_hook_is_refused(what: object) -> None:
    assert "'acme': it has no hook marked with @hookimpl" in refusal(what)


def test_a_misspelt_hook_is_refused_by_name() -> None:
    said = refusal(plugin(register_provider=nothing))
    assert "no such hook" in said
    assert "register_provider" in said


def test_a_hook_with_another_signature_is_refused() -> None:
    assert "nonsense" in refusal(plugin(register_providers=lambda nonsense: nonsense))
    assert "extra" in refusal(plugin(register_handlers=lambda settings, extra: []))


@pytest.mark.parametrize("table", ["database", "ops", "limits", "revocation", "idempotency"])
def test_a_plugin_cannot_share_the_servers_tables(table: str) -> None:
    with pytest.raises(ConfigError, match="share a table"):
        build_app({table: offers(x=lambda settings: None)})


@pytest.mark.parametrize("name", ["module:clerk", "module:clerk.more", "module:api_key.x"])
def test_a_module_cannot_read_the_secrets_of_a_built_in_plugin_by_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match="share a table"):
        build_app({name: routes_plugin(get("/api/one"))})


def test_one_plugin_under_two_names_is_refused() -> None:
    it = routes_plugin(get("/api/one"))
    with pytest.raises(ConfigError):
        build_app({"one": it, "two": it})


# What hooks may give ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["register_providers", "register_settings", "register_commands"])
@pytest.mark.parametrize("given", [None, [], "x", 5, {1: 2}, [("a", "b")]], ids=str)
def test_these_hooks_give_a_mapping_of_names(hook: str, given: object) -> None:
    said = refusal(plugin(**{hook: lambda: given}))
    assert f"plugin 'acme': {hook} must return a mapping" in said


@pytest.mark.parametrize(("hook", "what"), [("register_settings", {"key": "str"}), ("register_commands", {"cmd": lambda: 0})])
def test_these_hooks_give_values_of_the_doors_types(hook: str, what: object) -> None:
    assert "must return a mapping of names to" in refusal(plugin(**{hook: lambda: what}))


@pytest.mark.parametrize("hook", ["register_providers", "register_settings", "register_commands", "register_handlers"])
def test_a_hook_that_raises_is_one_line(hook: str) -> None:
    def raises() -> Any:
        raise RuntimeError("first\nsecond")

    assert f"plugin 'acme': {hook} failed: RuntimeError: first second" in refusal(plugin(**{hook: raises}))


def test_a_hook_that_yields_routes_and_then_raises_is_one_line() -> None:
    def raises() -> Any:
        yield get("/api/one")
        raise RuntimeError("late")

    assert "'acme': register_handlers failed: RuntimeError: late" in refusal(plugin(register_handlers=raises))


def test_a_missing_setting_is_named() -> None:
    assert "plugin 'acme': the setting 'url' is missing" in refusal(
        plugin(register_handlers=lambda settings: [settings["url"]])
    )
    assert "provider 'acme': the setting 'url' is missing" in refusal(
        offers(acme=lambda settings: settings["url"]), providers=["acme"]
    )


def test_a_plugin_sees_its_own_table_alone_and_cannot_change_it(tmp_path: Path) -> None:
    seen: list[Mapping[str, Any]] = []
    file = tmp_path / "gatepost.toml"
    file.write_text('[acme]\nurl = "u"\n[api_key]\nscopes = ["s"]\n')
    hooks = {
        "register_settings": lambda: {"url": Setting("str"), "more": Setting("int", 3)},
        "register_handlers": lambda settings: seen.append(settings) or [],
        "register_providers": lambda: {"acme": lambda settings: seen.append(settings) or SimpleNamespace(authenticate=nobody)},
    }
    build(Settings(file=file, environ={}, given={"env": "test", "providers": ["acme"]}), {"acme": plugin(**hooks)})
    assert [dict(it) for it in seen] == [{"url": "u", "more": 3}] * 2
    with pytest.raises(TypeError):
        seen[0]["url"] = "other"  # type: ignore[index]


# Providers at the start ------------------------------------------------------------------------------------------------


def test_a_provider_that_no_plugin_offers_is_named_beside_those_offered() -> None:
    said = refusal(providers=["acme"])
    assert "no loaded plugin offers 'acme'" in said
    assert "stub" in said


def test_a_providers_name_is_taken_once() -> None:
    said = refusal(offers(stub=lambda settings: None))
    assert "provider 'stub' is offered by two plugins: 'stub' and 'acme'" in said


def test_a_factory_must_be_callable() -> None:
    assert "the factory of provider 'acme' is not callable" in refusal(offers(acme=SimpleNamespace()))


def test_a_factory_that_raises_is_one_line() -> None:
    def raises(settings: Mapping[str, Any]) -> Any:
        raise ValueError("first\nsecond")

    assert "provider 'acme' cannot be created: ValueError: first second" in refusal(offers(acme=raises), providers=["acme"])


@pytest.mark.parametrize(
    "made",
    [
        None,
        SimpleNamespace(),
        SimpleNamespace(authenticate=lambda request: None),
        SimpleNamespace(authenticate=5),
        SimpleNamespace(authenticat=nobody),
    ],
    ids=["nothing", "no method", "not async", "not a function", "misspelt"],
)
def test_authenticate_must_be_a_coroutine_function(made: object) -> None:
    assert "provider 'acme': it has no `async def authenticate" in refusal(
        offers(acme=lambda settings: made), providers=["acme"]
    )


@pytest.mark.parametrize(("error", "said"), [(ValueError("bad url"), "provider 'acme': bad url"), (RuntimeError("x"), "provider 'acme' failed at start: RuntimeError"),
                                             (KeyError("x"), "provider 'acme' failed at start: KeyError")])  # fmt: skip
async def test_a_provider_that_raises_when_it_opens_prevents_startup(error: Exception, said: str) -> None:
    async def opens(house: object) -> None:
        raise error

    app = build_app({"acme": provider_plugin(acme=SimpleNamespace(authenticate=nobody, open=opens))}, providers=["acme"])
    with pytest.raises(ConfigError, match=said):
        async with serving(app):
            pass


async def test_a_provider_whose_service_is_unavailable_does_not_prevent_startup() -> None:
    async def opens(house: object) -> None:
        raise Unavailable("away")

    provider = SimpleNamespace(authenticate=nobody, open=opens, not_ready=lambda: "away")
    async with serving(build_app({"acme": provider_plugin(acme=provider)}, providers=["acme"])) as port:
        assert (await ask(port, "GET", "/api/health")).status == 200


async def test_what_was_opened_is_closed_in_reverse_even_when_closing_fails() -> None:
    said: list[str] = []

    def one(name: str) -> object:
        async def opens(house: object) -> None:
            said.append(f"open {name}")

        async def closes() -> None:
            said.append(f"close {name}")
            raise RuntimeError("x")

        return SimpleNamespace(authenticate=nobody, open=opens, close=closes)

    async with serving(build_app({"acme": provider_plugin(a=one("a"), b=one("b"))}, providers=["a", "b"])):
        pass
    assert said == ["open a", "open b", "close b", "close a"]


async def test_two_providers_cannot_answer_for_one_issuer() -> None:
    both = {name: SimpleNamespace(authenticate=nobody, issuers=["https://issuer.example"]) for name in ("a", "b")}
    with pytest.raises(ConfigError, match=r"both 'a' and 'b' answer for the issuer https://issuer\.example"):
        async with serving(build_app({"acme": provider_plugin(**both)}, providers=["a", "b"])):
            pass


async def test_the_stub_stops_a_production_start() -> None:
    app = build_app(env="production", database__url="postgresql://nowhere/x")
    with pytest.raises(ConfigError, match="stub"):
        async with serving(app):
            pass


# Routes ----------------------------------------------------------------------------------------------------------------


class View(web.View):
    async def get(self) -> web.Response:
        return web.Response()


def plain_function(request: web.Request) -> web.Response:
    return web.Response()


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (web.get("/api/x", handler), "no access is declared"),
        (web.route("*", "/api/x", signed_in(handler)), "the method must be one of"),
        (web.route("get", "/api/x", signed_in(handler)), "the method must be one of"),
        (web.route("CONNECT", "/api/x", signed_in(handler)), "the method must be one of"),
        (web.view("/api/x", View), "GET"),
        (web.get("/api/x", View), "not a class"),
        (web.get("/api/x", plain_function), "async def"),
        (web.static("/api/static", "."), "no static routes"),
        ("/api/x", "must return web.RouteDefs"),
        (None, "must return web.RouteDefs"),
        (("GET", "/api/x", handler), "must return web.RouteDefs"),
        (web.Application(), "must return web.RouteDefs"),
        (web.get("/api/x", signed_in(handler), expect_handler=handler), "a name and nothing else"),
        (web.get("api/x", signed_in(handler)), "api/x"),
        (web.get("/api/{x", signed_in(handler)), "/api/{x"),
        (web.get("/api/{x:(}", signed_in(handler)), "/api/{x:(}"),
        (get("/api/orgs/{id}", requires(organization="org_id")), "no parameter {org_id}"),
        (get("/api/orgs/{org_id}", requires(organization="org")), "no parameter {org}"),
        (get("/api/orgs", requires(organization="org_id")), "no parameter {org_id}"),
    ],
    ids=["no access", "any method", "lower case", "connect", "view", "class", "not async", "static", "text", "nothing", "tuple", "sub-application", "expect",
         "relative", "open brace", "bad regex", "other parameter", "longer parameter", "no parameter"],
)  # fmt: skip
def test_what_may_not_be_served_prevents_startup(route: Any, said: str) -> None:
    found = refusal(plugin(register_handlers=lambda: [route]))
    assert found.startswith("plugin 'acme': ")
    assert said in found


@pytest.mark.parametrize("given", [None, 5, web.Application()], ids=["nothing", "a number", "an application"])
def test_register_handlers_gives_a_list_of_routes(given: object) -> None:
    assert "must return web.RouteDefs" in refusal(plugin(register_handlers=lambda: given))


def test_a_parameter_with_an_expression_may_be_the_organisation() -> None:
    build_app({"acme": routes_plugin(get(r"/api/x/{org_id:org_\w+}", requires(organization="org_id")))})


@pytest.mark.parametrize(
    "paths",
    [
        ["/api/x", "/api/x"],
        ["/api/x", "/api/y", "/api/x"],
        ["/api/{a}", "/api/{b}"],
        ["/api/{a}", "/api/{b:[0-9]+}"],
        ["/api/{a:.*}", "/api/{b}/c"],
        ["/api/{a}", "/api/f{b}"],
        ["/api/{a}", "/api/f{b}o"],
        ["/api/x/{a}/{b}", "/api/x/{c}/y"],
        ["/api/{tail:.*}", "/api/{a}/{b}"],
        ["/api/x/{tail:.*}", "/api/x/"],
        ["/{tail:.*}", "/"],
        ["/api/me"],
        ["/api/data/{other}"],
    ],
    ids=str,
)
def test_a_route_that_can_never_be_reached_prevents_startup(paths: list[str]) -> None:
    said = refusal(routes_plugin(*(web.get(path, signed_in(handler)) for path in paths)))
    assert "never be reached" in said or "already" in said or "never be executed" in said


@pytest.mark.parametrize(
    "paths",
    [["/api/{a}", "/api/x"], ["/api/x", "/api/{a}"], ["/api/{a:[0-9]+}", "/api/{b}"], ["/api/f{b}", "/api/{a}"], ["/api/{a}", "/api/{a}/b"],
     ["/api/{tail:.*}", "/api/x/{b}"], ["/api/x/{a}", "/api/{tail:.*}"], ["/api/{a:(?!f)[a-z]+}", "/api/f{b}"]],
    ids=str,
)  # fmt: skip
async def test_a_route_that_can_be_reached_is_reached(paths: list[str]) -> None:
    def named(path: str) -> web.RouteDef:
        async def mine(request: web.Request) -> web.Response:
            return web.json_response({"path": path})

        return web.get(path, signed_in(mine))

    targets = {"/api/{a:(?!f)[a-z]+}": "/api/zz", "/api/{a}": "/api/zz", "/api/x": "/api/x", "/api/{a:[0-9]+}": "/api/5", "/api/{b}": "/api/zz", "/api/f{b}": "/api/ff", "/api/{a}/b": "/api/z/b",
               "/api/{tail:.*}": "/api/z/z/z", "/api/x/{b}": "/api/x/z", "/api/x/{a}": "/api/x/z"}  # fmt: skip
    async with serving(build_app({"acme": routes_plugin(*map(named, paths))}, handlers=["health"])) as port:
        for path in paths:
            assert (await ask(port, "GET", targets[path], stub())).json == {"path": path}


def test_the_same_path_with_another_method_is_another_route() -> None:
    build_app(
        {
            "acme": routes_plugin(
                get("/api/x"), web.post("/api/x", signed_in(handler)), web.delete("/api/me", signed_in(handler))
            )
        }
    )


def test_two_names_for_two_routes_must_differ() -> None:
    routes = [web.get("/api/x", signed_in(handler), name="n"), web.get("/api/y", signed_in(handler), name="n")]
    assert "/api/y" in refusal(routes_plugin(*routes))


async def test_head_comes_with_get_and_has_its_access() -> None:
    app = build_app({"acme": routes_plugin(web.get("/api/x", requires(role="org:admin")(handler), allow_head=False))})
    assert {row.method: row.access for row in app[TABLE].rows if row.template == "/api/x"} == {
        "GET": "role org:admin",
        "HEAD": "role org:admin",
    }
    async with serving(app) as port:
        assert (await ask(port, "HEAD", "/api/x")).status == 401
        assert (await ask(port, "HEAD", "/api/x", stub(org_id="o", org_role="org:admin"))).status == 200


# Public needs two keys -------------------------------------------------------------------------------------------------


async def test_a_default_pattern_does_not_open_a_plugins_public_route() -> None:
    app = build_app({"acme": routes_plugin(get("/api/webhooks/acme", public), get("/api/public/acme", public))})
    assert [row.access for row in app[TABLE].rows if "acme" in row.template and row.method == "GET"] == [
        "signed in (declared public, not listed)"
    ] * 2
    assert sum("stays locked" in line for line in app[TABLE].warnings) == 2
    async with serving(app) as port:
        for path in ("/api/webhooks/acme", "/api/public/acme"):
            assert (await ask(port, "GET", path)).status == 401
            assert (await ask(port, "GET", path, stub())).status == 200


async def test_the_operators_pattern_opens_it() -> None:
    app = build_app({"acme": routes_plugin(get("/api/webhooks/acme", public))}, public_routes=["/api/webhooks/acme"])
    async with serving(app) as port:
        assert (await ask(port, "GET", "/api/webhooks/acme")).status == 200
        assert (await ask(port, "GET", "/api/health")).status == 401, "the operator's list is the whole list"


async def test_a_pattern_for_one_method_of_a_path_does_not_warn_of_the_other_ones() -> None:
    routes = routes_plugin(get("/api/articles", public), web.post("/api/articles", signed_in(handler)))
    app = build_app({"acme": routes}, public_routes=["/api/articles"])
    assert not any("/api/articles" in line for line in app[TABLE].warnings), "no pattern could be narrower"
    async with serving(app) as port:
        assert (await ask(port, "GET", "/api/articles")).status == 200
        assert (await ask(port, "POST", "/api/articles")).status == 401


async def test_a_pattern_never_opens_a_route_that_is_not_declared_public() -> None:
    app = build_app(
        {"acme": routes_plugin(get("/api/open/admin"), get("/api/open/x", public))}, public_routes=["/api/open(.*)"]
    )
    assert any("/api/open/admin" in line and "stays locked" in line for line in app[TABLE].warnings)
    async with serving(app) as port:
        assert (await ask(port, "GET", "/api/open/admin")).status == 401
        assert (await ask(port, "GET", "/api/open/x")).status == 200


async def test_a_pattern_that_covers_a_part_of_a_template_opens_none_of_it() -> None:
    app = build_app(
        {"acme": routes_plugin(get("/api/{name}", public), get("/api/open", public))}, public_routes=["/api/open(.*)"]
    )
    async with serving(app) as port:
        assert (await ask(port, "GET", "/api/opener")).status == 401


@pytest.mark.parametrize(("pattern", "said"), [("/api/helth", "covers no route"), ("/api/health/:x", "covers no route"), ("/api/**", "public pattern"),
                                               ("api/health", "must start with '/'"), ("/api/(", "not closed")])  # fmt: skip
def test_an_operators_pattern_that_opens_nothing_prevents_startup(pattern: str, said: str) -> None:
    found = refusal(public_routes=["/api/health", pattern])
    assert found.startswith("public_routes: ")
    assert said in found


def test_a_default_pattern_that_covers_nothing_is_only_shown() -> None:
    assert "/api/public(.*)" in build_app(handlers=["health"])[TABLE].unused


# Handlers that are served ----------------------------------------------------------------------------------------------


def test_unknown_handlers_are_named() -> None:
    said = refusal(handlers=["me", "mee"])
    assert "'mee'" in said
    assert "invoices" in said


def test_only_the_named_handlers_are_served_and_plugins_always() -> None:
    app = build_app({"acme": routes_plugin(get("/api/x"))}, handlers=["health"])
    assert {row.template for row in app[TABLE].rows} == {"/api/health", "/api/x"}


async def test_a_module_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_app.py").write_text(
        textwrap.dedent("""
        from aiohttp import web
        from server import hookimpl, signed_in
        routes = web.RouteTableDef()

        @routes.get("/api/acme")
        @signed_in
        async def acme(request):
            return web.json_response({"acme": True})

        @hookimpl
        def register_handlers(settings):
            assert settings["word"] == "w"
            return routes
        """)
    )
    (tmp_path / "gatepost.toml").write_text('[acme_app]\nword = "w"\n')
    monkeypatch.syspath_prepend(tmp_path)
    made = Settings(
        file=tmp_path / "gatepost.toml",
        environ={},
        given={"env": "test", "providers": ["stub"], "plugins": ["module:acme_app"]},
    )
    app = build(made)
    from kits.app import without_storage

    without_storage(app)
    async with serving(app) as port:
        assert (await ask(port, "GET", "/api/acme", stub())).json == {"acme": True}
    sys.modules.pop("acme_app", None)


def test_what_is_merely_installed_does_not_run() -> None:
    assert "module:acme" not in str(settings().explain())
    app = build_app()
    assert {row.handler.partition(".")[0] for row in app[TABLE].rows} <= {"handlers", "providers", "server"}


def test_a_mistake_is_status_2_and_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in __import__("os").environ if name.startswith(("GATEPOST_", "DATABASE_", "CLERK_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GATEPOST_PLUGINS", "acme")
    assert run_command(["routes"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("gatepost: plugins: 'acme' is not installed")


def test_two_commands_of_one_name_are_refused() -> None:
    async def run(args: object, context: object) -> int:
        return 0

    assert "command 'keys' is offered by two plugins" in refusal(
        plugin(register_commands=lambda: {"keys": Command("x", lambda parser: None, run)})
    )


# At the gate -----------------------------------------------------------------------------------------------------------


async def who(request: web.Request) -> web.Response:
    return web.json_response({"user": identity_of(request).user_id})


class Answers:
    """A provider that does one thing, and counts how often it was asked."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer
        self.asked = 0

    async def authenticate(self, request: web.Request) -> Any:
        self.asked += 1
        got = self.answer()
        if asyncio.iscoroutine(got):
            got = await got
        if isinstance(got, BaseException):
            raise got
        return got


def known(user: str) -> Callable[[], Identity]:
    return lambda: Identity(provider="acme", user_id=user)


async def at_the_gate(
    *answers: Callable[[], Any], seconds: float = 5.0, target: str = "/api/who", header: bool = True
) -> tuple[Any, list[int]]:
    """(the answer, how often each provider was asked)"""
    providers = {f"p{number}": Answers(answer) for number, answer in enumerate(answers)}
    extra = {"acme": provider_plugin(**providers), "routes": routes_plugin(get_who())}
    async with serving(build_app(extra, providers=list(providers), limits__provider_seconds=seconds)) as port:
        reply = await ask(port, "GET", target, *([("Authorization", "Bearer canary")] if header else []))
    assert b"canary" not in reply.raw
    return reply, [provider.asked for provider in providers.values()]


def get_who() -> web.RouteDef:
    return web.get("/api/who", signed_in(who))


async def test_known_is_the_last_word() -> None:
    reply, asked = await at_the_gate(known("first"), known("second"))
    assert (reply.status, reply.json, asked) == (200, {"user": "first"}, [1, 0])


async def test_not_mine_asks_the_next() -> None:
    reply, asked = await at_the_gate(lambda: None, lambda: None, known("third"))
    assert (reply.json, asked) == ({"user": "third"}, [1, 1, 1])


async def test_mine_and_bad_is_a_401_now() -> None:
    reply, asked = await at_the_gate(lambda: CredentialRejected("token-expired", "for the log alone"), known("second"))
    assert (reply.status, reply.json, asked) == (401, {"error": "Unauthorized", "reason": "token-expired"}, [1, 0])
    assert reply.headers["www-authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.parametrize(("header", "reason"), [(True, "credential-rejected"), (False, "credential-missing")])
async def test_a_credential_of_no_provider_is_a_401(header: bool, reason: str) -> None:
    reply, asked = await at_the_gate(lambda: None, lambda: None, header=header)
    assert (reply.status, reply.json["reason"], asked) == (401, reason, [1, 1])


@pytest.mark.parametrize(
    "reason",
    ["", "Token-Expired", "token_expired", "token expired", "token-", "-token", "a\r\nSet-Cookie: x=1", "canary\x00", "é", "<b>", "token1", "a-b-c-d-e-f-g-h", None, 5,
     b"token-expired", ["token-expired"]],
    ids=repr,
)  # fmt: skip
async def test_an_odd_slug_becomes_credential_rejected(reason: Any) -> None:
    reply, asked = await at_the_gate(lambda: CredentialRejected(reason), known("second"))
    assert (reply.status, reply.json, asked) == (401, {"error": "Unauthorized", "reason": "credential-rejected"}, [1, 0])


BROKEN: dict[str, Callable[[], Any]] = {
    "raises": lambda: RuntimeError("canary"),
    "raises a key error": lambda: KeyError("canary"),
    "raises a time-out": lambda: TimeoutError(),
    "raises unavailable": lambda: Unavailable("away"),
    "raises unavailable oddly": lambda: Unavailable("away", retry_after=None),  # type: ignore[arg-type]
    "raises a 401 of its own": lambda: web.HTTPUnauthorized(text="canary"),
    "raises a 200 of its own": lambda: web.HTTPOk(text="canary"),
    "raises a redirect": lambda: web.HTTPFound("https://evil.example"),
    "raises not found": lambda: web.HTTPNotFound(),
    "returns true": lambda: True,
    "returns false": lambda: False,
    "returns a text": lambda: "user_1",
    "returns a mapping": lambda: {"user_id": "user_1"},
    "returns a look-alike": lambda: SimpleNamespace(
        user_id="user_1", token_type="session_token", pending=False, has=lambda **asked: True
    ),
    "returns the class": lambda: Identity,
    "returns a response": lambda: web.Response(),
    "asserts": lambda: AssertionError("canary"),
    "recurses": lambda: RecursionError(),
    "runs out of memory": lambda: MemoryError(),
    "stops an iteration": lambda: StopAsyncIteration(),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_provider_is_a_503_and_never_the_next_ones_turn(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    reply, asked = await at_the_gate(BROKEN[kind], known("second"))
    assert (reply.status, reply.json, asked) == (503, {"error": "Service Unavailable"}, [1, 0])
    assert int(reply.headers["retry-after"]) >= 1
    if "unavailable" not in kind:
        assert "canary" not in caplog.text
        assert all("canary" not in str(record.__dict__) for record in caplog.records)


async def test_unavailable_says_when_to_come_back() -> None:
    reply, _ = await at_the_gate(lambda: Unavailable("x", retry_after=30))
    assert reply.headers["retry-after"] == "30"


async def test_a_provider_that_hangs_is_a_503_within_its_time() -> None:
    started = asyncio.get_running_loop().time()
    reply, asked = await at_the_gate(lambda: asyncio.sleep(30), known("second"), seconds=0.2)
    assert (reply.status, asked) == (503, [1, 0])
    assert asyncio.get_running_loop().time() - started < 5


async def test_a_provider_that_swallows_its_cancellation_does_not_open_the_gate() -> None:
    async def stubborn() -> Identity:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return Identity(provider="acme", user_id="late")

    reply, asked = await at_the_gate(stubborn, known("second"), seconds=0.1)
    assert (reply.status, asked) == (503, [1, 0])


async def test_a_provider_that_takes_its_time_within_the_bound_is_heard() -> None:
    async def waits() -> Identity:
        for _ in range(3):
            await asyncio.sleep(0.01)
        return Identity(provider="acme", user_id="patient")

    reply, _ = await at_the_gate(waits)
    assert reply.json == {"user": "patient"}


@pytest.mark.parametrize("target", ["/unknown", "/api/who/more"])
async def test_a_broken_provider_is_a_503_for_unknown_paths_too(target: str) -> None:
    reply, _ = await at_the_gate(BROKEN["raises"], target=target)
    assert reply.status == 503


async def test_a_public_route_asks_no_provider() -> None:
    reply, asked = await at_the_gate(BROKEN["raises"], target="/api/health")
    assert (reply.status, asked) == (200, [0])


async def test_providers_are_asked_in_the_configured_order() -> None:
    both = {"a": Answers(known("a")), "b": Answers(known("b"))}
    for order in (["a", "b"], ["b", "a"]):
        app = build_app({"acme": provider_plugin(**both), "routes": routes_plugin(get_who())}, providers=order)
        async with serving(app) as port:
            assert (await ask(port, "GET", "/api/who")).json == {"user": order[0]}


@pytest.mark.parametrize(
    "headers",
    [[("Authorization", "Bearer a"), ("Authorization", "Bearer a")], [("Authorization", "Bearer a"), ("X-API-Key", "b")],
     [("X-API-Key", "b"), ("X-API-Key", "b")], [("Authorization", ""), ("X-API-Key", "b")]],
)  # fmt: skip
async def test_two_credentials_are_a_400_and_no_provider_is_asked(headers: list[tuple[str, str]]) -> None:
    provider = Answers(known("a"))
    async with serving(build_app({"acme": provider_plugin(acme=provider)}, providers=["acme"])) as port:
        for target in ("/api/me", "/unknown"):
            assert (await ask(port, "GET", target, *headers)).status == 400
        assert (await ask(port, "GET", "/api/health", *headers)).status == 200, (
            "the credentials of a public route are never read"
        )
    assert provider.asked == 0
