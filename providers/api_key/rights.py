"""What may be asked of a new key, and what a caller may give to one: never more than the caller has."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from server import Identity

_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})\Z"
)
LONGEST_OVERLAP: Final = 7 * 86_400


def canonical(name: str) -> str:
    """A role's or permission's one name: with `org:` before it, once. The rest of the server compares them so."""
    while name.startswith("org:"):
        name = name[4:]
    if not name:
        raise ValueError("must name something")
    return f"org:{name}"


def _unlike(words: list[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _text(value: Any) -> Any:
    if not isinstance(value, str) or not _TIME.match(value):
        raise ValueError("must be a time with its offset from UTC (RFC 3339)")
    return value


def _to_come(moment: datetime) -> datetime:
    if moment <= datetime.now(UTC):
        raise ValueError("must lie in the future")
    return moment


_Word = Annotated[str, Field(strict=True, min_length=1, max_length=200, pattern=r"^[!-+\--~]+$")]  # no blank, no comma
_Scope = Annotated[str, Field(strict=True, min_length=1, max_length=200, pattern=r"^[!#-+\--\[\]-~]+$")]  # RFC 6749 3.3
_Right = Annotated[_Word, AfterValidator(canonical)]
_Moment = Annotated[AwareDatetime, BeforeValidator(_text), AfterValidator(_to_come)]


class NewKey(BaseModel):
    """What a client may say of a new key; the server owns the rest."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(strict=True, min_length=1, max_length=200)]
    owner: Literal["user", "organization"] = "user"
    scopes: Annotated[list[_Scope], Field(max_length=100), AfterValidator(_unlike)] = []
    org_role: _Right | None = None
    org_permissions: Annotated[list[_Right], Field(max_length=200), AfterValidator(_unlike)] = []
    expires_at: _Moment | None = None


class Rotation(BaseModel):
    """How long the old secret goes on working beside the new one."""

    model_config = ConfigDict(extra="forbid")
    overlap_seconds: Annotated[int, Field(strict=True, ge=0, le=LONGEST_OVERLAP)] = 0


def excess(
    caller: Identity,
    org_id: str | None,
    role: str | None,
    permissions: Iterable[str],
    scopes: Collection[str],
    listed: Collection[str],
) -> str | None:
    """In what a key with these rights would go beyond its maker: the slug of the 403, or None.

    `listed` are the scopes that a session may give; a key gives its own at the most.
    """
    if org_id is not None and org_id != caller.org_id:
        return "organization"
    if role is not None and not caller.has(role=role):
        return "role"
    if not all(caller.has(permission=permission) for permission in permissions):
        return "permission"
    allowed = (caller.scopes or ()) if caller.token_type == "api_key" else listed
    return None if set(scopes) <= set(allowed) else "scope"
