"""The bodies of errors in the OpenAPI document: the standard model, that of RFC 9457, or a plugin's."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..http.error_bodies import PROBLEM, ErrorBodies
from .schemas import Schemas

_SLUG = r"^[a-z]+(-[a-z]+)*$"


class BadField(BaseModel):
    """One invalid field of a request."""

    field: Annotated[str, Field(description="The path of the field, separated by dots: `payload.name`.")]
    message: str


class Error(BaseModel):
    """The body of every error."""

    model_config = ConfigDict(extra="allow")
    error: Annotated[str, Field(description="The reason phrase of the status.")]
    # A default_factory: the member may be missing, and is never null.
    reason: str = Field(default_factory=str, pattern=_SLUG, description="A code for programs.")
    detail: str = Field(default_factory=str, description="A sentence for people.")
    fields: list[BadField] = Field(default_factory=list, description="For a 422: every invalid field.")


class Problem(BaseModel):
    """The body of every error: a problem of RFC 9457, with the extension members `reason` and `fields`."""

    model_config = ConfigDict(extra="allow")
    type: Literal["about:blank"]
    title: Annotated[str, Field(description="The reason phrase of the status.")]
    status: int
    detail: str = Field(default_factory=str, description="A sentence for people.")
    reason: str = Field(default_factory=str, pattern=_SLUG, description="A code for programs.")
    fields: list[BadField] = Field(default_factory=list, description="For a 422: every invalid field.")


class ErrorModel:
    """Returns the member `content` of error responses. The model's schema must be added before `schemas` makes them all."""

    def __init__(self, errors: ErrorBodies, schemas: Schemas) -> None:
        """`errors` makes the bodies; the model is added to `schemas`."""
        standard = Problem if errors.media_type == PROBLEM else Error
        self._errors, self._schemas = errors, schemas
        self._model = standard if errors.model is None else errors.model
        schemas.add(f"plugin {errors.plugin!r}", self._model, "serialization", errors.plugin)

    def __call__(self, status: int) -> dict[str, Any]:
        """The content of the error with this status, with an example that has no more than the status."""
        schema = self._schemas.of(self._model, "serialization", self._errors.plugin)
        body: Any = self._errors.of(status).body
        return {self._errors.media_type: {"schema": schema, "example": json.loads(bytes(body))}}
