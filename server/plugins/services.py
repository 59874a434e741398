"""Services: what a plugin's code needs beside the database, opened before the port is bound and closed at shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from aiohttp import web

from ..messages import error_line, one_line
from ..settings.setting import ConfigError, StartFailed
from ..telemetry.log import LOG, log_failure

OPEN_SECONDS: Final = 30.0
"""How long one service may take to open."""
CLOSE_SECONDS: Final = 5.0
"""How long all services together may take to close."""
LAST_SECONDS: Final = 0.5
"""How long a service may take to end after it was cancelled, or to close when the others have used up the time."""


def is_context_manager(offered: object) -> bool:
    """Whether it is an asynchronous context manager itself, and not a class or function that makes one."""
    return hasattr(type(offered), "__aenter__") and hasattr(type(offered), "__aexit__")


class _Service:
    """One service, in a task of its own: it is entered and left in the same task, as task groups require."""

    def __init__(self, plugin: str, name: str, offered: Any) -> None:
        self._plugin, self._name, self._offered = plugin, name, offered
        self._stop = asyncio.Event()
        self._opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(), name=f"service {name}")
        self._task.add_done_callback(self._ended)

    async def open(self) -> Any:
        """Returns what the context manager yields. Raises ConfigError for a ValueError, StartFailed for any other failure."""
        await asyncio.wait({self._task, self._opened}, timeout=OPEN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if self._opened.done():
            return self._opened.result()
        if not self._task.done():
            raise StartFailed(f"{self}: not open after {OPEN_SECONDS:.0f} seconds")
        error = None if self._task.cancelled() else self._task.exception()
        if isinstance(error, ConfigError):
            raise error
        if isinstance(error, ValueError):
            raise ConfigError(f"{self}: {one_line(error)}") from error
        reason = "it was cancelled" if error is None else error_line(error)
        raise StartFailed(f"{self} failed to open: {reason}") from error

    async def close(self, seconds: float) -> None:
        """Leave the context manager; after `seconds` it is cancelled. What it raises is logged."""
        failed_before, opened = self._task.done(), self._opened.done()
        self._stop.set()
        if not opened:
            self._task.cancel()
        await asyncio.wait({self._task}, timeout=seconds)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=LAST_SECONDS)
        if not self._task.done():
            LOG.error("a service did not close", extra={"fields": {"plugin": self._plugin, "service": self._name}})
        elif opened and not failed_before and not self._task.cancelled() and (error := self._task.exception()) is not None:
            log_failure("a service failed to close", error, plugin=self._plugin, service=self._name)

    async def _hold(self) -> None:
        manager = self._offered if is_context_manager(self._offered) else self._offered()
        if not is_context_manager(manager):
            raise ConfigError(f"{self}: its callable returned a {type(manager).__name__}, not an asynchronous context manager")
        async with manager as value:
            self._opened.set_result(value)
            await self._stop.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Report a service that ends while the server runs: a task group of its own, for example, has failed."""
        error = None if task.cancelled() else task.exception()
        if self._opened.done() and not self._stop.is_set():
            log_failure("a service ended", error or RuntimeError(), plugin=self._plugin, service=self._name)

    def __str__(self) -> str:
        return f"plugin {self._plugin!r}: service {self._name!r}"


class UnknownService(LookupError):
    """No plugin offers a service of this name."""

    def __init__(self, name: object, known: list[str]) -> None:
        super().__init__(f"no service is named {name!r}; there are: {', '.join(known) or 'none'}")
        self.log_text = self.args[0]


class Services:
    """The services of all plugins, in one process."""

    def __init__(self, offered: Mapping[str, tuple[str, Any]]) -> None:
        """`offered`: (plugin, an asynchronous context manager or a callable that returns one) by the service's name."""
        self._offered = offered
        self._open: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """What the service yielded when it was opened. Raises UnknownService."""
        try:
            return self._open[name]
        except (KeyError, TypeError):
            raise UnknownService(name, sorted(self._open)) from None

    async def running(self, app: web.Application) -> AsyncIterator[None]:
        """The application's cleanup context: opens the services in order, and closes them in reverse.

        Those that are open are closed also when a later one fails to open.
        """
        begun: list[_Service] = []
        try:
            for name, (plugin, offered) in self._offered.items():
                begun.append(_Service(plugin, name, offered))
                self._open[name] = await begun[-1].open()
            yield
        finally:
            until = asyncio.get_running_loop().time() + CLOSE_SECONDS
            for one in reversed(begun):
                await one.close(max(LAST_SECONDS, until - asyncio.get_running_loop().time()))
            self._open.clear()


SERVICES: Final = web.AppKey("services", Services)


def service(request: web.Request, name: str) -> Any:
    """What the service of this name yielded when the server started: see the hook `register_services`.

    Raises LookupError where no loaded plugin offers it (a 500, and the log names it).
    """
    return request.app[SERVICES].get(name)
