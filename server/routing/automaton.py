"""Finite automata: enough of regular expressions to decide whether one set of paths lies within another.

The alphabet has 129 symbols: the ASCII characters, and one symbol for all other characters. Matching takes time linear in the
text, whatever the expression, and inclusion is decided, not sampled.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from typing import Final

BEYOND: Final = 1 << 128
ALL: Final = (1 << 129) - 1
LINE_ENDS: Final = (1 << 10) | (1 << 13)
_REPEAT_LIMIT: Final = 64


class Unsupported(ValueError):
    """An expression that is invalid, or uses syntax that this module does not support."""


def chars(text: Iterable[str]) -> int:
    """The set of these characters, as a bit mask of symbols."""
    mask = 0
    for char in text:
        mask |= 1 << ord(char) if ord(char) < 128 else BEYOND
    return mask


DIGITS: Final = chars(string.digits)
WORDS: Final = chars(string.ascii_letters + string.digits + "_")
SPACES: Final = chars(" \t\n\r\f\v")


class Automaton:
    """A nondeterministic automaton with one start and one end state.

    States are numbers. `moves[state]` are (mask, state) pairs: a symbol of the mask leads to that state. `jumps[state]` are
    states that are reached without a symbol.
    """

    def __init__(self) -> None:
        self.moves: list[list[tuple[int, int]]] = []
        self.jumps: list[list[int]] = []
        self.start = self.state()
        self.end = self.start

    def state(self) -> int:
        """Add a state; its number."""
        self.moves.append([])
        self.jumps.append([])
        return len(self.moves) - 1

    def then(self, mask: int) -> None:
        """Append one symbol of the set."""
        new = self.state()
        self.moves[self.end].append((mask, new))
        self.end = new

    def then_group(self, build: Callable[[], None], low: int = 1, high: int | None = 1) -> None:
        """Append what `build` appends, `low` to `high` times (None: any number). Raises Unsupported beyond 64 repetitions."""
        if max(low, high or 0) > _REPEAT_LIMIT:
            raise Unsupported(f"more than {_REPEAT_LIMIT} repetitions")
        for _ in range(low):
            build()
        if high is None:
            loop = self.end = self._jump_to_new()
            build()
            self.jumps[self.end].append(loop)
            self.end = loop
            self.end = self._jump_to_new()
            return
        exits = [self.end]
        for _ in range(high - low):
            build()
            exits.append(self.end)
        self._join(exits)

    def then_either(self, builds: list[Callable[[], None]]) -> None:
        """Append one of the alternatives."""
        fork, ends = self.end, []
        for build in builds:
            self.end = self.state()
            self.jumps[fork].append(self.end)
            build()
            ends.append(self.end)
        self._join(ends)

    def _jump_to_new(self) -> int:
        new = self.state()
        self.jumps[self.end].append(new)
        return new

    def _join(self, ends: list[int]) -> None:
        new = self.state()
        for end in ends:
            self.jumps[end].append(new)
        self.end = new

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        """These states, and all that are reached from them without a symbol."""
        seen, todo = set(states), list(states)
        while todo:
            for target in self.jumps[todo.pop()]:
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return frozenset(seen)

    def step(self, states: frozenset[int], mask: int) -> frozenset[int]:
        """The states after a symbol of `mask` (in general a mask of one symbol)."""
        return self.closure({target for state in states for symbols, target in self.moves[state] if symbols & mask})

    def matches(self, text: str) -> bool:
        """Does the automaton accept the whole text?"""
        states = self.closure([self.start])
        for char in text:
            states = self.step(states, chars(char))
            if not states:
                return False
        return self.end in states

    def within(self, other: Automaton, alphabet: int = ALL) -> bool:
        """Does `other` accept every text over `alphabet` that this automaton accepts?"""
        first = (self.start, other.closure([other.start]))
        seen, todo = {first}, [first]
        while todo:
            here, there = todo.pop()
            if here == self.end and other.end not in there:
                return False
            following = [(jump, there) for jump in self.jumps[here]]
            for mask, target in self.moves[here]:
                following += [(target, other.step(there, symbol)) for symbol in other.symbols(mask & alphabet)]
            for pair in following:
                if pair not in seen:
                    seen.add(pair)
                    todo.append(pair)
        return True

    def symbols(self, mask: int) -> list[int]:
        """One symbol of `mask` for each group of symbols that no move of this automaton tells apart."""
        if mask & (mask - 1) == 0:  # one symbol, or none
            return [mask] if mask else []
        parts = [mask]
        for symbols in {symbols for moves in self.moves for symbols, _ in moves}:
            parts = [piece for part in parts for piece in (part & symbols, part & ~symbols) if piece]
        return [part & -part for part in parts]
