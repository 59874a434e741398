"""Answers that succeed: JSON made by Postgres or by a handler, entity tags, and the headers that every answer bears."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from .description import hold_to
from .errors import PreconditionFailed
from .replies import SERVER, STANDARD_HEADERS, Reply

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


def answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON answer. A text (or bytes) counts as JSON already, which is what `read` and `scoped` give; the rest is encoded."""
    raw = data if isinstance(data, bytes) else data.encode() if isinstance(data, str) else _encoder.encode(data)
    return Reply(raw, status, headers)


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


_ID_LENGTH: Final = 24
_ids: list[str] = []
os.register_at_fork(after_in_child=_ids.clear)  # two processes that share names would confuse whoever reads their logs


def new_request_id() -> str:
    """24 characters that name one request in answers and logs. A counter would tell strangers how busy we are."""
    if not _ids:
        drawn = os.urandom(_ID_LENGTH // 2 * 512).hex()
        _ids.extend(drawn[start : start + _ID_LENGTH] for start in range(0, len(drawn), _ID_LENGTH))
    return _ids.pop()


def stamp(response: web.StreamResponse, request_id: str, *, cacheable: bool = False) -> None:
    """Put the headers on an answer that every answer bears. `cacheable`: it is a public success."""
    if isinstance(response, Reply) and response.stamp(request_id, cacheable):
        return
    headers = response.headers
    if headers.get("Server") != SERVER:  # a handler's own response, not made from STANDARD_HEADERS
        for name, value in STANDARD_HEADERS.items():
            headers.setdefault(name, value)
        headers["Server"] = SERVER
    headers["X-Request-Id"] = request_id
    if not cacheable:
        headers["Cache-Control"] = "no-store"
    elif headers["Cache-Control"] == "no-store":
        del headers["Cache-Control"]
