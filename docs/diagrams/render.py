"""Draws docs/diagrams/*.mmd as docs/images/*.svg: `make diagrams`. Needs Chromium and npm; a test fails until it is run.

The picture contains the SHA-256 of its source text. npm fetches Mermaid for the drawing only: the pages of the site load
nothing from other hosts.
"""

from __future__ import annotations

import hashlib
import html
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MERMAID = "mermaid@11.17.2"
PAGE = """<!doctype html><meta charset="utf-8"><body><pre id="source">{source}</pre>
<script src="mermaid.min.js"></script><script>
mermaid.initialize({{startOnLoad: false, theme: "base", htmlLabels: false, fontFamily: "sans-serif",
  themeVariables: {{primaryColor: "#e8eef7", primaryBorderColor: "#8aa0c0", noteBkgColor: "#fff6dd",
    noteBorderColor: "#d8c48a"}},
  sequence: {{useMaxWidth: true, mirrorActors: false, actorMargin: 12, width: 120, messageFontSize: 18, noteFontSize: 18,
  actorFontSize: 18}}}})
mermaid.render("diagram", document.getElementById("source").textContent).then(made => {{document.body.innerHTML = made.svg}})
</script>"""


def mark(text: str) -> str:
    """The mark that the picture of this text contains."""
    return f"<!-- {hashlib.sha256(text.encode()).hexdigest()} -->"


def draw(text: str, folder: Path) -> str:
    """The diagram as an SVG file's text. `folder` holds mermaid.min.js."""
    (folder / "page.html").write_text(PAGE.format(source=html.escape(text)), "utf-8")
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run([*words, f"file://{folder}/page.html"], capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r"<svg .*</svg>", done.stdout, re.DOTALL)
    if found is None or 'aria-roledescription="error"' in found[0]:
        raise SystemExit("render.py: Chromium drew nothing")
    # As a file of its own it must be XML, and have a ground: a dark page would swallow black lines.
    svg = re.sub(r"<br\s*>", "<br/>", found[0]).replace("&nbsp;", "\u00a0")
    svg = re.sub(r'style="max-width: ([\d.]+)px;[^"]*"', r'style="max-width: \1px; background: white"', svg, count=1)
    return f"{mark(text)}\n{svg}\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        subprocess.run(["npm", "pack", MERMAID, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(folder.glob("*.tgz"))) as packed:
            inner = packed.extractfile("package/dist/mermaid.min.js")
            (folder / "mermaid.min.js").write_bytes(inner.read() if inner else b"")
        for source in sorted(HERE.glob("*.mmd")):
            target = HERE.parent / "images" / f"{source.stem}.svg"
            target.write_text(draw(source.read_text("utf-8"), folder), "utf-8")
            print(f"written: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
