"""The machine: processes pinned to a CPU, the CPU time and memory that they took, and what the machine is. Linux only."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = 0.10
"""A measurement during which other processes took more than this part of one CPU is noisy."""
_TICK = os.sysconf("SC_CLK_TCK")
_OURS = ("GATEPOST_", "CLERK_", "DATABASE_", "_GATEPOST", "LIMIT_")


def cpus() -> tuple[int, int]:
    """(the CPU of the server, the CPU of Postgres and of the loader); the same one twice where there is but one."""
    here = sorted(os.sched_getaffinity(0))
    return here[0], here[1 % len(here)]


def tree(pid: int) -> list[int]:
    """The process and all that it has started, and they."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
    return found


def pin(pid: int, cpu: Iterable[int]) -> None:
    """Let every thread of the whole tree run on these CPUs alone. Raises PermissionError for another user's processes."""
    for one in tree(pid):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            for task in Path(f"/proc/{one}/task").iterdir():
                os.sched_setaffinity(int(task.name), cpu)


def cpu_now(pids: Iterable[int]) -> dict[int, int]:
    """Nanoseconds on a CPU so far, of every thread in the trees of these processes."""
    spent: dict[int, int] = {}
    for root in pids:
        for one in tree(root):
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{one}/task").iterdir():
                    spent[int(task.name)] = int((task / "schedstat").read_text().split()[0])
    return spent


def cpu_between(before: Mapping[int, int], after: Mapping[int, int]) -> float:
    """Seconds on a CPU. Threads that have ended in between took next to nothing with us, and are not counted."""
    return sum(spent - before.get(task, 0) for task, spent in after.items()) / 1e9


def busy_seconds() -> float:
    """What all CPUs have run so far, ours and others'."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(int(fields[number]) for number in (1, 2, 3, 6, 7)) / _TICK


def wait_quiet(longest: float) -> None:
    """Wait for half a second in which no other process needs the machine, `longest` seconds at the most."""
    end = time.monotonic() + longest
    while time.monotonic() < end:
        busy, began = busy_seconds(), time.monotonic()
        time.sleep(0.5)
        if busy_seconds() - busy < FOREIGN * (time.monotonic() - began):
            return


def memory_mib(pid: int) -> float:
    """Resident memory of the whole tree."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return total / 1024


class Child:
    """A program that says on its first line where it serves (its last word ends in `:port`). Its standard error is a file."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cpu: Iterable[int], log: Path, cwd: Path = ROOT) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        allowed = set(cpu)
        self.log, self.started = log, time.monotonic()
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command, cwd=cwd, env={**clean, **env}, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, allowed),
            )  # fmt: skip
        self.port = self._port()
        self.seconds_to_ready = time.monotonic() - self.started

    @property
    def pid(self) -> int:
        return self.process.pid

    def _port(self) -> int:
        out = self.process.stdout
        line = b""
        if out is not None and select.select([out], [], [], 60)[0]:
            line = out.readline()
        _, colon, port = line.decode().strip().rpartition(":")
        if not colon or not port.isdigit():
            self.stop()
            raise RuntimeError(f"{self.process.args!r} did not start:\n{self.log.read_text()[-2000:]}")
        return int(port)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to a process that does not end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                for one in tree(self.pid):
                    os.kill(one, signal.SIGKILL)
                self.process.wait(5)
        if self.process.stdout is not None:
            self.process.stdout.close()


def facts() -> dict[str, str]:
    """What a reader must know of a result: date, machine, versions."""
    packages = ("gatepost", "aiohttp", "asyncpg", "uvloop", "msgspec", "cryptography")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "CPU": f"{_cpu_model()}, {os.cpu_count()} of them",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        **versions,
        "commit": _commit(),
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    try:
        said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()
