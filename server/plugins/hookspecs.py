"""The hooks and protocols of plugins. Each hook is called once, at startup, in the main thread."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import pluggy
from aiohttp import web

from ..auth.identity import Identity
from ..http.error_shape import Shape
from ..settings.setting import Setting

hookspec = pluggy.HookspecMarker("gatepost")
hookimpl = pluggy.HookimplMarker("gatepost")


@runtime_checkable
class Provider(Protocol):
    """Identifies callers. Only `authenticate` is required; all other members may be left out.

    check(env)    not async; called before the database is asked, with `development`, `test` or `production`. A ValueError, for
                  a mistake in the settings, prevents startup
    open(house)   async; called once, before the port is bound. A ValueError, for a mistake in the settings, prevents
                  startup. A service that cannot be reached must not: report it in `not_ready`
    not_ready()   the reason for which /readyz fails, or None
    figures()     numbers for /metrics by name, such as {"cache_hits_total": 12}; a name that ends in _total must only grow
    close()       async; called once, at shutdown
    issuers       the `iss` values of this provider's JWTs: no other provider accepts a JWT with one of them
    namespaces    the prefixes of its user and organisation ids, "" for none; two providers must not share one
    reads         the names of the headers that it reads a credential from; it is skipped if none of these headers is
                  present, and the response header `Vary` lists them. Without it: it is called for every request
    recall(request)   not async: the Identity of a credential that was verified before, from memory, after checking all
                  that may have changed since; None: `authenticate` is called. May raise CredentialRejected
    recheck(identity)   async; for a live answer whose credential may have changed: the caller as known now, from the Identity
                  alone. May raise CredentialRejected and Unavailable. Without it `authenticate` is called with the request
    challenge     a challenge that every 401 has beside `Bearer` (RFC 9110 11.6.1), such as `DPoP algs="ES256"`
    authorized_parties   the origins whose pages sign in with it: a cookie opens a live answer only for these. The default of
                         the setting `cors_origins`
    subject_of(kind, issuer, id)   the id in an Identity for what `issuer` calls `id`; `kind` is `user`, `session` or `jti`.
                         The command `revoke` calls it. Without it, both are the same. May raise ValueError
    security_schemes     OpenAPI security scheme objects by name, for the public document: no secrets and no settings. The
                         member `x-gatepost-token-types` of a scheme lists its token types; a route names the schemes
                         whose types it accepts
    resource_metadata    further members of the protected resource metadata (RFC 9728 2), by name. It is public
    """

    async def authenticate(self, request: web.Request) -> Identity | None:
        """Identify the caller of this request.

        Returns an Identity for a valid credential, and None where there is no credential of this provider's kind: the next
        provider is asked. Raises CredentialRejected for a bad credential of its kind: the response is a 401. Raises
        Unavailable where something needed is down: the response is a 503, as for any other exception and for a call that
        takes longer than `limits.provider_seconds`. After any of these no other provider is asked.
        """


ServiceOffer: TypeAlias = AbstractAsyncContextManager[Any] | Callable[[], AbstractAsyncContextManager[Any]]
ProviderFactory: TypeAlias = Callable[[Mapping[str, Any]], Provider]


@dataclass(frozen=True, slots=True)
class Answer:
    """The HTTP response that `House.fetch` returns: its status, its whole body, and its headers."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class House(Protocol):
    """The server context passed to a provider's `open` and to `register_services`: all of the server that they may use."""

    env: str
    """`development`, `test` or `production`."""
    folder: Path
    """The folder of the server's own files (`.gatepost/`); it is created when first needed."""
    resource_url: str | None
    """The setting `resource.url`: the public address of this API, or None."""

    async def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int = 1_048_576,
        timeout: float = 5.0,
    ) -> Answer:
        """Send one HTTP request and return the response, whatever its status. Redirects are not followed.

        Raises Unavailable where no response arrives within `timeout` seconds, or its body is larger than `max_bytes`.
        """

    async def query(self, function: str, *args: Any) -> list[Mapping[str, Any]]:
        """Call one of the database functions listed for providers, which work without an identity. Returns its rows.

        Raises Unavailable where the database cannot answer.
        """

    def revoked(self, kind: str, subject: str, issued_at: float | None) -> bool:
        """Is a credential of this subject that was issued at `issued_at` revoked?

        `kind` is `key`, `session`, `user`, `subject`, `organization`, `membership` or `role`. `issued_at` is Unix seconds; set
        it: if it is None, every revocation of the subject applies. This reads memory only. Raises Unavailable where that is
        older than `revocation.max_staleness`.
        """

    async def first_use(self, value: str, seconds: float) -> bool:
        """Is this the first call with this value within `seconds`? For values that count once, such as the `jti` of a proof.

        With `limits.storage` (Valkey or Redis) this holds across all processes that share it; without it, each process knows
        only its own calls. Begin `value` with the provider's name, since all providers share one space. Raises Unavailable if
        that storage does not answer, because the result is then unknown.
        """

    def issuer_of(self, issuer: str) -> str | None:
        """The name of the provider that has this `iss` value among its `issuers`, or None."""

    def has_issuers_beside(self, provider: str) -> bool:
        """Does any other provider have issuers? If not, no JWT can belong to another provider."""

    def scoped(self, *, user_id: str | None = None, org_id: str | None = None, actor: str) -> AbstractAsyncContextManager[Any]:
        """`async with house.scoped(org_id="org_1", actor="job:nightly") as db:` a transaction for one tenant.

        For work outside a request. `db` is that of `scoped(request)`, under the same policies. Name the user, the
        organisation or both: there is no scope for all tenants, and none of an administrator. `actor` is who the audit log
        names: a kind and a name, such as `job:nightly`; not `key:`, `user:`, `org:` or the name of a provider. Whether the
        tenant still exists is not checked.
        Raises ValueError for arguments of another form, Unavailable without a database (before it is open, too).
        """


@dataclass(frozen=True, slots=True)
class CommandContext:
    """What a plugin's command may use: the environment, the server's folder, the plugin's settings, and the database."""

    env: str
    folder: Path
    settings: Mapping[str, Any]
    database: Callable[[], Any]
    """`async with context.database() as connection:` an asyncpg connection in the serving role."""
    scoped: Callable[[Any, str | None, str | None], AbstractAsyncContextManager[None]]
    """`async with context.scoped(connection, user_id, org_id):` a transaction on such a connection, under the scope of the user
    and of the organisation's administrator (None: of neither). The audit log names `operator` as the writer."""


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand of `python -m server`.

    help        one line for `--help`
    arguments   adds the command's arguments to its parser
    run         async; runs the command and returns the exit status. A ValueError is printed as one line, with status 2
    """

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, CommandContext], Awaitable[int]]


@hookspec
def register_providers() -> Mapping[str, ProviderFactory]:
    """Return the factories of providers by name. A factory takes its plugin's settings and returns a Provider."""
    raise NotImplementedError


@hookspec
def register_handlers(settings: Mapping[str, Any]) -> Iterable[web.RouteDef] | Sequence[web.RouteDef]:
    """Return the routes. Each handler must declare its access with @public, @signed_in or @requires."""
    raise NotImplementedError


@hookspec
def register_services(settings: Mapping[str, Any], house: House) -> Mapping[str, ServiceOffer]:
    """Return services by name: asynchronous context managers, or callables that return one. `service(request, name)` returns
    what they yield. Each worker opens them before the port is bound, in order, and closes them in reverse."""
    raise NotImplementedError


@hookspec
def register_settings() -> Mapping[str, Setting]:
    """Return the settings of the plugin's own table by key. Without this hook the table is passed to the plugin unchecked."""
    raise NotImplementedError


@hookspec
def register_error_body() -> Shape:
    """Return the function `shape(error: ErrorDetails) -> Model` that makes the body of every error. Only one plugin may.

    `Model` is any type for which pydantic makes a JSON Schema, and must be a JSON object; the OpenAPI document shows it. The
    function is not async, and depends on `error` alone: its result is kept for errors without `detail`, `fields` and `more`. It
    is tried with an example of every status at startup.
    """
    raise NotImplementedError


@hookspec
def register_commands() -> Mapping[str, Command]:
    """Return the plugin's subcommands of `python -m server` by name."""
    raise NotImplementedError
