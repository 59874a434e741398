"""Reads the subject of a security event, in the identifiers of RFC 9493 and of Shared Signals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from server import is_plain_text

from .sign_out import Refused

_MOST_ALIASES: Final = 20


class Subject(NamedTuple):
    """The ids of a user and of a session, as their issuer has them; `either`: `user` may be the id of a session as well."""

    user: str | None
    session: str | None = None
    either: bool = False


def subject_of(identifier: object, issuer: str) -> Subject:
    """Returns the subject that an identifier of this issuer names. Raises Refused if that cannot be known."""
    if not isinstance(identifier, Mapping):
        raise Refused("invalid_request", "there is no sub_id and no subject")
    if _format(identifier) != "complex":
        return _simple(identifier, issuer)
    # More members narrow the subject down. Unreadable ones are left out, so that more access ends rather than less.
    found: dict[str, Subject] = {}
    fault = Refused("invalid_request", "the subject names neither a user nor a session")
    for name in ("user", "session"):
        if name in identifier:
            try:
                found[name] = _member(identifier[name], issuer)
            except Refused as refused:
                fault = refused
    if not found:
        raise fault
    return Subject(found["user"].user if "user" in found else None, found["session"].user if "session" in found else None)


def _member(identifier: object, issuer: str) -> Subject:
    if not isinstance(identifier, Mapping):
        raise Refused("invalid_request", "a member of the subject is not an object")
    return _simple(identifier, issuer)


def _simple(identifier: Mapping[str, Any], issuer: str) -> Subject:
    kind = _format(identifier)
    if kind == "iss_sub":
        if identifier.get("iss") != issuer:
            raise Refused("invalid_request", "the subject is another issuer's")
        return Subject(_id(identifier, "sub"))
    if kind == "opaque":
        return Subject(_id(identifier, "id"), either=True)
    if kind == "aliases":
        return _aliases(identifier.get("identifiers"), issuer)
    raise Refused("invalid_request", "the subject is in an unsupported format: use iss_sub, opaque or complex")


def _aliases(identifiers: object, issuer: str) -> Subject:
    """One of several identifiers of the same user, of which one must be readable (RFC 9493 3.2.8: they are not nested)."""
    fault = Refused("invalid_request", "the subject has no identifiers")
    for one in identifiers[:_MOST_ALIASES] if isinstance(identifiers, list) else ():
        try:
            if isinstance(one, Mapping) and _format(one) != "aliases":
                return _simple(one, issuer)
        except Refused as refused:
            fault = refused
    raise fault


def _format(identifier: Mapping[str, Any]) -> str:
    """Returns the format; earlier drafts called it `subject_type`, wrote `iss-sub`, and had none for a complex subject."""
    given = identifier.get("format", identifier.get("subject_type"))
    if isinstance(given, str):
        return given.replace("-", "_")
    return "complex" if "user" in identifier or "session" in identifier else ""


def _id(identifier: Mapping[str, Any], name: str) -> str:
    value = identifier.get(name)
    if not is_plain_text(value):
        raise Refused("invalid_request", f"the subject's {name} is not 1 to 255 characters of printable text")
    return str(value)
