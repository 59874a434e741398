"""The server's own settings: key, kind, default, bounds, environment variable and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .setting import Setting

BUILT_IN: Final = ("health", "me", "profile", "data", "orgs", "invoices", "audit_log", "docs", "clerk", "oidc", "api_key")
OPTIONAL: Final = frozenset({"mcp"})
"""Built-in handlers that are served only if the setting `handlers` names them."""
DEFAULT_PUBLIC: Final = ("/api/webhooks(.*)", "/api/health", "/api/public(.*)")


def _seconds(default: float | None, help: str, *, at_least: float | None = None, at_most: float | None = None) -> Setting:
    return Setting("float", default, help=help, at_least=at_least, more_than=0 if at_least is None else None, at_most=at_most)


def _count(default: int, low: int, high: int, help: str) -> Setting:
    return Setting("int", default, help=help, at_least=low, at_most=high)


CORE: Final[Mapping[str, Setting]] = {
    "env": Setting(
        default="development",
        choices=("development", "test", "production"),
        help="development (this machine only), test or production",
    ),
    "host": Setting(default="127.0.0.1", help="address to serve on"),
    "port": _count(8080, 0, 65535, "port to serve on; 0 chooses a free one"),
    "path_prefix": Setting(
        example="/gatepost", help="path below which clients find this API, where a proxy serves it below one; unset: none"
    ),
    "strip_path_prefix": Setting(
        "bool", False, help="requests arrive with path_prefix, and the server removes it; false: the proxy has removed it"
    ),
    "workers": _count(1, 1, 256, "processes that share the port"),
    "providers": Setting(
        "list",
        ("clerk", "api_key"),
        help="providers in the order in which they are asked: clerk, api_key, oidc, stub, or a plugin's",
    ),
    "handlers": Setting(
        "list",
        None,
        example=BUILT_IN,
        help="built-in handlers to serve; unset: all but mcp. clerk and oidc mean their webhooks, api_key means /api/keys",
    ),
    "plugins": Setting(
        "list", (), help="plugins to load: entry points of installed packages, or module:<import path>; nothing else runs"
    ),
    "public_routes": Setting("list", DEFAULT_PUBLIC, help="patterns that open routes declared @public"),
    "cors_origins": Setting(
        "list",
        None,
        example=("https://app.example.com",),
        help="origins whose pages may call the API, or https://*.preview.example.com; unset: Clerk's authorized parties",
    ),
    "cors_headers": Setting("list", (), help="request headers that those pages may send, beside the built-in list"),
    "cors_exposed": Setting("list", (), help="response headers that those pages may read, beside the built-in list"),
    "errors.format": Setting(
        default="gatepost",
        choices=("gatepost", "problem"),
        help="body of errors: gatepost ({error, reason, ...}), or problem (RFC 9457, application/problem+json)",
    ),
    "trusted_proxies": Setting(
        "list", (), help="networks whose X-Forwarded-For is believed, for limits and logs; unix: a unix socket"
    ),
    "data_folder": Setting(default=".gatepost", help="folder for the server's own files"),
    "database.url": Setting(
        env="DATABASE_URL",
        secret=True,
        example="postgresql://gatepost_app@localhost/gatepost",
        help="the serving role's URL; unset: the embedded Postgres. Keep it out of shared files",
    ),
    "database.owner_url": Setting(
        env="DATABASE_OWNER_URL",
        secret=True,
        example="postgresql://gatepost_owner@localhost/gatepost",
        help="the owner's URL, only for migrate: keep it away from the machines that serve",
    ),
    "database.direct_url": Setting(
        secret=True,
        example="postgresql://gatepost_app@localhost:5432/gatepost",
        help="the serving role's URL that bypasses a pooler, for LISTEN and `check`",
    ),
    "database.pool_size": _count(32, 1, 1000, "connections per worker"),
    "database.pooler": Setting(
        default="none", choices=("none", "transaction"), help="none, or transaction (PgBouncer; needs direct_url)"
    ),
    "database.wait_seconds": _seconds(
        None,
        "how many seconds startup waits for an unreachable database; unset: 30 in production, 0 elsewhere",
        at_least=0,
        at_most=3600,
    ),
    "database.acquire_seconds": _seconds(2.0, "longest wait for a connection"),
    "database.statement_seconds": _seconds(5.0, "longest statement"),
    "revocation.max_staleness": _seconds(
        10.0, "seconds; with an older revocation feed sessions are a 503", at_least=0.5
    ),  # the feed is read every 0.5 s: below that it would always be too old
    "audit.denials": Setting("bool", True, help="record 403s of known callers in the audit log"),
    "audit.retention_days": _count(400, 0, 100_000, "days after which audit entries are deleted, at least 7; 0: never"),
    "idempotency.keep_seconds": _seconds(
        86400.0, "how long an answer is kept for a repeated Idempotency-Key", at_least=1, at_most=366 * 86400
    ),
    "openapi.title": Setting(default="Gatepost", help="the product's name in the OpenAPI document"),
    "openapi.version": Setting(default="1", help="the version of the API in the OpenAPI document"),
    "openapi.description": Setting(
        example="Orders and invoices of Example Ltd.", help="what the API is for, in Markdown; unset: a text about this server"
    ),
    "openapi.contact": Setting(
        "table",
        example={"name": "Support", "email": "support@example.com"},
        help="name and email of those to ask about the API",
    ),
    "openapi.license": Setting(
        "table",
        example={"name": "Apache 2.0", "identifier": "Apache-2.0"},
        help="name and SPDX identifier of the API's licence",
    ),
    "openapi.servers": Setting(
        "list",
        None,
        example=("https://api.example.com",),
        help="URLs of the API in the OpenAPI document; unset: where it is read",
    ),
    "resource.url": Setting(
        example="https://api.example.com",
        help="this API's public address; if set, refusals name the issuers and scopes for clients (RFC 9728)",
    ),
    "ops.host": Setting(default="127.0.0.1", help="address of the operations port"),
    "ops.port": _count(9090, 0, 65535, "port of /livez, /readyz and /metrics; 0: off"),
    "log.format": Setting(
        default="auto", choices=("auto", "json", "human"), help="json, human, or auto: json in production, human elsewhere"
    ),
    "log.requests": Setting("bool", False, help="log every request that was let in, too"),
    "limits.head_bytes": _count(16384, 1024, 2**20, "request line and headers together"),
    "limits.head_seconds": _seconds(10.0, "longest time for a request's head"),
    "limits.headers": _count(128, 1, 10_000, "most header lines of a request"),
    "limits.body_bytes": _count(1_048_576, 1, 2**31, "largest request body"),
    "limits.body_seconds": _seconds(30.0, "longest time for a request's body"),
    "limits.write_seconds": _seconds(
        30.0, "time within which a client must take 64 KiB of a response, or all that is left of it"
    ),
    "limits.buffered_bytes": _count(
        268_435_456,
        65_536,
        2**40,
        "bytes of unfinished bodies and untaken responses of one process; beyond, requests are answered 503",
    ),
    "limits.page_bytes": _count(4_194_304, 1024, 2**28, "largest page of a list; it ends at a whole row, and has one at least"),
    "limits.json_depth": _count(64, 1, 256, "deepest nesting of arrays and objects in a JSON body"),
    "limits.json_values": _count(50_000, 1, 10_000_000, "how many values a JSON body may have"),
    "limits.connections": _count(1000, 1, 1_000_000, "client connections of one process; more are answered 503"),
    "limits.idle_seconds": _seconds(75.0, "how long an idle connection is kept"),
    "limits.provider_seconds": _seconds(5.0, "longest time a provider may take"),
    "limits.drain_seconds": _seconds(20.0, "longest time that accepted requests have after SIGTERM"),
    "limits.caller": Setting(default="auto", help="requests of one caller; off: any number; auto: 6000/minute in production"),
    "limits.concurrency": _count(
        16,
        1,
        1_000_000,
        "requests of one caller in progress at once, in one process; the others wait for up to 2 seconds, then 429",
    ),
    "limits.address": Setting(
        default="auto",
        help="refused credentials of one client address; off: any number; auto: 3000/minute in production, where it is known",
    ),
    "streams.per_caller": _count(20, 1, 1_000_000, "event streams and WebSockets of one caller, in one process; beyond it 429"),
    "streams.total": _count(5000, 1, 1_000_000, "event streams and WebSockets of one process; beyond it 503"),
    "streams.max_seconds": _seconds(
        3600.0, "how long an event stream or WebSocket may last; its client reconnects", at_least=1
    ),
    "limits.storage": Setting(
        default="memory",
        secret=True,
        help="where caller and address are counted: memory, valkey://host:port/db or redis://host:port/db",
    ),
}
SERVER_TABLES: Final = frozenset(key.partition(".")[0] for key in CORE if "." in key)
"""The tables of the settings file that belong to the server: no plugin may use one of these names."""
