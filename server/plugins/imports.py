"""Imports a plugin's module; what goes wrong is one line that says where and what to do."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

from ..installation import DISTRIBUTION
from ..settings.setting import ConfigError
from .failures import import_error, where_raised

_MODULE: Final = "module:"
_NOT_ON_PATH: Final = ": `python -m server` finds modules of the working folder, `gatepost` only installed ones and PYTHONPATH"


def load_module(name: str) -> object:
    """Returns the module that `module:<import path>` names. Raises ConfigError where it cannot be imported."""
    path = name.removeprefix(_MODULE)
    if not path or path.endswith(".py") or "/" in path:
        meant = path.removesuffix(".py").strip("./").replace("/", ".") or "<import path>"
        raise ConfigError(f"plugins: {name!r} is not an import path: write {_MODULE}{meant}")
    return load(name, lambda: importlib.import_module(path))


def not_installed(name: str, group: str) -> ConfigError:
    """Returns the error for a name that no installed package has under `group`."""
    what = f"plugins: {name!r} is not installed (no entry point of that name in the group {group!r})"
    meant = name.removesuffix(".py")
    if meant.isidentifier() and find_spec(meant) is not None:
        return ConfigError(f"{what}; for the module {meant}.py or the package {meant} write {_MODULE}{meant}")
    return ConfigError(
        f"{what}: install its package into this environment, or write {_MODULE}<import path> for your own module"
    )


def load(name: str, load: Callable[[], object]) -> object:
    """Returns what `load` imports. Raises ConfigError for anything that it raises, a module that ends the process included."""
    try:
        return load()
    except (Exception, SystemExit) as error:
        why = f"{import_error(error)}{where_raised(error)}"
        if isinstance(error, ModuleNotFoundError) and error.name:
            itself = f"{name.removeprefix(_MODULE)}.".startswith(f"{error.name}.") and name.startswith(_MODULE)
            ours = error.name.partition(".")[0] == DISTRIBUTION
            what = "its package is named `server`: write `from server import …`" if ours else "install it into this environment"
            why += _NOT_ON_PATH if itself else f": {what}"
        raise ConfigError(f"plugin {name!r} cannot be imported: {why}") from error
