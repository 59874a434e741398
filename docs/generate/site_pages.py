"""Builds the site of docs/ into build/site: `make site`. Beside each page lies its Markdown; llms.txt lists every page.

The site is built strictly: a link that leads nowhere, or a page without a place in the navigation, fails.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def config(root: Path = ROOT) -> dict[str, Any]:
    """The contents of mkdocs.yml."""
    return yaml.safe_load((root / "mkdocs.yml").read_text("utf-8"))  # type: ignore[no-any-return]


def pages(nav: list[Any], section: str = "") -> Iterator[tuple[str, str, str]]:
    """Top-level section, title and path of each page of the navigation, in its order."""
    for entry in nav:
        ((title, value),) = entry.items()
        if isinstance(value, str):
            yield section or "Start", title, value
        else:
            yield from pages(value, section or title)


def sentence(text: str) -> str:
    """The first sentence of a page, without Markdown."""
    paragraphs = [part for part in text.split("\n\n") if not re.match(r"(#|<!--|```|\||- |!\[)", part.strip())]
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(paragraphs[0].split()))
    return re.split(r"(?<=[.!?]) (?=[A-Z`*])|:$", re.sub(r"\*{1,2}(\S[^*]*)\*{1,2}", r"\1", plain))[0]


def llms(root: Path = ROOT) -> str:
    """The text of llms.txt: what the project is, and a line for each page, in the form of llmstxt.org."""
    read = config(root)
    lines, last = [f"# {read['site_name']}", "", f"> {read['site_description']}"], ""
    for section, title, path in pages(read["nav"]):
        if section != last:
            lines += ["", f"## {section}", ""]
            last = section
        lines.append(f"- [{title}]({path}): {sentence((root / read['docs_dir'] / path).read_text('utf-8'))}")
    return "\n".join(lines) + "\n"


def build(root: Path = ROOT) -> int:
    """Build the site of this folder; the exit status."""
    read = config(root)
    status = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=root, check=False).returncode
    if status == 0:
        for _, _, path in pages(read["nav"]):
            shutil.copyfile(root / read["docs_dir"] / path, root / read["site_dir"] / path)
        (root / read["site_dir"] / "llms.txt").write_text(llms(root), "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]) if sys.argv[1:] else ROOT))
