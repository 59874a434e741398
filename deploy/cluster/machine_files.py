"""Writes the files of each machine: `python3 deploy/cluster/machine_files.py MY.env FOLDER`.

MY.env is a changed copy of cluster.env. Passwords are made once, into FOLDER/secrets.env, and read from there later. FOLDER
then has a folder for each machine, to be copied to its CONFIG_FOLDER. They contain passwords: only their owner may read them.
"""

from __future__ import annotations

import secrets
import sys
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from string import Template

HERE = Path(__file__).resolve().parent
MACHINES = {
    **{f"etcd{n}": ("etcd.yaml",) for n in (1, 2, 3)},
    **{f"pg{n}": ("patroni.yaml", "roles.sql") for n in (1, 2, 3)},
    "proxy": ("haproxy.cfg",),
    "pooler": ("pgbouncer.ini", "users.txt"),
    "redis": ("redis.conf",),
    **{f"gatepost{n}": ("gatepost.env",) for n in (1, 2, 3)},
    "migrate": ("migrate.env",),
}
"""Which files each machine gets."""
PASSWORDS = ("SUPERUSER", "REPLICATION", "REWIND", "OWNER", "APP", "REDIS", "PATRONI")


def values_of(path: Path) -> dict[str, str]:
    """The lines NAME=value of a file."""
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def passwords(path: Path) -> dict[str, str]:
    """The passwords of `path`, which is made where it is missing. 192 bits, of characters that mean nothing in URLs and SQL."""
    if not path.exists():
        made = {f"{name}_PASSWORD": secrets.token_hex(24) for name in PASSWORDS}
        made["CLERK_WEBHOOK_SIGNING_SECRET"] = "whsec_" + b64encode(secrets.token_bytes(32)).decode()
        path.touch(0o600)
        path.write_text("".join(f"{name}={value}\n" for name, value in made.items()), "utf-8")
    return values_of(path)


def render(name: str, values: Mapping[str, str], folder: Path) -> None:
    """Write the files of the machine `name` into `folder`. Raises KeyError for a value that is missing."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {**values, "NAME": name, "ADDRESS": values.get(name.upper(), "")}
    for file in MACHINES[name]:
        text = Template((HERE / file).read_text("utf-8")).substitute(known)
        (folder / file).touch(0o600)
        (folder / file).write_text(text, "utf-8")


def main(source: Path, target: Path) -> None:
    """Write all of them."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    values = {**values_of(source), **passwords(target / "secrets.env")}
    for name in MACHINES:
        render(name, values, target / name)
        print(f"{target / name}: {', '.join(MACHINES[name])}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: machine_files.py MY.env FOLDER")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
