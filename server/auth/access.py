"""The access that a handler declares: data that the gate reads, and that the handler's own wrapper checks again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, overload

from aiohttp import web

from ..http.errors import Forbidden, Unauthorized
from ..http.protocol import Handler
from ..http.stamp import OPENED
from .identity import ADMIN, IDENTITY, Identity
from .names import with_org_prefix
from .required import check_handler, one_word, several, token_types
from .reverification import Reverification, level_and_minutes, step_up

H = TypeVar("H", bound=Handler)

DEFAULT_TYPES: Final = frozenset({"session_token", "access_token", "api_key"})
_MARK: Final = "__access__"


@dataclass(frozen=True, slots=True)
class Access:
    """The conditions of a route; all that are set must hold. With nothing set but the defaults, any known caller has access."""

    public: bool = False
    optional: bool = False
    user: bool = False
    role: str | None = None
    permission: str | None = None
    feature: str | None = None
    plan: str | None = None
    reverification: Reverification | None = None
    scopes: tuple[str, ...] = ()
    accepts: frozenset[str] = DEFAULT_TYPES
    organization: str | None = None
    allow_pending: bool = False
    impersonation: bool = True
    conditions: tuple[tuple[str, str], ...] = field(init=False, repr=False, compare=False, default=())
    """(name, value) of role, permission, feature and plan, where set."""
    asks_more: bool = field(init=False, repr=False, compare=False, default=False)
    """Does it ask for more than a kind of caller and credential: an organisation, conditions, scopes or reverification?"""

    def __post_init__(self) -> None:
        words = (("role", self.role), ("permission", self.permission), ("feature", self.feature), ("plan", self.plan))
        object.__setattr__(self, "conditions", tuple((word, value) for word, value in words if value is not None))
        more = self.organization is not None or self.conditions or self.scopes or self.reverification is not None
        object.__setattr__(self, "asks_more", bool(more))

    @property
    def as_admin(self) -> bool:
        """Does this access require an administrator? Only then does the database scope have an admin organisation."""
        return self.role is not None and with_org_prefix(self.role) == ADMIN

    def words(self) -> str:
        """The access in words, as `routes` prints it."""
        if self.public:
            return ", ".join(["public", *(["caller optional"] if self.optional else []), *self._accepts()])
        parts = ["signed in", "user"] if self.user else []
        if self.organization:
            parts.append(f"organization {{{self.organization}}}")
        parts += [f"{word} {value}" for word, value in self.conditions]
        parts += [f"scope {scope}" for scope in self.scopes]
        if self.reverification is not None:
            parts.append(f"reverification {self.reverification if isinstance(self.reverification, str) else 'custom'}")
        parts += self._accepts()
        if self.allow_pending:
            parts.append("pending sessions too")
        parts += [] if self.impersonation else ["no impersonation"]
        return ", ".join(parts) if parts else "signed in"

    def _accepts(self) -> list[str]:
        return [] if self.accepts == DEFAULT_TYPES else ["accepts " + " ".join(sorted(self.accepts))]


def check(access: Access, identity: Identity | None, parameters: Mapping[str, str]) -> None:
    """Raise Unauthorized or Forbidden unless `identity` meets every condition. `parameters` are the path parameters."""
    if identity is None:
        raise Unauthorized("credential-missing")
    if identity.token_type not in access.accepts:
        raise Unauthorized("token-type")
    if not access.allow_pending and identity.pending:
        raise Unauthorized("session-pending")
    if access.user and identity.user_id is None:
        raise Forbidden("user")
    if not access.impersonation and identity.impersonator is not None:
        raise Forbidden("impersonation")
    if not access.asks_more:
        return
    named = access.organization
    if named is not None and (identity.org_id is None or parameters.get(named) != identity.org_id):
        raise Forbidden("organization")
    for word, value in access.conditions:
        if not identity.has(**{word: value}):
            raise Forbidden(word)
    if access.scopes and not set(access.scopes) <= set(identity.scopes or ()):
        challenge = f'Bearer error="insufficient_scope", scope="{" ".join(access.scopes)}"'  # RFC 6750 3.1
        raise Forbidden("scope", headers={"WWW-Authenticate": challenge})
    if access.reverification is not None and not identity.has(reverification=access.reverification):
        raise step_up(access.reverification)


def access_of(handler: object) -> Access | None:
    """The access that the handler declares, or None."""
    access = getattr(handler, _MARK, None)
    return access if isinstance(access, Access) else None


@overload
def public(handler: H, /) -> H: ...


@overload
def public(*, optional: bool = False, accepts: Iterable[str] | None = None) -> Callable[[H], H]: ...


def public(handler: Any = ..., /, *, optional: bool = False, accepts: Iterable[str] | None = None) -> Any:
    """Declare that anyone may call this handler, without a credential: `@public`, or `@public(optional=True)`.

    The route is public only if a pattern of the setting `public_routes` covers it too; otherwise it requires a known caller.

    optional  True: a caller who shows a credential is known (`caller_of`), as on a route that requires one: a bad credential
              is a 401, and limits and revocations apply. Without it credentials are not read, and the caller is unknown
    accepts   the token types that are accepted, as in `requires`; only with `optional=True`

    Raises ValueError, when the module is imported, for another value.
    """
    if optional is not True and optional is not False:
        raise ValueError(f"@public(optional={optional!r}): must be True or False")
    if accepts is not None and not optional:
        raise ValueError("@public(accepts=...): without optional=True no credential is read")
    types = DEFAULT_TYPES if accepts is None else token_types("public", accepts)
    access = Access(public=True, optional=optional, accepts=types)
    return functools.partial(_declare, access) if handler is ... else _declare(access, handler)


def signed_in(handler: H) -> H:
    """Declare that any known caller may call this handler; without one the response is a 401."""
    return _declare(Access(), handler)


def requires(
    *,
    role: str | None = None,
    permission: str | None = None,
    feature: str | None = None,
    plan: str | None = None,
    reverification: Reverification | None = None,
    scopes: Iterable[str] | None = None,
    accepts: Iterable[str] | None = None,
    organization: str | None = None,
    allow_pending: bool | None = None,
    user: bool | None = None,
    impersonation: bool | None = None,
) -> Callable[[H], H]:
    """Declare what a caller must have; *all* of it. Without a valid credential the response is a 401, otherwise a 403.

    role, permission, feature, plan   as for `Identity.has`
    reverification   `strict_mfa`, `strict`, `moderate`, `lax`, or `{"level": ..., "afterMinutes": ...}`, as in Clerk
    scopes           scopes that the credential must have, every one of them
    accepts          the token types that are accepted; default session_token, access_token, api_key
    organization     the name of the path parameter that must equal the active organisation
    allow_pending    True: accept sessions with unfinished tasks (Clerk's `sts` claim is `pending`)
    user             True: the caller must be a user, not an organisation's key
    impersonation    False: refuse a caller who acts as the user (`Identity.impersonator`), with the reason `impersonation`

    Raises ValueError, when the module is imported, where nothing is required, and for an empty or misspelt value.
    """
    texts = {"role": role, "permission": permission, "feature": feature, "plan": plan, "organization": organization}
    asked: dict[str, Any] = {name: one_word(name, value) for name, value in texts.items() if value is not None}
    more: dict[str, Any] = {}
    if reverification is not None:
        if level_and_minutes(reverification) is None:
            raise ValueError(f"@requires(reverification={reverification!r}): neither a preset nor a level with minutes")
        more["reverification"] = reverification if isinstance(reverification, str) else dict(reverification)
    if scopes is not None:
        more["scopes"] = tuple(one_word("scopes", scope) for scope in several("scopes", scopes))
    if accepts is not None:
        more["accepts"] = token_types("requires", accepts)
    for name, flag in (("allow_pending", allow_pending), ("user", user), ("impersonation", impersonation)):
        if flag is not None:
            fine = (False,) if name == "impersonation" else (True, False)  # impersonation=True could be read as "must be one"
            if not any(flag is one for one in fine):
                raise ValueError(f"@requires({name}={flag!r}): must be {' or '.join(map(str, fine))}")
            more[name] = flag
    if not asked and not more:
        raise ValueError("@requires() requires nothing: name a condition, or use @signed_in")
    return functools.partial(_declare, Access(**asked, **more))


def _declare(access: Access, handler: H) -> H:
    if access_of(handler) is not None:
        raise TypeError(f"{getattr(handler, '__qualname__', handler)}: its access is declared twice")
    check_handler(handler)

    @functools.wraps(handler)
    async def checked(request: web.Request) -> web.StreamResponse:
        # The second lock: the same check again, so that a handler is safe even without the gate.
        if not access.public or OPENED not in request:
            check(access, request.get(IDENTITY), request.match_info)
        return await handler(request)

    setattr(checked, _MARK, access)
    return checked  # type: ignore[return-value]
