"""Development credentials need proof of place: real proxies on this machine, which leave no trace in the request, are refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from kits.app import Client, Reply, ask, build_app, serving, stub
from kits.pages import free_port

from providers.clerk import development_key
from server.http import sock_diag, this_machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel shows sockets on Linux alone")
REFUSED = (401, {"error": "Unauthorized", "reason": "credential-rejected"})


def made(folder: Path) -> web.Application:
    return build_app(providers=["clerk", "stub"], data_folder=str(folder))


def credentials(folder: Path) -> list[tuple[str, str]]:
    """Both kinds: the stub's, and a token of the local signing key."""
    token = development_key.mint(development_key.signing_key(folder), development_key.claims_v2("user_1"))
    return [stub(), ("Authorization", f"Bearer {token}")]


async def say(port: int, credential: tuple[str, str], version: str = "HTTP/1.1", *more: tuple[str, str]) -> Reply:
    """A request from this process by a client that knows what the server checks."""
    lines = [f"GET /api/me {version}", "Host: 127.0.0.1", f"{credential[0]}: {credential[1]}", *(f"{name}: {value}" for name, value in more)]
    async with Client(port) as client:
        await client.send("\r\n".join([*lines, "", ""]).encode())
        return await client.reply()


async def refuses_all(port: int, folder: Path) -> None:
    """Sends such requests from another program, because this process itself counts as local."""
    for credential in credentials(folder):
        for version in ("HTTP/1.1", "HTTP/1.0"):
            assert await status(port, credential, version=version) == 401, (credential[1][:5], version)


@asynccontextmanager
async def program(port: int, *words: str) -> AsyncIterator[None]:
    """A process, once something answers on `port`."""
    process = await asyncio.create_subprocess_exec(*words)
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    assert process.returncode is None
                    await asyncio.sleep(0.02)
        writer.close()
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def installed(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def nginx(folder: Path, port: int, upstream: str, *more: str, user: str = "") -> list[str]:
    """The command line of an nginx with the default headers towards `upstream`."""
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"{user}\ndaemon off; pid {folder}/pid; error_log stderr crit;\nevents {{}}\nhttp {{ access_log off;\n{temporary}"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {upstream}; {' '.join(more)} }} }} }}\n"
    )
    return [installed("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


OURS = "user root;" if os.geteuid() == 0 else ""
NEWER = ("proxy_http_version 1.1;", 'proxy_set_header Connection "";')
HAPROXY = """
defaults
    mode {mode}
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen front
    bind {address}:{port}
    server gatepost 127.0.0.1:{upstream}
"""


# Proxies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), NEWER], ids=["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("user", ["", OURS], ids=["its own user", "our user"])
async def test_behind_nginx_with_default_headers_no_client_is_local(tmp_path: Path, more: tuple[str, ...], user: str) -> None:
    async with serving(made(tmp_path)) as port:
        front = free_port()
        async with program(front, *nginx(tmp_path, front, f"http://127.0.0.1:{port}", *more, user=user)):
            await refuses_all(front, tmp_path)


async def test_behind_nginx_with_kept_connections_no_client_is_local(tmp_path: Path) -> None:
    async with serving(made(tmp_path)) as port:
        front = free_port()
        words = nginx(tmp_path, front, "http://gatepost", *NEWER, user=OURS)
        conf = tmp_path / "nginx.conf"
        conf.write_text(conf.read_text().replace("server {", f"upstream gatepost {{ server 127.0.0.1:{port}; keepalive 4; }} server {{", 1))
        async with program(front, *words):
            for _ in range(3):
                await refuses_all(front, tmp_path)


@pytest.mark.parametrize("user", ["", OURS], ids=["its own user", "our user"])
async def test_a_unix_socket_behind_nginx_is_never_local(tmp_path: Path, user: str) -> None:
    runner = web.AppRunner(made(tmp_path))
    await runner.setup()
    folder = Path(tempfile.mkdtemp())  # where the user of nginx can come
    try:
        await web.UnixSite(runner, str(folder / "s")).start()
        os.chmod(folder, 0o755)
        os.chmod(folder / "s", 0o777)
        front = free_port()
        words = nginx(tmp_path, front, f"http://unix:{folder}/s", "proxy_set_header Host 127.0.0.1;", *NEWER, user=user)
        async with program(front, *words):
            await refuses_all(front, tmp_path)
    finally:
        await runner.cleanup()
        shutil.rmtree(folder)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("mode", ["http", "tcp"])
async def test_behind_haproxy_no_client_is_local(tmp_path: Path, mode: str, address: str) -> None:
    async with serving(made(tmp_path)) as port:
        front = free_port()
        (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(mode=mode, address=address, port=front, upstream=port))
        async with program(front, installed("haproxy"), "-db", "-f", str(tmp_path / "haproxy.cfg")):
            await refuses_all(front, tmp_path)


@pytest.mark.parametrize("header", [
    ("Via", "1.1 Caddy"), ("X-Real-IP", "127.0.0.1"), ("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-Host", "127.0.0.1"),
    ("X-Forwarded-Proto", "http"), ("Forwarded", "for=127.0.0.1"),
])  # fmt: skip
async def test_a_header_of_a_proxy_is_enough(tmp_path: Path, header: tuple[str, str]) -> None:
    async with serving(made(tmp_path)) as port:
        for credential in credentials(tmp_path):
            got = await say(port, credential, "HTTP/1.1", header)
            assert (got.status, got.json) == REFUSED


async def test_http_1_0_is_a_proxys(tmp_path: Path) -> None:
    async with serving(made(tmp_path)) as port:
        for credential in credentials(tmp_path):
            assert (await say(port, credential)).status == 200
            got = await say(port, credential, "HTTP/1.0")
            assert (got.status, got.json) == REFUSED


# Programs --------------------------------------------------------------------------------------------------------------

ASKS = """
import socket, sys, time
port, (header, listens, more, version) = int(sys.argv[1]), sys.argv[2:]
if listens:
    other = socket.create_server((listens, 0), family=socket.AF_INET6 if ":" in listens else socket.AF_INET)
if more == "itself":
    first = socket.create_connection(other.getsockname()[:2])
    second = other.accept()
if more == "others":
    print(other.getsockname()[1], flush=True)
    second = other.accept()
client = socket.create_connection(("127.0.0.1", port))
client.sendall(f"GET /api/me {version}\\r\\nHost: 127.0.0.1\\r\\n{header}\\r\\n\\r\\n".encode())
print(client.recv(4096).split()[1].decode())
"""


async def status(port: int, credential: tuple[str, str], listens: str = "", more: str = "", version: str = "HTTP/1.1") -> int:
    """The status that another program gets."""
    words = [sys.executable, "-I", "-S", "-c", ASKS, str(port), ": ".join(credential), listens, more, version]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    if more == "others":
        other = f"import socket, time; it = socket.create_connection(('127.0.0.1', {int(await process.stdout.readline())})); time.sleep(9)"
        mine = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", other)
        try:
            said, _ = await asyncio.wait_for(process.communicate(), 10)
            return int(said)
        finally:
            mine.kill()
            await mine.wait()
    said, _ = await asyncio.wait_for(process.communicate(), 10)
    return int(said)


@pytest.mark.parametrize(("listens", "more", "expected"), [
    ("", "", 200), ("127.0.0.1", "", 200), ("::1", "", 200), ("127.0.0.1", "itself", 200),
    ("127.0.0.1", "others", 401), ("0.0.0.0", "", 401), ("::", "", 401),
])  # fmt: skip
async def test_a_program_of_the_same_user_is_local_unless_it_serves_others(tmp_path: Path, listens: str, more: str, expected: int) -> None:
    async with serving(made(tmp_path)) as port:
        for credential in credentials(tmp_path):
            assert await status(port, credential, listens, more) == expected


FORKS = """
import os, socket, sys
address, port, upstream = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
front = socket.create_server((address, port))
while True:
    client, _ = front.accept()
    if os.fork() == 0:
        front.close()
        server = socket.create_connection(("127.0.0.1", upstream))
        server.sendall(client.recv(65536))
        client.sendall(server.recv(65536))
        os._exit(0)
    client.close()
"""


@pytest.mark.parametrize("diagnosed", [True, False], ids=["asked", "tables"])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
async def test_a_proxy_with_a_process_for_each_connection_is_found(
    tmp_path: Path, address: str, diagnosed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `socat TCP-LISTEN:80,fork TCP:127.0.0.1:8080`: the process that connects to us does not listen itself."""
    if not diagnosed:
        monkeypatch.setattr(sock_diag, "_NETLINK_SOCK_DIAG", 31)
    async with serving(made(tmp_path)) as port:
        front = free_port()
        async with program(front, sys.executable, "-I", "-S", "-c", FORKS, address, str(front), str(port)):
            for credential in credentials(tmp_path):
                assert await status(front, credential) == 401


@pytest.mark.parametrize(("listens", "expected"), [("", 200), ("127.0.0.1", 200), ("0.0.0.0", 401)])
async def test_the_tables_say_the_same_where_the_kernel_cannot_be_asked(
    tmp_path: Path, listens: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sock_diag, "_NETLINK_SOCK_DIAG", 31)
    assert sock_diag.serving() is None
    async with serving(made(tmp_path)) as port:
        assert await status(port, stub(), listens) == expected


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_kernel_tells_whose_a_socket_is(family: socket.AddressFamily, address: str) -> None:
    with socket.create_server((address, 0), family=family) as server, socket.create_connection(server.getsockname()[:2]) as client:
        assert sock_diag.end(client.getsockname(), client.getpeername()) == (os.geteuid(), os.fstat(client.fileno()).st_ino)
        assert os.fstat(server.fileno()).st_ino in (sock_diag.serving() or ())
        assert os.fstat(client.fileno()).st_ino not in (sock_diag.serving() or ())
    assert sock_diag.end((address, 1), (address, 2)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a program of another user")
async def test_a_program_of_another_user_is_not_local(tmp_path: Path) -> None:
    async with serving(made(tmp_path)) as port:
        python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else pytest.skip("no Python that another user can run")
        words = [python, "-I", "-S", "-c", ASKS, str(port), ": ".join(stub()), "", "", "HTTP/1.1"]
        process = await asyncio.create_subprocess_exec(
            *words, stdout=asyncio.subprocess.PIPE, user=65534, group=65534, extra_groups=[], cwd="/")  # fmt: skip
        assert int((await process.communicate())[0]) == 401


@pytest.mark.parametrize(("name", "text"), [
    (("127.0.0.1", 8080), "0100007F:1F90"), (("::ffff:127.0.0.1", 8080, 0, 0), "0100007F:1F90"),
    (("::1", 80, 0, 0), "00000000000000000000000001000000:0050"), (("fe80::1%eth0", 80, 0, 3), "000080FE000000000000000001000000:0050"),
    ("/a/path", None), (("localhost", 80), None), (None, None), ((), None),
], ids=str)  # fmt: skip
@pytest.mark.skipif(sys.byteorder != "little", reason="the tables have the machine's order of bytes")
def test_a_name_as_the_tables_write_it(name: object, text: str | None) -> None:
    assert this_machine._written(name) == text


def test_a_connection_that_is_gone_is_not_direct() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not this_machine._judge(server.getsockname(), ("127.0.0.1", 1))


def test_where_nothing_is_shown_the_other_checks_must_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "_TABLES", ("/nowhere",))
    assert this_machine._judge(("127.0.0.1", 2), ("127.0.0.1", 1))


def test_the_listeners_beyond_loopback() -> None:
    before = this_machine.public_listeners()
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("0.0.0.0", 0)) as public:
        assert set(this_machine.public_listeners()) - set(before) == {f"0.0.0.0:{public.getsockname()[1]}"}
    assert this_machine.public_listeners() == before


async def test_a_connection_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[object] = []
    judge = this_machine._judge
    monkeypatch.setattr(this_machine, "_judge", lambda *names: judged.append(names) or judge(*names))
    async with serving(made(tmp_path)) as port, Client(port) as client:
        for _ in range(3):
            assert (await client.ask("GET", "/api/me", [("Host", "127.0.0.1"), stub()])).status == 200
        assert len(judged) == 1
    async with serving(made(tmp_path)) as port:
        await ask(port, "GET", "/api/me", stub())
    assert len(judged) == 2


OPENS_MANY = """
import socket, sys
port, credential, number = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
opened = [socket.create_connection(("127.0.0.1", port)) for _ in range(number)]
for one in opened:
    one.sendall(f"GET /api/me HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nAuthorization: {credential}\\r\\n\\r\\n".encode())
print(*(one.recv(65536).split()[1].decode() for one in opened))
"""


async def test_connections_that_a_program_opens_at_once_are_judged_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each took milliseconds of the event loop: hundreds of them held it up until the revocations were too old (503)."""
    looks: list[int] = []
    look = this_machine._held_with
    monkeypatch.setattr(this_machine, "_held_with", lambda inode: looks.append(inode) or look(inode))
    monkeypatch.setattr(this_machine, "_burst", this_machine._Burst())
    monkeypatch.setattr(this_machine, "_BURST_SECONDS", 60.0)
    async with serving(made(tmp_path)) as port:
        words = [sys.executable, "-I", "-S", "-c", OPENS_MANY, str(port), stub()[1], "50"]
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        assert said.split() == [b"200"] * 50
        assert len(looks) == 1
        # Nobody else gains by it.
        front = free_port()
        async with program(front, sys.executable, "-I", "-S", "-c", FORKS, "127.0.0.1", str(front), str(port)):
            assert await status(front, stub()) == 401
        assert await status(port, stub()) == 200
        assert len(looks) == 3


def test_a_burst_is_over_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    burst = this_machine._Burst()
    monkeypatch.setattr(this_machine, "_BURST_SECONDS", 60.0)
    burst.keep({1, 2})
    assert (burst.has(1), burst.has(3)) == (True, False)
    monkeypatch.setattr(this_machine, "_BURST_SECONDS", 0.0)
    burst.keep({1, 2})
    assert not burst.has(1)
