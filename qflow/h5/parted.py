"""Parted: a flow over tables in two parts: what workers do with each slice, and what is done in the process that writes.

    rows | need | f | append  --Hand-->  stage | g | append
    in workers, any order                in order, in one process

The first `stage` is the seam.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, final

import numpy as np

from qflow.errors import GraphError, got
from qflow.graph.flow import Each, Flow, Joins, Operator
from qflow.graph.function import Function
from qflow.graph.marks import process
from qflow.graph.ranks import Rank
from qflow.graph.shard import Shard
from qflow.graph.step import Step
from qflow.h5.block import ROWS, Block, Path
from qflow.h5.inputs import Need, Rows
from qflow.h5.journal import Handed
from qflow.h5.outputs import Append, Stage


class Parted(NamedTuple):
    """The operators in workers, those behind, and for a `Block` the names that functions behind can use."""

    before: tuple[Operator[Any, Any], ...]
    behind: tuple[Operator[Any, Any], ...]
    names: dict[str, tuple[Path, int]]

    @property
    def parts(self) -> list[Operator[Any, Any]]:
        """All operators, one by one; `head` first."""
        return [part for each in (*self.before, *self.behind) for part in each.inside]

    @property
    def head(self) -> Rows:
        """What the flow begins with."""
        (head,) = self.before[0].inside
        assert isinstance(head, Rows)
        return head

    @property
    def crossed(self) -> tuple[str, str] | None:
        """Two tables that are linked both ways, so that one dataset holds the references of both."""
        links = {(other, part.table) for part in self.parts if isinstance(part, Append) for other in part.refs}
        return next(((one, other) for one, other in sorted(links) if one != other and (other, one) in links), None)

    def pipe(self, n: int | None, rank: Rank) -> Flow[Any, Any]:
        """What workers do with the slices of one rank. ``n``: how many there are, in a flow without marks."""
        hand = Hand(_wants_value(self.behind, self.names), _inputs(self.head, self.behind))
        shard = [] if rank.count == 1 else [Shard(rank.index, rank.count)]
        return Flow(*shard, *_marked([*self.before, hand], n))


def parted(flow: Any, start: int | None, stop: int | None) -> Parted:
    """A flow, which begins with `Rows`, those between two, in its parts."""
    if not isinstance(flow, Joins):
        raise GraphError(f'`h5.run` takes a flow, as `h5.rows("hits") | step | h5.append("calib")`, but got {got(flow)}.')
    head, *others = flow.operators or [None]
    if not isinstance(head, Rows):
        raise GraphError(f'A flow over tables begins with `h5.rows`, but got {flow!r}. Write `h5.rows("hits") | ...`.')
    operators = (head.between(start, stop), *others)
    place = next((place for place, each in enumerate(operators) if isinstance(each, Stage)), len(operators))
    return Parted(operators[:place], operators[place:], _names(operators[:place]))


@final
class Hand(Each[Any, Handed]):
    """Blocks become what they have given.

    Args:
        value: also what the last function gave.
        takes: the parameters of the run for what is called in this process.
    """

    lands = True

    def __init__(self, value: bool, takes: frozenset[str]) -> None:
        self.value, self.takes = value, takes

    @property
    def name(self) -> str:
        return "hand"

    def outputs(self, value: Block) -> Iterable[Handed]:
        at = value.slice
        given: Any = ROWS
        if self.value and not value.over and value.value is not ROWS:
            given = np.asarray(value.value)
            if given.dtype.hasobject or isinstance(value.value, np.ma.MaskedArray):
                raise TypeError(
                    f"What a function gives to one behind `h5.stage` is an array without a mask, but got {got(value.value)}. "
                    "Append it, and let the stage name it."
                )
        return (Handed(at.start, at.stop, value.over, given, value.made, at.rows),)

    def length(self, items: int) -> int:
        return items

    def __repr__(self) -> str:
        return "hand"


def _marked(operators: list[Operator[Any, Any]], n: int | None) -> list[Any]:
    """With workers."""
    if not any(isinstance(each, Step) for each in operators):
        return [process(n=1 if n is None else n, name="slices")(Flow(*operators))]
    if n is not None:
        raise GraphError("`n` is for a flow without marks; here the marks say how many workers there are.")
    return operators


def _names(operators: Iterable[Operator[Any, Any]]) -> dict[str, tuple[Path, int]]:
    """What functions behind some operators can name, as a `Block` knows it."""
    names: dict[str, tuple[Path, int]] = {}
    made = 0
    for each in (part for operator in operators for part in operator.inside):
        if isinstance(each, Rows | Append):
            made += isinstance(each, Append)
            names[each.as_] = Path((each.table,)), made
        elif isinstance(each, Need):
            names |= {name: (path, made) for name, path in each.paths.items()}
    return names


def _inputs(head: Rows, behind: Iterable[Operator[Any, Any]]) -> frozenset[str]:
    """What functions name that are called in this process."""
    functions = [function for each in behind for part in each.inside for function in part.functions]
    made = [Function(head.of)] if callable(head.of) else []
    return frozenset(name for function in (*functions, *made) for name in function.inputs.names)


def _wants_value(behind: Iterable[Operator[Any, Any]], names: Iterable[str]) -> bool:
    """Whether operators want what the function before them gave."""
    known = {*names}
    for each in behind:
        if isinstance(each, Append):
            return True
        if isinstance(each, Need):
            known |= each.paths.keys()
        for function in each.functions:
            return function.inputs.first is not None and function.inputs.first not in known
    return False
