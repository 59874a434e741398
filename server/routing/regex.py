"""Parses the regular expressions that a pattern or a route template may contain."""

from __future__ import annotations

from collections.abc import Callable

from .automaton import ALL, BEYOND, DIGITS, LINE_ENDS, SPACES, WORDS, Automaton, Unsupported, chars


class Expression:
    """Parses one regular expression and appends it to an automaton.

    Knows literals, `.`, classes, `\\d \\w \\s` and their opposites, groups `(...)` and `(?:...)`, `|`, `* + ? {m,n}`
    (lazy or not: both match the same texts). Anything else is Unsupported.
    """

    def __init__(self, text: str, automaton: Automaton, *, ignore_case: bool, beyond: bool) -> None:
        self.text, self.at, self.automaton = text, 0, automaton
        self.ignore_case, self.beyond = ignore_case, BEYOND if beyond else 0

    def append(self) -> None:
        """Append the whole expression. Raises Unsupported."""
        build = self._alternatives()
        if self.at < len(self.text):
            raise Unsupported(f"unexpected {self.text[self.at]!r}")
        build()

    def _alternatives(self) -> Callable[[], None]:
        choices = [self._sequence()]
        while self._take("|"):
            choices.append(self._sequence())
        return choices[0] if len(choices) == 1 else lambda: self.automaton.then_either(choices)

    def _sequence(self) -> Callable[[], None]:
        parts: list[Callable[[], None]] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self._repeated(self._atom()))

        def build() -> None:
            for part in parts:
                part()

        return build

    def _repeated(self, atom: Callable[[], None]) -> Callable[[], None]:
        low, high = 1, 1
        unbounded = False
        if self._take("*"):
            low, unbounded = 0, True
        elif self._take("+"):
            unbounded = True
        elif self._take("?"):
            low = 0
        elif self._take("{"):
            low, high, unbounded = self._bounds()
        else:
            return atom
        self._take("?")
        return lambda: self.automaton.then_group(atom, low, None if unbounded else high)

    def _bounds(self) -> tuple[int, int, bool]:
        inside, closed, _ = self.text[self.at :].partition("}")
        low, comma, high = inside.partition(",")
        if not closed or not low.isdigit() or (high and not high.isdigit()):
            raise Unsupported("a brace that is not {m}, {m,} or {m,n}")
        self.at += len(inside) + 1
        top = int(high) if high else int(low)
        if top < int(low):
            raise Unsupported("{m,n} with n below m")
        return int(low), top, bool(comma) and not high

    def _atom(self) -> Callable[[], None]:
        char = self._next()
        if char == "(":
            if self._take("?") and not self._take(":"):
                raise Unsupported("only (...) and (?:...) groups")
            inner = self._alternatives()
            if not self._take(")"):
                raise Unsupported("a group that is not closed")
            return inner
        if char in "*+?{}^$":
            raise Unsupported(f"unexpected {char!r}")
        mask = self._class() if char == "[" else ALL & ~LINE_ENDS if char == "." else self._literal(char)
        return lambda: self.automaton.then(mask)

    def _literal(self, char: str) -> int:
        if char != "\\":
            return self._fold(chars(char))
        escaped = self._next()
        known = {"d": DIGITS | self.beyond, "w": WORDS | self.beyond, "s": SPACES | self.beyond}
        if escaped in known:
            return known[escaped]
        if escaped.lower() in known:
            return ALL & ~known[escaped.lower()] | self.beyond
        if escaped.isalnum():
            raise Unsupported(f"the escape \\{escaped}")
        return chars(escaped)

    def _class(self) -> int:
        negated, mask, first = self._take("^"), 0, True
        while first or not self._take("]"):
            first = False
            char = self._next()
            low = self._range(char) if char != "\\" and self._range_follows() else self._literal(char)
            mask |= low
        return ALL & ~mask | self.beyond if negated else mask

    def _range_follows(self) -> bool:
        return self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", "")

    def _range(self, low: str) -> int:
        self.at += 1
        high = self._next()
        if high == "\\" or not low <= high < "\x80":
            raise Unsupported("a range that is not between two characters")
        return self._fold(chars(map(chr, range(ord(low), ord(high) + 1))))

    def _fold(self, mask: int) -> int:
        if not self.ignore_case:
            return mask
        letters = [chr(n) for n in range(128) if mask >> n & 1]
        return mask | chars(char.swapcase() for char in letters)

    def _take(self, char: str) -> bool:
        if self.text[self.at : self.at + 1] != char:
            return False
        self.at += 1
        return True

    def _next(self) -> str:
        if self.at >= len(self.text):
            raise Unsupported("ends too early")
        self.at += 1
        return self.text[self.at - 1]
