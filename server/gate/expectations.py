"""Policy tests as data: a file that states which caller gets which answer."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from ..auth.described import MEMBERS, identity_from
from ..auth.identity import Identity
from ..routing.matching import matched
from ..routing.table import RouteTable
from .verdict import verdict

_EXPECTED: Final = frozenset({"caller", "request", "status", "reason"})
NO_CREDENTIAL: Final = "none"


@dataclass(frozen=True, slots=True)
class Expectation:
    """One `[[expect]]`: the answer to a request of a caller. `reason` is compared if it is not None."""

    name: str
    caller: Identity | None
    method: str
    target: str
    status: int
    reason: str | None = None


def read_file(file: Path) -> list[Expectation]:
    """Returns the expectations in a TOML file. Raises ValueError, with its name, for a mistake or an unreadable file."""
    try:
        return read(tomllib.loads(file.read_text("utf-8-sig")))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read(given: Mapping[str, Any]) -> list[Expectation]:
    """Returns the expectations in parsed TOML. Raises ValueError for a mistake, with the number of the expectation.

    [callers.alice]
    user = "alice"
    org = "north"
    role = "org:admin"

    [[expect]]
    caller = "alice"              # or "none"
    request = "GET /api/orgs/north/data"
    status = 200                  # the gate lets it in
    """
    if unknown := given.keys() - {"callers", "expect"}:
        raise ValueError(f"unknown key {min(unknown)!r}; known are [callers.NAME] and [[expect]]")
    callers: dict[str, Identity | None] = {NO_CREDENTIAL: None}
    for name, members in given.get("callers", {}).items():
        if not isinstance(members, Mapping) or (odd := members.keys() - set(MEMBERS)):
            raise ValueError(f"callers.{name}: unknown key {min(odd)!r}; known are {', '.join(MEMBERS)}")
        try:
            callers[name] = identity_from(members)
        except ValueError as error:
            raise ValueError(f"callers.{name}: {error}") from None
    expected = given.get("expect", [])
    if not expected:
        raise ValueError("it has no [[expect]]")
    return [_one(number, one, callers) for number, one in enumerate(expected, 1)]


def _one(number: int, given: Mapping[str, Any], callers: Mapping[str, Identity | None]) -> Expectation:
    where = f"expectation {number}"
    if unknown := given.keys() - _EXPECTED:
        raise ValueError(f"{where}: unknown key {min(unknown)!r}; known are {', '.join(sorted(_EXPECTED))}")
    name, status, reason = given.get("caller"), given.get("status"), given.get("reason")
    method, _, target = str(given.get("request", "")).partition(" ")
    if not isinstance(name, str) or name not in callers:
        raise ValueError(f"{where}: no caller is named {name!r}; known are {', '.join(callers)}")
    if not method or not target.startswith("/"):
        raise ValueError(f"{where}: request must be a method and a path, such as 'GET /api/me'")
    if type(status) is not int:
        raise ValueError(f"{where}: status must be a number")
    if reason is not None and not isinstance(reason, str):
        raise ValueError(f"{where}: reason must be a string")
    return Expectation(name, callers[name], method.upper(), target, status, reason)


async def differences(router: web.UrlDispatcher, table: RouteTable, expected: list[Expectation]) -> list[str]:
    """Returns a line for each expectation that does not hold for these routes."""
    lines = []
    for one in expected:
        match = await matched(router, one.method, one.target)
        rule = None if match is None else table.rules.get(match.route)
        status, reason, _ = (400, None, None) if match is None else verdict(rule, one.caller, match, match.http_exception)
        if status != one.status or one.reason not in (None, reason):
            was, wanted = (" ".join(filter(None, (str(a), b))) for a, b in ((status, reason), (one.status, one.reason)))
            lines.append(f"{one.name}: {one.method} {one.target}: {was}, not {wanted}")
    return lines
