"""The operator's public list: path patterns as Clerk users write them, compared with the route templates at startup.

The grammar is that of path-to-regexp 6: literals, `:name`, `:name(regex)`, `(regex)`, `{optional}?` and the modifiers
`? * +`. As there, a pattern is anchored at both ends, ignores the case of ASCII letters and allows one trailing `/`.
Nothing is decided on path text at run time: a pattern covers either every path that a route's template can produce, or none
of the route.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from .automaton import ALL, Automaton, Unsupported, chars
from .regex import Expression

_SEGMENT: Final = ALL & ~chars("/#?")
_TEMPLATE_SEGMENT: Final = ALL & ~chars("/{}")
# The characters of a path that the router sees: `?` and `#` occur only as escapes, and control characters and backslashes
# not at all, since such a target has been refused before (server/http/targets.py).
PATH: Final = ALL & ~chars("?#\\") & ~(1 << 127) & ~((1 << 32) - 1)
# The text that every path matched by a pattern begins with: all before the first special character, except a slash or dot
# that may belong to the parameter after it.
_OPENING: Final = re.compile(r"[^:(){}\\?*+]*?(?=[/.]?(?:[:(){}\\?*+]|\Z))")
_TEMPLATE_PARAMETER: Final = re.compile(r"\{(?P<name>[_a-zA-Z][_a-zA-Z0-9]*)(?::(?P<regex>(?:[^{}]|\{[^{}]*\})*))?\}")


class PatternError(ValueError):
    """The pattern does not compile; the message says why."""


class Pattern:
    """One compiled pattern. `covers` decides which routes it opens."""

    def __init__(self, text: str) -> None:
        """Raises PatternError."""
        self.text = text
        if not text.startswith("/") or not text.isascii():
            raise PatternError(f"public pattern {text!r}: must start with '/' and be ASCII")
        try:
            self.automaton = _Parser(text).automaton()
        except Unsupported as error:
            raise PatternError(f"public pattern {text!r}: {error}") from error
        opening = _OPENING.match(text)
        self._opening = opening[0].lower() if opening else ""

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def matches(self, path: str) -> bool:
        """Does the pattern match this path (no query)?"""
        return self.automaton.matches(path)

    def covers(self, template: str) -> bool:
        """Does the pattern match *every* path that this aiohttp route template can produce?"""
        opening = template.partition("{")[0].lower()
        if template.isascii() and _clash(self._opening, opening):
            return False  # the usual case, decided cheaply
        return _automaton_of(template).within(self.automaton, PATH)


@lru_cache(maxsize=1024)
def _automaton_of(template: str) -> Automaton:
    return template_automaton(template)


def shadows(earlier: str, later: str) -> bool:
    """Does the earlier template match every path that the later one matches?"""
    if _clash(earlier.partition("{")[0], later.partition("{")[0]):
        return False
    if _clash(earlier.rpartition("}")[2][::-1], later.rpartition("}")[2][::-1]):
        return False
    return _automaton_of(later).within(template_automaton(earlier, unread=0), PATH)


def _clash(one: str, other: str) -> bool:
    """Do the two beginnings (or reversed ends) exclude each other, so that no path has both?"""
    return not one.startswith(other) and not other.startswith(one)


def template_automaton(template: str, *, unread: int = ALL) -> Automaton:
    """The automaton of all paths that a template like `/api/data/{id}` or `/x/{n:\\d+}` can match.

    A regular expression that is Unsupported counts as any text over `unread`: all symbols, so that no pattern covers the
    template; or 0, no text at all, so that the template shadows nothing.
    """
    automaton, at = Automaton(), 0
    for found in _TEMPLATE_PARAMETER.finditer(template):
        _literal(automaton, template[at : found.start()])
        at, regex = found.end(), found["regex"]
        if regex is None:
            automaton.then_group(lambda: automaton.then(_TEMPLATE_SEGMENT), 1, None)
            continue
        try:
            Expression(regex, Automaton(), ignore_case=False, beyond=True).append()  # a dry run, which may raise
            Expression(regex, automaton, ignore_case=False, beyond=True).append()
        except Unsupported:
            automaton.then_group(lambda: automaton.then(unread), 0 if unread else 1, None)
    _literal(automaton, template[at:])
    return automaton


def _literal(automaton: Automaton, text: str) -> None:
    for char in text:
        automaton.then(chars(char))


class _Parser:
    """Parses path-to-regexp's grammar, one token at a time. Raises Unsupported."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.out = text, 0, Automaton()

    def automaton(self) -> Automaton:
        while self.at < len(self.text):
            self._token()
        self.out.then_group(lambda: self.out.then(chars("/#?")), 0, 1)  # one trailing delimiter is allowed
        return self.out

    def _token(self) -> None:
        char = self.text[self.at]
        if char == "{":
            self.at += 1
            self._braces()
        elif char in "/." and self._parameter_at(self.at + 1):
            self.at += 1  # the prefix belongs to the parameter and is repeated or omitted with it
            self._apply(lambda: self._chars(char), self._parameter())
        elif self._parameter_at(self.at):
            self._apply(lambda: None, self._parameter())
        else:
            self._chars(self._plain())

    def _parameter_at(self, at: int) -> bool:
        return self.text[at : at + 1] in ("(", ":")

    def _plain(self) -> str:
        char = self.text[self.at]
        self.at += 1
        if char == "\\":
            if self.at >= len(self.text):
                raise Unsupported("ends in a backslash")
            self.at += 1
            return self.text[self.at - 1]
        if char in "*+?}":
            raise Unsupported(f"unexpected {char!r}")
        return char

    def _parameter(self) -> Callable[[], None]:
        if self.text[self.at] == ":":
            name = re.compile(r"[A-Za-z0-9_]+").match(self.text, self.at + 1)
            if name is None:
                raise Unsupported("a ':' without a name")
            self.at = name.end()
            if self.text[self.at : self.at + 1] != "(":
                return lambda: self.out.then_group(lambda: self.out.then(_SEGMENT), 1, None)
        return self._group()

    def _group(self) -> Callable[[], None]:
        depth, start = 0, self.at
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 2 if char == "\\" else 1
            depth += {"(": 1, ")": -1}.get(char, 0)
            if depth == 0:
                inside = self.text[start + 1 : self.at - 1]
                if not inside or inside.startswith("?"):
                    raise Unsupported("a group that is empty or starts with '?'")
                Expression(inside, Automaton(), ignore_case=True, beyond=False).append()
                return lambda: Expression(inside, self.out, ignore_case=True, beyond=False).append()
        raise Unsupported("a group that is not closed")

    def _braces(self) -> None:
        parts: list[Callable[[], None]] = []
        while self.text[self.at : self.at + 1] not in ("}", ""):
            parts.append(self._parameter() if self._parameter_at(self.at) else self._brace_text())
        if self.text[self.at : self.at + 1] != "}":
            raise Unsupported("a '{' that is not closed")
        self.at += 1

        def whole() -> None:
            for part in parts:
                part()

        self._apply(lambda: None, whole)

    def _brace_text(self) -> Callable[[], None]:
        char = self._plain()
        return lambda: self._chars(char)

    def _apply(self, prefix: Callable[[], None], body: Callable[[], None]) -> None:
        low, high = {"?": (0, 1), "*": (0, None), "+": (1, None)}.get(self.text[self.at : self.at + 1], (None, 1))
        if low is not None:
            self.at += 1

        def whole() -> None:
            prefix()
            body()

        self.out.then_group(whole, 1 if low is None else low, high)

    def _chars(self, text: str) -> None:
        for char in text:
            self.out.then(chars({char.lower(), char.upper()}))
