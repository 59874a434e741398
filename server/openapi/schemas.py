"""JSON Schemas of all types that handlers are described with, each under a unique name in the document's components.

Names must be stable: a client that is generated from the document has types of these names. So a plugin's types are named
by themselves, apart from those of all other plugins, and begin with the plugin's name; those of the built-in handlers do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import pydantic
from pydantic.json_schema import GenerateJsonSchema

from ..settings.setting import ConfigError
from .schema_text import plain

PLACE: Final = "#/components/schemas/"
Mode = Literal["validation", "serialization"]
_WORD: Final = re.compile(r"[A-Za-z0-9]+")


class _Generator(GenerateJsonSchema):
    """Without a title for each field, which only repeats the field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class Schemas:
    """Collects types (`add`), makes all schemas at once (`components`) so that names are unique, then returns each (`of`)."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def add(self, where: str, kind: Any, mode: Mode, plugin: str = "") -> None:
        """Add a type of a plugin's handler; `plugin` is "" for a built-in one.

        `where` names the handler in an error; `mode` is `validation` for input, `serialization` for output.
        Raises ConfigError for a type that pydantic does not support.
        """
        prefix = prefix_of(plugin)
        self._groups.setdefault(prefix, _Group(prefix)).add(where, kind, mode)

    def components(self) -> dict[str, Any]:
        """The named schemas, sorted by name. Raises ConfigError for a type without a JSON Schema."""
        named: dict[str, Any] = {}
        for prefix in sorted(self._groups):
            named |= self._groups[prefix].components(named)
        return dict(sorted(named.items()))

    def of(self, kind: Any, mode: Mode, plugin: str = "") -> dict[str, Any]:
        """The schema of an added type. Call `components` first. Raises KeyError for a type that was not added."""
        return self._groups[prefix_of(plugin)].of(kind, mode)

    def definition(self, model: Any, mode: Mode, plugin: str = "") -> dict[str, Any]:
        """The schema of an added model with its properties, where `of` returns a reference to it."""
        return self._groups[prefix_of(plugin)].definition(model, mode)


class _Group:
    """The types of one plugin, or of all built-in handlers."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._adapters: list[tuple[str, Mode, Any, pydantic.TypeAdapter[Any]]] = []
        self._where: list[str] = []
        self._found: dict[tuple[str, Mode], dict[str, Any]] = {}
        self._named: dict[str, dict[str, Any]] = {}

    def add(self, where: str, kind: Any, mode: Mode) -> None:
        if self._key(kind, mode) is not None:
            return
        try:
            adapter = pydantic.TypeAdapter(kind)
        except Exception as error:  # a value in place of a type can make pydantic raise anything
            raise _no_schema(where, error, kind) from error
        self._adapters.append((str(len(self._adapters)), mode, kind, adapter))
        self._where.append(where)

    def components(self, taken: Iterable[str]) -> dict[str, Any]:
        inputs = [(number, mode, adapter) for number, mode, _, adapter in self._adapters]
        try:
            found, defined = pydantic.TypeAdapter.json_schemas(inputs, ref_template="{model}", schema_generator=_Generator)
        except pydantic.PydanticUserError:
            self._blame()
            raise
        definitions = defined.get("$defs", {})
        names = self._names(definitions, set(taken))
        places = {name: PLACE + new for name, new in names.items()}
        self._found = {key: plain(schema, places) for key, schema in found.items()}
        self._named = {names[name]: _untitled(plain(schema, places)) for name, schema in definitions.items()}
        return self._named

    def of(self, kind: Any, mode: Mode) -> dict[str, Any]:
        key = self._key(kind, mode)
        if key is None:
            raise KeyError(f"{kind!r} was not added")
        return self._found[key]

    def definition(self, model: Any, mode: Mode) -> dict[str, Any]:
        schema = self.of(model, mode)
        return self._named[schema["$ref"].removeprefix(PLACE)] if "$ref" in schema else schema

    def _names(self, definitions: Iterable[str], taken: set[str]) -> dict[str, str]:
        """The component's name for each of pydantic's names, which are long (`package__module__Model`) for equal classes."""
        names: dict[str, str] = {}
        for name in sorted(definitions):
            words = [_pascal(part) for part in name.split("__")] if "__" in name.rstrip("_") else [name.rstrip("_")]
            free = wanted = self._prefix + "".join(word for word in words if len(words) == 1 or word != self._prefix)
            number = 1
            while free in taken:
                number += 1
                free = f"{wanted}_{number}"
            taken.add(free)
            names[name] = free
        return names

    def _blame(self) -> None:
        """Raise ConfigError for the first type that has no schema, naming its handler."""
        for where, (_, mode, kind, adapter) in zip(self._where, self._adapters, strict=True):
            try:
                adapter.json_schema(mode=mode)
            except pydantic.PydanticUserError as error:
                raise _no_schema(where, error, kind) from error

    def _key(self, kind: Any, mode: Mode) -> tuple[str, Mode] | None:
        matching: Iterable[tuple[str, Mode]] = ((n, m) for n, m, other, _ in self._adapters if m == mode and other == kind)
        return next(iter(matching), None)


def prefix_of(plugin: str) -> str:
    """What the names of a plugin's types begin with: `TodoApp` for `module:todo_app.api`, `Acme` for `acme`, "" for ""."""
    if not plugin:
        return ""
    prefix = _pascal(plugin.removeprefix("module:").partition(".")[0])
    return prefix if prefix[:1].isalpha() else f"Plugin{prefix}"


def _pascal(text: str) -> str:
    return "".join(word[0].upper() + word[1:] for word in _WORD.findall(text))


def _untitled(schema: dict[str, Any]) -> dict[str, Any]:
    """Without the class's name as its title: generators would name the type after it, and it is not unique."""
    return {key: value for key, value in schema.items() if key != "title"}


def _no_schema(where: str, error: Exception, kind: object) -> ConfigError:
    if isinstance(kind, str):
        return ConfigError(f"{where}: @describe names {kind!r} as a text: write the type itself, without quotes")
    if isinstance(kind, pydantic.BaseModel | Mapping | list | tuple | int):
        what = f"a {type(kind).__name__}, not a type"
        return ConfigError(
            f"{where}: @describe is given {what}: write the model's class, or list[Model], dict[str, int] and the like"
        )
    first = str(error).strip().partition("\n")[0]
    return ConfigError(f"{where}: @describe names a type without a JSON Schema: {first}")
