"""Names: where the output of an input lies.

    stem + append + suffix      /data/ngc1.fits -> outdir/ngc1_bmp.fits; of a name with dots the suffix is the last part
    outname="{stem}_r{suffix}"  a template, with {part} for the number among several outputs of one input
    meta["outname"] = "x.fits"  of one file, as it stands; so are meta["outdir"] and meta["append"]

What is said later wins: options of `write`, the run's parameters, control of the file, its metadata.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from qflow.errors import GraphError, got

WORDS = ("outdir", "append", "outname", "create_outdir")
FIELDS = ("stem", "suffix", "name", "parent", "part")
MARK = ".qflow-"  # with which the names of folders at work begin


class Naming(NamedTuple):
    """How outputs are named.

    Attributes:
        outdir: the folder; None: the current one.
        append: what stands between stem and suffix.
        outname: a template, in place of that.
        create_outdir: make folders that are not there.
        outside: outputs may lie outside of ``outdir``.
    """

    outdir: str | None = None
    append: str = "_bmp"
    outname: str | None = None
    create_outdir: bool = False
    outside: bool = False

    def over(self, *others: Mapping[str, Any]) -> Naming:
        """Itself with what the others say, the later the stronger."""
        said = {word: other[word] for other in others for word in WORDS if word in other}
        return self._replace(**checked(said)) if said else self

    @property
    def folder(self) -> str:
        """The folder of the outputs."""
        return self.outdir or os.curdir

    def path(self, input: Any, parts: tuple[int, ...] = (), literal: str | None = None) -> str:
        """The path of an output, which need not be there.

        Args:
            input: a name, or the list of names of a group, which is named after its first.
            parts: the number among several outputs.
            literal: the name as it stands, in place of a template.
        Raises:
            ValueError: it would lie outside of ``outdir``, or be no name.
        """
        first = first_of(input)
        if literal is not None:
            if not isinstance(literal, str):
                raise TypeError(f"`outname` of a file is a text, but got {got(literal)}.")
            return self._inside(literal)
        own = os.path.basename(first)
        if not own:
            raise ValueError(f"{first!r} is no name of a file.")
        stem, suffix = os.path.splitext(own)
        if self.outname is None:
            return self._inside(f"{stem}{self.append}{suffix}")
        part = parts[0] if len(parts) == 1 else "-".join(map(str, parts)) if parts else 0
        fields = (stem, suffix, own, os.path.basename(os.path.dirname(os.path.abspath(first))), part)
        return self._inside(filled(self.outname, fields))

    def _inside(self, name: str) -> str:
        path = os.path.join(self.outdir or "", name)
        last = os.path.basename(path)
        if last in ("", ".", "..") or "\0" in path or last.startswith(MARK):
            raise ValueError(f"{name!r} is no name for an output.")
        if last != name and not self.outside:
            folder, real = os.path.realpath(self.folder), os.path.realpath(os.path.dirname(path) or os.curdir)
            if os.path.commonpath([folder, real]) != folder:
                raise ValueError(
                    f"The output {name!r} would lie outside of {self.folder!r}. "
                    "Write `qf.files.write(..., outside=True)` if it is to."
                )
        return path


def filled(template: str, fields: Iterable[Any]) -> str:
    """A template with its fields, or a ValueError."""
    try:
        return template.format(**dict(zip(FIELDS, fields, strict=True)))
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise ValueError(f"a template of {known}, but got {template!r} ({type(error).__name__}: {error})") from None


def checked(said: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a naming, of the right types, or a GraphError."""
    found = dict(said)
    for word, value in found.items():
        if word == "create_outdir":
            if not isinstance(value, bool):
                raise GraphError(f"`create_outdir` is True or False, but got {got(value)}.")
        elif value is None and word != "append":
            continue
        elif word == "outdir" and isinstance(value, os.PathLike):
            found[word] = os.fspath(value)
        elif not isinstance(value, str):
            raise GraphError(f"`{word}` is a text, but got {got(value)}. Write for example `{word}={_EXAMPLES[word]!r}`.")
    return found


_EXAMPLES = {"outdir": "reduced", "append": "_bmp", "outname": "{stem}_r{suffix}"}


def check_template(outname: str | None) -> None:
    """A GraphError for a template that can't be filled."""
    if outname is not None:
        try:
            filled(outname, ("stem", ".fits", "stem.fits", "parent", 0))
        except ValueError as error:
            raise GraphError(f"`outname` is {error}.") from None


def first_of(input: Any) -> str:
    """The name of an input, of a group its first."""
    while isinstance(input, list | tuple):
        if not input:
            raise ValueError("A group of files has no name in it.")
        input = input[0]
    if not isinstance(input, str | os.PathLike):
        raise TypeError(f"An input is the name of a file, or a list of names, but got {got(input)}.")
    found = os.fspath(input)
    return found if isinstance(found, str) else os.fsdecode(found)


def names_of(input: Any) -> Iterable[str]:
    """All names of an input."""
    if isinstance(input, list | tuple):
        for each in input:
            yield from names_of(each)
    else:
        yield first_of(input)


class Apart(NamedTuple):
    """What was seen of all names before a run: outputs, inputs, and the folders in which they lie; by `digest`."""

    outputs: frozenset[int]
    inputs: frozenset[int]
    folders: frozenset[int]


def check_apart(inputs: Iterable[Any], naming: Naming) -> Apart:
    """Look at all names; a GraphError where two outputs are one, or where one of them is an input, or holds one."""
    outputs: dict[str, Any] = {}
    everything: dict[str, Any] = {}
    folders: dict[str, str] = {}
    for input in inputs:
        try:
            path = naming.path(input)
            for place in places_of(input, folders):
                everything.setdefault(place, input)
        except (TypeError, ValueError) as error:
            raise GraphError(f"Of the input {input!r}: {error}") from None
        place = real(path, folders)
        if place in outputs:
            raise GraphError(
                f"The inputs {outputs[place]!r} and {input!r} would both be written to {path!r}, so nothing was run. "
                'Name them apart, for example with `outname="{parent}_{stem}{suffix}"`.'
            )
        outputs[place] = input
    with_inputs, with_outputs = _folders(everything), _folders(outputs)
    for place, input in outputs.items():
        if place in everything or place in with_inputs:
            replaced = everything[place] if place in everything else with_inputs[place]
            raise GraphError(
                f"The output of {input!r} would replace the input {replaced!r}, so nothing was run. "
                "Write to another `outdir`, or with another `append`."
            )
    found = (outputs, everything, {**with_inputs, **with_outputs})
    return Apart(*(frozenset(map(digest, each)) for each in found))


def _folders(places: Mapping[str, Any]) -> dict[str, Any]:
    """All folders in which places lie, with what belongs to one of these."""
    found: dict[str, Any] = {}
    for place, input in places.items():
        for folder in above(place):
            if folder in found:
                break
            found[folder] = input
    return found


def above(path: str) -> Iterator[str]:
    """The folders in which a path lies, the innermost first.

    >>> [*above("/a/b/c")]
    ['/a/b', '/a', '/']
    """
    while (folder := os.path.dirname(path)) != path:
        yield folder
        path = folder


def at_home(input: Any, home: str | None) -> Any:
    """An input whose relative names still mean the same, where a step has changed the folder in which it works."""
    if home is None:
        return input
    with contextlib.suppress(OSError):  # it may be gone
        if os.getcwd() == home:
            return input
    if isinstance(input, list | tuple):
        return [at_home(each, home) for each in input]
    if isinstance(input, os.PathLike):
        return Path(home, input)
    return os.path.join(home, input) if isinstance(input, str) else input


def places_of(input: Any, folders: dict[str, str] | None = None) -> Iterator[str]:
    """Where the files of an input lie; one that is a link also where it leads to."""
    for name in names_of(input):
        yield real(name, folders)
        if os.path.islink(name):
            yield os.path.realpath(name)


def real(path: str, folders: dict[str, str] | None = None) -> str:
    """A path without links in its folder, by which two are told apart; ``folders`` are those that were looked up before."""
    folder, name = os.path.split(path)
    known = {} if folders is None else folders
    if folder not in known:
        known[folder] = os.path.realpath(folder or os.curdir)
    return os.path.join(known[folder], name)


def digest(path: str) -> int:
    """64 bits of a path."""
    return int.from_bytes(blake2b(os.fsencode(path), digest_size=8).digest(), "little")
