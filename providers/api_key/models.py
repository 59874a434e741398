"""Models of API keys in requests and responses. A hash is never shown; a secret only when it is created."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from server import with_org_prefix


class ApiKey(BaseModel):
    """A key, without its secret."""

    model_config = ConfigDict(extra="forbid")
    id: str
    name: str
    owner: Literal["user", "organization"]
    user_id: str | None
    org_id: str | None
    org_role: str | None
    org_permissions: list[str]
    scopes: list[str]
    created_by: str
    created_by_key: str | None
    created_at: AwareDatetime
    expires_at: AwareDatetime | None
    previous_expires_at: Annotated[AwareDatetime | None, Field(description="Until then the secret before this one works.")]
    last_used_at: AwareDatetime | None


class NewSecret(ApiKey):
    """A key with its secret, which is shown only once."""

    secret: Annotated[str, Field(pattern=r"^gp_[!-~]+$")]


_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})\Z"
)
LONGEST_OVERLAP: Final = 7 * 86_400


def canonical(name: str) -> str:
    """Returns a role or permission with exactly one `org:` in front. Raises ValueError if empty."""
    full = with_org_prefix(name)
    if full == with_org_prefix(""):
        raise ValueError("must name something")
    return full


def _unlike(words: list[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _text(value: Any) -> Any:
    if not isinstance(value, str) or not _TIME.match(value):
        raise ValueError("must be a time with its offset from UTC (RFC 3339)")
    return value


def _to_come(moment: datetime) -> datetime:
    if moment <= datetime.now(UTC):
        raise ValueError("must be in the future")
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
