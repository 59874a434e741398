"""Answers that succeed: JSON made by Postgres or by a handler, entity tags, and the headers that every answer bears."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from .describe import hold_to
from .errors import PreconditionFailed
from .response import JsonResponse

ROW_END: Final = "\x1e"
"""Stands between two rows' JSON as Postgres sends them: a control character, which no JSON text can hold unescaped."""


class Rows(str):
    """A JSON array made by Postgres. `number` rows are in it; `first(n)` is an array of the first n."""

    __slots__ = ("_separated", "number")
    number: int
    _separated: str

    def __new__(cls, separated: str) -> Rows:
        self = super().__new__(cls, f"[{separated.replace(ROW_END, ',')}]")
        self._separated = separated
        self.number = separated.count(ROW_END) + 1 if separated else 0
        return self

    def first(self, rows: int) -> tuple[str, str]:
        """(the first rows as a JSON array, the last of them as a JSON object)."""
        kept = self._separated.split(ROW_END)[:rows]
        return f"[{','.join(kept)}]", kept[-1]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> JsonResponse:
    """A JSON answer. A text (or bytes) counts as JSON already, which is what `read` and `scoped` give; the rest is encoded."""
    raw = data if isinstance(data, bytes) else data.encode() if isinstance(data, str) else _encoder.encode(data)
    return JsonResponse(raw, status, headers)


def entity_tag(text: str) -> str:
    """A strong entity tag (RFC 9110 8.8.3) of a row's JSON."""
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def check_if_match(request: web.Request, text: str) -> None:
    """412 unless the request's `If-Match`, where there is one, names this row as it is now (RFC 9110 13.1.1)."""
    hold_to(request, "if_match", True)
    wanted = request.headers.getall("If-Match", ())
    if not wanted:
        return
    tags = {tag.strip() for line in wanted for tag in line.split(",")}
    if "*" not in tags and entity_tag(text) not in tags:
        raise PreconditionFailed
