"""Options: what a mark promises beside its function: workers, tries, limits; and what a run does with failures.

Options of a function stand on its mark, options of a run on ``pipe(...)``; a run may give defaults for
marks, and the mark wins.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

from qflow.errors import GraphError, got
from qflow.graph.context import Context, Drawn, drawn_seed
from qflow.graph.cores import usable
from qflow.graph.sizes import budget, count, nbytes, whole

ON_ERROR = ("raise", "skip", "collect", "report")
VERSION = 1  # of the state of a run


class MarkOptions(TypedDict, total=False):
    """The keywords of a mark, for the type checkers; `Options` has what they mean."""

    n: int | Literal["auto"] | Callable[[], int] | None
    name: str | None
    retry: int | type[BaseException] | tuple[Any, ...] | Retry | None
    timeout: float | None
    max_items: int | None
    max_memory: int | str | None


@dataclasses.dataclass(frozen=True)
class Retry:
    """Which exceptions are tried again, how many times more, and the seconds to wait before.

    >>> retry_of((OSError, 3))
    (OSError, 3)
    """

    errors: tuple[type[BaseException], ...]
    times: int
    wait: float = 0.0

    def __repr__(self) -> str:
        names = ", ".join(error.__name__ for error in self.errors)
        which = names if len(self.errors) == 1 else f"({names})"
        return f"({which}, {self.times}{f', {self.wait}' if self.wait else ''})"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a mark; None: not given.

    Attributes:
        n: workers; ``"auto"``, or what is asked for their number when a run starts.
        name: of the step.
        retry: what to try again, in the same worker, on the item as it came.
        timeout: seconds that the step may compute without giving a result; a minute at least to load an item or the step.
        max_items: items after which a worker process is replaced by a fresh one.
        max_memory: bytes of private memory above which a worker process is replaced between two items.
    """

    n: int | str | Callable[[], int] | None = None
    name: str | None = None
    retry: Retry | None = None
    timeout: float | None = None
    max_items: int | None = None
    max_memory: int | None = None

    @property
    def limited(self) -> bool:
        """Whether a worker gives way to a fresh one after a while."""
        return self.max_items is not None or self.max_memory is not None

    def over(self, others: Options) -> Options:
        """These, and the others where these say nothing."""
        return Options(*(other if own is None else own for own, other in zip(_row(self), _row(others), strict=True)))

    def given(self) -> list[tuple[str, Any]]:
        """The options that say something, by name."""
        fields = dataclasses.fields(self)
        return [(field.name, value) for field, value in zip(fields, _row(self), strict=True) if value is not None]


NOTHING = Options()
MARK_WORDS = frozenset(field.name for field in dataclasses.fields(Options))


def _row(options: Options) -> tuple[Any, ...]:
    return tuple(getattr(options, field.name) for field in dataclasses.fields(options))


def options_of(given: Mapping[str, Any], where: str) -> Options:
    """Options as a user wrote them, or a GraphError; ``where`` is the code they stand in, as ``qf.process({})``."""
    unknown = next((word for word in given if word not in MARK_WORDS), None)
    if unknown is not None:
        hint = f"there are {', '.join(f'`{word}=`' for word in _READ)}"
        if unknown in {"workers", "nworkers", "num_workers"}:
            hint = "the number of workers is `n=`"
        if unknown in {"process_size", "mem_frac", "mem_available"}:
            hint = f"workers that fit into memory are `n=qf.files.workers({unknown}=...)`"
        raise GraphError(f"`{where.partition('(')[0]}` has no option `{unknown}`: {hint}, as in `{where.format('n=2')}`.")
    read: dict[str, Any] = {word: _READ[word](value, where) for word, value in given.items() if value is not None}
    return Options(**read)


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise GraphError(f"`name` is a text, but got {got(value)}.")
    return value


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise GraphError(f"`timeout` is a number of seconds above 0, but got {got(value)}. Write `{where.format('timeout=30')}`.")
    return float(value)


def _asked(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def workers(n: int | str | Callable[[], int]) -> int:
    """How many an option ``n`` stands for at this moment."""
    found = usable() if isinstance(n, str) else n() if callable(n) else n
    return count(found, "n", "qf.process(n=2)")


def _bytes(value: Any, where: str) -> int:
    return nbytes(value, "max_memory", where.format('max_memory="2GB"'))


def retry_of(value: Any, where: str = "qf.process({})") -> Retry:
    """What ``retry=`` means: ``3``, ``OSError``, ``(OSError, 3)``, or ``((OSError, KeyError), 3, 0.5)`` with seconds to wait."""
    match value:
        case Retry():
            return value
        case int():
            errors, times, wait = Exception, value, 0.0
        case (errors, times):
            wait = 0.0
        case (errors, times, wait):
            pass
        case errors:
            times, wait = 1, 0.0
    kinds = errors if isinstance(errors, tuple) else (errors,)
    sound = kinds and all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
    if not sound or isinstance(wait, bool) or not isinstance(wait, int | float) or wait < 0:
        raise GraphError(
            f"`retry` says which exceptions to try again and how often, but got {got(value)}. "
            f"Write `{where.format('retry=(OSError, 3)')}`, or `(OSError, 3, 0.5)` to wait half a second before each."
        )
    return Retry(kinds, count(times, "retry", where.format("retry=(OSError, 3)")), float(wait))


_READ = {
    "n": lambda value, where: value if value == "auto" or _asked(value) else count(value, "n", where.format("n=2")),
    "name": _name,
    "retry": retry_of,
    "timeout": _seconds,
    "max_items": lambda value, where: count(value, "max_items", where.format("max_items=1000")),
    "max_memory": _bytes,
}


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What one run does.

    Attributes:
        ordered: results in the order of the source, or as they come.
        on_error: None: ``"report"`` where the flow says what stands for a failure, as `qflow.files` does, else ``"raise"``.
            ``"report"``: what stands for a failure comes in its place;
            ``"raise"`` the first failure in its turn; ``"skip"`` failing items, which are counted and
            listed in ``run.failures``; ``"collect"``: as skip, and each listed failure has the value that failed.
        max_errors: more failures than this end the run with the last of them; None: any number is skipped.
        memory: bytes of shared memory that the items of the run may take together; a text as ``"4GB"``, too. None: as
            much as the queues' bounds in items let them take.
        seed: from which all random numbers of the run follow; None: one is drawn.
        epoch: of the data, from 0 on; None: 0.
        resume: the state of an earlier run, to go on behind its last result; seed and epoch are the state's.
        params: values for the parameters that steps name.
    """

    ordered: bool = True
    on_error: str | None = None
    max_errors: int | None = None
    memory: int | str | None = None
    seed: int | None = None
    epoch: int | None = None
    resume: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def collects(self) -> bool:
        """Whether failures bring the value that failed."""
        return self.on_error in ("collect", "report")

    @functools.cached_property
    def context(self) -> Context:
        """What the run is beside its data."""
        if self.resume is not None:
            state = self.resume
            return Context(state["seed"], state["epoch"], dict(self.params), state["seeded"])
        seed = drawn_seed() if self.seed is None else self.seed
        return Context(int(seed), int(self.epoch or 0), dict(self.params), not isinstance(seed, Drawn))

    def __post_init__(self) -> None:
        budget(self.memory, 'pipe(xs, memory="4GB")')
        if self.seed is not None:
            whole(self.seed, "seed", "pipe(xs, seed=0)")
        if self.epoch is not None:
            whole(self.epoch, "epoch", "pipe(xs, epoch=0)")
        if self.resume is not None:
            check_state(self.resume)
            for word in ("seed", "epoch"):
                if getattr(self, word) not in (None, self.resume[word]):
                    raise GraphError(
                        f"The state has {word}={self.resume[word]}, but the run {word}={getattr(self, word)}. Leave it out."
                    )
        if not isinstance(self.params, Mapping) or not all(isinstance(name, str) for name in self.params):
            raise GraphError(
                f"`params` is a dict of values by the names of parameters, but got {got(self.params)}. "
                'Write for example `pipe(xs, params={"training": True})`.'
            )
        if not isinstance(self.ordered, bool):
            raise GraphError(f"`ordered` is True or False, but got {got(self.ordered)}.")
        if self.on_error not in (None, *ON_ERROR):
            raise GraphError(f"`on_error` is one of {', '.join(map(repr, ON_ERROR))}, but got {got(self.on_error)}.")
        if self.max_errors is not None:
            count(self.max_errors, "max_errors", 'pipe(xs, on_error="skip", max_errors=10)')
            if self.on_error == "raise":
                raise GraphError('`max_errors` counts skipped items: write `pipe(xs, on_error="skip", max_errors=10)`.')


def check_state(state: Any) -> Mapping[str, Any]:
    """A state as `state_of` gives it, or a GraphError."""
    if not isinstance(state, Mapping) or not {"version", "flow", "path", "seed", "epoch"} <= state.keys():
        raise GraphError(f"`resume` takes what `run.state_dict()` has given, but got {got(state)}.")
    if state["version"] != VERSION:
        raise GraphError(f"The state has version {state['version']}, of another version of qflow; this one reads {VERSION}.")
    return state
