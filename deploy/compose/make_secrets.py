"""Makes the secrets of compose.yaml where they are missing: `python3 deploy/compose/make_secrets.py [FOLDER]`.

Each is a file. A container's user is not this one, so the files can be read by anybody and their folder by its owner alone.
A file that is there is left as it is. The signing secret of Clerk's webhooks is made up, so that none is taken until you put
Clerk's own in its place.
"""

from __future__ import annotations

import secrets
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path


def main(folder: Path) -> None:
    """Make what is missing, and say what was made."""
    folder.mkdir(mode=0o700, exist_ok=True)

    def keep(name: str, text: Callable[[], str]) -> str:
        path = folder / name
        if not path.exists():
            path.write_text(text(), encoding="utf-8")
            path.chmod(0o444)
            print(f"made {path}")
        return path.read_text(encoding="utf-8").strip()

    keep("postgres_password", _password)
    owner, app = keep("owner_password", _password), keep("app_password", _password)
    keep("database_owner_url", lambda: f"postgresql://gatepost_owner:{owner}@postgres:5432/gatepost")
    keep("database_url", lambda: f"postgresql://gatepost_app:{app}@postgres:5432/gatepost")
    keep("database_pooled_url", lambda: f"postgresql://gatepost_app:{app}@pgbouncer:6432/gatepost")
    keep("pgbouncer_users", lambda: f'"gatepost_app" "{app}"\n')
    keep("clerk_webhook_signing_secret", lambda: "whsec_" + b64encode(secrets.token_bytes(32)).decode())


def _password() -> str:
    """192 bits, of characters that mean nothing in a URL, a shell or SQL."""
    return secrets.token_hex(24)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "secrets")
