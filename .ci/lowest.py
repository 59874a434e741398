"""Prints a constraints file: the lowest versions of what a server runs with, and the pinned versions of the test tools.

`name==floor` for every dependency and optional dependency that pyproject.toml gives a lower bound; the extra `dev` is what the
tests are run with, so its packages are those of requirements.txt.
"""

import re
import sys
import tomllib
from pathlib import Path

root = Path(__file__).resolve().parents[1]
project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
extras = project["optional-dependencies"]
pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (root / "requirements.txt").read_text("utf-8"), re.MULTILINE))
pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}

for requirement in [*project["dependencies"], *extras["embedded"], *extras["valkey"]]:
    found = re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)", requirement)
    if not found:
        sys.exit(f"pyproject.toml: {requirement!r} has no lower bound")
    print(f"{found[1]}=={found[2]}")
for requirement in extras["dev"]:
    name = re.split(r"[><=\[;]", requirement)[0]
    if name in pins and name != "asyncpg-stubs":  # its version follows that of asyncpg
        print(f"{name}=={pins[name]}")
