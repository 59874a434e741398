"""What a first plugin gets wrong: each mistake is one line that names it and says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest
from kits.app import build_app

from server import Setting
from server.app import TABLE
from server.settings.setting import ConfigError

BEGIN = """
from aiohttp import web
from pydantic import BaseModel
from server import *
routes = web.RouteTableDef()
class Model(BaseModel):
    a: int
"""
HANDLER = "async def x(request): return answer({})"
ROUTES = "\n@hookimpl\ndef register_handlers(): return routes\n"


def on(decorators: str, handler: str = HANDLER, path: str = "/api/x", method: str = "get") -> str:
    return f'@routes.{method}("{path}")\n{decorators}\n{handler}\n' + ROUTES


MISTAKES = {
    "requires alone": (on("@requires"), "@requires needs its arguments by name, in parentheses, such as @requires(role=...)"),
    "limited alone": (on("@signed_in\n@limited"), "@limited needs its arguments by name, in parentheses"),
    "describe alone": (on("@signed_in\n@describe"), "@describe needs its arguments by name, in parentheses"),
    "a role by its place": (on('@requires("admin")'), "@requires needs its arguments by name"),
    "signed_in called": (on("@signed_in()"), "@signed_in is written without parentheses"),
    "answers_secret called": (on("@signed_in\n@answers_secret()", method="post"), "@answers_secret is written without parentheses"),
    "a misspelt argument": (on('@requires(roles="admin")'), "@requires has no argument 'roles'; did you mean role?"),
    "another framework's argument": (on("@signed_in\n@describe(response=Model)"), "@describe has no argument 'response'"),
    "a path for public": (on('@public("/x")'), "'/x' is not a handler: the decorator goes above an `async def` function"),
    "organization without a name": (on("@requires(organization=True)"), "must be the name of a path parameter, such as 'org_id'"),
    "a parameter from the path": (on("@signed_in", "async def x(id: int): ..."), "a handler takes the request, not `id: int`"),
    "a parameter from the body": (on("@signed_in", "async def x(new: Model): ..."), "a handler takes the request, not `new: Model`"),
    "a quoted annotation": (on("@signed_in", "async def x(q: 'str'): ..."), "a handler takes the request, not `q: str`"),
    "a converter": (on("@signed_in", path="/api/x/{id:int}"), "{id:int} matches only the text 'int'"),
    "a rest of the path": (on("@signed_in", path="/api/x/{rest:path}"), "write {rest}"),
    "a colon": (on("@signed_in", path="/api/x/:id"), "the segment :id is plain text, not a parameter: write {id}"),
    "angle brackets": (on("@signed_in", path="/api/x/<int:id>"), "the segment <int:id> is plain text, not a parameter: write {id}"),
    "a query in the path": (on("@signed_in", path="/api/x?limit=1"), "a path has no ? and no #: describe query parameters by"),
    "an object for a query": (on("@signed_in\n@describe(query=Model(a=1))"), "must be a pydantic model, whose fields are the parameters"),
    "one route": (f"@signed_in\n{HANDLER}\n@hookimpl\ndef register_handlers(): return web.get('/api/x', x)", "it returned one route: put it into a list"),
    "a hook that exits": ("@hookimpl\ndef register_handlers(): raise SystemExit(0)", "register_handlers failed: SystemExit: 0"),
    "a hook that is cancelled": ("import asyncio\n@hookimpl\ndef register_handlers(): raise asyncio.CancelledError", "register_handlers failed: CancelledError"),
    "the name of the distribution": ("from gatepost import hookimpl", "its package is named `server`: write `from server import …`"),
    "no slash": (on("@signed_in", path="api/x"), "the path must begin with /: write /api/x"),
    "the same route twice": (on("@signed_in") + on("@signed_in"), "GET /api/x: a route with this method and path exists already"),
    "answers as a list": (on("@signed_in\n@describe(answers=[200])"), "@describe(answers=[200]): must be a dictionary of statuses"),
    "refusals as a list": (on("@signed_in\n@describe(refusals=[404])"), "@describe(refusals=[404]): must be a dictionary of statuses"),
    "a query as a dictionary": (on('@signed_in\n@describe(query={"a": int})'), "must be a pydantic model, whose fields are the parameters"),
    "an example in place of a type": (on('@signed_in\n@describe(body={"type": 1})', method="post"), "@describe is given a dict, not a type"),
    "an example of another form": (on('@signed_in\n@describe(body={"a": 1})', method="post"), "@describe is given a dict, not a type"),
    "an object in place of its class": (on("@signed_in\n@describe(returns=Model(a=1))"), "@describe is given a Model, not a type"),
    "a name in quotes": (on('@signed_in\n@describe(returns="Item")'), "@describe names 'Item' as a text: write the type itself"),
    "no return": ("@hookimpl\ndef register_handlers(): routes", "it returned None: is its `return` missing?"),
    "an async hook": ("@hookimpl\nasync def register_handlers(): return routes", "it is `async def`: write `def`"),
    "functions in place of routes": (
        f"@signed_in\n{HANDLER}\n@hookimpl\ndef register_handlers(): return [x]", "put each into a route, as in web.get(path, handler)"),
    "paths and functions": (f"@signed_in\n{HANDLER}\n@hookimpl\ndef register_handlers(): return {{'/x': x}}", "it returned a dict"),
    "a list of providers": ("@hookimpl\ndef register_providers(): return [1]", "must return a mapping of names: it returned a list"),
    "an unknown argument": ("@hookimpl\ndef register_handlers(config): return routes", "register_handlers has no argument config: it may take settings"),
    "a misspelt hook": ("@hookimpl\ndef register_handler(): return routes", "did you mean register_handlers?"),
    "a default of another kind": ("@hookimpl\ndef register_settings(): return {'a': Setting('int', '5')}", "cannot have the default '5'"),
    "a default that is not allowed": ("@hookimpl\ndef register_settings(): return {'a': Setting('int', 5, at_least=9)}", "must be at least 9, not 5"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_one_line_that_says_what_to_write(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, expected = MISTAKES[mistake]
    name = f"first_{list(MISTAKES).index(mistake)}"
    (tmp_path / f"{name}.py").write_text(BEGIN + source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        build_app({}, plugins=[f"module:{name}"])
    line = str(caught.value)
    assert "\n" not in line
    assert expected in line
    assert "Traceback" not in line


@pytest.mark.parametrize("path", ["/api/x/{id}", r"/api/x/{id:\d+}", "/api/x/{id}:archive", "/api/a:b", "/api/x/{rest:.+}"])
def test_these_paths_are_fine(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"fine_{abs(hash(path))}"
    (tmp_path / f"{name}.py").write_text(BEGIN + on("@signed_in", path=path.replace("\\", "\\\\")))
    monkeypatch.syspath_prepend(tmp_path)
    assert path in {row.template for row in build_app({}, plugins=[f"module:{name}"])[TABLE].rows}


@pytest.mark.parametrize(
    ("path", "pattern"),
    [("/shop", "/shop"), ("/shop/{name}", "/shop/:name"), ("/shop/{name:[0-9]+}/x", "/shop/:name([0-9]+)/x")],
)
def test_the_message_on_a_locked_public_route_has_its_pattern(
    path: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"public_{abs(hash(path))}"
    (tmp_path / f"{name}.py").write_text(BEGIN + on("@public", path=path.replace("\\", "\\\\")))
    monkeypatch.syspath_prepend(tmp_path)
    (warning,) = build_app({}, plugins=[f"module:{name}"])[TABLE].warnings
    assert warning.endswith(f"it stays locked; to open it, add '{pattern}' to public_routes")


def test_the_message_names_a_module_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_this_folder.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("of_this_folder", "of_this_folder.py"):
        with pytest.raises(ConfigError, match="write module:of_this_folder$"):
            build_app({}, plugins=[name])


@pytest.mark.parametrize("names", ["clerk api_key", "clerk;api_key", "clerk|api_key"])
def test_the_message_on_names_without_commas_says_so(names: str) -> None:
    with pytest.raises(ConfigError, match="Write commas between the names"):
        build_app({}, providers=[names])


@pytest.mark.parametrize(
    "setting",
    [
        Setting("float", 5),
        Setting("list", ("a",)),
        Setting("list", []),
        Setting("bool", False),
        Setting("tables", []),
        Setting("int"),
    ],
)
def test_these_defaults_are_fine(setting: Setting) -> None:
    assert setting.allows(setting.default)
