"""Restarts the workers when a file of the product changes: for development."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from ..settings.setting import ConfigError
from ..telemetry.log import LOG

_ENDINGS: Final = (".toml", ".sql", ".json", ".env")
"""File endings that count beside Python's: settings, and files that a plugin may read when it is loaded."""
_MOST_NAMED: Final = 3


def refuse_to_reload(env: str) -> None:
    """Raises ConfigError if `serve --reload` cannot be used: outside development, or without the library watchfiles."""
    if env != "development":
        raise ConfigError(f"serve --reload: it is for development, not for {env}")
    try:
        import watchfiles  # noqa: F401
    except ImportError:
        raise ConfigError("serve --reload: watchfiles is not installed: pip install 'gatepost[reload]'") from None


async def restart_on_changes(folder: Path, restart: Callable[[], Awaitable[None]]) -> None:
    """Call `restart()` whenever a file in `folder` has changed, one call at a time, until it is cancelled."""
    import watchfiles

    top, chosen = str(folder), watchfiles.PythonFilter(extra_extensions=_ENDINGS)
    try:
        async for changes in watchfiles.awatch(folder, watch_filter=chosen, ignore_permission_denied=True):
            names = sorted({path.removeprefix(top).lstrip(os.sep) for _, path in changes})
            more = [f"and {len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
            LOG.info("restarting", extra={"fields": {"changed": ", ".join(names[:_MOST_NAMED] + more)}})
            await restart()
    except OSError as error:
        LOG.error("changed files go unnoticed: restart by hand", extra={"fields": {"why": error.strerror or str(error)}})
