"""Writes docs/reference/settings.md from the code: `make docs`. A test compares the page with what this would write."""

from __future__ import annotations

import tempfile
from pathlib import Path

from server.plugins.loader import Plugins
from server.settings.core import BUILT_IN, DEFAULT_PUBLIC, OPTIONAL, SERVER_TABLES
from server.settings.setting import Setting
from server.settings.sources import Settings, env_name

PAGE = Path(__file__).resolve().parents[1] / "reference" / "settings.md"
BUILT_IN_PROVIDERS = ("clerk", "api_key")
TOP = """# Settings

<!-- Written by `make docs` from the code; change the code, not this page. -->

Precedence: command line, environment, file, default. The flags are `--config`, `--host`, `--port` and `--workers`; the file
is `gatepost.toml` in the working folder, or the one that `--config` or `GATEPOST_CONFIG` names. `python -m server check`
prints every effective value and its source; secrets are not shown. `python -m server init` writes a `gatepost.toml` with
every setting, explained and commented out; it never overwrites a file.

- The first column has the key in the file and, below it, the environment variable. A setting without a variable is set in the file only.
- A list is an array in the file, and comma-separated in the environment.
- Every variable can be replaced by `NAME_FILE` with the path of a file; the file's text, stripped of surrounding whitespace, is
  the value; both at once prevent startup. Blanks, line ends and a byte order mark around a variable's value are removed. Quotes around it, its own name before it
  (`NAME=value`) and a reference that no shell has replaced (`${NAME}`) prevent startup, in such a file too. An empty variable
  counts as unset; an empty file prevents startup.
- An unknown key of the file, a table of a plugin that is not loaded and an unknown `GATEPOST_*` variable prevent startup,
  with status 2 and the closest known name. Kubernetes' service links (`GATEPOST_SERVICE_HOST` and so on) are ignored.
- *Secret* values are never printed.
- The column *meaning* ends with the allowed values, where there are bounds or choices; any other value prevents startup.

A table of a plugin is declared by the plugin (see [Write a plugin](../guides/plugins.md)); a plugin sees only its own table. The tables are explained
in [Clerk](../guides/clerk.md), [API keys](../guides/keys.md), [Limits](limits.md), [OpenID Connect issuers](../guides/oidc.md),
[The audit log](audit.md).

## The server
"""
RULES = """
## Rules between settings

- `env = "development"` serves on loopback only (`127.0.0.1`, `localhost`, `::1`).
- `env = "production"` requires `database.url` and the listed providers' settings: for `clerk` keys to verify with, an issuer and
  authorized parties. The server refuses to start there with the stub or the development key.
- `providers` must name at least one provider, and `providers`, `plugins` and `handlers` must not contain a name twice.
- Two providers must not share an issuer or a namespace (`""` is one too): beside `clerk` every issuer of `oidc` needs a
  `namespace`.
- `handlers` lists the built-in routes that are served: @HANDLERS@,
  and of the providers `clerk` (its webhooks) and `api_key` (`/api/keys`). Your own plugins are always served.
- `clerk.webhook_signing_secret` may contain several secrets separated by commas or spaces, for rotation.
- A pattern in `public_routes` that covers no route and is not a default (@PUBLIC@) prevents startup.
- `database.pooler = "transaction"` needs `database.url` (through the pooler) and `database.direct_url` (bypassing it): see
  [Postgres in production](../guides/postgres.md).
- `audit.retention_days` is 0 or at least 7: the last seven days of the [audit log](audit.md) cannot be deleted.
- `limits.caller` and `limits.address` are each a rate such as `6000/minute`, or `off`, or `auto`.
- `strip_path_prefix` needs a `path_prefix`; where `resource.url` is set too, both must have the same path
  ([behind a proxy](../guides/behind-a-proxy.md#below-a-path)).
- `trusted_proxies` are networks without host bits (`10.0.0.0/8`), addresses, or the word `unix`.

## `[[api_key.keys]]`

An array of tables, in the file only: static keys (see [API keys](../guides/keys.md)). A key belongs to a user, an organisation, or both.

| member | kind | meaning |
|---|---|---|
| `id` | text, required | 1 to 64 letters, digits, `.`, `_`, `-`; for logs and `created_by` |
| `hash` | text, required | `sha256:` and 64 hexadecimal digits: `python -m server keys hash` reads a key and prints it |
| `user_id`, `org_id` | text | the key's owner; at least one of the two |
| `org_slug`, `org_role` | text | in that organisation |
| `org_permissions`, `scopes` | array of strings | the key's rights |
| `expires_at` | date, or time with offset | after it the response is 401 `key-expired`; without it the key never expires |
"""


def declared() -> dict[str, Setting]:
    """Every setting of the server and of the plugins that come with it, by key."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(environ={}, given={"data_folder": folder})
        Plugins(settings)
    return dict(settings._declared)


def page() -> str:
    """The text of docs/reference/settings.md."""
    settings = declared()
    tables = sorted({key.partition(".")[0] for key in settings if "." in key} - SERVER_TABLES)
    own = {key: setting for key, setting in settings.items() if key.partition(".")[0] not in tables}
    parts = [TOP, *_rows(own)]
    for table in tables:
        parts += [f"\n## `[{table}]`\n", *_rows({key: s for key, s in settings.items() if key.startswith(f"{table}.")})]
    handlers = ", ".join(f"`{name}`" for name in (*BUILT_IN, *sorted(OPTIONAL)) if name not in BUILT_IN_PROVIDERS)
    public = ", ".join(f"`{pattern}`" for pattern in DEFAULT_PUBLIC)
    return "\n".join(parts) + "\n" + RULES.replace("@HANDLERS@", handlers).replace("@PUBLIC@", public)


def _rows(settings: dict[str, Setting]) -> list[str]:
    lines = ["| key, variable | default, kind | meaning |", "|---|---|---|"]
    for key, setting in settings.items():
        env = "" if setting.kind in ("table", "tables") else f"<br>`{env_name(key, setting)}`"
        notes = [setting.help.replace("<", "&lt;"), *([setting.allowed] if setting.allowed and not setting.choices else []), *(["secret"] * setting.secret)]
        lines.append(f"| `{key}`{env} | {_shown(setting)}<br>{setting.kind} | {'; '.join(notes)} |")
    return lines


def _shown(setting: Setting) -> str:
    default = setting.default
    if default is None or default == () or default == []:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{', '.join(default)}`" if isinstance(default, list | tuple) else f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"written: {PAGE}")
