"""A plugin's own form of error bodies: what its function gets, and whether it can be trusted with every error."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import pydantic

from ..messages import error_line
from ..settings.setting import ConfigError
from .response import phrase

_STATUSES: Final = tuple(status.value for status in HTTPStatus if status >= 400)


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What a plugin's `shape` gets to make the body of an error from.

    status  the HTTP status
    error   the reason phrase of the status
    reason  the code for programs, or None
    detail  a sentence for people, as plain text, or None
    fields  the invalid fields, each as `{"field": "a.b", "message": "..."}`; empty but for a 422, and where a handler set them
    more    further members of the standard body, such as Clerk's `clerk_error` of a 403 `reverification`
    """

    status: int
    error: str
    reason: str | None
    detail: str | None
    fields: Sequence[Mapping[str, str]]
    more: Mapping[str, Any]


Shape: TypeAlias = Callable[[ErrorDetails], Any]
"""Returns the body of an error: an instance of the model that its return annotation names."""


def checked(plugin: str, shape: Any) -> tuple[Any, Callable[[ErrorDetails], bytes]]:
    """(the annotated model, the function that makes a body), tried with errors of every status. Raises ConfigError."""
    where = f"plugin {plugin!r}: register_error_body"
    if not callable(shape) or inspect.iscoroutinefunction(shape):
        raise ConfigError(f"{where} must return a function, `def shape(error) -> Model`, which is not async")
    model = _annotated(where, shape)
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(model)
    except pydantic.PydanticUserError as error:
        raise ConfigError(f"{where}: {model!r} has no JSON Schema: {error_line(error)}") from error

    def make(details: ErrorDetails) -> bytes:
        body = adapter.dump_json(adapter.validate_python(shape(details)), by_alias=True)
        if not body.startswith(b"{"):
            raise TypeError("a body must be a JSON object")
        return body

    for status in _STATUSES:
        for example in _examples(status):
            try:
                make(example)
            except Exception as error:
                raise ConfigError(f"{where}: the shape fails for a {status}: {error_line(error)}") from error
    return model, make


def _annotated(where: str, shape: Any) -> Any:
    function = shape if inspect.isroutine(shape) else type(shape).__call__
    try:
        scope = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
        model = typing.get_type_hints(function, localns=dict(scope), include_extras=True).get("return")
    except Exception as error:
        raise ConfigError(f"{where}: the annotation of the shape cannot be read: {error_line(error)}") from error
    if model in (None, type(None), Any):
        raise ConfigError(f"{where}: annotate what the shape returns, `def shape(error) -> Model`, for the OpenAPI document")
    return model


def _examples(status: int) -> tuple[ErrorDetails, ErrorDetails]:
    fields = [{"field": "example.name", "message": "an example"}]
    bare = ErrorDetails(status, phrase(status), None, None, (), {})
    return bare, ErrorDetails(status, phrase(status), "example", "An example.", fields, {"example": True})
