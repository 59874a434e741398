"""Loads the plugins and collects what they offer. Only this module and hookspecs use pluggy.

Nothing runs merely because it is installed: only the server's own plugins and those that the setting `plugins` names.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Final

import pluggy
from aiohttp import web

from ..messages import error_line
from ..settings.core import OPTIONAL, SERVER_TABLES
from ..settings.setting import ConfigError, Setting
from ..settings.sources import Settings
from . import hookspecs
from .failures import FAILURES, explained, registration_error, unknown_hook, where_raised, where_to_name, wrong_result
from .hookspecs import Command, House, ProviderFactory, ServiceOffer
from .imports import load, load_module, not_installed
from .providers import LoadedProvider
from .services import is_context_manager

GROUP: Final = "gatepost.plugins"
DISTRIBUTION: Final = "gatepost"


@dataclass(slots=True)
class Offers:
    """What the loaded plugins offer, each with the name of its plugin."""

    providers: dict[str, tuple[str, ProviderFactory]] = field(default_factory=dict)
    routes: list[tuple[str, web.RouteDef]] = field(default_factory=list)
    commands: dict[str, tuple[str, Command]] = field(default_factory=dict)
    error_body: tuple[str, object] | None = None


class Plugins:
    """The loaded plugins of one server."""

    def __init__(self, settings: Settings, extra: Mapping[str, object] | None = None) -> None:
        """Load the built-in plugins and those that the settings name; `extra` are plugin objects by name (in tests).

        Declares every plugin's table, then refuses unknown settings. Raises ConfigError with one line.
        """
        self._settings = settings
        self._manager = pluggy.PluginManager("gatepost")
        self._manager.add_hookspecs(hookspecs)
        self._tables: dict[str, str] = {}
        self.builtin: list[str] = []
        for name, plugin in self._named() + list((extra or {}).items()):
            self._register(name, plugin)
        self._pending()
        declared = dict(self._each("register_settings"))
        for name, table in self._tables.items():
            settings.declare(table, _mapping(name, declared[name], Setting, "register_settings") if name in declared else None)
        settings.refuse_unknown()

    def offers(self) -> Offers:
        """Call every hook once and collect the results. Raises ConfigError."""
        offers = Offers()
        for name, given in self._each("register_providers"):
            for provider, factory in _mapping(name, given, object, "register_providers").items():
                if not callable(factory):
                    raise ConfigError(f"plugin {name!r}: the factory of provider {provider!r} is not callable")
                _put(offers.providers, provider, (name, factory), "provider")
        served = self._settings.words("handlers") or [name for name in self.builtin if name not in OPTIONAL]
        for unknown in set(served) - set(self.builtin):
            known = ", ".join(sorted(self.builtin))
            raise ConfigError(f"handlers: no built-in plugin is named {unknown!r}; known: {known}{where_to_name(unknown)}")
        for name, given in self._each("register_handlers"):
            if name not in self.builtin or name in served:
                offers.routes += [(name, route) for route in _routes(name, given)]
        for name, given in self._each("register_commands"):
            for command, what in _mapping(name, given, Command, "register_commands").items():
                _put(offers.commands, command, (name, what), "command")
        for name, shape in self._each("register_error_body"):
            if offers.error_body is not None:
                raise ConfigError(f"register_error_body: two plugins have it, {offers.error_body[0]!r} and {name!r}")
            offers.error_body = (name, shape)
        return offers

    def provider(self, name: str, offers: Offers) -> LoadedProvider:
        """Create the provider `name` with the settings of its plugin. Raises ConfigError."""
        if name not in offers.providers:
            offered = ", ".join(sorted(offers.providers))
            raise ConfigError(f"providers: no loaded plugin offers {name!r}; offered: {offered}{where_to_name(name)}")
        plugin, factory = offers.providers[name]
        try:
            provider = factory(self._settings.table(self._tables[plugin]))
        except KeyError as missing:
            raise ConfigError(f"provider {name!r}: the setting {missing} is missing") from missing
        except ConfigError:
            raise
        except FAILURES as error:
            raise ConfigError(f"provider {name!r} cannot be created: {explained(error, self._settings.declared())}") from error
        if not inspect.iscoroutinefunction(getattr(provider, "authenticate", None)):
            raise ConfigError(f"provider {name!r}: it has no `async def authenticate(self, request)`")
        try:
            return LoadedProvider(name, provider)
        except TypeError as error:
            raise ConfigError(
                f"provider {name!r}: reads, issuers, namespaces, authorized_parties must be lists: {error}"
            ) from error

    def services(self, house: House) -> dict[str, tuple[str, ServiceOffer]]:
        """(plugin, service) by the service's name, in the order in which they are opened. Raises ConfigError."""
        offered: dict[str, tuple[str, ServiceOffer]] = {}
        for name, given in self._each("register_services", house=house):
            for service, what in _mapping(name, given, object, "register_services").items():
                if not callable(what) and not is_context_manager(what):
                    kinds = "an asynchronous context manager nor a callable that returns one"
                    raise ConfigError(f"plugin {name!r}: service {service!r} is neither {kinds}")
                _put(offered, service, (name, what), "service")
        return offered

    def table_of(self, plugin: str) -> Mapping[str, Any]:
        """A plugin's own settings, read-only."""
        return self._settings.table(self._tables[plugin])

    def _named(self) -> list[tuple[str, object]]:
        entries = list(metadata.entry_points(group=GROUP))
        own = [entry for entry in entries if entry.dist is not None and entry.dist.name == DISTRIBUTION]
        self.builtin = [entry.name for entry in own]
        if not own:
            raise ConfigError("gatepost is not installed: run `make install` (or `pip install -e .`)")
        loaded = [(entry.name, load(entry.name, entry.load)) for entry in own]
        for name in self._settings.words("plugins"):
            loaded.append((name, self._find(name, [entry for entry in entries if entry.name == name])))
        return loaded

    def _find(self, name: str, entries: list[metadata.EntryPoint]) -> object:
        if name in self.builtin:
            raise ConfigError(f"plugins: {name!r} is built in and always loaded; remove it")
        if name.startswith("module:"):
            return load_module(name)
        if not entries:
            raise not_installed(name, GROUP)
        if len(entries) > 1:
            raise ConfigError(f"plugins: {name!r} is offered by {len(entries)} installed packages")
        return load(name, entries[0].load)

    def _register(self, name: str, plugin: object) -> None:
        table = name.removeprefix("module:").partition(".")[0]
        if table in SERVER_TABLES:
            raise ConfigError(f"plugins: {name!r} would share a table of the settings with the server itself")
        if name != table and table in self.builtin:
            raise ConfigError(f"plugins: {name!r} would share a table of the settings with the built-in plugin {table!r}")
        try:
            self._manager.register(plugin, name=name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise ConfigError(f"plugin {name!r}: {registration_error(error)}") from error
        if not self._manager.get_hookcallers(plugin):
            raise ConfigError(
                f"plugin {name!r}: it has no hook marked with @hookimpl, which goes above `def register_handlers()`"
            )
        self._tables[name] = table

    def _pending(self) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            known = [name for name in vars(hookspecs) if name.startswith("register_")]
            raise ConfigError(f"plugins: no such hook: {unknown_hook(error, known)}") from error

    def _each(self, hook: str, **more: object) -> Iterable[tuple[str, Any]]:
        """(plugin, result) of each implementation, in loading order. Called without pluggy, to know whose result it is.

        An argument is that of `more`, or the plugin's own table of the settings.
        """
        implementations = {impl.plugin_name: impl for impl in getattr(self._manager.hook, hook).get_hookimpls()}
        for name in self._tables:
            if name in implementations:
                impl = implementations[name]
                arguments = {argument: more.get(argument) or self.table_of(name) for argument in impl.argnames}
                try:
                    yield name, impl.function(**arguments)
                except ConfigError:
                    raise
                except KeyError as missing:
                    raise ConfigError(f"plugin {name!r}: the setting {missing} is missing") from missing
                except FAILURES as error:
                    why = explained(error, self._settings.declared())
                    raise ConfigError(
                        f"plugin {name!r}: {hook} failed: {why}{where_raised(error, self._settings.declared())}"
                    ) from error


def _mapping(plugin: str, given: object, kind: type, hook: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(k, str) and isinstance(v, kind) for k, v in given.items()):
        values = "" if kind is object else f" to {kind.__name__}"
        raise ConfigError(f"plugin {plugin!r}: {hook} must return a mapping of names{values}: {wrong_result(given)}")
    return given


def _routes(plugin: str, given: object) -> list[web.RouteDef]:
    try:
        routes = list(given) if isinstance(given, Iterable) and not isinstance(given, Mapping) else [None]
    except FAILURES as error:  # a generator runs only now
        raise ConfigError(f"plugin {plugin!r}: register_handlers failed: {error_line(error)}{where_raised(error)}") from error
    if not all(isinstance(route, web.RouteDef) for route in routes):
        slip = wrong_result(given if routes == [None] else routes)
        raise ConfigError(f"plugin {plugin!r}: register_handlers must return web.RouteDefs: {slip}")
    return routes  # type: ignore[return-value]


def _put(offered: dict[str, Any], name: str, what: Any, kind: str) -> None:
    if name in offered:
        raise ConfigError(f"{kind} {name!r} is offered by two plugins: {offered[name][0]!r} and {what[0]!r}")
    offered[name] = what
