"""One route as an operation of the OpenAPI document: what follows from its path, its access and its description."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from ..auth.access import Access
from ..http.describe import Description, description_of, is_secret
from ..http.limited import Bounds
from ..routing.table import RouteRule
from .components import ErrorContent, header_refs, parameter_ref, refusal, response_ref
from .live_answers import live_parameters, live_refusals, live_responses
from .parameters import query_parameters
from .schemas import Schemas
from .security import Schemes, fitting

ACCESS: Final = "x-gatepost-access"
LIMITS: Final = "x-gatepost-limits"
_WITH_BODY: Final = (408, 411, 413, 415, 422)
PARAMETER: Final = re.compile(r"\{(\w+)(?::((?:[^{}]|\{[^{}]*\})+))?\}")  # aiohttp's: {name} or {name:regex}
_UNCHANGED: Final = "The client has the current version: `If-None-Match` matches its `ETag`."
_ONE_OF: Final = ("role", "permission", "feature", "plan", "organization", "reverification")


def path_of(template: str) -> str:
    """The template as OpenAPI writes it: parameters without their patterns."""
    return PARAMETER.sub(r"{\1}", template)


def operation(
    method: str, rule: RouteRule, name: str, handler: object, schemas: Schemas, schemes: Schemes, errors: ErrorContent
) -> dict[str, Any]:
    """The operation of one route. `name` is its `operationId`; `schemas` knows all types of the handler's description."""
    description = description_of(handler)
    said = description or Description()
    # A secret is not kept for a repeat, and a streamed body is not kept to compare it with a repeat's.
    again = method == "POST" and _knows(rule) and not is_secret(handler) and not said.body_stream
    made: dict[str, Any] = {
        "summary": said.summary or name.strip("_").replace("_", " ").capitalize(),
        "description": "\n\n".join(filter(None, [said.text, f"**Access:** {rule.words}", _limits(rule)])),
        "tags": list(said.tags) or [_subject(rule.template)],
        "operationId": name,
        "security": _security(rule, schemes),
        ACCESS: _access(rule),
    }
    if rule.bounds is not None:
        made[LIMITS] = rule.bounds.members()
    if parameters := [
        *path_parameters(rule.template, rule.access.organization),
        *query_parameters(said.query, schemas, rule.plugin),
        *map(parameter_ref, (*_parameters(said, again), *live_parameters(said, _knows(rule)))),
    ]:
        made["parameters"] = parameters
    if said.body is not None:
        content = {"application/json": {"schema": schemas.of(said.body, "validation", rule.plugin)}}
        made["requestBody"] = {"required": not said.body_optional, "content": content}
    elif said.body_stream:
        bytes_ = {"schema": {"type": "string", "format": "binary"}}
        made["requestBody"] = {"required": True, "content": dict.fromkeys(said.body_stream, bytes_)}
    made["responses"] = _responses(method, rule, description, again, schemas, errors)
    return made


def _limits(rule: RouteRule) -> str | None:
    return f"**Limits:** {rule.bounds.words()}" if rule.bounds is not None else None


def _knows(rule: RouteRule) -> bool:
    """Whether the route can have a known caller."""
    return not rule.public or rule.optional


def _security(rule: RouteRule, schemes: Schemes) -> list[dict[str, list[str]]]:
    """The credentials of which any one is accepted; `{}` is none at all."""
    if not _knows(rule):
        return []
    return [*([{}] if rule.optional else []), *fitting(schemes, rule.access)]


def _subject(template: str) -> str:
    """The first word of the path after `/api`: operations of one thing stand together."""
    words = [word for word in template.split("/") if word and "{" not in word and word != "api"]
    return words[0] if words else "api"


def _access(rule: RouteRule) -> dict[str, Any]:
    access, found = rule.access, {"words": rule.words, "public": rule.public}
    if rule.optional:
        return found | {"optional": True, "accepts": sorted(access.accepts)}
    if rule.public:
        return found
    found |= {word: value for word in _ONE_OF if (value := getattr(access, word)) is not None}
    found |= {word: True for word in ("user", "allow_pending") if getattr(access, word)}
    if access.scopes:
        found["scopes"] = list(access.scopes)
    if not access.impersonation:
        found["impersonation"] = False
    return found | {"accepts": sorted(access.accepts)}


def path_parameters(template: str, organization: str | None) -> list[dict[str, Any]]:
    found = []
    for name, pattern in PARAMETER.findall(template):
        schema = {"type": "string", "minLength": 1} | ({"pattern": f"^(?:{pattern})$"} if pattern else {})
        words = "The active organisation." if name == organization else f"The `{name}` in the path."
        found.append({"name": name, "in": "path", "required": True, "description": words, "schema": schema})
    return found


def _parameters(said: Description, again: bool) -> Iterable[str]:
    if said.page:
        yield from ("limit", "cursor")
    if said.if_match:
        yield "If-Match"
    if said.if_none_match:
        yield "If-None-Match"
    if again:
        yield "Idempotency-Key"


def _responses(
    method: str, rule: RouteRule, description: Description | None, again: bool, schemas: Schemas, errors: ErrorContent
) -> dict[str, dict[str, Any]]:
    said = description or Description()
    found = live_responses(said, schemas, rule.plugin)
    given = sorted((status, kind) for status, kind in said.answers.items() if str(status) not in found)
    found |= {str(status): _success(said, status, kind, schemas, rule.plugin) for status, kind in given}
    for status in sorted(_refusals(rule, said, again) | ({422} | _unsaid(method) if description is None else set())):
        words = said.refusals.get(status)
        found[str(status)] = refusal(status, errors, words) if words else response_ref(status)
    if not said.answers and not said.streams:
        found["default"] = {"description": "No further responses are documented.", "headers": header_refs()}
    return found


def _success(said: Description, status: int, kind: Any, schemas: Schemas, plugin: str) -> dict[str, Any]:
    headers = [*said.headers, *(["Link"] if said.page else [])]
    words = _UNCHANGED if status == 304 else "Done." if kind is None else "Success."
    made: dict[str, Any] = {"description": words, "headers": header_refs(*headers)}
    if kind is not None:
        made["content"] = {said.content_type: {"schema": schemas.of(kind, "serialization", plugin)}}
    return made


def _refusals(rule: RouteRule, said: Description, again: bool) -> set[int]:
    """Every status from 400 on that can follow from what is declared; 500 is a fault, and no promise."""
    found = {400, 431} | set(said.refusals) | live_refusals(said)
    if _knows(rule):
        found |= {401, 429, 503}
    if rule.bounds is not None:
        found |= _of_bounds(rule.bounds)
    if not rule.public and _asks(rule.access):
        found.add(403)
    if "{" in rule.template:
        found.add(404)
    if said.page or said.query is not None:
        found.add(422)
    if said.body is not None:
        found |= set(_WITH_BODY)
    if said.body_stream:
        found |= set(_WITH_BODY) - {422}
    if said.if_match:
        found.add(412)
    return found | {409, 422} if again else found


def _of_bounds(bounds: Bounds) -> set[int]:
    follows = {429: bounds.rate or bounds.concurrency, 413: bounds.body_bytes, 408: bounds.body_seconds}
    return {status for status, bound in follows.items() if bound}


def _asks(access: Access) -> bool:
    """Does it ask more than that the caller is known, and by which kind of credential?"""
    asks = access.user or not access.impersonation or bool(access.scopes)
    return asks or any(getattr(access, word) is not None for word in _ONE_OF)


def _unsaid(method: str) -> set[int]:
    return {404, 503} | (set(_WITH_BODY) | {409} if method not in ("GET", "DELETE") else set())
