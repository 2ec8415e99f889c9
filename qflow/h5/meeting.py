"""Meeting: the ranks of one run come together at files beside its output.

    out.h5.journal           rank 0's; who holds its lock writes the output, however many ranks there are
    out.h5.ranks             rank 0's: which run this is, and whether it failed; gone when the output is complete
    out.h5.journal-1-of-3    what the slices of rank 1 have given; rank 0 follows it, and writes the slices of all in their order

Rank r of R has slices r, r + R, r + 2R ... Nothing but a file system that all ranks see is needed, so it is the same for each
launcher; where all ranks write together (`collective`), rank 0 says when all slices are there. Whoever has a journal open holds
its lock: that of a rank that is gone is free, and nobody waits for it. What an earlier run has said counts for nothing: rank 0
holds a second lock as soon as it has said its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from glob import escape, glob
from itertools import islice
from typing import Any, TypeVar, final

from qflow.errors import GraphError, InternalError, ResourceError
from qflow.graph.ranks import Rank
from qflow.h5 import journal as journals
from qflow.h5.journal import Handed, Journal

A = TypeVar("A")

PAUSE = 0.02  # seconds between two looks at a file of another host, which nobody tells of
PATIENCE = 600.0  # seconds within which ranks that were launched together come here


@final
class Meeting:
    """Of one rank with the others.

    Args:
        output: of the run.
        rank: this one, of how many.
    """

    def __init__(self, output: str, rank: Rank) -> None:
        self.output, self.rank, self.id = output, rank, uuid.uuid4().hex
        self._path = f"{output}.ranks"

    @property
    def alone(self) -> bool:
        """There is one rank."""
        return self.rank.count == 1

    def journal(self, index: int) -> str:
        """The path of a rank's journal."""
        return f"{self.output}.journal" + (f"-{index}-of-{self.rank.count}" if index else "")

    def begin(self, journal: Journal, seed: int, together: bool) -> int:
        """Rank 0 says which run this is, and its seed, which the others learn; and whether all ranks write together."""
        if self.alone:
            return seed
        if self.rank.index == 0:
            self._say({"run": self.id, "seed": seed, "together": together})
            journal.say()
            return seed
        begun = time.monotonic()
        while (said := self._said()) is None:
            if time.monotonic() > begun + PATIENCE:
                raise ResourceError(
                    f"Rank 0 of {self.rank.count}, which writes {self.output!r}, has not begun within {PATIENCE:g} seconds. "
                    "If each rank writes an output of its own, say so: `h5.run(..., shard=(0, 1))`."
                )
            time.sleep(PAUSE)
        if "failed" in said:
            raise ResourceError(f"Rank 0, which writes {self.output!r}, has failed: {said['failed']}")
        self.id = said["run"]
        if said.get("together", False) != together:
            raise GraphError(
                f"Rank 0 writes {'with' if said.get('together') else 'for'} all ranks, which rank {self.rank} does not expect. "
                "Give all ranks the same `driver`, and the numbers that MPI gives them."
            )
        return int(said["seed"])

    def all(self, own: Iterator[Handed]) -> Iterator[Handed]:
        """In rank 0: what the slices of all ranks have given, in their order."""
        others = [journals.follow(self.journal(index), self.id, PAUSE, PATIENCE) for index in range(1, self.rank.count)]
        yield from alternate([own, *others])

    def gathered(self) -> None:
        """Tell, or wait until it is told, that all ranks have what their slices give."""
        if self.rank.index:
            self.end("gathered")
        else:
            self._say({"run": self.id, "seed": 0, "gathered": True})

    def watched(self, own: Iterator[Handed]) -> Iterator[Handed]:
        """What the slices of this rank have given; in rank 0 until all others are there, too, or one of them has failed."""
        others = [
            journals.noted(self.journal(index), self.id, PAUSE, PATIENCE)
            for index in range(1, self.rank.count if self.rank.index == 0 else 0)
        ]
        feeds: list[Iterator[Any]] = [own, *others]
        return islice(alternate(feeds), 0, None, len(feeds))

    def own(self) -> Iterator[Handed]:
        """What the slices of this rank have given, once more."""
        return journals.follow(self.journal(self.rank.index), self.id, PAUSE, PATIENCE)

    def end(self, word: str = "") -> None:
        """In the other ranks: wait until the output is complete, or rank 0 says a word."""
        while (said := self._read()) is not None:
            if said["run"] == self.id and "failed" in said:
                raise ResourceError(f"Rank 0, which writes {self.output!r}, has failed: {said['failed']}")
            if said["run"] != self.id or (self._said() is None and self._read() == said):
                raise ResourceError(f"Rank 0, which writes {self.output!r}, is gone.")
            if word in said:
                return
            time.sleep(PAUSE)
        if word:
            raise ResourceError(f"Rank 0, which writes {self.output!r}, is gone.")

    def complete(self) -> None:
        """In rank 0: the output is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        for index in reversed(range(self.rank.count)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.journal(index))

    def fail(self, error: BaseException, journal: Journal) -> None:
        """Tell the others: rank 0 by what it says, another one by its journal."""
        said = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            if self.rank.index == 0 and not self.alone:
                self._say({"run": self.id, "seed": 0, "failed": said})
            elif self.rank.index:
                journal.refuse((self._said() or {"run": self.id})["run"], said)

    def clear(self) -> None:
        """In rank 0, which holds its lock: what it says counts from now on; journals of other numbers of ranks go."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        for path in glob(f"{escape(self._path)}.{'[0-9a-f]' * 32}"):  # of one that was killed amid what it said
            os.unlink(path)
        here = {self.journal(index) for index in range(self.rank.count)}
        for path in glob(f"{escape(self.output)}.journal-*-of-*"):
            numbers = path.removeprefix(f"{self.output}.journal-").split("-of-")
            if path not in here and all(number.isdigit() for number in numbers) and journals.free(path):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def _say(self, what: dict[str, Any]) -> None:
        beside = f"{self._path}.{self.id}"
        with open(beside, "w") as file:
            json.dump(what, file)
        os.replace(beside, self._path)

    def _said(self) -> dict[str, Any] | None:
        """What rank 0 says, if it is there."""
        return None if journals.free(self.journal(0), journals.SAID) else self._read()

    def _read(self) -> dict[str, Any] | None:
        """What was said last, by whomever."""
        with contextlib.suppress(FileNotFoundError), open(self._path) as file:
            return dict(json.load(file))
        return None


def alternate(feeds: Sequence[Iterable[A]]) -> Iterator[A]:
    """The first of each, the second of each, and so on; they end together.

    >>> list(alternate([[0, 2, 4], [1, 3]]))
    [0, 1, 2, 3, 4]
    """
    each = [iter(feed) for feed in feeds]
    end = object()
    while True:
        for number, feed in enumerate(each):
            found: Any = next(feed, end)
            if found is end:
                left = [other for other, rest in enumerate(each) if next(rest, end) is not end]
                if left:
                    raise InternalError(f"Rank {number} has no more slices, but rank {left[0]} has.")
                return
            yield found
