"""Splitting: train, validation and test, with no row and no file in two of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar, overload

from qflow.errors import GraphError, got
from qflow.h5.files import Path, find
from qflow.h5.planning import Chunk, Chunks, parts_of

T = TypeVar("T", covariant=True)
Share = float | str | Sequence[str] | None


class Split(NamedTuple, Generic[T]):
    """The three parts of a split; a part that was not asked for is empty."""

    train: T
    validation: T
    test: T


@overload
def split(data: Chunks, *, validation: Share = ..., test: Share = ...) -> Split[Chunks]: ...
@overload
def split(data: Path | Sequence[Path], *, validation: Share = ..., test: Share = ...) -> Split[list[str]]: ...
@overload
def split(data: Sequence[Chunk], *, validation: Share = ..., test: Share = ...) -> Split[Sequence[Chunk]]: ...
def split(data: Any, *, validation: Share = None, test: Share = None) -> Any:
    """Split chunks or files into train, validation and test: by fractions, or files by patterns.

    >>> from qflow import h5
    >>> plan = h5.Chunks.of({"a": 50, "b": 50}, 10)
    >>> train, validation, test = h5.split(plan, validation=0.1, test=0.2)
    >>> list(validation), len(test), train[0]
    ([(('a', 0, 10),)], 2, (('a', 30, 40),))

    ``h5.split("data/*.h5", validation="run7*", test="run8*")`` splits files; plan the chunks of each part then,
    so that no chunk spans two of them. Fractions are of the number of chunks (or files), rounded: the first
    are validation, the next test, the rest train; nothing is shuffled, so the same input gives the same parts.

    Args:
        data: what `chunks` gave, a list of chunks, or files as `chunks` takes them.
        validation, test: a fraction between 0 and 1; or, for files, a pattern or several, each compared with the
            whole path and with the file's name. Not given: that part is empty.
    Returns:
        Three parts: plans for a plan, else lists of chunks or of paths.
    Raises:
        GraphError: a part that was asked for is empty, or train is; the fractions add up to 1 or more; a file
            matches both patterns; a row stands in two chunks.
        FileNotFoundError: a file is missing.
    """
    shares = {word: share for word, share in (("validation", validation), ("test", test)) if share is not None}
    fractions = [isinstance(share, float) and 0 < share < 1 for share in shares.values()]
    if not shares or not (all(fractions) or all(map(_is_pattern, shares.values()))):
        raise GraphError(
            "`h5.split` takes fractions between 0 and 1, as `validation=0.1, test=0.1`, or for files patterns, "
            f"as `validation='run7*', test='run8*'`, but got validation={validation!r}, test={test!r}."
        )
    items = _items(data)
    if all(fractions):
        return _by_fraction(items, shares)
    if isinstance(items, Chunks) or not isinstance(items[0], str):
        raise GraphError(
            "A chunk may span files, so patterns split files: "
            "`h5.split(files, validation='run7*')`, then `h5.chunks` for each part."
        )
    return _by_pattern(items, shares)


def _is_pattern(share: Any) -> bool:
    patterns = (share,) if isinstance(share, str) else share if isinstance(share, list | tuple) else ()
    return bool(patterns) and all(isinstance(each, str) for each in patterns)


def _items(data: Any) -> Any:
    """A plan as it is; chunks or files as a list, each row and file in it once."""
    if isinstance(data, Chunks):
        return data
    if isinstance(data, str | os.PathLike):
        return list(find(data))
    listed = list(data) if isinstance(data, Sequence) and len(data) else None
    if listed is None:
        raise GraphError(f"`h5.split` takes what `h5.chunks` gave, a list of chunks, or files, but got {got(data)}.")
    if isinstance(listed[0], str | os.PathLike):
        return list(find(listed))
    _check_disjoint(listed)
    return listed


def _check_disjoint(chunks: Sequence[Chunk]) -> None:
    rows = sorted(part for chunk in chunks for part in parts_of(chunk) if part[1] < part[2])
    for (file, _, stop), (next_file, next_start, _) in pairwise(rows):
        if file == next_file and next_start < stop:
            raise GraphError(
                f"Row {next_start} of {file} stands in two chunks, so it could be in two parts. Plan with one `h5.chunks`."
            )


def _by_fraction(items: Any, shares: dict[str, Any]) -> Split[Any]:
    numbers = {word: round(shares.get(word, 0) * len(items)) for word in ("validation", "test")}
    first, second = numbers["validation"], numbers["validation"] + numbers["test"]
    for word, share in shares.items():
        if not numbers[word]:
            raise GraphError(f"{word}={share} of {len(items)} is none. Take a larger share, or plan smaller chunks.")
    if sum(shares.values()) >= 1 or second >= len(items):
        asked = " and ".join(f"{word}={share}" for word, share in shares.items())
        raise GraphError(f"{asked} of {len(items)} leave nothing to train on.")
    return Split(items[second:], items[:first], items[first:second])


def _by_pattern(files: list[str], shares: dict[str, Any]) -> Split[list[str]]:
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for file in files:
        words = [word for word, share in shares.items() if _matches(file, share)]
        if len(words) > 1:
            both = " and ".join(f"{word}={share!r}" for word, share in shares.items())
            raise GraphError(f"{file} matches both {both}. Write patterns that share no file.")
        parts[words[0] if words else "train"].append(file)
    for word in ("train", *shares):
        if not parts[word]:
            why = f"no file matches {shares[word]!r}" if word in shares else "the patterns match every file"
            raise GraphError(f"The part {word!r} is empty: {why}. The first files: {', '.join(files[:3])}.")
    return Split(**parts)


def _matches(file: str, patterns: str | Sequence[str]) -> bool:
    several = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, pattern) for name in (file, os.path.basename(file)) for pattern in several)
