"""Several machines on one: as root a network namespace for each, joined by a bridge; otherwise loopback addresses.

Only namespaces can be cut off from each other. Each machine has a folder of its own. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PREFIX = "gpc-"
"""Of the names of namespaces and network devices; at most 15 characters with the machine's name."""
NOWHERE = "02:00:00:00:de:ad"
"""A hardware address that no machine has: what is sent there is lost without an error, as behind a pulled cable."""
MARK = "CLUSTER_MACHINE"


def ip(*words: str, check: bool = True) -> str:
    """Run iproute2's `ip`; what it prints. Raises CalledProcessError."""
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True).stdout


def search_path() -> str:
    """Where programs are looked for: Debian has some in a folder that only root's PATH names."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class Account:
    """As whom programs run that refuse root.

    Where the kernel allows it root takes another name in a user namespace, so that it can still enter this checkout and a
    Python in its home; otherwise programs run as `postgres` or `nobody`, who must be able to read both.
    """

    def __init__(self) -> None:
        self.user: pwd.struct_passwd | None = None
        self.words: list[str] = []
        """What precedes a program."""
        if os.geteuid() == 0:
            names = {user.pw_name: user for user in pwd.getpwall()}
            self.user = names.get("postgres") or names["nobody"]
            alias = ["unshare", "--user", f"--map-user={self.user.pw_uid}", f"--map-group={self.user.pw_gid}"]
            real = ["setpriv", f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups"]
            self.aliased = subprocess.run([*alias, "true"], check=False, capture_output=True).returncode == 0
            self.words = alias if self.aliased else real

    def hand_over(self, folder: Path) -> None:
        """Give this folder and what is in it to the account."""
        if self.user is not None and not self.aliased:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.user.pw_uid, self.user.pw_gid)


class Machine:
    """One address, one folder, and the programs that run there."""

    def __init__(self, name: str, address: str, folder: Path, account: Account, *, space: bool) -> None:
        """`space`: it is a network namespace."""
        self.name, self.address, self.folder, self.account, self.space = name, address, folder, account, space
        self.programs: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(mode=0o755)

    def start(self, program: str, words: Sequence[str | Path], env: Mapping[str, str], *, ours: bool = False) -> None:
        """Start a program in the background; its output goes to PROGRAM.log. `ours`: as this user, even if that is root."""
        self._link("up")
        enter = ["nsenter", f"--net=/run/netns/{PREFIX}{self.name}"] if self.space else []
        line = [*enter, *([] if ours else self.account.words), *map(str, words)]
        usual = {"PATH": search_path(), "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": str(self.folder), MARK: str(self.folder)}
        with (self.folder / f"{program}.log").open("ab") as log:
            self.programs[program] = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                cwd=self.folder, env={**usual, **env})  # fmt: skip

    def hand_over(self) -> None:
        """Give the folder to those as whom programs run."""
        self.account.hand_over(self.folder)

    def ended(self) -> bool:
        """Whether a program that was started has ended."""
        return any(program.poll() is not None for program in self.programs.values())

    def pids(self) -> list[int]:
        """Every process of this machine."""
        if self.space:
            return [int(pid) for pid in ip("netns", "pids", PREFIX + self.name, check=False).split()]
        mark = f"{MARK}={self.folder}\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
        return found + [pid for one in found for pid in _children(one) if pid not in found]

    def send(self, how: signal.Signals, program: str | None = None) -> None:
        """A signal to every process of the machine, or to one program."""
        pids = self.pids() if program is None else [self.programs[program].pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

    def kill(self, *, dark: bool = False) -> None:
        """The power fails: the network goes silent first, so that no client learns that its connection has ended.

        `dark`: it stays silent until a program is started. Otherwise the kernel still delivers what was in its buffers.
        """
        self._link("down")
        while self.pids():
            self.send(signal.SIGKILL)
            self.reap()
            time.sleep(0.02)
        if not dark:
            self._link("up")

    def stop(self, seconds: float = 20) -> None:
        """Ask every program to end, and kill what is left after `seconds`."""
        self.send(signal.SIGCONT)
        for program in self.programs.values():
            if program.poll() is None:
                program.terminate()
        end = time.monotonic() + seconds
        while self.pids() and time.monotonic() < end:
            self.reap()
            time.sleep(0.05)
        while self.pids():
            self.send(signal.SIGKILL)
            self.reap()
            time.sleep(0.02)

    def reap(self) -> None:
        """Collect programs that have ended."""
        for program in self.programs.values():
            program.poll()

    def _link(self, state: str) -> None:
        if self.space:
            ip("link", "set", PREFIX + self.name, state)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Network:
    """The machines and what joins them; `close` leaves nothing behind."""

    def __init__(self, folder: Path) -> None:
        """`folder` is for what the machines keep. Raises SystemExit while another cluster runs on this machine."""
        self.folder, self.machines = folder, dict[str, Machine]()
        self._lock = socket.socket(socket.AF_UNIX)
        try:
            self._lock.bind("\0gatepost-cluster")  # a name that is no file, and ends with this process
        except OSError:
            raise SystemExit("a cluster is already running on this machine") from None
        self.spaces, self._account = _may_make_spaces(), Account()
        self.prefix = "198.18.77." if self.spaces else "127.18.77."  # 198.18.0.0/15 is for tests (RFC 2544)
        self.network = self.prefix + "0/24" if self.spaces else "127.0.0.0/8"
        if self.spaces:
            _remove_spaces()  # of a run that was killed
            ip("link", "add", PREFIX + "net", "type", "bridge")
            ip("address", "add", self.prefix + "1/24", "dev", PREFIX + "net")
            ip("link", "set", PREFIX + "net", "up")

    def add(self, name: str, number: int) -> Machine:
        """A new machine with the address PREFIX.number."""
        machine = Machine(name, f"{self.prefix}{number}", self.folder / name, self._account, space=self.spaces)
        self.machines[name] = machine
        if self.spaces:
            space = PREFIX + name
            ip("netns", "add", space)
            ip("link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", space, "master", PREFIX + "net", "up")
            ip("-n", space, "address", "add", machine.address + "/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", device, "up")
        return machine

    def cut(self, name: str, others: Sequence[str]) -> None:
        """Lose everything between this machine and the others, silently and both ways."""
        for other in others:
            for here, there in ((name, other), (other, name)):
                address = self.machines[there].address
                ip("-n", PREFIX + here, "neigh", "replace", address, "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent")

    def mend(self, name: str, others: Sequence[str]) -> None:
        """Undo `cut`."""
        for other in others:
            for here, there in ((name, other), (other, name)):
                ip("-n", PREFIX + here, "neigh", "del", self.machines[there].address, "dev", "eth0", check=False)

    def close(self) -> None:
        """Stop all machines, the last one first, and remove the namespaces and the folder."""
        for machine in reversed(self.machines.values()):
            machine.stop(5)
        if self.spaces:
            _remove_spaces()
        for mount in (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()):
            if mount.startswith(f"{self.folder}/"):
                subprocess.run(["umount", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def _may_make_spaces() -> bool:
    """Whether this user may make network namespaces (root, and not in a container that forbids it)."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
        return False
    probe = subprocess.run(["ip", "netns", "add", PREFIX + "probe"], check=False, capture_output=True)
    bridge = subprocess.run(["ip", "link", "add", PREFIX + "probe", "type", "bridge"], check=False, capture_output=True)
    ip("link", "del", PREFIX + "probe", check=False)
    ip("netns", "del", PREFIX + "probe", check=False)
    return probe.returncode == 0 and bridge.returncode == 0


def _remove_spaces() -> None:
    spaces = [line.split()[0] for line in ip("netns", "list", check=False).splitlines() if line.startswith(PREFIX)]
    for space in spaces:
        for pid in ip("netns", "pids", space, check=False).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        ip("netns", "del", space, check=False)
    ip("link", "del", PREFIX + "net", check=False)
