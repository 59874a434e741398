"""The installed aiohttp has every private attribute that the server uses, and only a few modules use any."""

import ast
import asyncio
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import StreamReader, web
from aiohttp.web_protocol import RequestHandler
from kits import ROOT
from kits.app import ask

from server.http.aiohttp_private import PRIVATE_NAMES

SERVER = ROOT / "server"
ALLOWED = ("http/", "serving/", "gate/dispatcher.py", "gate/admission.py", "gate/idempotency.py", "gate/nested.py", "tools/calls.py", "routing/resolver.py")
"""Where a private attribute of aiohttp may be used. A tool's call is a request that is made here. The resolver reads the method and the path of every request."""
NAMES = {name for names in PRIVATE_NAMES.values() for name in names}
OF_TUPLES = {"_asdict", "_replace"}
"""Public methods of named tuples: the underscore keeps them apart from the members."""
OF_ASYNCPG = {"database/driver.py": {"_protocol"}}
"""A connection of asyncpg has a private attribute of the same name."""
MODULES = sorted(path for path in SERVER.rglob("*.py") if "testing" not in path.relative_to(SERVER).parts)


def where(path: Path) -> str:
    return path.relative_to(SERVER).as_posix()


def own(tree: ast.AST) -> set[str]:
    """The names that the classes of a module set on `self`, and its functions and methods."""
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
            found.add(node.attr)
    return found


def uses(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The private names that are used on anything but `self`, `cls` and `super()`, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__") and node.attr not in OF_TUPLES:
            on = node.value.func if isinstance(node.value, ast.Call) else node.value
            if not (isinstance(on, ast.Name) and on.id in ("self", "cls", "super", "os", "sys")):
                yield node.attr, node.lineno


def of_aiohttp(kind: type) -> set[str]:
    """The private names that a class of aiohttp and its bases in aiohttp have or set on instances."""
    found: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("aiohttp"):
            found |= {name for name in vars(base) if name.startswith("_")}
            found |= set(re.findall(r"\bself\.(_[a-z]\w*)", inspect.getsource(base)))
    return found


def subclasses() -> Iterator[type]:
    """The server's own classes that derive from one of aiohttp's."""
    for path in MODULES:
        if "web." in (text := path.read_text("utf-8")) or "RequestHandler" in text:
            if path.stem.startswith("__"):
                continue
            module = importlib.import_module(".".join(("server", *path.relative_to(SERVER).with_suffix("").parts)))
            for one in vars(module).values():
                if inspect.isclass(one) and one.__module__ == module.__name__ and issubclass(one, tuple(PRIVATE_NAMES)):
                    yield one


async def test_the_installed_aiohttp_has_them_all() -> None:
    met: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        met.extend([request, request.protocol, request.protocol._manager, request.app, request.match_info, request.match_info.route])
        met.extend([StreamReader(request.protocol, 1, loop=asyncio.get_running_loop()), request._payload_writer])
        met.extend([web.WebSocketResponse(), web.FileResponse(__file__), web.Response(text="x")])
        return met[-1]  # type: ignore[no-any-return]

    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        assert (await ask(runner.addresses[0][1], "GET", "/")).status == 200
    finally:
        await runner.cleanup()
    met.append(site)
    for kind, names in PRIVATE_NAMES.items():
        objects = [one for one in met if isinstance(one, kind)]
        assert len(objects) == 1, kind
        # The executor of a response is made when it is first needed: the name is in the class, or in what it sets.
        assert [name for name in names if not hasattr(objects[0], name) and name not in of_aiohttp(kind)] == [], kind


def test_these_tests_notice_what_they_are_for() -> None:
    code = "class A:\n def f(self, request):\n  self._manager = 1\n  other._manager, self._post\n  return request.protocol._task_handler"
    assert {name for name, _ in uses(ast.parse(code))} - own(ast.parse(code)) == {"_task_handler"}
    assert "_task_handler" in of_aiohttp(RequestHandler)
    assert "_no_such_name" not in of_aiohttp(RequestHandler)


@pytest.mark.parametrize("path", [path for path in MODULES if not where(path).startswith(ALLOWED)], ids=where)
def test_no_other_module_uses_them(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    others = own(tree) | OF_ASYNCPG.get(where(path), set())
    assert [(name, line) for name, line in uses(tree) if name in NAMES - others] == []


@pytest.mark.parametrize("path", [path for path in MODULES if where(path).startswith(ALLOWED)], ids=where)
def test_every_private_name_that_is_used_is_in_the_list(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert [(name, line) for name, line in uses(tree) if name not in NAMES | own(tree)] == []


@pytest.mark.parametrize("kind", list(subclasses()), ids=lambda kind: kind.__name__)
def test_what_a_class_derived_from_aiohttps_uses_is_in_the_list(kind: type) -> None:
    base = next(one for one in kind.__mro__ if one.__module__.startswith("aiohttp"))
    used = set(re.findall(r"\bself\.(_[a-z]\w*)", inspect.getsource(kind))) | {name for name in vars(kind) if re.match(r"_[a-z]", name)}
    listed = {name for listed, names in PRIVATE_NAMES.items() if issubclass(kind, listed) for name in names}
    assert used & of_aiohttp(base) - {"_abc_impl"} <= listed  # that one is the standard library's
