"""The document's `info`, `servers` and `tags`: what the product is called, and where it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from ..settings.setting import ConfigError

ABOUT: Final = """Every route is locked until a provider says who is calling, and every row until Postgres agrees.

Each operation says who may call it; the extension `x-gatepost-access` says the same to programs. Every error is JSON,
and most have a `reason`, a code for programs. Lists are arrays, newest first; the next page is in `Link`."""
_EMAIL: Final = re.compile(r"[^\s@<>]+@[^\s@<>.]+(\.[^\s@<>.]+)*\Z")
_TAGS: Final = {
    "data": "The caller's own rows.",
    "health": "Is the server alive?",
    "invoices": "Invoices of the active organisation.",
    "keys": "API keys.",
    "me": "The caller.",
    "orgs": "What belongs to an organisation.",
    "public": "This document, and a page to read it.",
    "webhooks": "Events that other services send.",
}


def info_of(get: Callable[[str], Any], root: str = "/") -> dict[str, Any]:
    """The members `info` and `servers` of the document. Raises ConfigError for a mistake in a setting.

    get    returns a setting by key
    root   the path below which clients find this API
    """
    info = {"title": _text(get, "title"), "version": _text(get, "version"), "description": get("openapi.description") or ABOUT}
    if contact := _table(get, "contact", ("name", "email")):
        if "email" in contact and not _EMAIL.match(contact["email"]):
            raise ConfigError(f"openapi.contact: email must be an e-mail address, not {contact['email']!r}")
        info["contact"] = contact
    if license := _table(get, "license", ("name", "identifier")):
        if "name" not in license:
            raise ConfigError("openapi.license: name is missing")
        info["license"] = license
    servers = [{"url": _url(text)} for text in get("openapi.servers") or ()]
    return {"info": info, "servers": servers or [{"url": root}]}


def tags_of(operations: Iterable[tuple[Mapping[str, Any], str]]) -> list[dict[str, str]]:
    """The document's `tags`: those of all (operation, plugin) pairs, each with a description, sorted by name."""
    found: dict[str, str] = {}
    for operation, plugin in operations:
        for tag in operation["tags"]:
            found.setdefault(tag, _TAGS.get(tag) or (f"Routes of {plugin.removeprefix('module:')}." if plugin else f"{tag}."))
    return [{"name": name, "description": text} for name, text in sorted(found.items())]


def _text(get: Callable[[str], Any], name: str) -> str:
    text = str(get(f"openapi.{name}") or "").strip()
    if not text:
        raise ConfigError(f"openapi.{name}: must not be empty")
    return text


def _table(get: Callable[[str], Any], name: str, members: tuple[str, ...]) -> dict[str, str]:
    table: Mapping[str, Any] = get(f"openapi.{name}") or {}
    for member, text in table.items():
        if member not in members:
            raise ConfigError(f"openapi.{name}: unknown member {member!r}; it has {' and '.join(members)}")
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"openapi.{name}: {member} must be a string that is not empty")
    return dict(table)


def _url(text: str) -> str:
    """A server's URL without a slash at its end, which would be doubled before a path."""
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or not text.isprintable() or re.search(r"[\s@?#{}]", text):
        raise ConfigError(f"openapi.servers: must be URLs such as https://api.example.com, not {text!r}")
    return text.rstrip("/")
