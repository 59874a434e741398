"""Reads and checks the settings `[[oidc.issuers]]`, once at startup."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from . import dpop_settings, introspection_settings
from .dpop_settings import DpopSettings
from .introspection_settings import IntrospectionSettings
from .issuer_url import checked_issuer
from .table_reader import Members
from .table_secrets import names_of, read_secret

ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
)  # fmt: skip
ACCESS_TOKEN: Final = "at+jwt"
DELIMITER: Final = "|"
_NAMESPACE: Final = re.compile(r"[a-z0-9-]{1,32}")
_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+/-]{0,126}")
_MEMBERS: Final = (
    "issuer", "audience", "audience_claim", "typ", "require", "algorithms", "namespace", "orgs", "claims", "jwks_uri",
    "leeway_seconds", "max_token_seconds", "introspection", "clients", "logout_audience", *names_of("ssf_authorization"),
    *dpop_settings.MEMBERS,
)  # fmt: skip
_CLAIMS: Final = ("user_id", "org_id", "org_slug", "org_role", "org_permissions", "scopes")


@dataclass(frozen=True, slots=True)
class IssuerSettings:
    """One checked table of `[[oidc.issuers]]`.

    types         the accepted `typ` values, as `media_type` returns them; "": a header without `typ` is accepted
    require       the required claims: by claim, the values of which the token must have one
    claims        the names of the claims that hold an Identity's fields; a field that is missing here is never set
    leeway        how far clocks may differ, in seconds
    max_lifetime  the longest accepted lifetime of a token, in seconds; 0: any
    audiences     the values one of which logout tokens and security events must name in `aud`
    ssf_authorization  the header `Authorization` of the transmitter of security events; None: any
    dpop          how proofs of its tokens are checked; None: tokens that are bound to a key are refused
    introspection how the issuer is asked about opaque tokens; None: it is not
    clients_are_users   does a client that acts for itself count as a user?
    reserved      prefixes of other issuers' ids, which an id of this issuer must not have
    """

    issuer: str
    audience: frozenset[str]
    audience_claim: str
    types: frozenset[str]
    require: Mapping[str, tuple[Any, ...]]
    algorithms: tuple[str, ...]
    namespace: str
    orgs: frozenset[str] | None
    claims: Mapping[str, str]
    jwks_uri: str | None
    leeway: float
    max_lifetime: float
    audiences: frozenset[str]
    ssf_authorization: str | None = field(repr=False)
    dpop: DpopSettings | None = None
    introspection: IntrospectionSettings | None = None
    clients_are_users: bool = False
    reserved: tuple[str, ...] = ()

    def own(self, id: str) -> str:
        """Returns this issuer's `id` in the space of ids that all issuers share: `<namespace>|<id>`.

        Two issuers never get the same result. A namespace contains no `|`, so the text before the first `|` of a prefixed id
        is its namespace, whatever the id itself contains. At most one issuer has no namespace, and its ids must not start like
        a prefixed one (`reserved`). Raises ValueError for an id that does.
        """
        if self.namespace:
            return self.namespace + DELIMITER + id
        if id.startswith(self.reserved):
            raise ValueError("it begins with another issuer's namespace")
        return id


def media_type(typ: str) -> str:
    """Returns a header's `typ` for comparison: in lower case and without `application/` (RFC 7515 4.1.9)."""
    return typ.lower().removeprefix("application/")


def read(table: Mapping[str, Any]) -> tuple[IssuerSettings, ...]:
    """Returns the issuers of the table [oidc]. Raises ValueError that names the issuer and the member."""
    tables = table.get("issuers") or ()
    if not tables:
        raise ValueError("oidc has no issuer: add [[oidc.issuers]]")
    several = len(tables) > 1
    issuers = [_issuer(Members(f"oidc.issuers[{at}]", given), several) for at, given in enumerate(tables)]
    _refuse_twice("issuer", [one.issuer for one in issuers])
    _refuse_twice("namespace", [one.namespace for one in issuers])
    introspection_settings.refuse_ambiguous(
        [(one.issuer, one.introspection) for one in issuers if one.introspection is not None]
    )
    reserved = tuple(one.namespace + DELIMITER for one in issuers if one.namespace)
    return tuple(one if one.namespace else replace(one, reserved=reserved) for one in issuers)


def _refuse_twice(member: str, values: Sequence[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"oidc.issuers: duplicate {member} {value!r}; each issuer needs its own")


def _issuer(table: Members, several: bool) -> IssuerSettings:
    table.refuse_others(_MEMBERS)
    issuer = checked_issuer(table)
    table = Members(f"oidc.issuers {issuer!r}", table.given)
    claims = _claims(table)
    audience = frozenset(table.words("audience", required=True))
    settings = IssuerSettings(
        issuer=issuer,
        audience=audience,
        audience_claim=table.text("audience_claim") or "aud",
        types=_types(table),
        require=_require(table),
        algorithms=_algorithms(table),
        namespace=_namespace(table, several),
        orgs=frozenset(table.words("orgs", required=True)) if "orgs" in table.given else None,
        claims=claims,
        jwks_uri=table.url("jwks_uri", query=True),
        leeway=table.seconds("leeway_seconds", 5.0, 300.0),
        max_lifetime=table.seconds("max_token_seconds", 86_400.0, float(2**31)),
        audiences=audience | frozenset(table.words("logout_audience", required="logout_audience" in table.given)),
        ssf_authorization=read_secret(table, "ssf_authorization", required=False),
        dpop=dpop_settings.read(table, ALGORITHMS),
        introspection=introspection_settings.read(table),
        clients_are_users=table.choice("clients", ("refuse", "accept")) == "accept",
    )
    _check_together(table, settings)
    return settings


def _check_together(table: Members, settings: IssuerSettings) -> None:
    if settings.types != {ACCESS_TOKEN} and not settings.require:
        # RFC 9068 5: without that typ nothing distinguishes an access token from an ID token that is signed with the same keys,
        # and every client of the issuer holds ID tokens. So the operator must name a claim that does.
        raise table.mistake("typ", f"other than {ACCESS_TOKEN} needs `require`: a claim that access tokens alone have")
    if settings.orgs is not None and "org_id" not in settings.claims:
        raise table.mistake("orgs", "has no effect without claims.org_id")
    if "org_id" not in settings.claims and {"org_slug", "org_role", "org_permissions"} & settings.claims.keys():
        raise table.mistake("claims", "maps an organisation's fields but not its id: org_id is missing")


def _types(table: Members) -> frozenset[str]:
    if "typ" not in table.given:
        return frozenset({ACCESS_TOKEN})
    words = table.words("typ", empty=True)
    for word in words:
        if word and not _TYPE.fullmatch(word):
            raise table.mistake("typ", f"{word!r} is not a type such as at+jwt")
    if not words:
        raise table.mistake("typ", "is empty")
    return frozenset(media_type(word) for word in words)


def _algorithms(table: Members) -> tuple[str, ...]:
    if "algorithms" not in table.given:
        return ("RS256", "ES256")
    words = table.words("algorithms", required=True)
    for word in words:
        if word not in ALGORITHMS:
            raise table.mistake("algorithms", f"{word!r} is not one of {', '.join(ALGORITHMS)}")
    return tuple(words)


def _namespace(table: Members, several: bool) -> str:
    if several and "namespace" not in table.given:
        raise table.mistake("namespace", 'is missing: with several issuers each needs its own (one may be "")')
    namespace = table.text("namespace", empty=True) or ""
    if namespace and not _NAMESPACE.fullmatch(namespace):
        raise table.mistake("namespace", "must be 1 to 32 lower-case letters, digits or '-'")
    return namespace


def _require(table: Members) -> Mapping[str, tuple[Any, ...]]:
    required = {}
    for claim, given in table.table("require").items():
        values = tuple(given) if isinstance(given, list) else (given,)
        if not values or not all(type(value) in (str, int, bool) and value != "" for value in values):
            raise table.mistake("require", f"{claim!r} must be a string, a whole number, true or false, or a list of these")
        required[claim] = values
    return MappingProxyType(required)


def _claims(table: Members) -> Mapping[str, str]:
    names = Members(f"{table.where}: claims", table.table("claims"))
    names.refuse_others(_CLAIMS)
    given = {field: names.text(field) for field in _CLAIMS}
    return MappingProxyType({"user_id": "sub"} | {field: name for field, name in given.items() if name is not None})
