"""Names the certificate or key file that prevents a TLS connection to Postgres, if the error itself does not name it."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

_DEFAULTS: Final = {
    "sslrootcert": "root.crt",
    "sslcrl": "root.crl",
    "sslcert": "postgresql.crt",
    "sslkey": "postgresql.key",
}
"""The URL's parameters that name a file, and the file in `~/.postgresql` that asyncpg and libpq take otherwise."""
_ROOTS: Final = ("sslrootcert", "sslcrl")
_OWN: Final = ("sslcert", "sslkey")
_ELSEWHERE: Final = "HOME is {home}: if that is another user's, set it to your own (sudo -H)"


def complaint_about_file(error: BaseException | None, dsn: str) -> str | None:
    """Returns the file of the TLS settings in `dsn` and why it cannot be used, in one line; None for any other error."""
    if isinstance(error, PermissionError):
        unreadable = [error.filename] if isinstance(error.filename, str) else list(filter(_is_locked, _files(dsn).values()))
        return f"{unreadable[0]}: {error.strerror}{_whose(unreadable[0])}" if unreadable else None
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLCertVerificationError):
        return None
    words = re.sub(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$", "", error.strerror or "")
    if error.reason == "NO_CERTIFICATE_OR_CRL_FOUND":
        return f"{_names(dsn, _ROOTS)}: {words}"
    if "PEM lib" in words or error.library in ("X509", "PEM"):
        return f"{_names(dsn, _OWN)}: not a certificate and its key in PEM format"
    return None


def trusted_by(dsn: str) -> str:
    """Returns which certificates Postgres's own certificate is checked against: a file's, or this system's."""
    roots = _files(dsn)["sslrootcert"]
    return "this system's certificates" if roots == "system" else roots


def _files(dsn: str) -> dict[str, str]:
    """Returns the file of each parameter of _DEFAULTS."""
    query = parse_qs(urlsplit(dsn).query)
    home = Path(os.path.expanduser("~")) / ".postgresql"
    return {
        name: (query.get(name) or [os.environ.get(f"PG{name.upper()}") or str(home / file)])[-1]
        for name, file in _DEFAULTS.items()
    }


def _names(dsn: str, parameters: tuple[str, ...]) -> str:
    """Returns the files of these parameters that exist; if none does, the first one."""
    files = _files(dsn)
    return " and ".join(files[name] for name in parameters if os.path.exists(files[name])) or files[parameters[0]]


def _is_locked(file: str) -> bool:
    """Whether this user lacks the right to read the file, or to see whether it exists."""
    try:
        os.stat(file)
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(file, os.R_OK)


def _whose(file: str) -> str:
    home = os.path.expanduser("~")
    return f"; {_ELSEWHERE.format(home=home)}" if file.startswith(f"{home}/") else ""
