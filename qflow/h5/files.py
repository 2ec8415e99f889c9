"""Files: HDF5 files found, opened and looked into, and what is said when that fails.

Nothing here stays open: `qflow.h5.kept` keeps files open, `length` keeps numbers.
"""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from errno import EAGAIN, EINVAL, EISDIR, ENOENT
from glob import glob
from typing import Any, NamedTuple

try:
    import h5py  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError("qflow.h5 needs h5py. Install it: pip install 'qflow[h5]'") from error

from qflow.errors import GraphError, got

Path = str | os.PathLike[str]
Paths = Path | Iterable[Path]

_MOST_LISTED = 20


class Stamp(NamedTuple):
    """What changes when a file is written again."""

    size: int
    mtime_ns: int


def find(files: Paths) -> tuple[str, ...]:
    """The paths that a pattern (sorted) or a list of paths (in its order) stands for, each there and once."""
    paths = _matches(os.fspath(files)) if isinstance(files, str | os.PathLike) else _listed(files)
    for path in paths:
        stamp(path)
    twice = [path for path, times in Counter(map(os.path.realpath, paths)).items() if times > 1]
    if twice:
        raise GraphError(f"Each file stands once in the list of files, but {twice[0]!r} stands there more than once.")
    return paths


def _matches(pattern: str) -> tuple[str, ...]:
    if os.path.lexists(pattern) or not any(sign in pattern for sign in "*?["):
        return (pattern,)
    found = sorted(glob(pattern, recursive=True))
    if not found:
        text = f"No file matches the pattern (looked from {os.getcwd()}); check the folder and the ending"
        raise FileNotFoundError(ENOENT, text, pattern)
    return tuple(found)


def _listed(files: Any) -> tuple[str, ...]:
    wrong = GraphError(f"Files are a path, a pattern such as 'data/*.h5', or a list of paths, but got {got(files)}.")
    if isinstance(files, bytes | Mapping) or not isinstance(files, Iterable):
        raise wrong
    listed = tuple(files)
    if not listed:
        raise GraphError("Files are a path, a pattern such as 'data/*.h5', or a list of paths, but the list is empty.")
    if not all(isinstance(each, str | os.PathLike) for each in listed):
        raise wrong
    return tuple(map(os.fspath, listed))


def stamp(path: str) -> Stamp:
    """Size and time of a file, or an OSError that says what is there instead."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        text = f"No such HDF5 file (looked from {os.getcwd()}); check it; a pattern as 'data/*.h5' stands alone, not in a list"
        raise FileNotFoundError(ENOENT, text, path) from None
    if stat.S_ISDIR(found.st_mode):
        text = f"A folder, not an HDF5 file; write {os.path.join(path, '*.h5')!r} for the files in it"
        raise IsADirectoryError(EISDIR, text, path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(EINVAL, "Not a regular file, so not an HDF5 file", path)
    return Stamp(found.st_size, found.st_mtime_ns)


def opened(path: str) -> h5py.File:
    """The file, open for reading, or an OSError with its path."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise OSError(error.errno or EINVAL, why_not(error), path) from error


def why_not(error: OSError) -> str:
    """Why a file could not be opened."""
    if error.errno == EAGAIN:
        return "Open for writing somewhere else, so HDF5 has locked it"
    if error.errno:
        return os.strerror(error.errno)
    return f"No complete HDF5 file: truncated, still being written, or of another format. HDF5 says: {error}"


def columns(file: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """The datasets of these keys, else all with rows at the top of the file; they have the same number of rows.

    Raises:
        KeyError: a key is unknown; the text lists those there are.
        ValueError: a dataset has no rows, or another number of rows than the others.
    """
    chosen = {key: _dataset(file, key) for key in keys} or {
        key: file[key] for key in file if isinstance(file.get(key), h5py.Dataset) and file[key].shape
    }
    if not chosen:
        raise KeyError(f"{file.filename} has no dataset with rows at its top; {_listing(file)}")
    lengths = {key: len(dataset) for key, dataset in chosen.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key!r} has {length}" for key, length in lengths.items())
        raise ValueError(f"{file.filename} has keys with different numbers of rows: {shown}. Name only keys of the same length.")
    return chosen


def _dataset(file: Any, key: str) -> Any:
    found = file.get(key)
    if not isinstance(found, h5py.Dataset):
        what = "no dataset" if found is None else "a group, no dataset,"
        raise KeyError(f"{file.filename} has {what} {key!r}; {_listing(file)}")
    if not found.shape:
        raise ValueError(f"{file.filename} has a single value at {key!r}, no rows. Read it in a step of your own, with h5py.")
    return found


def _listing(file: Any) -> str:
    names: list[str] = []
    file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
    names += [name for name in file if name not in names and isinstance(file.get(name), h5py.Dataset)]
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"there are {', '.join(map(repr, sorted(names)[:_MOST_LISTED]))}{more}." if names else "the file has none."


def length(path: str, keys: tuple[str, ...]) -> int:
    """How many rows a file has; kept in this process until the file's size or time changes."""
    return _length(os.path.abspath(path), stamp(path), keys)


@functools.lru_cache(maxsize=100_000)
def _length(path: str, stamp: Stamp, keys: tuple[str, ...]) -> int:
    with opened(path) as file:
        return len(next(iter(columns(file, keys).values())))
