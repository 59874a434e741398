"""Takes the pictures of docs/images/ from a running server: `make docs`, where Chromium is installed.

With --look it also photographs the docs page and pages of the built site, light and dark, on a desk and on a phone, into
build/pictures: to be looked at, not to be kept.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kits.chromium import CHROMIUM, Tab, browser

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
LOOKED_AT = ROOT / "build" / "pictures"
SIZES = {"desk": (1280, 1000), "phone": (390, 844)}
PAGES = ("index", "tutorial", "guides/index", "guides/first-incident", "reference/settings", "explanation/security", "404")


async def photograph(tab: Tab, url: str, file: Path, scheme: str, size: tuple[int, int], ready: str) -> None:
    """Open the address in this colour scheme and size, wait until the selector `ready` is there, and write the PNG."""
    await tab.open(url, *size)
    await tab.until(f"document.querySelector({ready!r})")
    await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    await asyncio.sleep(2)  # fonts, and what fades in
    await tab.picture(file)
    print(f"written: {file.relative_to(ROOT)}")


async def docs_page(tab: Tab, look: bool) -> None:
    """The docs page of a server with the built-in routes."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEPOST_", "CLERK_", "DATABASE_"))}
        given = {"PYTHONPATH": str(ROOT), "GATEPOST_PORT": "0", "GATEPOST_OPS_PORT": "0"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server", cwd=folder, env=kept | given, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            url = (await process.stdout.readline()).decode().split()[-1] + "/api/public/docs"
            await photograph(tab, url, IMAGES / "api-docs.png", "light", SIZES["desk"], ".opblock")
            if look:
                await photograph(tab, url, LOOKED_AT / "api-docs-phone.png", "light", SIZES["phone"], ".opblock")
        finally:
            process.terminate()
            await process.wait()


async def site(tab: Tab) -> None:
    """Pages of build/site, read from the disk."""
    for page in PAGES:
        for scheme in ("light", "dark"):
            for name, size in SIZES.items():
                file = LOOKED_AT / f"{page.replace('/', '-')}-{scheme}-{name}.png"
                await photograph(tab, f"file://{ROOT}/build/site/{page}.html", file, scheme, size, "article")


async def main(look: bool) -> None:
    LOOKED_AT.mkdir(parents=True, exist_ok=True)
    async with browser() as tab:
        await docs_page(tab, look)
        if look:
            await site(tab)


if __name__ == "__main__":
    if CHROMIUM is None:
        print("Chromium is not installed: docs/images/ stays as it is", file=sys.stderr)
    else:
        asyncio.run(main("--look" in sys.argv))
