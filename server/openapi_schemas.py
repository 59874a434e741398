"""JSON Schemas of all the types that handlers name, with one name for each in the document's components."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import pydantic

from .settings import ConfigError

_PLACE: Final = "#/components/schemas/{model}"
Mode = Literal["validation", "serialization"]


class Schemas:
    """Takes types first (`add`), then gives their schemas (`of`): pydantic finds names that do not collide, all at once."""

    def __init__(self) -> None:
        self._adapters: list[tuple[str, Mode, Any, pydantic.TypeAdapter[Any]]] = []
        self._found: dict[tuple[str, Mode], dict[str, Any]] = {}

    def add(self, where: str, kind: Any, mode: Mode) -> None:
        """`where` names the handler in an error. `validation` is for what is taken, `serialization` for what is given.

        Raises ConfigError for what pydantic makes no schema of.
        """
        if self._key(kind, mode) is not None:
            return
        try:
            adapter = pydantic.TypeAdapter(kind)
            adapter.json_schema(mode=mode)
        except pydantic.PydanticUserError as error:
            raise ConfigError(f"{where}: @describe names a type without a JSON Schema: {_first_line(error)}") from error
        self._adapters.append((str(len(self._adapters)), mode, kind, adapter))

    def components(self) -> dict[str, Any]:
        """The named schemas, in the order of their names."""
        inputs = [(number, mode, adapter) for number, mode, _, adapter in self._adapters]
        self._found, defined = pydantic.TypeAdapter.json_schemas(inputs, ref_template=_PLACE)
        return dict(sorted(defined.get("$defs", {}).items()))

    def of(self, kind: Any, mode: Mode) -> dict[str, Any]:
        """The schema of a type that was added, once `components` has been called."""
        key = self._key(kind, mode)
        if key is None:
            raise KeyError(f"{kind!r} was not added")
        return self._found[key]

    def _key(self, kind: Any, mode: Mode) -> tuple[str, Mode] | None:
        matching: Iterable[tuple[str, Mode]] = ((n, m) for n, m, other, _ in self._adapters if m == mode and other == kind)
        return next(iter(matching), None)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
