"""Clerk's own verifier, npm `@clerk/backend`, in a process of Node: what it says about tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from .. import ROOT

MODULES = ROOT / ".cache" / "clerk"


def verdicts(key: str, publishable: str, cases: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The verdict on each case: `type`, `subject`, `scopes`, `id` of an accepted token, or the `reason` of a refusal.

    A case has `token`, `accepts` (one token type, or a list), `options` of `authenticateRequest`, and `now` (Unix seconds).
    `key` is the instance's PEM.
    """
    node = shutil.which("node")
    if node is None or not (MODULES / "node_modules" / "@clerk" / "backend").exists():
        pytest.skip("@clerk/backend is not installed: make client-tools")
    program = Path(__file__).with_name("verdicts.mjs")
    words = [node, str(program), str(MODULES), json.dumps({"key": key, "publishable": publishable})]
    text = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def version() -> str:
    """The version that is installed."""
    return str(json.loads((MODULES / "node_modules" / "@clerk" / "backend" / "package.json").read_text("utf-8"))["version"])
