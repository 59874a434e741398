"""Words for what goes wrong while a plugin is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..settings.near import with_variables
from ..settings.setting import Setting


def one_line(error: Exception) -> str:
    """Returns the type and the text of the error, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def explained(error: Exception, known: Mapping[str, Setting]) -> str:
    """Returns the error in one line; behind the settings that it names, their environment variables.

    A ValueError that begins with one of the `known` settings is for the operator, and needs no name of its type.
    """
    text = " ".join(str(error).split())
    first = re.match(r"[a-z_]+\.[a-z_]+", text)
    is_of_a_setting = type(error) is ValueError and first is not None and first[0] in known
    return with_variables(text if is_of_a_setting else one_line(error), known)
