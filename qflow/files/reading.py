"""Reading: names become files."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, final

from qflow.errors import GraphError
from qflow.files import work
from qflow.files.file import CONTROL, INPUT, META, OWN, REJECTED, File, fresh
from qflow.files.names import Naming, above, at_home, first_of, names_of, places_of, real
from qflow.graph.carrier import Carrier
from qflow.graph.context import Context, whereabouts
from qflow.graph.flow import Each
from qflow.graph.function import Function, function_of, function_text, opened

KNOWN, SKIPPED, PLACE, APART = "files.known", "files.skipped", "files.place", "files.apart"  # notes
DEFAULTS, HOME = "files.defaults", "files.home"


@final
class Read(Each[Any, Carrier]):
    """Reads the files of names; see `read`."""

    user_code = True
    carries = True
    gives = owns = OWN
    adrift = (
        "The files that `qf.files.read` reads come to no `qf.files.write`. Write `| qf.files.write(np.save, outdir='out')` "
        "behind the steps, or `| qf.files.write(None)` for records of metadata only."
    )

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
        params = {} if self.setting is None else self.setting.context.params
        control = fresh({**notes.get(DEFAULTS, {}), **params})
        first_of(value)
        there = at_home(value, notes.get(HOME))
        file = File(REJECTED, value, control, known=notes.get(KNOWN))
        place: str | None = notes.get(PLACE)
        alone = place is not None and notes.get(APART) is None
        if alone:
            _claim(str(place), there)
        skipping: Skipping | None = notes.get(SKIPPED)
        output = None if skipping is None else skipping.there(value, there, notes.get(HOME))
        if output is not None:
            if alone and (other := work.claim(str(place), real(output), who_is(value))) is not None:
                raise FileExistsError(f"{output!r} is the output of {other}, too. Name them apart.")
            file.output = output
            return (file,)
        given = {name: each for name, each in control.items() if name in self.function.parameters}
        if INPUT in self.function.parameters:
            given[INPUT] = value
        return (file.with_data(nested(self.function, there, given)),)

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


def _claim(place: str, input: Any) -> None:
    """Where nobody knows all names: that an input is no output of this run, and shall be none."""
    for each in places_of(input):
        if work.claim(place, each, work.INPUT) not in (None, work.FOLDER):
            raise FileExistsError(f"The input {each!r} is an output of this run. Write to another `outdir`.")
        for folder in above(each):
            work.claim(place, folder, work.FOLDER)


def who_is(input: Any) -> str:
    """Who claims an output: the item at work."""
    return f"item {'.'.join(map(str, whereabouts()))}, {first_of(input)}"


class Skipping(NamedTuple):
    """By which inputs whose outputs are there are known.

    Attributes:
        naming: of the outputs.
        suffixes: of what lies in their folder: functions that write may add one, as ``np.save`` does.
    """

    naming: Naming
    suffixes: tuple[str, ...] = ()

    @staticmethod
    def of(naming: Naming) -> Skipping | None:
        """None where an input may have several outputs, of which nobody knows how many."""
        if "{part" in (naming.outname or ""):
            return None
        found: list[str] = []
        with contextlib.suppress(OSError):
            found = os.listdir(naming.folder)
        return Skipping(naming, tuple(sorted({os.path.splitext(name)[1] for name in found} - {""})))

    def there(self, input: Any, lies: Any, home: str | None) -> str | None:
        """The output of an input, if it is there and no older than it; ``lies``: the input as it can be found now.

        Also one that has one more suffix, if it is the only one.
        """
        plain = self.naming.path(input)
        if _newer(at_home(plain, home), lies):
            return plain
        if os.path.lexists(at_home(plain, home)):
            return None
        longer = [plain + suffix for suffix in self.suffixes if os.path.lexists(at_home(plain + suffix, home))]
        return longer[0] if len(longer) == 1 and _newer(at_home(longer[0], home), lies) else None


def _newer(output: str, input: Any) -> bool:
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
    found = function_of(function, "qf.files.read")
    for name in sorted({META, CONTROL} & found.parameters.keys()):
        raise GraphError(
            f"`{found.name}` makes the data of a file and names `{name}`, which is for the steps behind it. "
            f"Name parameters of the run, or `{INPUT}`."
        )
    return Read(found)


@final
class Defaults(Each[Carrier, Carrier]):
    """Values for parameters of later steps; see `defaults`."""

    carries = True

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.gives = self.backs = frozenset(values)

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
        return isinstance(other, Defaults) and _same(self.values, other.values)

    def __hash__(self) -> int:
        return hash((Defaults, *self.values))

    def __repr__(self) -> str:
        return f"qf.files.defaults({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether values are equal, also arrays of them."""
    if one.keys() != other.keys():
        return False
    with contextlib.suppress(Exception):
        return all(each is other[name] or bool(each == other[name]) for name, each in one.items())
    return pickle.dumps(one) == pickle.dumps(other)


def defaults(**values: Any) -> Defaults:
    """Values for parameters where the run's ``params`` say nothing; stands behind `read`, and is for its function, too.

    >>> import qflow as qf
    >>> qf.files.read() | qf.files.defaults(boost_target=3)
    qf.files.read() | qf.files.defaults(boost_target=3)

    They are known to all steps of the flow, and to `write`. Of two, the first that has a value gives it. What a step puts into
    ``control`` wins over all.

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
