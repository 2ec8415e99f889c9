"""Tally: whether all results came, right, once, and in order, told block by block at next to no cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from qflow.bench.throughput.workload import Keys


class Void(Exception):
    """The results are not the right ones; nothing that was measured counts."""


@dataclass
class Tally:
    """The keys of the results so far, beside those of the right ones; kept only from the first that differs.

    >>> tally = Tally(lambda start, stop: list(range(start, stop)))
    >>> tally.take([0, 1]), tally.take([3, 2])
    (None, None)
    >>> tally.verdict(4), tally.in_order
    ('', False)
    >>> tally.verdict(5)
    '1 of 5 results is missing'
    """

    keys: Keys
    count: int = 0
    in_order: bool = True
    _found: Counter[Any] = field(default_factory=Counter)
    _since: int = 0

    def take(self, found: list[Any]) -> None:
        """The next block."""
        if self.in_order:
            self.in_order, self._since = found == self.keys(self.count, self.count + len(found)), self.count
        if not self.in_order:
            self._found.update(found)
        self.count += len(found)

    def verdict(self, count: int) -> str:
        """What is wrong with the results of so many items, or ""."""
        missing, wrong = count - self.count, 0
        if not self.in_order:
            right = Counter(self.keys(self._since, count))
            missing, wrong = (right - self._found).total(), (self._found - right).total()
        if wrong or missing < 0:
            return f"{wrong or -missing} of {self.count} results are wrong or doubled"
        return f"{missing} of {count} results {'is' if missing == 1 else 'are'} missing" if missing else ""

    def demand(self, count: int) -> None:
        """That these were the results of so many items.

        Raises:
            Void: they weren't.
        """
        if wrong := self.verdict(count):
            raise Void(wrong)
