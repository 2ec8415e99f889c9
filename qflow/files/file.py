"""File: the data of an input on its way from `read` to `write`, with its control and metadata.

    read      data = function(name);  control: defaults, then the run's params;  meta: nothing
    steps     data = step(data, what it names of meta, control, input_name, and single controls)
    write     function(path, data);  meta is what the caller gets

A step that gives None, or nothing at all, rejects the file: it passes the later ones as it is, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

from qflow.errors import GraphError
from qflow.graph.carrier import Carrier
from qflow.graph.flow import results
from qflow.graph.function import Function
from qflow.graph.markers import SKIP

META, CONTROL, INPUT = "meta", "control", "input_name"
OWN = frozenset([META, CONTROL, INPUT])


@final
class Meta(dict[str, Any]):
    """The metadata of a file: a dict, of which some keys may stay in the worker.

    >>> from qflow.files import Meta
    >>> meta = Meta(median=1.0)
    >>> meta["background"] = "a large array"
    >>> meta.local("background")
    >>> meta.returned()
    {'median': 1.0}
    """

    def __init__(self, *items: Any, **more: Any) -> None:
        super().__init__(*items, **more)
        self._local: set[str] = set()

    def local(self, *keys: str) -> None:
        """Let these keys be for later steps of the file only: large ones should not be sent to the caller."""
        self._local |= {*keys}

    def returned(self) -> dict[str, Any]:
        """What the caller gets."""
        return {key: value for key, value in self.items() if key not in self._local}

    def fresh(self) -> Meta:
        """A copy with containers of its own."""
        found = Meta({key: fresh(value) for key, value in self.items()})
        found.local(*self._local)
        return found

    def __reduce__(self) -> Any:
        return _meta, (dict(self), sorted(self._local))


def fresh(value: Any) -> Any:
    """A value whose lists, dicts and sets are others, so that what one file has put there no other one sees."""
    kind = type(value)
    if kind is Meta:
        return value.fresh()
    if kind is dict:
        return {key: fresh(each) for key, each in value.items()}
    return kind(map(fresh, value)) if kind in (list, set, tuple) else value


def _meta(items: Mapping[str, Any], local: Iterable[str]) -> Meta:
    found = Meta(items)
    found.local(*local)
    return found


class _Nothing:
    """In place of data: the file was rejected."""

    def __reduce__(self) -> str:
        return "REJECTED"


REJECTED = _Nothing()


@final
class File(Carrier):
    """The data of an input, and what goes with it; see the head of this module.

    Attributes:
        data: what `read` and the steps have made of it.
        input: the name, or the list of names of a group.
        control: values for the parameters that steps name, of this file.
        meta: what its record will have.
        parts: its number among those that a step has made of one; one more for each such step.
        known: the parameters that steps name; None: any.
        output: what is there already, so that nothing is to be done.
    """

    __slots__ = ("control", "data", "input", "known", "meta", "output", "parts")

    def __init__(
        self,
        data: Any,
        input: Any,
        control: dict[str, Any] | None = None,
        meta: Meta | None = None,
        parts: tuple[int, ...] = (),
        known: frozenset[str] | None = None,
        output: str | None = None,
    ) -> None:
        self.data, self.input, self.parts, self.known, self.output = data, input, parts, known, output
        self.control = {} if control is None else control
        self.meta = Meta() if meta is None else meta

    @property
    def rejected(self) -> bool:
        """Whether a step gave None."""
        return self.data is REJECTED

    def given(self, function: Function) -> dict[str, Any]:
        """The arguments that a function names, beside the data."""
        named = function.parameters
        found = {name: value for name, value in self.control.items() if name in named}
        own = {META: self.meta, CONTROL: self.control, INPUT: self.input}
        return found | {name: value for name, value in own.items() if name in named}

    def mapped(self, function: Function) -> Iterable[Any]:
        if self.rejected:
            return (self,)
        result = function(self.data, **self.given(function))
        self._check(function)
        outputs = results(result)
        if isinstance(outputs, tuple):
            return (self.with_data(*outputs or [None]),)
        return self._parts(outputs, function)

    def filtered(self, predicate: Function) -> Iterable[Any]:
        if self.rejected:
            return (self,)
        kept = predicate(self.data, **self.given(predicate))
        self._check(predicate)
        return (self if kept else self.with_data(None),)

    def empty(self) -> Any:
        return self.input

    def with_data(self, data: Any) -> File:
        """The same file with other data; None or SKIP: rejected."""
        return File(
            REJECTED if data is None or data is SKIP else data, self.input, self.control, self.meta, self.parts, self.known
        )

    def _parts(self, outputs: Iterable[Any], function: Function) -> Iterator[File]:
        """One of many: what a step does to one of them is not seen by the others."""
        number = -1
        for number, data in enumerate(outputs):
            self._check(function)
            part = self.with_data(data)
            part.control, part.meta = fresh(self.control), fresh(self.meta)
            part.parts = (*self.parts, number)
            yield part
        if number < 0:
            yield self.with_data(None)

    def _check(self, function: Function) -> None:
        """A GraphError for a control that a step has set and that nobody names."""
        if self.known is None or CONTROL not in function.parameters:
            return
        for name in self.control:
            if name not in self.known:
                there = ", ".join(f"`{each}`" for each in sorted(self.known))
                raise GraphError(
                    f"Step {function.name!r} sets the control `{name}`, which no step names as a parameter: {there}."
                )

    def __reduce__(self) -> Any:
        return File, (self.data, self.input, self.control, self.meta, self.parts, self.known, self.output)

    def __repr__(self) -> str:
        return f"File({self.input!r})"
