"""Descriptions of a handler's input and output, for the OpenAPI document; the handler must conform to its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeVar

from aiohttp import web
from pydantic import BaseModel

from .query_model import PAGE_PARAMETERS, parameters_of

F = TypeVar("F", bound=Callable[..., Any])
_MARK: Final = "__description__"
_SECRET: Final = "__answers_secret__"
_OPERATION_ID: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CONTENT_TYPE: Final = re.compile(r"(?:\*/\*|[a-z0-9!#$&^_.+-]+/(?:\*|[a-z0-9!#$&^_.+-]+))\Z")
_TOOL: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")  # the names that the Model Context Protocol recommends
_NOTHING: Final[Mapping[int, Any]] = MappingProxyType({})
_EXAMPLES: Final = {"answers": "{201: Todo}", "refusals": "{409: 'The name is taken.'}"}
_SWITCHING: Final = 101  # RFC 9110 15.2.2: the connection becomes a WebSocket


@dataclass(frozen=True, slots=True)
class Description:
    """The description of one handler; see `describe`."""

    body: Any = None
    body_optional: bool = False
    body_stream: tuple[str, ...] = ()
    answers: Mapping[int, Any] = field(default_factory=lambda: _NOTHING)
    refusals: Mapping[int, str] = field(default_factory=lambda: _NOTHING)
    page: bool = False
    if_match: bool = False
    if_none_match: bool = False
    headers: tuple[str, ...] = ()
    content_type: str = "application/json"
    summary: str | None = None
    text: str | None = None
    tags: tuple[str, ...] = ()
    query: Any = None
    operation_id: str | None = None
    events: Any = None
    tool: str | None = None

    @property
    def socket(self) -> bool:
        """Does a successful request become a WebSocket?"""
        return _SWITCHING in self.answers

    @property
    def streams(self) -> bool:
        """Is the answer a live one: an event stream or a WebSocket?"""
        return self.events is not None or self.socket


def describe(
    *,
    body: Any = None,
    body_optional: bool = False,
    body_stream: str | Iterable[str] = (),
    returns: Any = None,
    answers: Mapping[int, Any] | None = None,
    refusals: Mapping[int, str] | None = None,
    page: bool = False,
    if_match: bool = False,
    if_none_match: bool = False,
    headers: Iterable[str] = (),
    content_type: str = "application/json",
    summary: str | None = None,
    text: str | None = None,
    tags: Iterable[str] = (),
    query: Any = None,
    operation_id: str | None = None,
    events: Any = None,
    tool: str | None = None,
) -> Callable[[F], F]:
    """Describe a handler's input and output. Goes below `@routes`, above or below the access decorator; wraps nothing.

    body           the type that the handler passes to `body`: a pydantic model, or any type pydantic can validate
    body_optional  the body may be left out
    body_stream    the content types of a body that the handler takes by `body_stream`, such as `image/png`, `image/*` or
                   `["text/csv", "application/octet-stream"]`; another one is a 415
    returns        the type of the 200's body; `answers={201: Row, 204: None}` declares other statuses (None: no body).
                   `answers={101: None}` is a WebSocket: the handler calls `socket`
    events         the type of the events' `data` in a 200 that is an event stream (`event_stream`): a model, a union of
                   models, or `str` for data that is not JSON. The events `resync` and `end` are added automatically
    refusals       statuses from 400 on that are specific to this handler, each with its cause: `{409: "..."}`.
                   Those that follow from the access, the path, a body or a page are added automatically.
    query          the model that the handler passes to `query`: a pydantic model of scalars and lists of scalars
    page           the handler calls `page`: `?limit`, `?cursor` and a `Link` to the next page
    if_match       the handler calls `check_if_match`
    if_none_match  the handler calls `answer_row`: a 304 is added
    headers        headers of a success: `ETag`, `Location`, or others by name
    content_type   the content type of the successes' bodies
    summary, text, tags   for readers; `text` may be Markdown. Docstrings are not shown.
    operation_id   the operation's name in generated clients; without it, the name of the handler
    tool           the name under which agents may call this route (see the guide on agents): 1 to 128 letters, digits and
                   `_.-`, unique in the server. Needs `summary`, which the agent reads, and a response of JSON or text

    The description is enforced: `body`, `body_stream`, `query`, `page`, `check_if_match` and `answer_row` raise TypeError in
    a handler that is described otherwise. Raises TypeError at import for a contradictory or incomplete description, and for a
    model that cannot be read from query parameters.
    """
    if returns is not None and answers is not None:
        raise TypeError("@describe: either returns= or answers=, not both")
    for name, value in (("answers", answers), ("refusals", refusals)):
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(f"@describe({name}={value!r}): must be a dictionary of statuses, such as {_EXAMPLES[name]}")
    given = dict(answers) if answers is not None else {200: returns} if returns is not None else {}
    _live(events, given, page, content_type)
    if if_none_match:
        given.setdefault(304, None)
    _statuses("answers", [status for status in given if status != _SWITCHING], range(200, 400))
    _statuses("refusals", refusals or {}, range(400, 600))
    if not all(refusals.values() if refusals else ()):
        raise TypeError("@describe(refusals=...): each with when it is given")
    if isinstance(headers, str) or isinstance(tags, str):
        raise TypeError("@describe: headers= and tags= are lists of words")
    if body_optional and body is None:
        raise TypeError("@describe: body_optional= without body=")
    if isinstance(query, Mapping | list | set | BaseModel):
        raise TypeError(f"@describe(query={query!r}): must be a pydantic model, whose fields are the parameters")
    names = set(parameters_of(query)) if query is not None else set()
    if page and (taken := sorted(PAGE_PARAMETERS & names)):
        raise TypeError(f"@describe(query=...): with page=True, {taken[0]!r} is the page's and no parameter of the model")
    if operation_id is not None and not _OPERATION_ID.match(operation_id):
        raise TypeError("@describe: operation_id= is a name of letters, digits and '_'")
    made = Description(
        body, body_optional, _content_types(body, body_stream), MappingProxyType(given), MappingProxyType(dict(refusals or {})),
        page, if_match, if_none_match, tuple(headers), content_type, summary, text, tuple(tags), query, operation_id,
        events, tool,
    )  # fmt: skip
    if tool is not None:
        _tool(made)

    def mark(handler: F) -> F:
        if description_of(handler) is not None:
            raise TypeError(f"{getattr(handler, '__qualname__', handler)}: it is described twice")
        setattr(handler, _MARK, made)
        return handler

    return mark


def description_of(handler: object) -> Description | None:
    """The description of this handler, or None. The wrapper of the access decorator passes it on."""
    description = getattr(handler, _MARK, None)
    return description if isinstance(description, Description) else None


def mark_secret(handler: object) -> None:
    """Record that the responses of this handler hold a secret; see `answers_secret`."""
    setattr(handler, _SECRET, True)


def is_secret(handler: object) -> bool:
    """Does a response of this handler hold a secret that is shown once?"""
    return getattr(handler, _SECRET, False) is True


def hold_to(request: web.Request, word: str, value: object) -> None:
    """Raise TypeError if the handler of this request is described and the member `word` of its description is not `value`.

    Otherwise the OpenAPI document would be wrong.
    """
    description = description_of(request.match_info.handler)
    if description is not None and getattr(description, word) != value:
        raise TypeError(f"the handler is described with {word}={getattr(description, word)!r}, and uses {value!r}")


def _content_types(body: Any, given: str | Iterable[str]) -> tuple[str, ...]:
    types: tuple[Any, ...] = (given,) if isinstance(given, str) else tuple(given)
    if wrong := [one for one in types if not isinstance(one, str) or not _CONTENT_TYPE.match(one)]:
        raise TypeError(f"@describe(body_stream=...): {wrong[0]!r} is not a content type in lower case, without parameters")
    if types and body is not None:
        raise TypeError("@describe: either body= or body_stream=, not both")
    return types


def _live(events: Any, answers: Mapping[int, Any], page: bool, content_type: str) -> None:
    """Raise TypeError for a live answer that is also described as another response."""
    if answers.get(_SWITCHING) is not None:
        raise TypeError("@describe(answers={101: ...}): a WebSocket has no body; write None")
    live = events is not None or _SWITCHING in answers
    if live and (page or content_type != "application/json" or any(200 <= status < 300 for status in answers)):
        raise TypeError("@describe: events= and answers={101: None} exclude any other success, page= and content_type=")
    if events is not None and _SWITCHING in answers:
        raise TypeError("@describe: either events= or answers={101: None}, not both")


def _tool(said: Description) -> None:
    """Raise TypeError for a description that cannot be a tool's."""
    if not isinstance(said.tool, str) or not _TOOL.match(said.tool):
        raise TypeError(f"@describe(tool={said.tool!r}): must be 1 to 128 letters, digits and '_', '.' or '-'")
    if not said.summary or not said.summary.isprintable():
        raise TypeError(f"@describe(tool={said.tool!r}): needs summary=, one line of printable text, which agents read")
    if said.body_stream or said.streams:
        raise TypeError(f"@describe(tool={said.tool!r}): a tool cannot stream its body or its response")
    if not (said.content_type.startswith("text/") or is_json(said.content_type)):
        raise TypeError(f"@describe(tool={said.tool!r}): a tool returns JSON or text, not {said.content_type}")


def is_json(content_type: str) -> bool:
    """Is this content type JSON (RFC 8259, RFC 6839)? It must be in lower case and without parameters."""
    return content_type == "application/json" or content_type.endswith("+json")


def _statuses(name: str, given: Iterable[int], allowed: range) -> None:
    if wrong := [status for status in given if status not in allowed]:
        raise TypeError(f"@describe({name}=...): {wrong[0]!r} is not one of {allowed.start} to {allowed.stop - 1}")
