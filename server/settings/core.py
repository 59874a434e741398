"""The table of the server's own settings: name, kind, default, environment variable, meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .setting import Setting

BUILT_IN: Final = ("health", "me", "profile", "data", "orgs", "invoices", "audit_log", "docs", "clerk", "api_key")
DEFAULT_PUBLIC: Final = ("/api/webhooks(.*)", "/api/health", "/api/public(.*)")

CORE: Final[Mapping[str, Setting]] = {
    "env": Setting("str", "development", help="development (this machine only), test or production"),
    "host": Setting("str", "127.0.0.1", help="address to serve on"),
    "port": Setting("int", 8080, help="port to serve on; 0 takes a free one"),
    "workers": Setting("int", 1, help="processes that share the port"),
    "providers": Setting(
        "list", ("clerk", "api_key"), help="who is asked, in this order: clerk, api_key, oidc, stub, or what a plugin offers"
    ),
    "handlers": Setting(
        "list",
        None,
        example=BUILT_IN,
        help="which built-in handlers are served; none named: all. clerk is its webhooks, api_key is /api/keys",
    ),
    "plugins": Setting(
        "list", (), help="plugins to load: entry points of installed packages, or module:<import path>; nothing else runs"
    ),
    "public_routes": Setting("list", DEFAULT_PUBLIC, help="patterns that open routes declared @public"),
    "cors_origins": Setting(
        "list",
        None,
        example=("https://app.example.com",),
        help="origins whose pages may call; none named: Clerk's authorized parties",
    ),
    "trusted_proxies": Setting(
        "list", (), help="networks whose X-Forwarded-For is believed, for limits and logs; unix: a unix socket"
    ),
    "data_folder": Setting("str", ".gatepost", help="where the server keeps files of its own"),
    "database.url": Setting(
        "str",
        None,
        env="DATABASE_URL",
        secret=True,
        example="postgresql://gatepost_app@localhost/gatepost",
        help="the serving role's URL; none: the embedded Postgres. Keep it out of files that are shared",
    ),
    "database.owner_url": Setting(
        "str",
        None,
        env="DATABASE_OWNER_URL",
        secret=True,
        example="postgresql://gatepost_owner@localhost/gatepost",
        help="the owner's URL, for migrate alone: keep it away from where it serves",
    ),
    "database.direct_url": Setting(
        "str",
        None,
        secret=True,
        example="postgresql://gatepost_app@localhost:5432/gatepost",
        help="the serving role's URL past a pooler, for LISTEN and `check`",
    ),
    "database.pool_size": Setting("int", 32, help="connections per worker"),
    "database.pooler": Setting("str", "none", help="none, or transaction (PgBouncer; needs direct_url)"),
    "database.acquire_seconds": Setting("float", 2.0, help="longest wait for a connection"),
    "database.statement_seconds": Setting("float", 5.0, help="longest statement"),
    "revocation.max_staleness": Setting("float", 10.0, help="seconds; with an older revocation feed sessions are a 503"),
    "audit.denials": Setting("bool", True, help="note 403s of known callers in the audit log"),
    "audit.retention_days": Setting("int", 400, help="days after which audit entries are deleted, at least 7; 0: never"),
    "idempotency.keep_seconds": Setting("float", 86400.0, help="how long an answer is kept for a repeated Idempotency-Key"),
    "ops.host": Setting("str", "127.0.0.1", help="address of the operations port"),
    "ops.port": Setting("int", 9090, help="port of /livez, /readyz and /metrics; 0: off"),
    "log.format": Setting("str", "auto", help="json, human, or auto: json in production, human elsewhere"),
    "log.requests": Setting("bool", False, help="a line for every request that was let in too"),
    "limits.head_bytes": Setting("int", 16384, help="request line and headers together"),
    "limits.head_seconds": Setting("float", 10.0, help="longest time for a request's head"),
    "limits.headers": Setting("int", 128, help="most header lines of a request"),
    "limits.body_bytes": Setting("int", 1_048_576, help="largest request body"),
    "limits.body_seconds": Setting("float", 30.0, help="longest time for a request's body"),
    "limits.json_depth": Setting("int", 64, help="how deep arrays and objects of a JSON body may lie in each other"),
    "limits.json_values": Setting(
        "int", 50_000, help="how many values a JSON body may have"
    ),
    "limits.connections": Setting("int", 1000, help="client connections of one process; more are answered 503"),
    "limits.idle_seconds": Setting("float", 75.0, help="how long an idle connection is kept"),
    "limits.provider_seconds": Setting("float", 5.0, help="longest time a provider may take"),
    "limits.drain_seconds": Setting("float", 20.0, help="longest time accepted requests have after SIGTERM"),
    "limits.caller": Setting("str", "auto", help="requests of one caller; off: any number; auto: 6000/minute in production"),
    "limits.address": Setting(
        "str", "auto", help="refused credentials of one client address; off: any number; auto: 3000/minute in production"
    ),
    "limits.storage": Setting(
        "str", "memory", secret=True, help="who counts for both: memory, valkey://host:port/db or redis://host:port/db"
    ),
}
