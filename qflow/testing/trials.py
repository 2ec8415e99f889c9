"""Trials: one function, called in every way that must not matter: again, in another order, in another worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast, final

from qflow.errors import annotate, describe
from qflow.graph.flow import Each
from qflow.runtime.whereabouts import WorkerInfo, here
from qflow.testing.sent import Sent


def tried(operator: Each[Any, Any], items: Sequence[Sent]) -> list[Sent]:
    """What an operator gives for some items, if that is the same in every way to call it."""
    __tracebackhide__ = True
    trial = Trial(operator)
    results = [trial.call(item) for item in items]
    if operator.user_code:
        again = [trial.call(item) for item in reversed(items)]
        other = Trial(operator, WorkerInfo(operator.name, 1, 2, attempt=2))
        elsewhere = [other.call(item) for item in reversed(items)]
        for item, first, *others in zip(items, results, reversed(again), reversed(elsewhere), strict=True):
            for each in others:
                if unlike(first, each):
                    _blame(operator, item, first, each)
        trial.assert_unchanged()
        other.assert_unchanged()
    return [result for each in results for result in each]


@final
class Trial:
    """One instance of an operator's function, and what it has given.

    Args:
        info: of the worker that it shall find itself in; None: in none.
    """

    def __init__(self, operator: Each[Any, Any], info: WorkerInfo | None = None) -> None:
        self._name, self._info = operator.name, info
        with _worker(info):
            self._opened = cast("Each[Any, Any]", operator.opened())
        self._given: list[tuple[Sent, Any]] = []

    def call(self, item: Sent) -> list[Sent]:
        """The results for one item, which stays as it is."""
        __tracebackhide__ = True
        with _worker(self._info):
            return self._call(item)

    def _call(self, item: Sent) -> list[Sent]:
        __tracebackhide__ = True
        value, results = item.fresh(), []
        for result in self._outputs(value, describe(value)):
            sent = Sent(result, f"A result of step {self._name!r}", "result")
            self._given.append((sent, result))
            results.append(sent)
        changed = item.against(value)
        if changed:
            raise AssertionError(
                f"Step {self._name!r} changes its item: {changed.told('item')}. "
                "An item may be replayed, so it must stay as it came, and arrays are read-only in a worker: "
                "write `y = x * 2` for `x *= 2`, or change a copy."
            )
        return results

    def _outputs(self, value: Any, what: str) -> Iterator[Any]:
        try:
            yield from self._opened.outputs(value)
        except Exception as error:
            annotate(error, self._name, None, what)
            raise

    def assert_unchanged(self) -> None:
        """No result has changed since it was given."""
        __tracebackhide__ = True
        for sent, result in self._given:
            changed = sent.against(result)
            if changed:
                raise AssertionError(
                    f"Step {self._name!r} changes a result that it has given: {changed.told('result')}. "
                    "Is it a buffer that is used again? Give a new object or a copy for each result."
                )


@contextmanager
def _worker(info: WorkerInfo | None) -> Iterator[None]:
    """A block in which `qf.worker()` gives ``info``."""
    before = here.info, here.simulated
    here.info, here.simulated = None if info is None else lambda: info, True
    try:
        yield
    finally:
        here.info, here.simulated = before


def unlike(first: Sequence[Sent], second: Sequence[Sent]) -> str | None:
    """How the results for one item differ, in words."""
    if len(first) != len(second):
        return f"it gave {len(first)} results, then {len(second)}"
    pairs = zip(first, second, strict=True)
    differences = ((number, one.against(other.fresh())) for number, (one, other) in enumerate(pairs))
    one = len(first) == 1
    return next((found.told("result" if one else f"results[{number}]") for number, found in differences if found), None)


def _blame(operator: Each[Any, Any], item: Sent, first: Sequence[Sent], second: Sequence[Sent]) -> NoReturn:
    """Say what makes the results differ, by what makes them differ again."""
    __tracebackhide__ = True
    alone, twice = Trial(operator).call(item), Trial(operator).call(item)
    elsewhere = Trial(operator, WorkerInfo(operator.name, 1, 2, attempt=2)).call(item)
    what, how = describe(item.fresh()), unlike(first, second)
    if unlike(alone, twice):
        raise AssertionError(
            f"Step {operator.name!r} gives different results for the same item, {what}: {how}. "
            "Do they depend on random numbers, the time, a set's order, or something it counts outside of itself? "
            "Random numbers may be seeded by the item: `np.random.default_rng([seed, item_number])`."
        )
    if unlike(alone, elsewhere):
        raise AssertionError(
            f"Step {operator.name!r} gives different results for the same item, {what}, in different workers or at "
            f"different tries: {how}. Results must not depend on `qf.worker()`."
        )
    raise AssertionError(
        f"The results of step {operator.name!r} for an item, {what}, depend on the items before it: {how}. "
        "Each worker sees other items, and a replay begins anew: an instance may keep only what changes no result."
    )
