"""Writes commands.md and plugin-api.md of docs/reference/, and gatepost.example.toml, from the code: `make docs`. A test compares them."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import server
from server.commands import _parser
from server.commands.parser import subcommands
from server.plugins.loader import Plugins
from server.settings.sample import sample
from server.settings.sources import Settings

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
WRITTEN = "<!-- Written by `make docs` from the code; change the code, not this page. -->"

COMMANDS = f"""# Commands

{WRITTEN}

`python -m server`, or `gatepost` where the wheel is installed. (The second does not put the working folder on the import path.)
`help COMMAND` shows the help of a command, and `help environment` every environment variable. `completion bash` (or `zsh`, `fish`) prints
the shell's completion of `gatepost`. On a terminal there are colours, unless `NO_COLOR` is set or `TERM` is `dumb`.
Status 0; 2 with one line for a mistake in the configuration or the arguments; 1 for other failures. Results go to standard output, remarks and progress
to standard error. Commands whose output programs may read have `--json`.
"""

PUBLIC_INTERFACE = f"""# Plugin API

{WRITTEN}

Everything that a plugin may import from `server`, with signatures and docstrings from the code. How to use it is in
[Write a plugin](../guides/plugins.md).
"""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Declare a handler's access": ("public", "signed_in", "requires", "limited", "describe", "answers_secret"),
    "The caller": ("identity_of", "caller_of", "Identity", "accepted_types", "client_address", "client_network", "is_local", "is_plain_text", "with_org_prefix"),
    "Rows": ("read", "write", "scoped", "UniqueViolation", "ForeignKeyViolation", "CheckViolation"),
    "Requests and responses": ("body", "raw_body", "body_stream", "row_id", "query", "page", "answer", "answer_row", "entity_tag", "check_if_match", "openapi_document", "access_table"),
    "Live answers": ("event_stream", "Stream", "Change", "socket"),
    "Tools for agents": ("tools_of", "Tool", "call_tool", "calls_tools", "is_foreign_origin"),
    "Errors": (
        "ApiError", "BadRequest", "Forbidden", "NotFound", "Conflict", "PreconditionFailed", "Unprocessable", "TooManyRequests", "ErrorDetails",
    ),
    "Files": ("content_disposition",),
    "Providers": ("Provider", "House", "Answer", "CredentialRejected", "Unavailable", "BoundedDict", "SingleFlight", "revocation_failed"),
    "Hooks, settings, services, commands": ("hookimpl", "service", "Setting", "checked_origin", "nearest_name", "Command", "CommandContext"),
}


def loaded() -> tuple[Settings, Plugins]:
    """The settings of an empty environment, and the built-in plugins."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(environ={}, given={"data_folder": folder})
        return settings, Plugins(settings)


def example() -> str:
    """The text of gatepost.example.toml."""
    return sample(loaded()[0].declared())


# Commands ----------------------------------------------------------------------------------------------------------------


def commands() -> str:
    """The text of docs/reference/commands.md: `--help` of every command."""
    wide = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "110"
    try:
        parser = _parser(loaded()[1].offers().commands)
        parts = [COMMANDS, "## `python -m server`\n", _help(parser)]
        for name, inner in subcommands(parser).items():
            parts += [f"## `{name}`\n", _help(inner)]
            for action, deeper in subcommands(inner).items():
                parts += [f"### `{name} {action}`\n", _help(deeper)]
    finally:
        os.environ.pop("COLUMNS") if wide is None else os.environ.update(COLUMNS=wide)
    return "\n".join(parts)


def _help(parser: argparse.ArgumentParser) -> str:
    # The titles of some parts differ between versions of Python; the words do not.
    return f"```text\n{parser.format_help().rstrip()}\n```\n"


# Plugin API --------------------------------------------------------------------------------------------------------------


def plugin_api() -> str:
    """The text of docs/reference/plugin-api.md."""
    parts = [PUBLIC_INTERFACE]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts += [f"### `{name}`\n", *_described(name, getattr(server, name))]
    return "\n".join(parts)


def _described(name: str, what: Any) -> Iterator[str]:
    if name == "hookimpl":
        yield "The marker of plugins' hooks: `@hookimpl`, or `hookimpl(function, specname=\"register_handlers\")`.\n"
        return
    yield f"```text\n{_signature(name, what)}\n```\n"
    yield _prose(inspect.getdoc(what) or "")
    if inspect.isclass(what):
        for member, inner in vars(what).items():
            if inspect.isfunction(inner) and not member.startswith("_") and inspect.getdoc(inner):
                yield f"```text\n{_signature(member, inner)}\n```\n"
                yield _prose(inspect.getdoc(inner) or "")


def _signature(name: str, what: Any) -> str:
    """Name and parameters; long ones a parameter a line."""
    try:
        said = inspect.signature(what)
    except ValueError:
        return name
    if inspect.isclass(what) and (getattr(what, "_is_protocol", False) or not said.parameters):
        return f"class {name}"
    kind = "async def " if inspect.iscoroutinefunction(what) else "class " if inspect.isclass(what) else "def "
    parameters = list(_parameters(said))
    returns = "" if inspect.isclass(what) or said.return_annotation is said.empty else f" -> {_plain(said.return_annotation)}"
    line = f"{kind}{name}({', '.join(parameters)}){returns}"
    if len(line) <= 110:
        return line
    return f"{kind}{name}(\n" + "\n".join(f"    {one}," for one in parameters) + f"\n){returns}"


def _parameters(said: inspect.Signature) -> Iterator[str]:
    keywords_only = False
    for one in said.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not keywords_only:
            keywords_only = True
            if not any(other.kind is other.VAR_POSITIONAL for other in said.parameters.values()):
                yield "*"
        stars = "*" if one.kind is one.VAR_POSITIONAL else ""
        annotation = "" if one.annotation is one.empty else f": {_plain(one.annotation)}"
        yield f"{stars}{one.name}{annotation}" + ("" if one.default is one.empty else f" = {_default(one.default)}")


def _plain(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return value.__name__ if inspect.isclass(value) else repr(value) if not callable(value) else "…"


def _prose(doc: str) -> str:
    """A docstring as Markdown: paragraphs as they are; tables of words in columns as a block."""
    parts = []
    for paragraph in doc.split("\n\n"):
        lines = paragraph.splitlines()
        columns = sum(bool(re.match(r"\S[^.]{0,28}\s{2,}\S", line)) for line in lines)
        block = columns >= 2 or all(line.startswith("    ") for line in lines)
        prose = re.sub(r"<([A-Z]+)>", r"&lt;\1&gt;", paragraph)  # Markdown would take it for HTML
        parts.append(f"```text\n{textwrap.dedent(paragraph)}\n```" if block else prose)
    return "\n\n".join(parts) + "\n"


WHAT = {REFERENCE / "commands.md": commands, REFERENCE / "plugin-api.md": plugin_api, ROOT / "gatepost.example.toml": example}

if __name__ == "__main__":
    for path, made in WHAT.items():
        path.write_text(made(), "utf-8")
        print(f"written: {path}")
