"""Writing: files become outputs and records; and what is looked at before a run with files begins."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Mapping, MappingView, Set
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, final

from qflow.errors import GraphError, RemoteTraceback, got
from qflow.files import work
from qflow.files.file import OWN, File
from qflow.files.fitting import lowered
from qflow.files.names import WORDS, Naming, above, at_home, check_apart, check_template, digest, places_of, real
from qflow.files.reading import APART, DEFAULTS, HOME, KNOWN, PLACE, SKIPPED, Defaults, Read, Skipping, who_is
from qflow.files.record import Record
from qflow.graph.carrier import Carrier
from qflow.graph.context import RNG, Context
from qflow.graph.flow import Beginning, Each, Operator, Queue, Stream
from qflow.graph.function import Function, function_of, function_text, opened
from qflow.graph.options import RunOptions
from qflow.graph.run import ItemFailure
from qflow.graph.shard import Shard
from qflow.graph.step import Step

SAID = "files.said"  # a note
FIRST = 8  # inputs whose sizes are looked at
SWITCHES = ("skip_existing", "fsync", "keep_local")


class Switches(NamedTuple):
    """How outputs are written, beside their names; see `write`."""

    skip_existing: bool = False
    fsync: bool = False
    keep_local: bool = False

    def over(self, said: Any) -> Switches:
        """Itself with what a run or a file says."""
        found = {word: said[word] for word in SWITCHES if word in said}
        for word, value in found.items():
            if not isinstance(value, bool):
                raise GraphError(f"`{word}` is True or False, but got {got(value)}.")
        return self._replace(**found)


@final
class Write(Each[Carrier, Record]):
    """Writes files, and gives their records; see `write`."""

    user_code = lands = True

    def __init__(self, function: Function | None, naming: Naming, switches: Switches) -> None:
        self.function, self.naming, self.switches = function, naming, switches

    @property
    def name(self) -> str:
        return "write"

    @property
    def parameters(self) -> frozenset[str]:
        """The names for which the function may be given something; its first two are path and data."""
        if self.function is None:
            return frozenset()
        return frozenset(name for name, each in self.function.parameters.items() if each.place != 1)

    @property
    def takes(self) -> frozenset[str]:  # type: ignore[override]
        return self.parameters | {*WORDS, *SWITCHES}

    def depends(self, context: Context) -> bool:
        return bool(context.params or context.notes or context.seeded)

    def within(self, setting: Any) -> Write:
        found = Write(None if self.function is None else self.function.within(setting), self.naming, self.switches)
        found.setting = setting
        return found

    def outputs(self, value: Any) -> Iterable[Record]:
        if not isinstance(value, File):
            raise TypeError(f"`qf.files.write` stands behind `qf.files.read`, but got {got(value)}.")
        if value.output is not None:
            return (Record(value.input, value.output, {}),)
        keep = self._switches(value).keep_local
        output = None if value.rejected or self.function is None else self._written(value)
        return (Record(value.input, output, dict(value.meta) if keep else value.meta.returned()),)

    def _written(self, file: File) -> str:
        assert self.function is not None
        place, named, switches = self._notes.get(PLACE), self.parameters, self._switches(file)
        path, create = self._path(file)
        given = {name: each for name, each in file.given(self.function).items() if name in named}
        actual = os.path.join(self._notes.get(HOME, ""), path)  # a step may have changed the folder in which it works
        if create:
            os.makedirs(os.path.dirname(actual) or os.curdir, exist_ok=True)
        with work.written(place, actual) as source:
            self.function(source, file.data, **given)
            found = work.commit(source, actual, partial(self._check, file), fsync=switches.fsync)
        return os.path.join(os.path.dirname(path), os.path.basename(found))

    def _switches(self, file: File) -> Switches:
        said = {word: file.control[word] for word in SWITCHES if word in file.control}
        return self.switches.over(said) if said else self.switches

    def _path(self, file: File) -> tuple[str, bool]:
        """Where an output will lie, which is no other's, and whether to make its folder."""
        said = {word: file.control[word] for word in WORDS if word in file.control}
        meant = {word: file.meta[word] for word in WORDS if word in file.meta}
        if not meant and all(word in self._said and value == self._said[word] for word, value in said.items()):
            path = self._plain.path(file.input, file.parts)
            if not file.parts and self._notes.get(APART) is not None:
                return path, self._plain.create_outdir  # all of them were looked at when the run began
            naming = self._plain
        else:
            naming = self.naming.over(said, {word: value for word, value in meant.items() if word != "outname"})
            path = naming.path(file.input, file.parts, meant.get("outname"))
        self._check(file, os.path.join(self._notes.get(HOME, ""), path))
        return path, naming.create_outdir

    def _check(self, file: File, path: str) -> None:
        """A path of which nobody knew when the run began: that it is no input, and no other's output."""
        lies, apart, place = real(path), self._notes.get(APART), self._notes.get(PLACE)
        home = self._notes.get(HOME, "")
        inputs, around = {*places_of(at_home(file.input, home or None))}, [*above(lies)]
        other = work.INPUT if lies in inputs or any(lies in above(each) for each in inputs) else None
        if apart is not None and other is None:
            own = real(os.path.join(home, self._plain.path(file.input)))
            if digest(lies) in apart.inputs:
                other = work.INPUT
            elif any(digest(each) in apart.outputs and each != own for each in (lies, *around)):
                other = "another input"
            elif digest(lies) in apart.folders:
                other = work.FOLDER
        if other is None and place is not None:
            who = who_is(file.input) + "".join(f", part {part}" for part in file.parts)
            other = work.claim(place, lies, who)
            for each in around if other is None else ():
                found = work.claim(place, each, work.FOLDER)
                other = found if found not in (None, work.INPUT) else other
        if other == work.INPUT:
            raise ValueError(f"The output would replace the input {path!r}. Write to another `outdir`, or with another `append`.")
        if other is not None:
            hint = "Name them apart; `{part}` in `outname` is the number of an output of one input."
            is_ = other if other == work.FOLDER else f"the output of {other}"
            raise FileExistsError(f"{path!r} is {is_}, too. {hint}")

    @property
    def _notes(self) -> Mapping[str, Any]:
        return {} if self.setting is None else self.setting.context.notes

    @cached_property
    def _said(self) -> Mapping[str, Any]:
        """What the run says of names, to all files."""
        said: Mapping[str, Any] = self._notes.get(SAID, {})
        return said

    @cached_property
    def _plain(self) -> Naming:
        """How outputs are named of which nobody says anything else."""
        return self.naming.over(self._said)

    def length(self, items: int) -> int:
        return items

    def opened(self) -> Write:
        return self if self.function is None else opened(self)

    # ---- the beginning of a run

    def begins(self, before: tuple[Operator[Any, Any], ...], source: Any, options: RunOptions) -> Beginning:
        operators = [each for operator in before for each in operator.inside]
        first = _place_of_read(operators, self)
        behind = operators[first + 1 :]
        known = frozenset(name for each in operators for function in each.functions for name in function.parameters)
        known = (known | self.takes | options.params.keys()) - OWN - {RNG}
        _check_defaults(behind, known)
        values = {**defaults_of(behind), **options.params}
        said = {word: values[word] for word in WORDS if word in values}
        naming, switches = self.naming.over(said), self.switches.over(values)
        notes: dict[str, Any] = {KNOWN: known, SAID: said, DEFAULTS: defaults_of(behind), HOME: os.getcwd()}
        ended = None
        known_names = _names_are_known(source, operators[:first])
        if self.function is not None:
            check_template(naming.outname)
            if known_names:
                notes[APART] = check_apart(source, naming)
            check_folder(naming)
            os.makedirs(naming.folder, exist_ok=True)
            if switches.skip_existing:
                notes[SKIPPED] = Skipping.of(naming)
            place = work.Place(os.path.abspath(naming.folder))
            notes[PLACE], ended = place.path, place.ended
        fitting = partial(lowered, items=[*islice(source, FIRST)], most=len(source)) if known_names else None
        fitted = (_fitted(each, fitting) for each in before)
        return Beginning(source, (*fitted, self), ended, notes=notes, failed=record_of, workers=fitting)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Write) and self._state == other._state

    @property
    def _state(self) -> tuple[Any, ...]:
        return self.function, self.naming, self.switches

    def __hash__(self) -> int:
        return hash((Write, self.function, self.naming))

    def __repr__(self) -> str:
        said = {**_differing(self.naming, Naming()), **_differing(self.switches, Switches())}
        words = [str(None) if self.function is None else function_text(self.function)]
        return f"qf.files.write({', '.join([*words, *(f'{word}={value!r}' for word, value in said.items())])})"


def defaults_of(operators: Iterable[Operator[Any, Any]]) -> dict[str, Any]:
    """What operators of `defaults` say, the first that has a value."""
    found: dict[str, Any] = {}
    for each in operators:
        if isinstance(each, Defaults):
            found = {**each.values, **found}
    return found


def _fitted(operator: Operator[Any, Any], fitting: Callable[[Any], Any] | None) -> Operator[Any, Any]:
    """A marked step that holds files, with the number of workers that fits."""
    if fitting is None or not isinstance(operator, Step) or not any(isinstance(each, Read) for each in operator.inside):
        return operator
    n = fitting(operator.options.n)
    return operator if n == operator.options.n else operator.using(n=n)


def _differing(own: Any, plain: Any) -> dict[str, Any]:
    return {word: value for word, value in own._asdict().items() if value != getattr(plain, word)}


def _place_of_read(operators: list[Operator[Any, Any]], write: Write) -> int:
    """Where files are read; a GraphError where something stands between that can't."""
    places = [place for place, each in enumerate(operators) if isinstance(each, Read)]
    if not places:
        raise GraphError(f"`{write!r}` stands behind `qf.files.read`: `qf.files.read(np.load) | step | {write!r}`.")
    if len(places) > 1 or any(isinstance(each, Write) for each in operators):
        raise GraphError(
            "A flow has one `qf.files.read` before one `qf.files.write`, but this one has several. "
            "Make two flows, and give the second one the outputs of the first."
        )
    for each in operators[places[-1] + 1 :]:
        if each.awaits:
            raise GraphError(f"`{each!r}` is written with `async def`, but what works on a file is called and gives its data.")
        if any(isinstance(part, Stream) for part in each.lower()):
            raise GraphError(
                f"`{each!r}` stands between `qf.files.read` and `qf.files.write`, where each file is by itself. "
                "Let it stand before, where it groups names, or behind, where it gets records."
            )
    return places[-1]


def _check_defaults(operators: list[Operator[Any, Any]], known: frozenset[str]) -> None:
    for each in operators:
        for name in each.values if isinstance(each, Defaults) else ():
            if name not in known:
                there = ", ".join(f"`{each}`" for each in sorted(known))
                raise GraphError(f"`qf.files.defaults` has `{name}`, which no step names as a parameter: the steps name {there}.")


def check_folder(naming: Naming) -> None:
    """A GraphError if nothing can be written to the folder of the outputs."""
    folder = Path(naming.folder)
    if not folder.exists():
        if not naming.create_outdir:
            raise GraphError(f"There is no folder {str(folder)!r} for the outputs. Make it, or write `create_outdir=True`.")
        return
    if not folder.is_dir():
        raise GraphError(f"`outdir` is a folder, but {str(folder)!r} is a file.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise GraphError(
            f"Nothing can be written to the folder {str(folder)!r}, for lack of permission, or because the disk is read-only."
        )


def _names_are_known(source: Any, before: list[Operator[Any, Any]]) -> bool:
    """Whether all names can be looked at before a run: not those of a bar, or of another run, which can be iterated once."""
    kept = hasattr(type(source), "__getitem__") or isinstance(source, Set | Mapping | MappingView)
    return kept and hasattr(type(source), "__len__") and all(isinstance(each, Queue | Shard) for each in before)


def record_of(failure: ItemFailure) -> Record:
    """The record of a file that failed; its traceback is a note, for frames would keep the data."""
    error = failure.error
    if error.__traceback__ is not None:
        text = "".join(traceback.format_exception(error)).rstrip()
        error = error.with_traceback(None)
        error.__cause__, error.__context__ = RemoteTraceback(text), None
    return Record(failure.value, None, {}, error)


def write(
    function: Callable[..., Any] | None,
    /,
    *,
    outdir: str | os.PathLike[str] | None = None,
    append: str = "_bmp",
    outname: str | None = None,
    create_outdir: bool = False,
    outside: bool = False,
    skip_existing: bool = False,
    fsync: bool = False,
    keep_local: bool = False,
) -> Write:
    """Write the files that `read` and the steps have made, and give a `Record` for each.

    >>> import numpy as np, qflow as qf, tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "a.npy")
    ...     np.save(path, np.arange(3))
    ...     pipe = qf.files.read(np.load) | (lambda data: 10 * data) | qf.files.write(np.save, outdir=folder)
    ...     records = list(pipe([path], engine="serial"))
    ...     pathlib.Path(records[0].output).name, np.load(records[0].output).tolist()
    ('a_bmp.npy', [0, 10, 20])

    Each: a file at work -> `Record`; of a step that gives an iterator one for each of its values. Order: that of the names.

    The function is called as ``function(path, data)``, as ``np.save`` is; beside that it may name what steps may (`read`). The
    path that it is given has the name of the output, in a folder of its own beside it, and what it has written there is renamed
    when it returns: an output is whole or not there, whenever a process is killed. If it adds a suffix, as ``np.save`` does to
    names without one, the output has it, too. What is there already is replaced, a folder in two steps: a program that is killed
    between them leaves neither the old nor the new one there.

    In such a flow a file that fails is a record with its ``error``, and the others go on: ``on_error="report"`` is the default,
    unless steps stand behind `write`, which can't work on it. Two inputs with one output, and an output that is an input, or a
    folder that holds one, are found before anything runs where the names are a list or the like. Else, and where metadata names
    the outputs, the later one of two fails, and no input is replaced that was read before; one that comes later may be.
    Further files that the function writes beside the output go with it, and replace what has their names.

    Args:
        function: None: nothing is written, and the records have metadata only.
        outdir: the folder; the current one when not given.
        append: what stands between the stem and the suffix of the input's name (of a group its first).
        outname: a template in place of that: ``"{stem}_r{suffix}"``, with ``{parent}``, the name of the input's folder,
            ``{name}``, and ``{part}``, the number of an output of one input.
        create_outdir: make the folder, and those that are named in ``outname``.
        outside: outputs may lie outside of ``outdir``.
        skip_existing: leave out inputs whose output is there and not older, also with one more suffix, if it is the only one;
            their records have no metadata. Inputs with several outputs (``{part}``) are never left out.
        fsync: the output is on the disk when its record comes.
        keep_local: records also have what is `Meta.local`.

    All but ``outside`` can also be given for a run, as ``params={"outdir": "reduced"}``, and but for ``skip_existing`` for a file
    by a step, in ``control``; ``outdir``, ``append``, ``outname`` (as it stands, no template) and ``create_outdir`` also in
    ``meta``, which wins. Which outputs exist is looked at by the names that nobody has changed for a file.

    Raises:
        GraphError: an option is wrong; or, when a run starts, there is no such folder, two inputs have one output, or one would
            replace an input.
    """
    said = {"outdir": outdir, "append": append, "outname": outname, "create_outdir": create_outdir}
    naming = Naming(outside=outside).over(said)
    check_template(naming.outname)
    switches = Switches().over({"skip_existing": skip_existing, "fsync": fsync, "keep_local": keep_local})
    return Write(None if function is None else function_of(function, "qf.files.write"), naming, switches)
