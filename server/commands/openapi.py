"""Print the OpenAPI document."""

from __future__ import annotations

import argparse
import json

from ..app import build
from ..openapi.document import DOCUMENT
from ..settings.sources import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no options of its own."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Build the application without opening anything, and print what it serves at `/api/public/openapi.json`. Returns 0."""
    print(json.dumps(json.loads(build(settings)[DOCUMENT].json), indent=2, ensure_ascii=False))
    return 0
