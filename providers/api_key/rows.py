"""How a key is shown: never its hash, and its secret only in the answer that makes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


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
    """A key with its secret, this once."""

    secret: Annotated[str, Field(pattern=r"^gp_[!-~]+$")]
