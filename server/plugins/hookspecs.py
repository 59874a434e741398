"""What a plugin may say, and what it is given. The hooks are called once, at start, in the main thread."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import pluggy
from aiohttp import web

from ..auth.identity import Identity
from ..settings.setting import Setting

hookspec = pluggy.HookspecMarker("gatepost")
hookimpl = pluggy.HookimplMarker("gatepost")


@runtime_checkable
class Provider(Protocol):
    """Says who is calling. Only `authenticate` is required; the other methods may be left out.

    open(house)   async, once, before the port is bound. Raise ValueError for a mistake in the settings: it stops
                  the start. A service that cannot be reached must not: say so in `not_ready`.
    not_ready()   a reason for /readyz, or None
    figures()     numbers for /metrics by name, such as {"cache_hits_total": 12}: a name that ends in _total only grows
    close()       async, once, at the end
    issuers       the `iss` values this provider answers for: no other provider takes a JWT that names one
    namespaces    what its user and organisation ids are prefixed with, "" for nothing; two providers may not share one
    reads         the headers that it reads a credential from; it is not asked where none of them is there. Left out: it
                  is asked about every request
    recall(request)   not async: the Identity of a credential that was proven before, from memory, if all that can change
                  since is checked; None: `authenticate` is asked. It may raise CredentialRejected
    authorized_parties   origins whose pages sign in with it; the default of `cors_origins`
    security_schemes     a mapping of names to OpenAPI security scheme objects, for the document that strangers read: no
                         secret and no setting. A member `x-gatepost-token-types` lists the token types of a scheme;
                         a route names the schemes whose types it takes.
    """

    async def authenticate(self, request: web.Request) -> Identity | None:
        """Known: an Identity. Not mine: None. Mine and bad: raise CredentialRejected.

        Cannot tell because something is down: raise Unavailable. That, any other exception, and a call that takes
        longer than the provider time-out, is a 503, and never the next provider's turn.
        """


ProviderFactory: TypeAlias = Callable[[Mapping[str, Any]], Provider]


@dataclass(frozen=True, slots=True)
class Answer:
    """What `House.fetch` brings back."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class House(Protocol):
    """All that a provider may use of the server, handed to its `open`."""

    env: str
    """`development`, `test` or `production`."""
    folder: Path
    """Where the server keeps its own files (`.gatepost/`); made when first needed."""

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
        """One HTTP exchange within `timeout` seconds, never a redirect, never more than `max_bytes` of body.

        Raises Unavailable when there is no answer or it is too large; any status is an answer.
        """

    async def query(self, function: str, *args: Any) -> list[Mapping[str, Any]]:
        """Call one of the listed database functions that work without an identity. Raises Unavailable."""

    def revoked(self, kind: str, subject: str, issued_at: float | None) -> bool:
        """Is this subject (kind `key`, `session`, `user`, ...) revoked for what was issued at `issued_at` (Unix seconds)?

        From memory, at no cost. Raises Unavailable when that memory is older than the allowed staleness.
        """

    def issuer_of(self, issuer: str) -> str | None:
        """The name of the provider that answers for this `iss`, or None."""

    def has_issuers_beside(self, provider: str) -> bool:
        """Does any provider but this one answer for an issuer? If not, no JWT can be another's."""


@dataclass(frozen=True, slots=True)
class CommandContext:
    """What a plugin's command line command may use."""

    env: str
    folder: Path
    settings: Mapping[str, Any]
    database: Callable[[], Any]
    """`async with context.database() as connection:` a connection in the serving role."""


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand of `python -m server`. `run` gives the exit status; raise ValueError for a mistake (status 2)."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, CommandContext], Awaitable[int]]


@hookspec
def register_providers() -> Mapping[str, ProviderFactory]:
    """Names and factories of providers. A factory gets its plugin's own table of the settings, read-only."""
    raise NotImplementedError


@hookspec
def register_handlers(settings: Mapping[str, Any]) -> Iterable[web.RouteDef] | Sequence[web.RouteDef]:
    """Routes; each handler declares its access with @public, @signed_in or @requires."""
    raise NotImplementedError


@hookspec
def register_settings() -> Mapping[str, Setting]:
    """The keys of the plugin's own table. Without this hook the table is handed over unchecked."""
    raise NotImplementedError


@hookspec
def register_commands() -> Mapping[str, Command]:
    """Subcommands of `python -m server` that live with this plugin."""
    raise NotImplementedError
