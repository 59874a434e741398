"""JSON Schemas of all types that handlers are described with, each under a unique name in the document's components."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import pydantic

from ..settings.setting import ConfigError

_PLACE: Final = "#/components/schemas/{model}"
Mode = Literal["validation", "serialization"]


class Schemas:
    """Collects types (`add`), makes all schemas at once (`components`) so that names are unique, then returns each (`of`)."""

    def __init__(self) -> None:
        self._adapters: list[tuple[str, Mode, Any, pydantic.TypeAdapter[Any]]] = []
        self._where: list[str] = []
        self._found: dict[tuple[str, Mode], dict[str, Any]] = {}

    def add(self, where: str, kind: Any, mode: Mode) -> None:
        """Add a type. `where` names the handler in an error; `mode` is `validation` for input, `serialization` for output.

        Raises ConfigError for a type that pydantic does not support.
        """
        if self._key(kind, mode) is not None:
            return
        try:
            adapter = pydantic.TypeAdapter(kind)
        except pydantic.PydanticUserError as error:
            raise _no_schema(where, error) from error
        self._adapters.append((str(len(self._adapters)), mode, kind, adapter))
        self._where.append(where)

    def components(self) -> dict[str, Any]:
        """The named schemas, sorted by name. Raises ConfigError for a type without a JSON Schema."""
        inputs = [(number, mode, adapter) for number, mode, _, adapter in self._adapters]
        try:
            self._found, defined = pydantic.TypeAdapter.json_schemas(inputs, ref_template=_PLACE)
        except pydantic.PydanticUserError:
            self._blame()
            raise
        return dict(sorted(defined.get("$defs", {}).items()))

    def of(self, kind: Any, mode: Mode) -> dict[str, Any]:
        """The schema of an added type. Call `components` first. Raises KeyError for a type that was not added."""
        key = self._key(kind, mode)
        if key is None:
            raise KeyError(f"{kind!r} was not added")
        return self._found[key]

    def _blame(self) -> None:
        """Raise ConfigError for the first type that has no schema, naming its handler."""
        for where, (_, mode, _, adapter) in zip(self._where, self._adapters, strict=True):
            try:
                adapter.json_schema(mode=mode)
            except pydantic.PydanticUserError as error:
                raise _no_schema(where, error) from error

    def _key(self, kind: Any, mode: Mode) -> tuple[str, Mode] | None:
        matching: Iterable[tuple[str, Mode]] = ((n, m) for n, m, other, _ in self._adapters if m == mode and other == kind)
        return next(iter(matching), None)


def _no_schema(where: str, error: Exception) -> ConfigError:
    first = str(error).strip().partition("\n")[0]
    return ConfigError(f"{where}: @describe names a type without a JSON Schema: {first}")
