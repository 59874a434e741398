"""Turns the verified payload of a Clerk session token into an Identity, or rejects it with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from server import CredentialRejected, Identity, is_plain_text

from ..jwt.actor import read_actor
from ..jwt.strict_json import freeze
from ..jwt.texts import shown
from ..jwt.times import Times, read_times
from ..jwt.token_id import token_id_of
from .audience import fault
from .permissions import OddPermissions, unpack
from .settings import ClerkSettings

# Every kind of JWT of an instance is signed with the same key; the `cat` in the header tells them apart.
# Absent: minted before there were categories. The last one marks instances that stamp one value on everything.
_SESSION_CATEGORIES: Final = frozenset({"cl_B7d4PD111AAA", "cl_I7d4PD111III"})


def identity(header: Mapping[str, Any], claims: dict[str, Any], settings: ClerkSettings, now: float) -> tuple[Identity, Times]:
    """Returns the caller and the times of the token. `header` and `claims` are verified; `now` is in Unix seconds.

    Raises CredentialRejected with the reason. The checks are in the order of Clerk's own verifier, so that a token with
    several faults gets the same reason.
    """
    _check_kind(header, claims)
    subject = _subject(claims)
    _check_audience(claims, settings)
    _check_party(claims, settings)
    check_issuer(claims, settings)
    leeway, longest = settings.leeway, settings.max_lifetime
    times = read_times(claims, now, leeway=leeway, longest=longest, setting="clerk.max_token_seconds")
    found = _organisation(claims)
    actor = read_actor(claims)  # Clerk's impersonation, in both versions of the claims: `sub` is the impersonator's user id
    made = Identity(
        provider="clerk",
        token_type="session_token",
        user_id=subject,
        session_id=own_id(text(claims, "sid")),
        token_id=token_id_of(claims),
        claims=freeze(claims),
        issued_at=times.issued,
        expires_at=times.expires + leeway,
        impersonator=own_id(actor.subject) if actor is not None else None,
        **found,
    )
    return made, times


def _reject(reason: str, detail: str) -> CredentialRejected:
    return CredentialRejected(reason, detail)


def _check_kind(header: Mapping[str, Any], claims: Mapping[str, Any]) -> None:
    if "cat" in header:
        category = header["cat"]
        if not isinstance(category, str) or category not in _SESSION_CATEGORIES:
            raise _reject("token-type", "cat is not a session token's")
    subject = claims.get("sub")
    if isinstance(subject, str) and subject.startswith(("mch_", "org_")):
        raise _reject("token-type", "sub is not a user")
    if "cnf" in claims:  # RFC 7800 3: it is valid only with a proof of its key, which a bearer does not send
        raise _reject("token-type", "cnf binds the token to a key")


def _subject(claims: Mapping[str, Any]) -> str:
    subject = own_id(text(claims, "sub"))
    if subject is None:
        raise _reject("token-claims", "sub is missing")
    return subject


def own_id(id: str | None) -> str | None:
    """Returns an id of Clerk's, or None. Raises CredentialRejected for one like `<namespace>|<id>`, another issuer's."""
    if id is not None and "|" in id:
        raise _reject("token-claims", "an id of Clerk's has no '|', which ends the namespace of another issuer's ids")
    return id


def text(members: Mapping[str, Any], name: str) -> str | None:
    """Returns a text that can be stored and logged, or None if it is absent. Raises CredentialRejected for anything else."""
    if name not in members:
        return None
    value = members[name]
    if not is_plain_text(value):
        raise _reject("token-claims", f"{name} is not 1 to 255 characters of printable text")
    return value


def _check_audience(claims: Mapping[str, Any], settings: ClerkSettings) -> None:
    """As Clerk: a token that names no audience passes; one that names any must name one of ours, exactly."""
    if (trouble := fault(claims, settings.audience)) is not None:
        values = f": {shown(claims.get('aud'))}, not {shown(settings.audience)}" if trouble.endswith("ours") else ""
        raise _reject("token-audience", trouble + values)


def _check_party(claims: Mapping[str, Any], settings: ClerkSettings) -> None:
    if not settings.authorized_parties:
        return
    if "azp" not in claims:
        if settings.allow_missing_azp:
            return
        raise _reject("token-authorized-party", "azp is missing")
    party = claims["azp"]
    if not isinstance(party, str) or party not in settings.authorized_parties:
        parties = shown(settings.authorized_parties)
        raise _reject("token-authorized-party", f"azp is not an authorized party: {shown(party)}, not {parties}")


def check_issuer(claims: Mapping[str, Any], settings: ClerkSettings) -> None:
    """Raise CredentialRejected unless `iss` is one of this instance's issuers (any text where none is configured)."""
    if "iss" not in claims and not settings.issuers:
        return
    issuer = claims.get("iss")
    if not isinstance(issuer, str):
        raise _reject("token-issuer", "iss is missing or not a string")
    if settings.issuers and issuer not in settings.issuers:
        raise _reject("token-issuer", f"iss is not one of ours: {shown(issuer)}, not {shown(settings.issuers)}")


def _organisation(claims: Mapping[str, Any]) -> dict[str, Any]:
    """The active organisation. Only a `v` that is the number 2 makes a v2 token; the other shape never counts."""
    version = claims.get("v")
    if type(version) in (int, float) and version == 2:
        return _version_2(claims)
    return _version_1(claims)


def _version_1(claims: Mapping[str, Any]) -> dict[str, Any]:
    org_id = own_id(optional_text(claims, "org_id"))
    permissions = claims.get("org_permissions")
    if permissions is not None and not (isinstance(permissions, list) and all(isinstance(p, str) for p in permissions)):
        raise _reject("token-claims", "org_permissions is not a list of strings")
    role, slug = optional_text(claims, "org_role"), optional_text(claims, "org_slug")
    if org_id is None:
        return {}
    return {"org_id": org_id, "org_role": role, "org_slug": slug, "org_permissions": permissions}


def _version_2(claims: Mapping[str, Any]) -> dict[str, Any]:
    org = claims.get("o")
    if org is None:
        return {}
    if not isinstance(org, dict):
        raise _reject("token-claims", "o is not an object")
    org_id, role = own_id(text(org, "id")), optional_text(org, "rol")
    if org_id is None:
        raise _reject("token-claims", "o has no id")
    packed = [members.get(name, "") for members, name in ((claims, "fea"), (org, "per"), (org, "fpm"))]
    if not all(isinstance(value, str) for value in packed):
        raise _reject("token-claims", "fea, o.per or o.fpm is not a string")
    try:
        permissions = unpack(*packed)
    except OddPermissions as error:
        raise _reject("token-claims", str(error)) from None
    # A v2 claim has the role without its prefix, and Clerk's own libraries put one in front of whatever it holds.
    full_role = f"org:{role}" if role is not None else None
    return {"org_id": org_id, "org_role": full_role, "org_slug": optional_text(org, "slg"), "org_permissions": permissions}


def optional_text(members: Mapping[str, Any], name: str) -> str | None:
    """As `text`; also None where the member is null or empty: neither can name an organisation or a role."""
    return text(members, name) if members.get(name) not in (None, "") else None
