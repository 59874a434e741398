"""Sends the changes of a table's rows as server-sent events; the handlers of two built-in routes share it."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from server import event_stream

WATCH: Final = (
    "The event `created` or `updated` has the row, `deleted` its `id`. Read the list when the stream has opened and at each "
    "`resync`: what happened before is not sent. A request with `Last-Event-ID` gets a `resync` first."
)
"""Text for the OpenAPI document."""


class DeletedRow(BaseModel):
    """The event data for a deleted row."""

    model_config = ConfigDict(extra="forbid")
    id: UUID


async def send_changes(request: web.Request, table: str) -> web.StreamResponse:
    """Respond with the changes of the caller's rows in `table` from now on, until the stream ends.

    What a client has missed between two streams is not kept: one that connects again (`Last-Event-ID`) gets a `resync` first.
    """
    async with event_stream(request) as stream:
        await stream.send_changes(table)
    return stream.response
