"""TLS to Postgres with wrong files: one line that names the file. Also where HOME is another user's, as with `sudo -u`."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kits import ROOT
from kits.pages import free_port
from kits.postgres import FAST, Cluster, bin_folders

# Without these, root cannot read what is another user's.
BOUND = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
NOBODY = pwd.getpwnam("nobody")


class WithTls(Cluster):
    """A Postgres that takes TLS alone, at `localhost`, with a certificate that it has signed itself."""

    def __init__(self, bin_folder: Path, files: Path) -> None:
        super().__init__(bin_folder)
        self.port, options = free_port(), [one for one in FAST if not one.startswith("listen_addresses")]
        tls = "ssl=on", f"ssl_cert_file={files}/server.crt", f"ssl_key_file={files}/server.key"
        self.options = (*options, *tls, "listen_addresses=127.0.0.1", f"port={self.port}")


def certificate(folder: Path, name: str) -> None:
    """A key and a certificate for `localhost`."""
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")]
    subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)


@pytest.fixture(scope="module")
def files() -> Iterator[Path]:
    """Certificates, and a HOME of each kind."""
    if not shutil.which("openssl") or (os.geteuid() == 0 and not shutil.which("setpriv")):
        pytest.skip("openssl or setpriv is not installed")
    folder = Path(tempfile.mkdtemp(prefix="gp-tls-"))
    folder.chmod(0o755)
    certificate(folder, "server")
    certificate(folder, "other")
    (folder / "garbage.crt").write_text("hello\n")
    for home, name, text in (("own", "", ""), ("locked", "root.crt", "x"), ("wrong", "root.crt", (folder / "other.crt").read_text()),
                             ("garbage", "root.crt", "hello\n"), ("key", "postgresql.crt", "x"), ("key", "postgresql.key", "x")):  # fmt: skip
        (folder / home / ".postgresql").mkdir(parents=True, exist_ok=True)
        if name:
            (folder / home / ".postgresql" / name).write_text(text)
            (folder / home / ".postgresql" / name).chmod(0o600)
    (folder / "server.key").chmod(0o600)
    if os.geteuid() == 0:
        for path in (folder / "server.key", folder / "locked"):
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    (folder / "locked").chmod(0o700 if os.geteuid() == 0 else 0)
    yield folder
    (folder / "locked").chmod(0o700)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def place(files: Path) -> Iterator[str]:
    """Where such a Postgres is."""
    for folder in bin_folders().values():
        server = WithTls(folder, files)
        try:
            server.start()
        except RuntimeError as error:
            if "SSL is not supported" not in str(error):
                raise
            continue
        yield f"localhost:{server.port}/postgres"
        server.stop()
        return
    pytest.skip("a Postgres with TLS is not installed")


LOCKED = "{files}/locked/.postgresql/{name}: Permission denied; HOME is {files}/locked: if that is another user's, set it to your own (sudo -H)"
UNTRUSTED = "the server's certificate is not trusted: self-signed certificate ({place}; by {files}/"
CASES = [
    ("locked", "sslmode=require", LOCKED.replace("{name}", "root.crt")),
    ("locked", "sslmode=verify-full", LOCKED.replace("{name}", "root.crt")),
    ("locked", "sslmode=prefer", LOCKED.replace("{name}", "postgresql.key")),
    ("own", "sslmode=verify-full", 'root certificate file "{files}/own/.postgresql/root.crt" does not exist'),
    ("own", "sslmode=verify-full&sslrootcert={files}/other.crt", UNTRUSTED + "other.crt)"),
    ("own", "sslmode=verify-full&sslrootcert={files}/garbage.crt", "{files}/garbage.crt: no certificate or crl found ({place})"),
    ("own", "sslmode=verify-full&sslrootcert=system", "({place}; by this system's certificates)"),
    ("wrong", "sslmode=verify-full", UNTRUSTED + "wrong/.postgresql/root.crt)"),
    ("garbage", "sslmode=require", "{files}/garbage/.postgresql/root.crt: no certificate or crl found ({place})"),
    ("key", "sslmode=require", "{files}/key/.postgresql/postgresql.crt and {files}/key/.postgresql/postgresql.key: not a certificate and its key in PEM format"),
    ("own", "sslmode=verify-full&sslrootcert={files}/server.crt", 'role "s" does not exist ({place})'),
]  # fmt: skip


@pytest.mark.parametrize(("home", "mode", "line"), CASES)
async def test_a_file_that_cannot_be_used_is_named_in_one_line(home: str, mode: str, line: str, files: Path, place: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GATEPOST_", "DATABASE_", "PG"))}
    environment |= {"HOME": str(files / home), "DATABASE_URL": f"postgresql://s:s3cret@{place}?{mode.format(files=files)}"}
    environment |= {"GATEPOST_ENV": "test", "GATEPOST_OPS_PORT": "0", "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *(BOUND if os.geteuid() == 0 else []), sys.executable, "-m", "server", "keys", "list", "--user", "u",
        cwd=files, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 300)
    said = output.decode()
    assert said.startswith("gatepost: database.url (DATABASE_URL): "), said
    assert said.count("\n") == 1, said
    assert line.format(files=files, place=place) in said
    assert "s3cret" not in said
    assert process.returncode == 2
