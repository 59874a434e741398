"""`POST /api/webhooks/ssf`: accepts the security event tokens of the issuers (RFC 8417, RFC 8935; OpenID Shared Signals)."""

from __future__ import annotations

import hmac
import logging
from typing import Any, Final

from aiohttp import hdrs, web

from server import ApiError, BadRequest, describe, public, raw_body

from ..jwt.jws import numeric_date
from ..jwt.strict_json import Malformed
from .settings import IssuerSettings
from .sign_out import End, Ending, Refused, Signed, check_type, ends_of, read_signed, text_of
from .subjects import Subject, subject_of

PATH: Final = "/api/webhooks/ssf"
SET: Final = "application/secevent+jwt"
_SCHEMAS: Final = "https://schemas.openid.net/secevent/"
SESSION_ENDS: Final = frozenset({_SCHEMAS + "caep/event-type/session-revoked"})
ACCOUNT_ENDS: Final = frozenset(
    _SCHEMAS + name for name in ("risc/event-type/account-disabled", "risc/event-type/account-purged")
)
"""The events that also end the user's API keys."""
ACCOUNT_BEGINS: Final = _SCHEMAS + "risc/event-type/account-enabled"
"""The event after which the user's keys in the settings work again."""
USER_ENDS: Final = ACCOUNT_ENDS | {
    _SCHEMAS + "risc/event-type/credential-compromise",
    _SCHEMAS + "risc/event-type/sessions-revoked",
    _SCHEMAS + "oauth/event-type/tokens-revoked",
}
ENDS: Final = SESSION_ENDS | USER_ENDS
TAKEN: Final = ENDS | {ACCOUNT_BEGINS}
_MOST_EVENTS: Final = 20
_LOG: Final = logging.getLogger("gatepost.oidc")


class AuthenticationFailed(ApiError):
    """401: the transmitter's own credential is not the one in the settings."""

    status = 401


class SecurityEventReceiver:
    """Accepts security event tokens. A repeated one gets the same answer as the first and does nothing."""

    def __init__(self) -> None:
        self._ending = Ending()

    @describe(
        body_stream=SET,
        answers={202: None},
        summary="Take a security event token of an OpenID Connect issuer",
        text="The credential is its signature, and `Authorization` if the issuer has `ssf_authorization` in the settings.",
        refusals={
            400: "It is not a security event for this server: `err` and `description` are those of RFC 8935.",
            401: "The header `Authorization` is not that of the settings.",
            503: "The issuer's keys or the database are unavailable. The transmitter should try again.",
        },
        tags=["webhooks"],
        operation_id="receive_security_event",
    )
    async def take(self, request: web.Request) -> web.Response:
        """202 for a valid token, whatever its events (RFC 8935 2.2); raises 400 or 401, or 503 to be tried again."""
        check_type(request, SET)

        def authorized(settings: IssuerSettings) -> None:
            _check_authorization(request, settings)

        try:
            signed = await read_signed(request, _text(await raw_body(request)), ("secevent+jwt",), authorized)
            issued, jti, events = _checked(signed)
            ends = [end for name, event in events.items() for end in _ends(signed, name, event, issued)]
        except Refused as refused:
            raise _answer(refused) from None
        outcome = "ignored"
        if ends:
            kind = ",".join(sorted(TAKEN.intersection(events)))  # the other names may be any text
            outcome = await self._ending.apply(request, signed, kind, jti, issued, list(dict.fromkeys(ends)))
        fields = {"issuer": signed.issuer.settings.issuer, "events": sorted(events), "outcome": outcome}
        _LOG.debug("security event taken", extra={"fields": fields})
        return web.Response(status=202, headers={"Cache-Control": "no-store"})


def routes() -> list[web.RouteDef]:
    """The route, with its receiver."""
    return [web.post(PATH, public(SecurityEventReceiver().take))]


def _answer(refused: Refused) -> ApiError:
    """The error with the members of RFC 8935 2.3 beside those of every other error."""
    more = {"err": refused.code, "description": refused.rule}
    if refused.code != "authentication_failed":
        return BadRequest("security-event", more=more, headers={"Content-Language": "en"}, for_log=refused.rule)
    headers = {"Content-Language": "en", "WWW-Authenticate": "Bearer"}
    return AuthenticationFailed("security-event", more=more, headers=headers, for_log=refused.rule)


def _check_authorization(request: web.Request, settings: IssuerSettings) -> None:
    expected = settings.ssf_authorization
    if expected is None:
        return
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    shown = values[0] if len(values) == 1 else ""
    if not hmac.compare_digest(shown.encode("utf-8", "surrogatepass"), expected.encode()):
        raise Refused("authentication_failed", "the header Authorization is not that of ssf_authorization")


def _text(raw: bytes) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise Refused("invalid_request", "it is not a signed JWT") from None


def _checked(signed: Signed) -> tuple[float, str, dict[str, dict[str, Any]]]:
    """Returns (iat, jti, events by name) by the rules of RFC 8417 2.2. Raises Refused."""
    claims, leeway, now = signed.claims, signed.issuer.settings.leeway, signed.issuer.now()
    try:
        issued, expires = numeric_date(claims, "iat"), numeric_date(claims, "exp")
    except Malformed as error:
        raise Refused("invalid_request", error.detail) from None
    if issued is None:
        raise Refused("invalid_request", "iat is missing")
    if issued > now + leeway:
        raise Refused("invalid_request", "iat is to come")
    if expires is not None and expires <= now - leeway:
        raise Refused("invalid_request", "exp is past")
    jti = text_of(claims, "jti", required=True)
    events = claims.get("events")
    if not isinstance(events, dict) or not events or not all(isinstance(event, dict) for event in events.values()):
        raise Refused("invalid_request", "events is not an object of objects")
    if len(events) > _MOST_EVENTS:
        raise Refused("invalid_request", f"events has more than {_MOST_EVENTS} members")
    return issued, str(jti), events


def _ends(signed: Signed, name: str, event: dict[str, Any], issued: float) -> list[End]:
    """Returns what changes by this event: nothing for one of another kind, such as the verification of a stream."""
    if name == ACCOUNT_BEGINS:
        return _begins(signed, event, issued)
    if name not in ENDS:
        return []
    settings, at = signed.issuer.settings, _moment(signed, event, issued)
    subject = subject_of(event.get("subject", signed.claims.get("sub_id")), settings.issuer)
    if name in USER_ENDS:
        if subject.user is None:
            raise Refused("invalid_request", "the subject names no user")
        return ends_of(settings, subject.user, None, at, keys=name in ACCOUNT_ENDS)
    return _of_session(settings, subject, at)


def _begins(signed: Signed, event: dict[str, Any], issued: float) -> list[End]:
    """As `_ends`, for an account that was enabled. An unreadable subject is ignored: the event could only restore access."""
    settings = signed.issuer.settings
    try:
        subject = subject_of(event.get("subject", signed.claims.get("sub_id")), settings.issuer)
        found = ends_of(settings, subject.user, None, _moment(signed, event, issued))
    except Refused:
        return []
    return [one._replace(kind="enabled") for one in found]


def _of_session(settings: IssuerSettings, subject: Subject, at: float) -> list[End]:
    if subject.either:  # an opaque id may be the user's or the session's, and the issuer may end both
        return [*ends_of(settings, None, subject.user, at), *ends_of(settings, subject.user, None, at)]
    return ends_of(settings, subject.user, subject.session, at)


def _moment(signed: Signed, event: dict[str, Any], issued: float) -> float:
    """Returns when it happened (CAEP 2, RFC 8417 2.2 `toe`), never in the future; early drafts of CAEP had milliseconds."""
    for members, name in ((event, "event_timestamp"), (signed.claims, "toe")):
        value = members.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e14:
            return min(value / 1000 if value > 1e11 else float(value), max(issued, signed.issuer.now()))
    return issued
