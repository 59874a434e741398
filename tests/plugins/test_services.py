"""Services: opened before the port, in order, closed in reverse; mistakes prevent startup; on requests by their names."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kits import ROOT
from kits.app import routes_plugin

from server import Setting, answer, hookimpl, service, signed_in
from server.plugins import services
from server.settings.setting import ConfigError, StartFailed
from tests.conftest import ALICE, MakeApp, Serve

Offer = Mapping[str, Any]


def offering(offer: Offer | Callable[..., Offer], *routes: web.RouteDef, **hooks: Any) -> Any:
    """A plugin with these services."""
    plugin: Any = routes_plugin(*routes, **hooks)
    hook = offer if callable(offer) else lambda: offer
    plugin.register_services = hookimpl(hook, specname="register_services")
    return plugin


class Said(list[str]):
    """What happened to services, in order."""

    def make(self, name: str, *, enter: BaseException | None = None, leave: BaseException | None = None) -> Any:
        @asynccontextmanager
        async def manager() -> AsyncIterator[str]:
            self.append(f"open {name}")
            if enter is not None:
                raise enter
            try:
                yield f"the {name}"
            finally:
                self.append(f"close {name}")
                if leave is not None:
                    raise leave

        return manager


def asking(name: Any) -> web.RouteDef:
    @signed_in
    async def ask(request: web.Request) -> web.Response:
        return answer({"got": service(request, name)})

    return web.get("/ask", ask)


async def started(app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(app)
    await runner.setup()
    return runner


# Open, ask, close ------------------------------------------------------------------------------------------------------


async def test_open_in_order_and_closed_in_reverse(serve: Serve) -> None:
    said = Said()
    one = offering({"a": said.make("a"), "b": said.make("b")()}, asking("b"))  # a callable, and a manager itself
    client = await serve(extra={"one": one, "two": offering({"c": said.make("c")})})
    assert said == ["open a", "open b", "open c"]
    assert (await client.get("/ask", ALICE)).json() == {"got": "the b"}
    assert (await client.get("/ask", ALICE)).json() == {"got": "the b"}
    await client.server.close()
    assert said[3:] == ["close c", "close b", "close a"]


async def test_a_class_is_a_callable(serve: Serve) -> None:
    class Client:
        async def __aenter__(self) -> str:
            return "entered"

        async def __aexit__(self, *error: object) -> None: ...

    client = await serve(extra={"acme": offering({"client": Client}, asking("client"))})
    assert (await client.get("/ask", ALICE)).json() == {"got": "entered"}


async def test_the_hook_sees_its_own_table_and_the_house(serve: Serve) -> None:
    seen: list[Any] = []

    def offer(settings: Mapping[str, Any], house: Any) -> Offer:
        seen.extend([dict(settings), house.env])
        return {}

    await serve({"acme.url": "x"}, extra={"acme": offering(offer, register_settings=lambda: {"url": Setting()})})
    assert seen == [{"url": "x"}, "test"]


@pytest.mark.parametrize("name", ["nothing", "", None, []])
async def test_a_name_that_none_offers_is_a_500_and_the_log_names_it(serve: Serve, name: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = await serve(extra={"acme": offering({"mailer": Said().make("mailer")}, asking(name))})
    assert (await client.get("/ask", ALICE)).status == 500
    (line,) = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "handler failed"]
    assert line["why"] == f"no service is named {name!r}; there are: mailer"
    assert issubclass(services.UnknownService, LookupError)


async def test_a_service_is_entered_and_left_in_one_task(serve: Serve) -> None:
    """A task group can be a service: its tasks run while the server does."""
    tasks: list[Any] = []

    @asynccontextmanager
    async def group() -> AsyncIterator[Any]:
        tasks.append(asyncio.current_task())
        async with asyncio.TaskGroup() as inside:
            ticking = inside.create_task(asyncio.sleep(60))
            yield inside
            ticking.cancel()
        tasks.append(asyncio.current_task())

    client = await serve(extra={"acme": offering({"group": group})})
    await client.server.close()
    assert len(tasks) == 2
    assert tasks[0] is tasks[1]


# What prevents startup -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "line"),
    [
        ({"a": 5}, "plugin 'acme': service 'a' is neither an asynchronous context manager nor a callable that returns one"),
        ({"a": None}, "plugin 'acme': service 'a' is neither"),
        (["a"], "plugin 'acme': register_services must return a mapping of names"),
        (lambda settings: {"a": settings["url"]}, "plugin 'acme': the setting 'url' is missing"),
        (lambda: 1 / 0, "plugin 'acme': register_services failed: ZeroDivisionError: division by zero"),
        (lambda: int("x"), "plugin 'acme': register_services failed: ValueError: invalid literal"),
    ],
)
def test_mistakes_that_are_found_before_anything_opens(make_app: MakeApp, offer: Any, line: str) -> None:
    plugin = offering(offer if callable(offer) else lambda: offer)
    with pytest.raises(ConfigError) as raised:
        make_app(extra={"acme": plugin})
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_two_plugins_with_one_name(make_app: MakeApp) -> None:
    said = Said()
    with pytest.raises(ConfigError, match="service 'mailer' is offered by two plugins: 'one' and 'two'"):
        make_app(extra={"one": offering({"mailer": said.make("x")}), "two": offering({"mailer": said.make("y")})})
    assert said == []


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (ValueError("acme.url: no URL"), ConfigError, "plugin 'acme': service 'b': acme.url: no URL"),
        (OSError("cannot reach it\nat all"), StartFailed, "plugin 'acme': service 'b' failed to open: OSError: cannot reach it at all"),
        (RuntimeError(), StartFailed, "plugin 'acme': service 'b' failed to open: RuntimeError"),
        (OSError("amqp://app:hunter2@host/x refused"), StartFailed, "plugin 'acme': service 'b' failed to open: OSError: amqp://***@host/x refused"),
        (asyncio.CancelledError(), StartFailed, "plugin 'acme': service 'b' failed to open: it was cancelled"),
        (LookupError("x" * 5000), StartFailed, "plugin 'acme': service 'b' failed to open: LookupError: " + "x" * 499 + "…"),
    ],
)
async def test_one_that_does_not_open_closes_those_that_are(make_app: MakeApp, error: BaseException, kind: Any, line: str) -> None:
    said = Said()
    app = make_app(extra={"acme": offering({"a": said.make("a"), "b": said.make("b", enter=error), "c": said.make("c")})})
    with pytest.raises(kind) as raised:
        await started(app)
    assert str(raised.value) == line
    assert said == ["open a", "open b", "close a"]


@pytest.mark.parametrize("made", [lambda: 5, lambda: None, dict])
async def test_a_callable_that_makes_no_context_manager(make_app: MakeApp, made: Any) -> None:
    with pytest.raises(ConfigError, match="service 'a': its callable returned a .*, not an asynchronous context manager"):
        await started(make_app(extra={"acme": offering({"a": made})}))


async def test_one_that_never_opens_is_waited_for_and_then_prevents_startup(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "OPEN_SECONDS", 0.2)
    said = Said()

    @asynccontextmanager
    async def never() -> AsyncIterator[None]:
        try:
            await asyncio.sleep(60)
        finally:
            said.append("cancelled")
        yield

    with pytest.raises(StartFailed, match="plugin 'acme': service 'b': not open after 0 seconds"):
        await started(make_app(extra={"acme": offering({"a": said.make("a"), "b": never})}))
    assert said == ["open a", "cancelled", "close a"]


async def test_one_that_ignores_its_cancellation_does_not_keep_the_process(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(services, "OPEN_SECONDS", 0.1)
    monkeypatch.setattr(services, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(services, "LAST_SECONDS", 0.1)
    enough = asyncio.Event()

    @asynccontextmanager
    async def stubborn() -> AsyncIterator[None]:
        while not enough.is_set():
            with suppress(asyncio.CancelledError):
                await enough.wait()
        yield

    began = asyncio.get_running_loop().time()
    with pytest.raises(StartFailed):
        await started(make_app(extra={"acme": offering({"b": stubborn})}))
    assert asyncio.get_running_loop().time() - began < 3
    assert "a service did not close" in [record.getMessage() for record in caplog.records]
    enough.set()
    await asyncio.sleep(0.05)


# Closing ---------------------------------------------------------------------------------------------------------------


async def test_one_that_fails_to_close_does_not_keep_the_others_open(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    said = Said()
    offer = {"a": said.make("a"), "b": said.make("b", leave=OSError("canaries")), "c": said.make("c")}
    client = await serve(extra={"acme": offering(offer)})
    await client.server.close()
    assert said[3:] == ["close c", "close b", "close a"]
    (line,) = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "a service failed to close"]
    assert (line["plugin"], line["service"], line["error"]) == ("acme", "b", "OSError")


async def test_one_that_never_closes_is_cancelled(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "CLOSE_SECONDS", 0.2)
    said = Said()

    @asynccontextmanager
    async def never() -> AsyncIterator[None]:
        yield
        try:
            await asyncio.sleep(60)
        finally:
            said.append("cancelled")

    client = await serve(extra={"acme": offering({"a": said.make("a"), "b": never})})
    await client.server.close()
    assert said == ["open a", "cancelled", "close a"]


async def test_one_that_ends_by_itself_is_an_error_in_the_log(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """The server goes on: only what needs the service fails."""

    @asynccontextmanager
    async def group() -> AsyncIterator[Any]:
        async with asyncio.TaskGroup() as inside:

            async def fail() -> None:
                raise OSError

            inside.create_task(fail())
            yield "group"

    client = await serve(extra={"acme": offering({"group": group}, asking("group"))})
    await asyncio.sleep(0.05)
    (line,) = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "a service ended"]
    assert (line["plugin"], line["service"]) == ("acme", "group")
    assert (await client.get("/ask", ALICE)).status == 200
    await client.server.close()


async def test_requests_in_progress_end_before_the_services(serve: Serve) -> None:
    said = Said()

    @signed_in
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        said.append("answered")
        return answer({"got": service(request, "a")})

    client = await serve(extra={"acme": offering({"a": said.make("a")}, web.get("/slow", slow))})
    asked = asyncio.create_task(client.get("/slow", ALICE))
    await asyncio.sleep(0.1)
    await client.server.close()
    assert (await asked).json() == {"got": "the a"}
    assert said == ["open a", "answered", "close a"]


# Processes -------------------------------------------------------------------------------------------------------------

PLUGIN = """
import os
from contextlib import asynccontextmanager
from server import hookimpl

@asynccontextmanager
async def mailer():
    print("mailer opened", flush=True)
    {0}
    yield 1
    print("closed", flush=True)

@hookimpl
def register_services(settings, house):
    return {{"mailer": mailer}}
"""


@pytest.mark.parametrize(
    ("statement", "status", "line"),
    [
        ("raise ValueError('gp_services.url: not a URL')", 2, "gatepost: plugin 'module:gp_services': service 'mailer': gp_services.url: not a URL"),
        ("raise OSError('no route')", 1, "gatepost: plugin 'module:gp_services': service 'mailer' failed to open: OSError: no route"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_exit_status_and_the_one_line(tmp_path: Path, db: Any, statement: str, status: int, line: str, workers: str) -> None:
    (tmp_path / "gp_services.py").write_text(textwrap.dedent(PLUGIN).format(statement))
    done = subprocess.run(
        [sys.executable, "-m", "server", "--port", "0", "--workers", workers], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={"PATH": "", "PYTHONPATH": f"{ROOT}:{tmp_path}", "GATEPOST_ENV": "test", "GATEPOST_PROVIDERS": "stub", "DATABASE_URL": db.url,
             "GATEPOST_PLUGINS": "module:gp_services", "GATEPOST_OPS_PORT": "0"},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert set(done.stderr.splitlines()) == {line}
    assert "Traceback" not in done.stderr
    assert "serves on" not in done.stdout


def test_other_commands_open_nothing(tmp_path: Path, db: Any) -> None:
    (tmp_path / "gp_services.py").write_text(textwrap.dedent(PLUGIN).format("raise OSError"))
    for command in ("routes", "check", "openapi"):
        done = subprocess.run(
            [sys.executable, "-m", "server", command], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env={"PATH": "", "PYTHONPATH": f"{ROOT}:{tmp_path}", "GATEPOST_ENV": "test", "GATEPOST_PROVIDERS": "stub", "DATABASE_URL": db.url,
                 "GATEPOST_PLUGINS": "module:gp_services"},
        )  # fmt: skip
        assert (done.returncode, "mailer opened" in done.stdout) == (0, False), done.stderr
