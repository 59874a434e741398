"""What is in deploy/, run: the program in the very environments of its manifests, on a file system where nothing can be written.

No container and no cluster: the program runs as an ordinary user in a mount namespace whose root is read-only, beside a Postgres
that asks for passwords, with the secrets in files. Probes, shutdown, PgBouncer's and nginx's files are the real ones.
"""

from __future__ import annotations

import asyncio
import datetime
import io
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from kits.deploy import DEPLOY, environment, service
from kits.pages import free_port
from kits.postgres import Cluster, bin_folders
from kits.tokens import claims, mint, pem, rsa_key
from yarl import URL

from server import signed_in
from tests.conftest import READ, ROBOT_A, Serve, plugin, stub
from tests.project.test_deploy import DOCKERFILE, ENV_FILE, JOB_POD, MIGRATE, POD, SERVER, system

GATEPOST = str(Path(sys.executable).parent / "gatepost")
NOBODY = 65534
SPARE = Path(tempfile.gettempdir()) / f"gp-spare-{os.getpid()}"
# Everything is read-only but what is mounted on purpose. $tmp is a folder for a /tmp in memory, or nothing. Where the interpreter
# ($base) lies in a folder that others may not enter ($closed), it is mounted by itself, in an empty folder in that one's place.
SEALED = """
set -e
mount --make-rprivate /
if [ -n "$closed" ]; then
    mount --bind "$base" "$spare" && mount -t tmpfs -o mode=0755 tmpfs "$closed"
    mkdir -p "$base" && mount --move "$spare" "$base"
    mount -o remount,ro,bind "$base" && mount -o remount,ro "$closed"
fi
mount --rbind / / && mount -o remount,ro,bind / && cd /
if touch /var/tmp/probe /tmp/probe 2>/dev/null; then echo "not sealed" >&2; exit 99; fi
if [ -n "$tmp" ]; then mount -t tmpfs -o size=1m,mode=1777,noexec,nosuid,nodev tmpfs "$tmp"; fi
unset closed base spare tmp
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""


# The database ------------------------------------------------------------------------------------------------------------


@dataclass
class World:
    """A Postgres made by compose's own files, and the secrets that lead to it."""

    cluster: Cluster
    secrets: Path

    def files(self, env: Mapping[str, Any], folder: str, rename: bool = False) -> dict[str, str]:
        """The environment with the files of secrets where they are here."""
        there = {name: str(value) for name, value in env.items()}
        for name, value in there.items():
            if value.startswith(folder):
                file = value.removeprefix(folder).strip("/")
                there[name] = str(self.secrets / (file.replace("-", "_") if rename else file))
        return there


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """init-roles.sh has run as Postgres's image runs it, with the secrets of make_secrets.py; passwords are asked for."""
    if os.geteuid() != 0:
        pytest.skip("mounting a read-only root takes root")
    cluster = Cluster(next(iter(bin_folders().values())))
    cluster.start()
    # Not pytest's own folder, which nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix="gp-deploy-"))
    folder.chmod(0o755)
    SPARE.mkdir()
    try:
        assert cluster.folder is not None
        (cluster.folder / "data" / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        assert cluster._process is not None
        cluster._process.send_signal(signal.SIGHUP)
        subprocess.run([sys.executable, DEPLOY / "compose" / "make_secrets.py", folder / "secrets"], check=True, capture_output=True)
        (folder / "secrets").chmod(0o755)  # in a container each file is mounted by itself
        for path in (folder / "secrets").iterdir():
            path.write_text(path.read_text().replace("@postgres:5432/gatepost", f"@/gatepost?host={cluster.folder}&port=5432"))
        env = {"PATH": f"{cluster.bin}:{os.defpath}", "PGHOST": str(cluster.folder), "SECRETS_FOLDER": str(folder / "secrets")}
        made = subprocess.run(["sh", DEPLOY / "compose" / "init-roles.sh"], env=env, capture_output=True, text=True, check=False)
        assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
        yield World(cluster, folder / "secrets")
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
        SPARE.rmdir()


# The program -------------------------------------------------------------------------------------------------------------


async def sealed(env: Mapping[str, str], *words: str, tmp: Path | None = None) -> asyncio.subprocess.Process:
    """The installed program as an ordinary user who can write nowhere, not even in a folder of their own."""
    program = ["unshare", "--mount", "sh", "-c", SEALED, "sealed", GATEPOST, *words]
    base = Path(sys.base_prefix)
    closed = next((path for path in reversed(base.parents) if not path.stat().st_mode & 0o001), "")
    mounts = {"base": str(base), "closed": str(closed), "spare": str(SPARE), "tmp": str(tmp or "")}
    # As the image has it: no home, and the interpreter keeps no compiled files.
    given = {"PATH": f"{os.defpath}:/usr/sbin:/sbin", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", **mounts, **env}
    return await asyncio.create_subprocess_exec(
        *program, cwd="/", env=given, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


@asynccontextmanager
async def running(env: Mapping[str, str], tmp: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await sealed(env, tmp=tmp)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(env: Mapping[str, str], *words: str) -> str:
    """A command, which must succeed; what it says."""
    process = await sealed(env, *words)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def asked(url: str, headers: Mapping[str, str] | None = None, **more: Any) -> tuple[int, Any]:
    """One exchange on a new connection; 0 if the connection is refused."""
    try:
        async with aiohttp.ClientSession() as client, client.request(more.pop("method", "GET"), url, headers=headers, **more) as got:
            return got.status, json.loads(await got.read() or b"null")
    except aiohttp.ClientConnectorError:
        return 0, None


async def until_ready(process: asyncio.subprocess.Process, ops: str) -> None:
    """As the kubelet asks: until /readyz says yes."""
    async with asyncio.timeout(30):
        while (await asked(f"{ops}/readyz"))[0] != 200:
            if process.returncode is not None:
                raise AssertionError((await process.communicate())[1].decode())
            await asyncio.sleep(0.05)


def signed() -> dict[str, str]:
    """The header of a user whom Clerk has signed in."""
    return {"Authorization": f"Bearer {mint(claims())}"}


def with_ports(env: Mapping[str, str]) -> tuple[dict[str, str], str, str]:
    """The environment on free ports, and with a key of Clerk's that we can sign with; the server's and the operations' URL.

    Two settings in all that differ from the manifests, beside where the files of secrets are.
    """
    port, ops = free_port(), free_port()
    more = {"GATEPOST_PORT": str(port), "GATEPOST_OPS_PORT": str(ops), "CLERK_JWT_KEY": pem(rsa_key())}
    return {**env, **more}, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ops}"


async def half_a_request(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """A POST that the server has accepted and cannot finish: the rest of its body is still to come."""
    body = b'{"name": "sent while draining"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    head = f"POST /api/data HTTP/1.1\r\nHost: localhost\r\nAuthorization: {signed()['Authorization']}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:10])
    await writer.drain()
    await asyncio.sleep(0.3)
    return reader, writer, body[10:]


async def drained(process: asyncio.subprocess.Process, url: str, ops: str, within: float) -> None:
    """SIGTERM while a request is under way: not ready but alive, no new connection, the request answered, status 0 in time."""
    reader, writer, rest = await half_a_request(url)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        while (await asked(f"{ops}/readyz"))[0] == 200:
            await asyncio.sleep(0.02)
    status, told = await asked(f"{ops}/readyz")
    assert (status, "draining" in json.dumps(told)) == (503, True)
    assert (await asked(f"{ops}/livez"))[0] == 200  # or the kubelet would kill it
    async with asyncio.timeout(5):
        while (await asked(f"{url}/api/health"))[0] != 0:
            await asyncio.sleep(0.02)
    writer.write(rest)
    answer = await asyncio.wait_for(reader.readline(), 5)
    assert answer.startswith(b"HTTP/1.1 201")
    writer.close()
    assert await asyncio.wait_for(process.wait(), within) == 0
    assert time.monotonic() - started < within


@pytest.fixture
async def schema(world: World) -> None:
    """The migrate service of compose has run; it can run again."""
    env = service("migrate", ENV_FILE)["environment"]
    assert (await run(world.files(env, "/run/secrets"), "migrate")).splitlines()[-1] == "migrated"


# Kubernetes --------------------------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_the_job_and_then_a_pod(world: World) -> None:
    job = environment(JOB_POD["containers"][0], MIGRATE)
    assert "migrated" in await run(world.files(job, "/run/secrets/gatepost-owner", rename=True), *JOB_POD["containers"][0]["args"])
    (container,) = POD["containers"]
    env, url, ops = with_ports(world.files(environment(container, SERVER), "/run/secrets/gatepost", rename=True))
    assert (await asked(f"{ops}/livez"))[0] == 0
    async with running(env) as process:
        await until_ready(process, ops)
        assert (await asked(f"{ops}/livez"))[0] == 200
        assert (await asked(f"{url}/api/me"))[0] == 401
        assert (await asked(f"{url}/api/data", signed(), method="POST", json={"name": "kept"}))[0] == 201
        status, rows = await asked(f"{url}/api/data", signed())
        assert (status, rows[0]["name"]) == (200, "kept")
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        await drained(process, url, ops, POD["terminationGracePeriodSeconds"] - pause)


@pytest.mark.long
async def test_a_pod_without_its_database_is_alive_and_not_ready(world: World, schema: None) -> None:
    """The liveness probe must not kill what only waits for Postgres."""
    env, url, ops = with_ports(world.files(environment(POD["containers"][0], SERVER), "/run/secrets/gatepost", rename=True))
    async with running(env) as process:
        await until_ready(process, ops)
        assert world.cluster._process is not None
        pids = [world.cluster._process.pid]
        pids += [int(pid) for pid in subprocess.run(["pgrep", "-P", str(pids[0])], capture_output=True, text=True, check=True).stdout.split()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            status, told = await asked(f"{ops}/readyz")
            assert (status, told["reasons"]) == (503, ["the database is unavailable"])
            assert (await asked(f"{ops}/livez"))[0] == 200
            assert (await asked(f"{url}/api/data", signed()))[0] == 503
        finally:
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)
        await until_ready(process, ops)


async def test_a_pod_that_cannot_start_says_why_in_one_line(world: World) -> None:
    """Without its secret, and on a database that was never migrated: status 2, no traceback."""
    env = environment(POD["containers"][0], SERVER)
    process = await sealed(env)
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, err.decode().splitlines()) == (2, ["gatepost: DATABASE_URL_FILE: the file that it names cannot be read (No such file or directory)"])


# Compose -----------------------------------------------------------------------------------------------------------------


def healthchecks(ops: str) -> dict[str, list[str]]:
    """The image's and compose's health checks as they would be run, but for the interpreter and the port."""
    image = json.loads(DOCKERFILE.partition("HEALTHCHECK")[2].partition("CMD ")[2].splitlines()[0])
    found = {"image": image, "compose": service("gatepost", ENV_FILE)["healthcheck"]["test"][1:]}
    for words in found.values():
        assert "9090" in words[-1]
        words[0], words[-1] = sys.executable, words[-1].replace("9090", ops.rpartition(":")[2])
    return found


@pytest.mark.long
async def test_the_services_of_compose(world: World, schema: None) -> None:
    served = service("gatepost", ENV_FILE)
    env, url, ops = with_ports(world.files(served["environment"], "/run/secrets"))
    tmp = world.secrets.parent / "tmp"
    tmp.mkdir(exist_ok=True)
    checks = healthchecks(ops)
    assert all(subprocess.run(words, capture_output=True, check=False).returncode != 0 for words in checks.values())
    async with running({**env, "TMPDIR": str(tmp)}, tmp) as process:
        await until_ready(process, ops)
        for name, words in checks.items():
            assert (await asyncio.to_thread(subprocess.run, words, capture_output=True, check=False)).returncode == 0, name
        assert (await asked(f"{url}/api/data", signed()))[0] == 200
        # With the secret that make_secrets.py makes up, nobody's webhook is taken.
        assert (await asked(f"{url}/api/webhooks/clerk", method="POST", data=b"{}"))[0] == 400
        await drained(process, url, ops, float(served["stop_grace_period"].rstrip("s")))
    assert not list(tmp.iterdir())


@pytest.mark.long
async def test_the_roles_of_compose_are_what_they_should_be(world: World, schema: None) -> None:
    """`check`, with the serving role; and the owner, who is no superuser, can migrate again."""
    env, _, _ = with_ports(world.files(service("gatepost", ENV_FILE)["environment"], "/run/secrets"))
    told = await run(env, "check")
    assert told.splitlines()[-1] == "problems: none"
    assert "connections: 2 worker(s) x (16 pooled + 2 to listen) = 36 per server; Postgres allows" in told
    async with world.cluster.as_admin("gatepost") as admin:
        assert await admin.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = 'gatepost_owner'") is False


@pytest.mark.long
async def test_through_pgbouncer_with_its_file(world: World, schema: None) -> None:
    program = system("pgbouncer")
    port = free_port()
    text = (DEPLOY / "compose" / "pgbouncer.ini").read_text()
    for old, new in {"host=postgres port=5432": f"host={world.cluster.folder} port=5432", "listen_addr = 0.0.0.0": "listen_addr = 127.0.0.1",
                     "listen_port = 6432": f"listen_port = {port}", "/run/secrets/pgbouncer_users": str(world.secrets / "pgbouncer_users")}.items():  # fmt: skip
        assert text.count(old) == 1
        text = text.replace(old, new)
    (world.secrets.parent / "pgbouncer.ini").write_text(text)
    pooled = world.secrets / "database_pooled_url"
    pooled.write_text(pooled.read_text().replace("@pgbouncer:6432/", f"@127.0.0.1:{port}/"))
    switched = {"DATABASE_URL_SECRET": "database_pooled_url", "GATEPOST_DATABASE_POOLER": "transaction", "GATEPOST_WORKERS": "1"}
    env, url, ops = with_ports(world.files(service("gatepost", ENV_FILE | switched)["environment"], "/run/secrets"))
    bouncer = await asyncio.create_subprocess_exec(
        program, str(world.secrets.parent / "pgbouncer.ini"), user=NOBODY, group=NOBODY, extra_groups=[],
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with running(env) as process:
            await until_ready(process, ops)
            got = await asyncio.gather(*(asked(f"{url}/api/data", signed()) for _ in range(60)))
            assert {status for status, _ in got} == {200}
        assert (await run(env, "check")).splitlines()[-1] == "problems: none"
        # What listens goes past the pooler: by the direct URL, or not at all.
        nowhere = world.secrets / "nowhere"
        nowhere.write_text("postgresql://gatepost_app@127.0.0.1:1/gatepost")
        process = await sealed({**env, "GATEPOST_DATABASE_DIRECT_URL_FILE": str(nowhere)})
        _, err = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, "the database cannot be reached" in err.decode()) == (1, True)
    finally:
        bouncer.kill()
        await bouncer.wait()


@pytest.mark.long
async def test_a_dead_host_in_the_url_is_passed_over(world: World, schema: None) -> None:
    """As the example of a secret has it: several hosts, and the one that takes writes is found."""
    url_file = world.secrets / "database_url"
    before, port = url_file.read_text(), f"port={free_port()},5432&target_session_attrs=read-write"
    url_file.write_text(before.replace("?host=", "?host=127.0.0.1,").replace("port=5432", port))
    assert url_file.read_text().count(",") == 2
    try:
        env, url, ops = with_ports(world.files(environment(POD["containers"][0], SERVER), "/run/secrets/gatepost", rename=True))
        async with running(env) as process:
            await until_ready(process, ops)
            assert (await asked(f"{url}/api/data", signed()))[0] == 200
    finally:
        url_file.write_text(before)


# nginx -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for api.example.com that signs itself."""
    folder, key = tmp_path_factory.mktemp("tls"), rsa_key("tls")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "api.example.com")])
    now = datetime.datetime.now(datetime.UTC)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("api.example.com")]), False).sign(key, hashes.SHA256()))  # fmt: skip
    (folder / "api.example.com.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "api.example.com.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


def configured(folder: Path, certificate: Path, text: str) -> list[str]:
    """nginx's command line for this file in a configuration that has nothing else."""
    text = text.replace("/etc/nginx/tls", str(certificate)).replace("/var/log/nginx", str(folder))
    (folder / "gatepost.conf").write_text(text)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr warn;\nevents {{}}\nhttp {{ access_log off;\n"
        + "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + f"include {folder}/gatepost.conf; }}\n"
    )
    return [system("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


NGINX = (DEPLOY / "nginx" / "gatepost.conf").read_text("utf-8")


def test_nginx_takes_the_file(tmp_path: Path, certificate: Path) -> None:
    text = NGINX if os.geteuid() == 0 else re.sub(r"(listen (?:\[::\]:)?)(\d+)", lambda found: f"{found[1]}{20_000 + int(found[2])}", NGINX)
    done = subprocess.run([*configured(tmp_path, certificate, text), "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


LAST = b"Host: api.example.com\r\nConnection: close\r\n\r\n"
REFUSED_BY_NGINX: list[tuple[bytes, int, str]] = [
    (b"GET / HTTP/1.1\r\nbad header\r\n", 400, "Bad Request"), (b"GET /%zz HTTP/1.1\r\n", 400, "Bad Request"), (b"CONNECT a:1 HTTP/1.1\r\n", 400, "Bad Request"),
    (b"TRACE / HTTP/1.1\r\n", 405, "Method Not Allowed"), (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n", 501, "Not Implemented"),
    (b"GET / HTTP/3.7\r\n", 505, "HTTP Version Not Supported"), (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n", 431, "Request Header Fields Too Large"),
    (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n", 431, "Request Header Fields Too Large"), (b"POST / HTTP/1.1\r\nContent-Length: 9999999\r\n", 413, "Content Too Large"),
    (b"GET /.gatepost-error HTTP/1.1\r\n", 404, "Not Found"), (b"GET / HTTP/1.1\r\n", 503, "Service Unavailable"),
]  # fmt: skip


async def test_what_nginx_itself_refuses_is_json(tmp_path: Path, certificate: Path) -> None:
    """No server is behind it."""
    plain, tls = free_port(), free_port()
    text = re.sub(r"    listen \[::\].*\n", "", NGINX).replace("listen 80;", f"listen 127.0.0.1:{plain};")
    text = text.replace("listen 443 ssl http2;", f"listen 127.0.0.1:{tls} ssl;").replace("127.0.0.1:8080;", f"127.0.0.1:{free_port()};")
    nginx = await asyncio.create_subprocess_exec(*configured(tmp_path, certificate, text))
    trusted = ssl.create_default_context(cafile=str(certificate / "api.example.com.crt"))

    async def ask(data: bytes, port: int, **secure: Any) -> tuple[int, dict[str, str], Any]:
        async with asyncio.timeout(20):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port, **secure)
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.05)
            writer.write(data + LAST)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
        status, *lines = head.decode().split("\r\n")
        return int(status.split()[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}, json.loads(body)

    try:
        for data, status, phrase in REFUSED_BY_NGINX:
            got, headers, body = await ask(data, tls, ssl=trusted, server_hostname="api.example.com")
            assert (got, body) == (status, {"error": phrase}), data[:40]
            assert (headers["content-type"], headers["cache-control"], headers["x-content-type-options"]) == ("application/json", "no-store", "nosniff")
            assert headers["strict-transport-security"]
            assert headers.get("retry-after") == ("1" if status == 503 else None)
        for data, port in ((b"GET / HTTP/1.1\r\n", tls), (b"TRACE / HTTP/1.1\r\n", plain), (b"GET /%zz HTTP/1.1\r\n", plain), (b"garbage\r\n", plain)):
            got, headers, body = await ask(data, port)
            assert (got, body, headers["content-type"]) == (400, {"error": "Bad Request"}, "application/json")
    finally:
        nginx.terminate()
        await nginx.wait()


@signed_in
async def echo(request: web.Request) -> web.Response:
    """What a handler sees of the proxy."""
    return web.json_response({name.lower(): request.headers.getall(name) for name in request.headers})


@pytest.mark.long
async def test_behind_nginx(serve: Serve, tmp_path: Path, certificate: Path) -> None:
    client = await serve(extra={"echo": plugin(web.get("/api/echo", echo))})
    plain, tls = free_port(), free_port()
    text = NGINX
    for old, new in {"server 127.0.0.1:8080;": f"server 127.0.0.1:{client.port};", "listen 80;": f"listen 127.0.0.1:{plain};",
                     "listen 443 ssl http2;": f"listen 127.0.0.1:{tls} ssl http2;", "    listen [::]:80;\n": "",
                     "    listen [::]:443 ssl http2;\n": ""}.items():  # fmt: skip
        assert text.count(old) == 1
        text = text.replace(old, new)
    nginx = await asyncio.create_subprocess_exec(*configured(tmp_path, certificate, text))
    trusted = ssl.create_default_context(cafile=str(certificate / "api.example.com.crt"))
    connector = aiohttp.TCPConnector(ssl=trusted)
    try:
        async with aiohttp.ClientSession(connector=connector) as session:

            async def get(path: str, headers: Mapping[str, str] | None = None, **more: Any) -> tuple[int, Any, Mapping[str, str]]:
                url = URL(f"https://127.0.0.1:{tls}{path}", encoded=True)
                given = {"Host": "api.example.com", **(headers or {})}
                async with session.request(more.pop("method", "GET"), url, headers=given, server_hostname="api.example.com", **more) as got:
                    body = await got.read()
                    return got.status, json.loads(body) if got.content_type == "application/json" else body, got.headers

            async with asyncio.timeout(10):
                while True:
                    try:
                        status, body, headers = await get("/api/health")
                        break
                    except aiohttp.ClientConnectorError:
                        await asyncio.sleep(0.05)
            assert (status, body) == (200, {"status": "ok"})
            assert headers["Strict-Transport-Security"] == "max-age=31536000"
            assert (await get("/api/invoices", ROBOT_A))[0] == 200
            # Development credentials count on this machine alone, and a proxy's request is not from it.
            assert (await get("/api/me", stub("alice", org_permissions=READ)))[:2] == (
                401, {"error": "Unauthorized", "reason": "credential-rejected"})  # fmt: skip
            seen = (await get("/api/echo", {**ROBOT_A, "X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}))[1]
            assert (seen["x-forwarded-for"], seen["x-forwarded-proto"], seen["host"]) == (["127.0.0.1"], ["https"], ["api.example.com"])
            assert "forwarded" not in seen
            # The target comes through as it was sent: a proxy that had unescaped it would have made a path of it.
            assert (await get("/api/%2e%2e/data", ROBOT_A))[:2] == (400, {"error": "Bad Request"})
            large = io.BytesIO(b"x" * 1_100_000)
            assert (await get("/api/data", ROBOT_A, method="POST", data=large))[:2] == (413, {"error": "Content Too Large"})
            some = await asyncio.gather(*(get("/api/health") for _ in range(250)))
            assert {status for status, *_ in some} == {200, 429}
            assert {headers["Retry-After"] for status, _, headers in some if status == 429} == {"1"}
            await client.close()
            await asyncio.sleep(1)  # until nginx lets this address in again
            status, body, headers = await get("/api/health")
            assert (status, body, headers["Retry-After"]) == (503, {"error": "Service Unavailable"}, "1")
        async with aiohttp.ClientSession() as session, session.get(
            f"http://127.0.0.1:{plain}/api/me?x=1", headers={"Host": "api.example.com"}, allow_redirects=False) as got:  # fmt: skip
            assert (got.status, got.headers["Location"]) == (308, "https://api.example.com/api/me?x=1")
    finally:
        nginx.terminate()
        await nginx.wait()
