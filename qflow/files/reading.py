"""Reading: names become files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, final

from qflow.errors import GraphError
from qflow.files import work
from qflow.files.file import INPUT, OWN, REJECTED, File, fresh
from qflow.files.names import Naming, first_of, names_of, places_of
from qflow.graph.carrier import Carrier
from qflow.graph.context import Context
from qflow.graph.flow import Each
from qflow.graph.function import Function, function_of, function_text, opened

KNOWN, SKIPPED, PLACE, APART = "files.known", "files.skipped", "files.place", "files.apart"  # notes


@final
class Read(Each[Any, Carrier]):
    """Reads the files of names; see `read`."""

    user_code = True
    carries = True
    gives = owns = OWN

    def __init__(self, function: Function) -> None:
        self.function = function

    @property
    def name(self) -> str:
        return "read"

    @property
    def functions(self) -> tuple[Function, ...]:
        return (self.function,)

    def depends(self, context: Context) -> bool:
        return super().depends(context) or bool(context.params or context.notes)

    def outputs(self, value: Any) -> Iterable[Any]:
        if isinstance(value, File):
            raise TypeError(
                "`qf.files.read` takes the name of a file, but got a file that was read. It stands once, before the steps."
            )
        notes = {} if self.setting is None else self.setting.context.notes
        control = {} if self.setting is None else dict(self.setting.context.params)
        first_of(value)
        file = File(REJECTED, value, control, known=notes.get(KNOWN))
        place: str | None = notes.get(PLACE)
        if place is not None and notes.get(APART) is None:
            for each in places_of(value):
                if work.claimed(place, each):
                    raise FileExistsError(f"The input {each!r} is an output of this run. Write to another `outdir`.")
        naming: Naming | None = notes.get(SKIPPED)
        if naming is not None:
            output = naming.path(value)
            if is_newer(output, value):
                file.output = output
                return (file,)
        given = {name: each for name, each in control.items() if name in self.function.parameters}
        if INPUT in self.function.parameters:
            given[INPUT] = value
        return (file.with_data(nested(self.function, value, given)),)

    def length(self, items: int) -> int:
        return items

    def opened(self) -> Read:
        return opened(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Read) and self.function == other.function

    def __hash__(self) -> int:
        return hash((Read, self.function))

    def __repr__(self) -> str:
        return f"qf.files.read({'' if self.function.call is whole else function_text(self.function)})"


def is_newer(output: str, input: Any) -> bool:
    """Whether an output is there and no older than its input, of a group all of it."""
    try:
        written = os.stat(output).st_mtime_ns
        return all(os.stat(name).st_mtime_ns <= written for name in names_of(input))
    except OSError:
        return False


def nested(function: Callable[..., Any], value: Any, given: dict[str, Any]) -> Any:
    """A function of a name; of a group the list of what it gives for each.

    >>> nested(len, ["ab", ["c", ["def"]]], {})
    [2, [1, [3]]]
    """
    if isinstance(value, list | tuple):
        return [nested(function, each, given) for each in value]
    return function(value, **given)


def whole(name: str | os.PathLike[str]) -> bytes:
    """All bytes of a file."""
    return Path(name).read_bytes()


def read(function: Callable[..., Any] = whole, /) -> Read:
    """Read files: the source gives names, and the steps that follow work on what the function makes of each.

    >>> import qflow as qf, tempfile, pathlib
    >>> def count(data, meta):
    ...     meta["bytes"] = len(data)
    ...     return data
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "a.txt")
    ...     _ = path.write_text("hello")
    ...     records = list((qf.files.read() | count | qf.files.write(None))([path], engine="serial"))
    >>> records[0].output, records[0].meta
    (None, {'bytes': 5})

    Each: the name of a file -> a file at work, until `write`. A group, a list of names (which may be lists), is one item, and its
    data the list of what the function makes of each. Between `read` and `write` a step is called with the data; beside that it
    may name

    - ``meta``, the file's `Meta`, a dict that its record will have;
    - ``control``, a dict of the values of parameters for this file: what a step sets is seen by later ones, for this file only;
    - ``input_name``, the name, or the list of names;
    - any other parameter, with its default: its value is what a step has put into ``control``, else that of the run's ``params``,
      else that of `defaults`.

    A step (or a filter) that gives None, `qflow.SKIP` or an iterator of nothing rejects the file: later steps are not called,
    nothing is written, and its record has the metadata so far. An iterator's values are several outputs of one input, each with
    control and metadata of its own from there on; their names need ``{part}``. Holds: the data of one file for each worker.

    Args:
        function: makes the data from a name, as ``np.load`` or ``astropy.io.fits.getdata``; all bytes of the file when not given.
            It may name ``input_name`` and parameters of the run. None rejects the file.
    Raises:
        GraphError: it can't be called.
    """
    return Read(function_of(function, "qf.files.read"))


@final
class Defaults(Each[Carrier, Carrier]):
    """Values for parameters of later steps; see `defaults`."""

    carries = True

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.gives = frozenset(values)

    @property
    def name(self) -> str:
        return "defaults"

    def outputs(self, value: Any) -> Iterable[Any]:
        if not isinstance(value, File):
            raise TypeError("`qf.files.defaults` stands behind `qf.files.read`.")
        value.control = {**fresh(self.values), **value.control}
        return (value,)

    def length(self, items: int) -> int:
        return items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Defaults) and self.values == other.values

    def __hash__(self) -> int:
        return hash((Defaults, *self.values))

    def __repr__(self) -> str:
        return f"qf.files.defaults({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"


def defaults(**values: Any) -> Defaults:
    """Values for parameters of the steps behind it, where the run's ``params`` say nothing; stands behind `read`.

    >>> import qflow as qf
    >>> qf.files.read() | qf.files.defaults(boost_target=3)
    qf.files.read() | qf.files.defaults(boost_target=3)

    Of two, the first that has a value gives it. What a step puts into ``control`` wins over all.

    Raises:
        GraphError: a name is one that files give by themselves (``meta``, ``control``, ``input_name``); or, when a run starts, no
            step names it.
    """
    for name in values:
        if name in OWN:
            raise GraphError(
                f"`{name}` is what each file has of its own; it has no default. Choose another name for the parameter."
            )
    return Defaults(values)
