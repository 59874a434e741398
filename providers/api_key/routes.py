"""The routes of API keys: a user creates, lists, rotates and revokes their own keys, an administrator the organisation's.

A key never has more rights than the caller that creates or rotates it. A key that was created by a key never outlives it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from server import (
    ApiError,
    Conflict,
    Forbidden,
    House,
    Identity,
    Unavailable,
    Unprocessable,
    answer,
    answers_secret,
    body,
    describe,
    identity_of,
    page,
    read,
    requires,
    revocation_failed,
    scoped,
)  # fmt: skip

from .key_format import Key, make, parse
from .models import ApiKey, NewKey, NewSecret, Rotation
from .owners import STATIC
from .quota import DEEPEST, has_room
from .rights import excess
from .statements import INSERT, MAKER, ONE, PAGE, REVOKE, ROTATE
from .static import static_keys


class KeyEnded(ApiError):
    """401: the calling key was revoked while the request was in progress."""

    status = 401


class Keys:
    """The four routes under /api/keys, with the settings of one server."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._scopes = frozenset(settings["scopes"] or ())
        self._most = {"user": settings["max_per_user"], "organization": settings["max_per_organization"]}
        self._statics = {key.id: key.expires_at for key in static_keys(settings["keys"]).values()}
        self._env = "production"  # until the provider is opened; a wrong `live` in a key is the safer mistake

    def opened(self, house: House) -> None:
        """Called when the provider of the same server is opened: takes the environment from the house."""
        self._env = house.env

    def routes(self) -> Iterable[web.RouteDef]:
        """Returns the routes. They accept session tokens and API keys only: another issuer's short-lived token must not
        be exchanged for a long-lived credential. An impersonator must not get a key of the user either: a key outlives the
        impersonation, and its use names only the user. Ending a key is always allowed."""
        known = requires(accepts=["session_token", "api_key"])
        itself = requires(accepts=["session_token", "api_key"], impersonation=False)
        return [
            web.get("/api/keys", known(self.list_keys)),
            web.post("/api/keys", itself(self.create_key)),
            web.delete("/api/keys/{id}", known(self.revoke_key)),
            web.post("/api/keys/{id}/rotate", itself(self.rotate_key)),
        ]

    @describe(
        returns=list[ApiKey],
        page=True,
        summary="List one's own keys; as an administrator the organisation's too",
        refusals={403: "The caller is an organisation's key without the administrator's role (`user`)."},
    )
    async def list_keys(self, request: web.Request) -> web.Response:
        at = page(request, key=str)
        caller, admin = identity_of(request), administers(request)
        if caller.user_id is None and not admin:
            raise Forbidden("user")
        return at.answer(await read(request, PAGE, *owners(request), *at.args, admin=admin))

    @answers_secret
    @describe(
        body=NewKey,
        answers={201: NewSecret},
        summary="Make a key",
        refusals={
            403: "The key would have more rights than the caller: `reason` names what exceeds them. Or another acts as the "
            "user (`impersonation`).",
            409: "The owner has as many keys as allowed, or the keys that made each other are too many (`key-limit`).",
        },
    )
    async def create_key(self, request: web.Request) -> web.Response:
        new, caller = await body(request, NewKey), identity_of(request)
        if new.owner == "user" and caller.user_id is None:
            raise Forbidden("user")
        if new.owner == "organization" and not administers(request):
            raise Forbidden("role")
        reason = excess(caller, caller.org_id, new.org_role, new.org_permissions, new.scopes, self._scopes)
        if reason is not None:
            raise Forbidden(reason)
        key = make(self._env)
        async with scoped(request, admin=new.owner == "organization") as db:
            if not await has_room(db, new.owner, caller, self._most[new.owner]):
                raise Conflict("key-limit")
            ends = await self._end(db, caller, new.expires_at, makes=True)
            row = await db.row(
                INSERT, key.id, key.digest, new.name, caller.user_id if new.owner == "user" else None, caller.org_id,
                new.org_role, new.org_permissions, new.scopes, caller.actor, self._maker(caller), ends,
            )  # fmt: skip
        return shown(row, key, 201)

    @answers_secret
    @describe(
        body=Rotation,
        body_optional=True,
        returns=NewSecret,
        summary="Give a key a new secret",
        refusals={
            403: "The key has more rights than the caller: `reason` names what exceeds them. Or another acts as the "
            "user (`impersonation`).",
            409: "The key has expired.",
        },
    )
    async def rotate_key(self, request: web.Request) -> web.Response:
        how = await body(request, Rotation) if request.body_exists else Rotation()  # the body is optional
        caller, key = identity_of(request), make(self._env, request.match_info["id"])
        if parse(key.text) is None:  # no id of ours
            raise web.HTTPNotFound
        async with scoped(request, admin=administers(request)) as db:
            await self._may_rotate(db, caller, await db.fetchrow(ONE + " FOR UPDATE", *owners(request), key.id))
            row = await db.row(ROTATE, *owners(request), key.id, key.digest, how.overlap_seconds, self._maker(caller))
        return shown(row, key, 200)

    @describe(answers={204: None}, summary="Revoke a key")
    async def revoke_key(self, request: web.Request) -> web.Response:
        try:
            async with scoped(request, admin=administers(request)) as db:
                if await db.fetchval(REVOKE, *owners(request), request.match_info["id"]) is None:
                    raise web.HTTPNotFound
        except web.HTTPNotFound:
            raise
        except Exception as error:
            revocation_failed(request, "api_key", error)
            raise Unavailable("the key could not be revoked") from error
        return web.Response(status=204)

    async def _may_rotate(self, db: Any, caller: Identity, row: Mapping[str, Any] | None) -> None:
        """Checks that the caller has every right of the key, whose new secret it will know. Raises an error response."""
        if row is None:
            raise web.HTTPNotFound
        if row["expires_at"] is not None and row["expires_at"] <= datetime.now(UTC):
            raise Conflict(for_log="the key has expired")
        reason = excess(caller, row["org_id"], row["org_role"], row["org_permissions"], row["scopes"], self._scopes)
        if reason is None:
            end = await self._end(db, caller, None)
            if end is not None and (row["expires_at"] is None or row["expires_at"] > end):
                reason = "scope"  # the key outlives the calling key
        if reason is not None:
            raise Forbidden(reason)

    async def _end(self, db: Any, caller: Identity, wanted: datetime | None, *, makes: bool = False) -> datetime | None:
        """Returns when a key created by this caller expires: at `wanted`, but never after the calling key. Raises ApiError."""
        if caller.token_type != "api_key":
            return wanted
        if caller.key_id in self._statics:
            seconds = self._statics[caller.key_id]
            own = None if seconds is None else datetime.fromtimestamp(seconds, UTC)
        else:
            maker = await db.fetchrow(MAKER, caller.key_id)
            if maker is None:  # revoked just now
                raise KeyEnded("key-revoked", headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
            if makes and maker["depth"] >= DEEPEST:
                raise Conflict("key-limit")
            own = maker["expires_at"]
        if own is not None and wanted is not None and wanted > own:
            message = "must not be later than that of the key that makes it"
            raise Unprocessable([{"field": "expires_at", "message": message}])
        return own if wanted is None else wanted

    def _maker(self, caller: Identity) -> str | None:
        """Returns the value of `created_by_key`: the id of the calling key (`static:` before a static key's), or None."""
        if caller.token_type != "api_key":
            return None
        return f"{STATIC}{caller.key_id}" if caller.key_id in self._statics else caller.key_id


def administers(request: web.Request) -> bool:
    """Whether the caller administers the active organisation. `scoped` and `read` check this again."""
    return identity_of(request).has(role="org:admin")


def owners(request: web.Request) -> tuple[str | None, str | None]:
    """Returns the two arguments of `MINE`: the user, and the organisation if the caller administers it."""
    caller = identity_of(request)
    return caller.user_id, caller.org_id if administers(request) else None


def shown(row: str | None, key: Key, status: int) -> web.Response:
    """Returns the row with its secret, which is shown only once. Raises HTTPNotFound without a row."""
    if row is None:
        raise web.HTTPNotFound
    return answer({**json.loads(row), "secret": key.text}, status)
