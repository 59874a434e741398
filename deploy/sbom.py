"""Writes build/sbom.json: what a Gatepost that is installed here runs with, as a CycloneDX bill of materials (`make sbom`).

cyclonedx-py describes the whole environment, development tools too. This keeps Gatepost and what it needs at run time, by
the installed packages' own metadata, and checks the result against CycloneDX's schema. Nothing is fetched.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

OUT = Path(__file__).resolve().parent.parent / "build" / "sbom.json"


def plain(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(root: str) -> set[str]:
    """The names of `root` and of all that it needs here at run time, including requested extras."""
    seen: set[tuple[str, str]] = set()
    waiting = [(root, "")]
    while waiting:
        name, extra = waiting.pop()
        if (plain(name), extra) in seen:
            continue
        seen.add((plain(name), extra))
        for line in requires(name) or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                waiting += [(wanted.name, one) for one in ("", *wanted.extras)]
    return {name for name, _ in seen}


def pruned(whole: dict[str, Any], root: str = "gatepost") -> dict[str, Any]:
    """The part of a description of the environment that `root` needs, with `root` as what is described."""
    names = needed(root)
    kept = [part for part in whole["components"] if plain(part["name"]) in names]
    refs = {part["bom-ref"] for part in kept}
    (about,) = [part for part in kept if plain(part["name"]) == root]
    # The path of this checkout does not belong in the file.
    about = {key: value for key, value in about.items() if key != "externalReferences"} | {"type": "application"}
    edges = [
        {"ref": edge["ref"], "dependsOn": [ref for ref in edge.get("dependsOn", ()) if ref in refs]}
        for edge in whole["dependencies"]
        if edge["ref"] in refs
    ]
    return {
        **whole,
        "metadata": {**whole["metadata"], "component": about},
        "components": [part for part in kept if part["bom-ref"] != about["bom-ref"]],
        "dependencies": edges,
    }


def main() -> int:
    """Write the file, and say what is in it."""
    told = subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--sv", "1.6", sys.executable],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    text = json.dumps(pruned(json.loads(told.stdout)), indent=2, sort_keys=True) + "\n"
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        print(f"sbom: not valid CycloneDX: {fault}", file=sys.stderr)
        return 1
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(text, encoding="utf-8")
    count = len(json.loads(text)["components"])
    print(f"build/sbom.json: gatepost {version('gatepost')} with {count} packages, valid CycloneDX 1.6")
    return 0


if __name__ == "__main__":
    sys.exit(main())
