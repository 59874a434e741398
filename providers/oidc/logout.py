"""`POST /api/webhooks/oidc`: accepts the logout tokens of the issuers (OpenID Connect Back-Channel Logout 1.0)."""

from __future__ import annotations

import logging
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from server import BadRequest, describe, public, raw_body

from .sign_out import Ending, Refused, Signed, check_type, ends_of, read_signed, text_of, times_of

PATH: Final = "/api/webhooks/oidc"
EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
_FORM: Final = "application/x-www-form-urlencoded"
# 2.4 recommends `logout+jwt`; issuers older than the final text write `JWT`. What keeps an ID token out is `events` (2.6).
_TYPES: Final = ("", "jwt", "logout+jwt")
_MOST_FIELDS: Final = 100
_LOG: Final = logging.getLogger("gatepost.oidc")


class LogoutReceiver:
    """Accepts logout tokens. A repeated one gets the same answer as the first and does nothing."""

    def __init__(self) -> None:
        self._ending = Ending()

    @describe(
        body_stream=_FORM,
        answers={200: None},
        summary="Take a logout token of an OpenID Connect issuer",
        text="The credential is the signature of `logout_token` (OpenID Connect Back-Channel Logout 1.0); no other is read.",
        refusals={
            400: "It is not a logout token for this server: `error` is `invalid_request`, `error_description` is the rule.",
            503: "The issuer's keys or the database cannot be asked. The issuer should try again.",
        },
        tags=["webhooks"],
        operation_id="receive_logout_token",
    )
    async def take(self, request: web.Request) -> web.Response:
        """200 for a valid logout token (2.8), whether or not the user was signed in; raises 400, or 503 to be tried again."""
        check_type(request, _FORM)
        try:
            signed = await read_signed(request, _token(await raw_body(request)), _TYPES)
            kind, sub, sid, jti, issued, expires = _checked(signed)
            ends = ends_of(signed.issuer.settings, sub, sid, issued)
        except Refused as refused:
            # 2.8: the error has the form of RFC 6749 5.2, beside the members of every other error.
            more = {"error": "invalid_request", "error_description": refused.rule}
            raise BadRequest("logout-token", more=more, for_log=refused.rule) from None
        settings = signed.issuer.settings
        keep = expires - signed.issuer.now() + settings.leeway
        outcome = await self._ending.apply(request, signed, kind, jti, issued, ends, keep)
        _LOG.debug("logout token taken", extra={"fields": {"issuer": settings.issuer, "outcome": outcome}})
        return web.Response(headers={"Cache-Control": "no-store"})


def routes() -> list[web.RouteDef]:
    """The route, with its receiver."""
    return [web.post(PATH, public(LogoutReceiver().take))]


def _token(raw: bytes) -> str:
    """Returns the field `logout_token` of the form; other fields are ignored (2.5)."""
    try:
        fields = parse_qsl(raw.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise Refused("invalid_request", "the body is not a form") from None
    tokens = [value for name, value in fields if name == "logout_token"]
    if len(tokens) != 1:
        raise Refused("invalid_request", "the form must have one logout_token")
    return tokens[0]


def _checked(signed: Signed) -> tuple[str, str | None, str | None, str, float, float]:
    """Returns (kind, sub, sid, jti, iat, exp) by the rules of 2.4 and 2.6. Raises Refused."""
    claims: dict[str, Any] = signed.claims
    times = times_of(signed)
    sub, sid = text_of(claims, "sub"), text_of(claims, "sid")
    if sub is None and sid is None:
        raise Refused("invalid_request", "it has neither sub nor sid")
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
        raise Refused("invalid_request", f"events has no object {EVENT}")
    if "nonce" in claims:
        raise Refused("invalid_request", "nonce is prohibited")
    jti = text_of(claims, "jti", required=True)
    return "backchannel-logout", sub, sid, str(jti), float(times.issued or 0), times.expires
