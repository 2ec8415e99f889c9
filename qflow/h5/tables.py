"""Tables: an HDF5 file whose tables refer to each other, in the layout of h5flow.

    /hits/data                        rows of a table: [rows, ...], of any type, also structured
    /tracks/data
    /tracks/ref/hits/ref              [pairs, 2]: a row of tracks, a row of hits; for the way back, too
    /tracks/ref/hits/ref_region       for each row of tracks from where to where in it its pairs lie
    /hits/ref/tracks/ref_region       for each row of hits
    attributes                        of groups and tables

A file is written by one process. Rows are appended, never moved; pairs are appended, never changed; so what is kept as a number
of a row stays right. Tables that are only wanted meanwhile lie in a scratch file that has no name: it goes with the process,
however that ends.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from errno import EINVAL
from typing import Any, final

import h5py  # type: ignore[import-untyped]
import numpy as np

from qflow.errors import GraphError, got
from qflow.h5 import regions
from qflow.h5.blocks import runs, take
from qflow.h5.datasets import Datasets, flush
from qflow.h5.files import why_not
from qflow.h5.fitting import as_pairs, bare, fitted, hint, storable, type_text
from qflow.h5.naming import normal
from qflow.h5.references import dereference_chain, region_dtype, selected

MODES = ("r", "r+", "a", "w", "x")
CHUNK, LARGEST = 1 << 16, 1 << 20  # bytes: of whole rows; else of one row, or a part of it
CACHE = 1 << 20  # bytes of chunks that HDF5 keeps of each open dataset
PAIRS = CHUNK // 8  # of a chunk of references
NARROW, WIDE = np.dtype("u4"), np.dtype("i8")  # of row numbers; wide where a table has 2**32 rows or more


@final
class Tables:
    """A file of tables that refer to each other.

    >>> import numpy as np, tempfile
    >>> from qflow import h5
    >>> folder = tempfile.TemporaryDirectory()
    >>> with h5.Tables(f"{folder.name}/events.h5", "w") as file:
    ...     tracks = file.append("tracks", np.array([10.0, 20.0]))
    ...     hits = file.append("hits", np.array([(1, 0.5), (2, 0.25), (3, 0.125)], [("id", "i4"), ("q", "f4")]))
    ...     _ = file.link("tracks", "hits", [[0, 0], [0, 2], [1, 1]])
    ...     file.attrs("hits")["unit"] = "keV"
    ...     print(file["tracks", "hits", :]["id"])
    ...     print(file["hits", "tracks", [2, 0]])
    ...     print(file)
    [[1 3]
     [2 --]]
    [[10.0]
     [10.0]]
    events.h5
      hits      3 rows  id int32, q float32    unit='keV'
      tracks    2 rows  float64
      tracks -> hits    3 pairs
    >>> folder.cleanup()

    ``file["hits"]`` is the table itself, a `h5py.Dataset`; ``file["hits", sel]`` its selected rows, an array; and
    ``file["events", "hits", "tracks", sel]`` the rows of the last that are linked with selected rows of the first over those
    between, as `dereference_chain` gives them. Selections are those of `dereference`, but a number gives an array of one row.
    Holds: of each of the 16 datasets that were asked for last at most 1 MiB of chunks.

    Args:
        path: of the file.
        mode: ``"r"`` to read, ``"r+"`` to read and write what is there, ``"a"`` the same and make it if it is not, ``"w"`` to
            begin anew, ``"x"`` the same but not if it is there.
        compression: of new tables and references: ``"gzip"``, ``"lzf"``, or what h5py knows by another name or number.
        drop: tables, or groups of them, that go when the file is closed. Those that are not there before lie in a scratch
            file meanwhile, with all references from and to them.
    Raises:
        OSError: the file is missing, locked by another writer, or no complete HDF5 file; with its path.
        GraphError: an argument is wrong.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: str = "r",
        *,
        compression: str | int | None = None,
        drop: Iterable[str] = (),
    ) -> None:
        if mode not in MODES:
            raise GraphError(f"`mode` is one of {', '.join(map(repr, MODES))}, but got {got(mode)}.")
        self.path, self.mode, self.compression = os.fspath(path), mode, compression
        self.file = _opened(self.path, mode)
        self._scratch: Any = None
        self._drop = tuple(map(_name, [drop] if isinstance(drop, str) else drop))
        self._before = {name for name in self._drop if name in self.file}  # these are deleted at last
        self._datasets = Datasets(self.path, writes=mode != "r")
        self._links = sorted(_links_of(self.file))  # to look for them takes as long as the file has groups

    # ---- what is there

    def __iter__(self) -> Iterator[str]:
        """The names of the tables, in order."""
        return iter(sorted(itertools.chain.from_iterable(map(_tables_of, self._files))))

    def __contains__(self, name: object) -> bool:
        return normal(name) is not None and self._data(_name(name)) is not None

    def __getitem__(self, names: Any) -> Any:
        if isinstance(names, str):
            return self._table(names)
        *path, sel = names if isinstance(names, tuple) else (names,)
        if isinstance(sel, str):
            path, sel = [*path, sel], slice(None)
        if not path or not all(isinstance(name, str) for name in path):
            raise GraphError(f'Write `file["hits"]`, `file["hits", sel]` or `file["tracks", "hits", sel]`, but got {got(names)}.')
        first, *_ = tables = [self._table(name) for name in path]
        if len(path) == 1:
            return self._rows(first, sel)
        steps = [self.ref(*pair) for pair in itertools.pairwise(path)]
        refs, directions = zip(*steps, strict=True)
        places = [self.region(*pair) for pair in itertools.pairwise(path)]
        return dereference_chain(sel, refs, tables[-1], places, ref_directions=directions)

    @staticmethod
    def _rows(table: Any, sel: Any) -> Any:
        if isinstance(sel, slice) and (sel.step or 1) > 0:
            return table[sel]
        rows, hidden = selected(sel, len(table))
        return np.ma.array(take(table, rows), mask=_spread(hidden, table)) if hidden.any() else take(table, rows)

    def ref(self, parent: str, child: str) -> tuple[Any, tuple[int, int]]:
        """The pairs that link two tables, a `h5py.Dataset`, and the direction from the first to the second.

        Raises:
            KeyError: there are none; the text lists those there are.
        """
        for first, second, direction in ((parent, child, (0, 1)), (child, parent, (1, 0))):
            found = self._find(f"{_name(first)}/ref/{_name(second)}/ref")
            if found is not None:
                return found, direction
        linked = ", ".join(f"{one!r} -> {other!r}" for one, other in self.links()) or "none"
        raise KeyError(f"{self.path} has no references between {parent!r} and {child!r}; there are: {linked}.")

    def region(self, parent: str, child: str) -> Any:
        """From where to where in `ref` the pairs of each row of the first table lie, a `h5py.Dataset`."""
        self.ref(parent, child)
        return self._find(f"{_name(parent)}/ref/{_name(child)}/ref_region")

    def links(self, name: str | None = None) -> list[tuple[str, str]]:
        """Which tables are linked, the parent first; only those with this one, if it is named."""
        return [*self._links] if name is None else [link for link in self._links if _name(name) in link]

    def attrs(self, name: str) -> Any:
        """The attributes of a table's group, or of any group, which is made if the file is open for writing."""
        found = self._find(_name(name))
        if found is None:
            if self.mode == "r":
                raise KeyError(f"{self.path} has no {name!r}; there are the tables {self._listing()}.")
            found = self._home(_name(name)).require_group(_name(name))
        return found.attrs

    # ---- what is made

    def create(self, name: str, dtype: Any, shape: tuple[int, ...] = ()) -> Any:
        """A table without rows; one that is there already with this type and shape of a row stays as it is.

        Raises:
            GraphError: it is there with another type or shape, or HDF5 has no such type.
        """
        name, dtype = _name(name), np.dtype(dtype)
        found = self._data(name)
        if found is None:
            if not storable(dtype):
                raise GraphError(f"The table {name!r} has rows of a type that HDF5 has, but got {dtype}.{hint(dtype)}")
            if self._find(f"{name}/data") is not None:
                raise GraphError(f"{name!r} can't be a table, for '{name}/data' is a group. Choose another name.")
            for group in itertools.accumulate(name.split("/"), "{}/{}".format):
                if isinstance(self._find(group), h5py.Dataset):
                    raise GraphError(f"{name!r} can't be a table, for {group!r} is a dataset. Choose another name.")
            chunks = _chunks(dtype.itemsize, tuple(shape))
            return self._home(name).create_dataset(
                f"{name}/data", (0, *shape), dtype, maxshape=(None, *shape), chunks=chunks, compression=self.compression
            )
        if found.dtype != dtype or found.shape[1:] != tuple(shape):
            raise GraphError(
                f"{self.path} has a table {name!r} of {_typed(found)}, not of {type_text(dtype, tuple(shape))}. "
                "Choose another name, or delete it before."
            )
        return found

    def append(self, name: str, rows: Any) -> slice:
        """Append rows to a table, which is made if it is not there -> where they lie.

        Raises:
            GraphError: the rows are of another type or shape than the table's, or some are masked.
        """
        try:
            rows = bare(rows, f"The table {name!r}")
        except TypeError as error:
            raise GraphError(str(error)) from None
        if not rows.ndim:
            raise GraphError(f"`append` takes rows, an array of at least one dimension, but got {got(rows.item())}.")
        table = self._data(_name(name))
        if table is None:
            table = self.create(name, rows.dtype, rows.shape[1:])
        if table.shape[1:] != rows.shape[1:]:
            raise GraphError(f"The rows of {name!r} are {_typed(table)}, but got {type_text(rows.dtype, rows.shape[1:])}.")
        rows = fitted(rows, table.dtype, f"The rows of {name!r}")
        place = self.reserve(name, len(rows))
        table[place] = rows
        return place

    def reserve(self, name: str, rows: int) -> slice:
        """Append so many rows that are not yet written -> where they lie."""
        table = self._table(name)
        start = len(table)
        if not rows:
            return slice(start, start)
        if not table.maxshape or table.maxshape[0] is not None:
            raise GraphError(f"The table {name!r} can't grow: it was made with {start} rows for ever.")
        table.resize(start + rows, axis=0)
        for parent, child in self.links(name):
            region = self.region(name, child if parent == _name(name) else parent)
            if len(region) < start + rows:  # of a table that is linked with itself both ways are one
                region.resize(start + rows, axis=0)
        return slice(start, start + rows)

    def link(self, parent: str, child: str, pairs: Any) -> slice:
        """Append pairs of rows that are linked -> where they lie among all pairs of these tables.

        Args:
            parent, child: tables. What is linked before as (child, parent) stays so; the columns are those of this call.
            pairs: integers ``[pairs, 2]``: a row of ``parent``, a row of ``child``. The same again is there twice; those
                that are masked are left out.
        Raises:
            IndexError: a row is not there.
            GraphError: these are no pairs.
        """
        rows = {name: len(self._table(name)) for name in (parent, child)}
        found = checked_pairs(pairs, parent, child, rows)
        ref, columns = self.reserve_pairs(parent, child, len(found), int(found.max(initial=0)))
        start = len(ref) - len(found)
        if len(found):
            ref[start:] = found if columns == [0, 1] else found[:, columns]
            self._note(parent, child, found, start)
        return slice(start, len(ref))

    def reserve_pairs(self, parent: str, child: str, pairs: int, largest: int) -> tuple[Any, list[int]]:
        """Append so many pairs that are not yet written -> a `h5py.Dataset`, and how columns as in `link` stand in it.

        ``largest``: the largest number of a row that one of them may have. `note` at last.
        """
        ref, columns = self._made(parent, child)
        for one, other in ((parent, child), (child, parent)):  # before anything is written: what fails can be repeated
            region, rows = self.region(one, other), len(self._table(one))
            if len(ref) + pairs > np.iinfo(region.dtype["start"]).max:  # as h5flow makes them
                region = self._retyped(region, region_dtype)
            if len(region) < rows:  # of a table that somebody else has enlarged
                region.resize(rows, axis=0)
        if ref.dtype.itemsize < WIDE.itemsize and largest > np.iinfo(ref.dtype).max:
            ref = self._retyped(ref, WIDE)
        if pairs:
            ref.resize(len(ref) + pairs, axis=0)
        return ref, [*columns]

    def note(self, parent: str, child: str, start: int) -> None:
        """Note for each row where its pairs lie, of those from a place on."""
        ref, columns = self.ref(parent, child)
        for first, last in runs(ref, np.array([start]), np.array([len(ref)])):
            self._note(parent, child, ref[first:last][:, [*columns]], first)

    def _note(self, parent: str, child: str, pairs: Any, start: int) -> None:
        for name, other, column in ((parent, child, 0), (child, parent, 1)):
            regions.note(self.region(name, other), pairs[:, column], start)

    def delete(self, name: str) -> None:
        """Delete a table, or a group with all tables in it, and all references from and to them."""
        name = _name(name)
        if self._find(name) is None:
            raise KeyError(f"{self.path} has no {name!r}; there are the tables {self._listing()}.")
        for parent, child in self.links():
            if within(parent, [name]) or within(child, [name]):
                for one, other in {(parent, child), (child, parent)}:
                    self._remove(f"{one}/ref/{other}", f"{one}/ref")
                self._links.remove((parent, child))
        self._remove(name)

    # ---- the end

    def flush(self) -> None:
        """Give what was written to the system.

        Raises:
            OSError: it has no room.
        """
        if self.mode != "r":
            flush(self.file, self.path)

    def close(self) -> None:
        """Delete what was to be dropped, and close; errors as in `flush`."""
        if not self.file:
            return
        try:
            for name in self._before if self.mode != "r" else ():
                if name in self.file:
                    self.delete(name)
            self.flush()
        finally:
            self._datasets.clear()
            if self._scratch is not None:
                self._scratch.close()
                self._scratch = None
            self.file.close()

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.close()
        except OSError:
            if kind is None:  # of two errors the first
                raise

    def __repr__(self) -> str:
        return f"<{len([*self])} tables of {self.path!r}>" if self.file else f"<closed {self.path!r}>"

    def __str__(self) -> str:
        if not self.file:
            return repr(self)
        rows = []
        for name in self:
            table = self._table(name)
            told = "  ".join(f"{key}={_plain(value)!r}" for key, value in [*self.attrs(name).items(), *table.attrs.items()])
            rows.append((name, f"{len(table)} rows", _typed(table), told))
        links = [(f"{one} -> {other}", f"{len(self.ref(one, other)[0])} pairs") for one, other in self.links()]
        return "\n".join([os.path.basename(self.path), *_aligned(rows), *_aligned(links)])

    # ---- helpers

    @property
    def _files(self) -> list[Any]:
        return [self.file] if self._scratch is None else [self.file, self._scratch]

    def _find(self, path: str) -> Any:
        return self._datasets.find(self._files, path)

    def _home(self, *names: str) -> Any:
        """The file to which what concerns these tables belongs."""
        if self.mode == "r":
            raise GraphError(f'{self.path} is open for reading. Open it with `h5.Tables(path, "a")` to write.')
        if not any(within(name, self._drop) and not within(name, [*self._before]) for name in names):
            return self.file
        if self._scratch is None:
            self._scratch = _unnamed(os.path.dirname(os.path.abspath(self.path)))
        return self._scratch

    def _data(self, name: str) -> Any:
        """A table's dataset, or None."""
        found = self._find(f"{name}/data")
        return found if isinstance(found, h5py.Dataset) else None

    def _table(self, name: str) -> Any:
        found = self._data(_name(name))
        if found is None:
            raise KeyError(f"{self.path} has no table {name!r}; there are {self._listing()}.")
        return found

    def _listing(self) -> str:
        return ", ".join(map(repr, self)) or "none"

    def _made(self, parent: str, child: str) -> tuple[Any, tuple[int, int]]:
        """The references between two tables, new ones if there are none."""
        with contextlib.suppress(KeyError):
            return self.ref(parent, child)
        parent, child = _name(parent), _name(child)
        home = self._home(parent, child)
        options = {"compression": self.compression}
        ref = home.create_dataset(f"{parent}/ref/{child}/ref", (0, 2), NARROW, maxshape=(None, 2), chunks=(PAIRS, 2), **options)
        for number, (one, other) in enumerate(((parent, child), (child, parent))):
            table, path = self._table(one), f"{one}/ref/{other}/ref_region"
            region = home.get(path)
            if region is None:
                rows = len(table)
                region = home.create_dataset(path, (rows,), region_dtype, maxshape=(None,), chunks=(PAIRS // 2,), **options)
                region.attrs["ref"] = ref.name
            ref.attrs[f"dset{number}"], ref.attrs[f"ref_region{number}"] = table.name, region.name
        self._links = sorted([*self._links, (parent, child)])
        return ref, (0, 1)

    def _retyped(self, dataset: Any, dtype: Any) -> Any:
        """References or regions with room for larger numbers, in place of others."""
        self._datasets.forget(dataset.name)
        home, name, attributes = dataset.parent, dataset.name.rpartition("/")[2], dict(dataset.attrs)
        words = "maxshape", "chunks", "compression", "compression_opts", "shuffle", "fletcher32"
        kept = {word: getattr(dataset, word) for word in words}
        wide = home.create_dataset(None, dataset.shape, dtype, **kept)  # without a name, so that it goes if this fails
        for start, stop in runs(dataset, np.array([0]), np.array([len(dataset)])):
            wide[start:stop] = dataset[start:stop].astype(dtype)
        wide.attrs.update(attributes)
        del home[name]
        home[name] = wide
        return wide

    def _remove(self, path: str, upto: str = "") -> None:
        """Remove what is there, and groups around it that are empty now, up to and with one."""
        self._datasets.forget(path)
        for file in self._files:
            if path in file:
                del file[path]
                group = path
                while upto and group != upto:
                    group = group.rpartition("/")[0]
                    if len(file[group]):
                        break
                    del file[group]


def checked_pairs(pairs: Any, parent: str, child: str, rows: Mapping[str, int]) -> Any:
    """Pairs of rows of two tables, which have so many, as an array ``[pairs, 2]``; errors as in `Tables.link`."""
    try:
        found = as_pairs(pairs, "`pairs`")
    except TypeError as error:
        raise GraphError(str(error)) from None
    for column, name in enumerate((parent, child)):
        wrong = found[(found[:, column] < 0) | (found[:, column] >= rows[name]), column]
        if wrong.size:
            raise IndexError(f"A pair names row {wrong[0]} of {name!r}, which has {rows[name]} rows. Nothing was linked.")
    return found


def _chunks(item: int, shape: tuple[int, ...]) -> Any:
    """Of a table of such rows: some, one, or an even part of one; True, which leaves it to h5py, where they are empty."""
    row = item * math.prod(shape)
    if not row:
        return True
    part = [*shape]
    while item * math.prod(part) > LARGEST and max(part, default=1) > 1:
        axis = next(axis for axis, size in enumerate(part) if size > 1)
        part[axis] = -(-part[axis] // 2)
    return max(1, CHUNK // row), *part


def _opened(path: str, mode: str) -> Any:
    try:
        return h5py.File(path, mode, rdcc_nbytes=CACHE)
    except OSError as error:
        raise OSError(error.errno or EINVAL, why_not(error), path) from error


def _unnamed(folder: str) -> Any:
    """A file that is gone from its folder: it lives as long as it is open."""
    handle, path = tempfile.mkstemp(prefix=".qflow-scratch-", suffix=".h5", dir=folder)
    os.close(handle)
    try:
        return h5py.File(path, "w", rdcc_nbytes=CACHE)
    finally:
        os.unlink(path)


def _name(name: Any) -> str:
    """The name of a table, or a GraphError."""
    found = normal(name)
    if found is None:
        raise GraphError(f"A table has a name, as 'hits' or 'reco/hits', of which no part is 'ref' or '.', but got {got(name)}.")
    return found


def within(name: str, groups: Sequence[str]) -> bool:
    """Whether a name is one of these, or in one of these groups."""
    return any(name == group or name.startswith(f"{group}/") for group in groups)


def _tables_of(file: Any) -> list[str]:
    found: list[str] = []
    file.visititems(
        lambda name, each: (
            found.append(name.removesuffix("/data"))
            if isinstance(each, h5py.Dataset) and name.endswith("/data") and "/ref/" not in f"/{name}"
            else None
        )
    )
    return found


def _links_of(file: Any) -> list[tuple[str, str]]:
    found: list[str] = []
    file.visititems(
        lambda name, each: (
            found.append(name.removesuffix("/ref"))
            if isinstance(each, h5py.Dataset) and name.endswith("/ref") and "/ref/" in name
            else None
        )
    )
    return [(parent, child) for parent, _, child in (name.partition("/ref/") for name in found)]


def _typed(table: Any) -> str:
    return type_text(table.dtype, table.shape[1:])


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _spread(hidden: Any, table: Any) -> Any:
    """Which rows are masked, in all their fields and numbers."""
    return np.broadcast_to(hidden.reshape(-1, *(1 for _ in table.shape[1:])), (len(hidden), *table.shape[1:]))


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + (f"{row[0]:<{widths[0]}}    {row[1]:>{widths[1]}}  {'    '.join(row[2:])}").rstrip() for row in rows]
