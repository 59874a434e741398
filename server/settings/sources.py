"""Finds every setting: command line over environment over file over default. Unknown keys are refused."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from .core import CORE, SERVER_TABLES
from .files import read_file, read_secret, stripped
from .near import near_key, near_variable
from .setting import ConfigError, Setting, env_name
from .values import convert, in_file_alone, is_host, shown

__all__ = ["ConfigError", "Settings", "Value", "env_name"]


@dataclass(frozen=True, slots=True)
class Value:
    """An effective value and where it came from."""

    value: Any = field(repr=False)
    source: str


_SERVICE_LINK: Final = re.compile(
    r"GATEPOST(?:_[A-Z0-9_]+)?_(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)\Z"
)


class Settings:
    """The settings of one run. Core keys are read with `get`, a plugin's own table with `table`."""

    def __init__(
        self, *, file: Path | None = None, environ: Mapping[str, str] | None = None, given: Mapping[str, Any] | None = None
    ) -> None:
        """Read and check the server's own settings.

        file      the settings file; None: the one that `GATEPOST_CONFIG` names, else `gatepost.toml` if it exists
        environ   the environment; None: this process's
        given     values by key, from the command line or a test

        Raises ConfigError with one line for the first mistake.
        """
        self._environ = dict(os.environ if environ is None else environ)
        self._given = {key: value for key, value in (given or {}).items() if value is not None}
        self._file_name, self._file = read_file(file, self._environ)
        self._declared: dict[str, Setting] = dict(CORE)
        self._tables = set(SERVER_TABLES)
        self._free_tables: set[str] = set()
        self._values = {key: self._find(key, setting) for key, setting in CORE.items()}
        _check_core(self)

    def get(self, key: str) -> Any:
        """The effective value of a core key like `database.pool_size`."""
        return self._values[key].value

    def reread(self, key: str) -> Any:
        """The value of a core key whose file (`<ENV>_FILE`) may have been replaced since startup; of any other key, as `get`.

        Raises ConfigError where the file cannot be read, or holds a value that is not allowed.
        """
        found = self._values[key]
        return self._find(key, self._declared[key]).value if found.source.endswith("_FILE") else found.value

    def words(self, key: str) -> list[str]:
        """The effective value of a core key of the kind `list`; empty where nothing is set."""
        return list(self._values[key].value or ())

    @property
    def log_format(self) -> str:
        """`json` or `human`."""
        name = str(self.get("log.format"))
        return name if name != "auto" else "json" if self.get("env") == "production" else "human"

    def table(self, plugin: str) -> Mapping[str, Any]:
        """A plugin's own table, read-only: its declared keys with their effective values."""
        if plugin in self._free_tables:
            return MappingProxyType(dict(self._file.get(plugin, {})))
        start = plugin + "."
        return MappingProxyType({key[len(start) :]: v.value for key, v in self._values.items() if key.startswith(start)})

    def declare(self, plugin: str, keys: Mapping[str, Setting] | None) -> None:
        """Add a loaded plugin's table: its settings by key, or None where it declares none (the table is passed unchecked).

        Raises ConfigError where a value is of the wrong kind, out of bounds, or required and missing.
        """
        self._tables.add(plugin)
        if keys is None:
            self._free_tables.add(plugin)
            return
        for key, setting in keys.items():
            self._declared[f"{plugin}.{key}"] = setting
            found = self._values[f"{plugin}.{key}"] = self._find(f"{plugin}.{key}", setting)
            if setting.required and found.value in (None, "", []):
                name = env_name(f"{plugin}.{key}", setting)
                raise ConfigError(f"plugin {plugin!r}: the setting '{plugin}.{key}' ({name}) is missing")

    def declared(self) -> Mapping[str, Setting]:
        """Every key that the server and the loaded plugins have declared."""
        return MappingProxyType(self._declared)

    def refuse_unknown(self) -> None:
        """Raise ConfigError for an unknown key or GATEPOST_ variable. Called after every plugin has declared its table."""
        for key in _flatten(self._file, self._declared, self._tables):
            if key not in self._declared and key.partition(".")[0] not in self._free_tables:
                raise ConfigError(f"{self._file_name}: unknown key '{key}'{near_key(key, self._declared)}")
        known = {env_name(key, setting) for key, setting in self._declared.items()} | {"GATEPOST_CONFIG"}
        free = tuple(f"GATEPOST_{plugin.upper()}_" for plugin in self._free_tables)
        for name in self._environ:
            if not name.startswith("GATEPOST_") or name in known or name.removesuffix("_FILE") in known - {"GATEPOST_CONFIG"}:
                continue
            link = _SERVICE_LINK.match(name) or (
                name.endswith("_PORT") and self._environ[name].startswith(("tcp://", "udp://"))
            )
            if not link and not (free and name.startswith(free)):
                raise ConfigError(f"environment: unknown variable {name}{near_variable(name, known)}")
        for key, setting in self._declared.items():
            if setting.kind in ("table", "tables") and self._environ.get(name := env_name(key, setting)):
                raise ConfigError(f"{name}: {in_file_alone(key, setting)}")

    def explain(self) -> list[tuple[str, str, str]]:
        """(key, value, source) of every effective setting, secrets redacted: what `check` prints."""
        rows = []
        for key, found in sorted(self._values.items()):
            hidden = self._declared[key].secret and found.value not in (None, "", [], self._declared[key].default)
            rows.append((key, "(set, not shown)" if hidden else shown(found.value), found.source))
        return rows

    def _find(self, key: str, setting: Setting) -> Value:
        found = self._first(key, setting)
        if found.value == "" and key in CORE:
            raise ConfigError(f"{key}: is empty ({found.source}): give it a value, or leave it out")
        if not setting.allows(found.value):
            was = "" if setting.secret else f", not {shown(found.value)}"
            raise ConfigError(f"{key}: must be {setting.allowed}{was} ({found.source})")
        return found

    def _first(self, key: str, setting: Setting) -> Value:
        if key in self._given:
            return Value(convert(self._given[key], setting, f"--{key.rpartition('.')[2].replace('_', '-')}"), "command line")
        name = env_name(key, setting)
        if setting.kind not in ("table", "tables"):
            text, path = (stripped(self._environ.get(one, ""), one) for one in (name, f"{name}_FILE"))
            if text and path:
                raise ConfigError(f"{name} and {name}_FILE are both set: unset one of them")
            if text:
                return Value(convert(text, setting, name), f"environment {name}")
            if path:
                return Value(convert(read_secret(path, f"{name}_FILE"), setting, name), f"environment {name}_FILE")
        found = _lookup(self._file, key)
        if found is not None:
            return Value(convert(found, setting, f"{self._file_name}: {key}"), f"file {self._file_name}")
        return Value(list(setting.default) if isinstance(setting.default, tuple) else setting.default, "default")


def _lookup(file: Mapping[str, Any], key: str) -> Any:
    table, _, name = key.rpartition(".")
    where: Any = file.get(table, {}) if table else file
    return where.get(name) if isinstance(where, Mapping) else None


def _flatten(file: Mapping[str, Any], known: Mapping[str, Setting], tables: Collection[str]) -> Iterable[str]:
    for name, value in file.items():
        if isinstance(value, dict) and name not in known and (value or name in tables):
            yield from (f"{name}.{inner}" for inner in value)
        else:
            yield name


def _check_core(settings: Settings) -> None:
    """The rules that one setting's bounds and choices cannot express. Production must name what development can do without."""
    env = settings.get("env")
    for key in ("host", "ops.host"):
        if not is_host(host := settings.get(key)):
            raise ConfigError(f"{key}: must be an address or a name, without scheme, path and port, not {host!r}")
    if (folder := settings.get("data_folder"))[0] in "~$" or "\0" in folder:
        why = "has a NUL character" if "\0" in folder else f"begins with {folder[0]}, which only a shell replaces"
        raise ConfigError(f"data_folder: {why}: give the whole path")
    if not settings.words("providers"):
        raise ConfigError("providers: at least one provider must be named")
    for key in ("providers", "plugins", "handlers"):
        words = settings.words(key)
        if len(words) != len(set(words)):
            raise ConfigError(f"{key}: duplicate name {next(word for word in words if words.count(word) > 1)!r}")
    if settings.get("database.pooler") == "transaction":
        if not settings.get("database.url"):
            raise ConfigError("database.pooler: the embedded Postgres has no pooler; set database.url (DATABASE_URL)")
        if not settings.get("database.direct_url"):
            raise ConfigError(
                "database.direct_url: required with a pooler, because revocations are received and `check` runs without it"
            )
    if 0 < settings.get("audit.retention_days") < 7:
        raise ConfigError("audit.retention_days: must be 7 or more, or 0 to keep entries for ever")
    if env == "production" and not settings.get("database.url"):
        raise ConfigError("database.url (DATABASE_URL): production needs one; the embedded Postgres is for development")
    if env != "production" and settings.get("host") not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"host: {env} serves on loopback only, not on {settings.get('host')!r}; set env = 'production'")
