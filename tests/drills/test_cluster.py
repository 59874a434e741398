"""The cluster of deploy/cluster/ with all its programs: it starts, serves and ends, and survives what the short drill breaks."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kits import ROOT

pytestmark = pytest.mark.long


def lacking() -> list[str]:
    """What deploy/cluster/ says is not installed."""
    script = "import sys; sys.path.insert(0, 'deploy/cluster'); from cluster import missing; print(*missing(), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """There is one cluster on a machine at a time; tests of this file may be run side by side."""
    if names := lacking():
        pytest.skip("; ".join(names))
    with Path(tempfile.gettempdir(), "gatepost-tests-cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        assert not list(Path(tempfile.gettempdir()).glob("gatepost-cluster-*"))
        left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"gatepost-cluster-" in _read(path)]
        assert [_read(path) for path in left] == []
        if os.geteuid() == 0:
            listed = subprocess.run(["ip", "netns", "list"], check=False, capture_output=True, text=True).stdout
            assert "gpc-" not in listed


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_make_cluster_prints_commands_that_work_and_ends_at_ctrl_c() -> None:
    words = [sys.executable, ROOT / "deploy" / "cluster" / "one_machine.py"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        printed = ""
        try:
            for line in process.stdout:
                printed += line
                if "Ctrl-C" in line:
                    break
            assert "(primary)" in printed, printed
            assert "(synchronous standby)" in printed
            commands = re.findall(r"^ +(curl .*)$", printed, re.MULTILINE)
            for command, expected in zip(commands, ('"user_id":"user_1"', '"name":"first"'), strict=True):
                done = subprocess.run(shlex.split(command), check=True, capture_output=True, text=True, timeout=30)
                assert expected in done.stdout, done.stdout
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.alone
def test_the_short_drill() -> None:
    """A primary that is killed, one that stands still, a switchover, a server and PgBouncer killed: nothing acknowledged is lost."""
    words = [sys.executable, ROOT / "bench" / "cluster_drill.py", "--short"]
    done = subprocess.run(words, cwd=ROOT, check=False, capture_output=True, text=True, timeout=900)
    print(done.stderr, done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-20_000:]
    assert done.stdout.count("\n| ") >= 5


def test_rows_of_the_page_are_replaced_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("bench", "deploy/cluster"):
        monkeypatch.syspath_prepend(ROOT / folder)
    spec = importlib.util.spec_from_file_location("cluster_drill", ROOT / "bench" / "cluster_drill.py")
    assert spec is not None
    assert spec.loader is not None
    drill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drill)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- rows -->\n<!-- /rows -->\nafter\n")
    names = [fault.name for fault in drill.FAULTS]
    for name, number in ((names[2], "1"), (names[0], "2"), (names[2], "3")):
        drill.write([[name, *[number] * 11]], page)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("before", "after", 8)
    assert lines[4].startswith(f"| {names[0]} | 2 |")
    assert lines[5].startswith(f"| {names[2]} | 3 |")
