"""Collective: the ranks of an MPI job write one file together, by parallel HDF5.

    each rank    its slices --journal--            its rows and pairs --> output
    rank 0                  sizes of all --layout-->                            regions, name

When all slices are there, the ranks tell each other how many rows and pairs each of them has. Rank 0 makes room for all, and then
each rank writes its own to their places, all at the same time. At last rank 0 notes where the pairs of each row lie, for several
slices may link one row. The content is what one rank would write.

Nobody is in a call that needs all ranks unless all have their slices, and what fails is told to all before the next such call.

HDF5 writes compressed tables so, too, where the type in memory is that of the file. When a table is opened it makes all chunks or
none: where some are there before, rank 0 makes the new ones. (HDF5 1.10.8 waits for ever else, and 1.17 fails.)
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from sys import intern
from typing import Any, NamedTuple, TypeVar, final

import h5py  # type: ignore[import-untyped]
import numpy as np
from h5py import h5fd, h5p, h5s, h5t

from qflow.errors import GraphError, InternalError, ResourceError
from qflow.graph.ranks import Rank
from qflow.h5.block import Made, Slice
from qflow.h5.fitting import fitted
from qflow.h5.journal import Handed
from qflow.h5.meeting import alternate
from qflow.h5.naming import normal
from qflow.h5.tables import Tables, checked_pairs, within
from qflow.h5.writer import MOST, PAIR, canonical, made_by, pairs_of

BYTES = 1 << 25  # that a rank writes in one call

_kinds: dict[bytes, tuple[Any, tuple[int, ...]]] = {}  # types and shapes of rows that slices of this process have had

A = TypeVar("A")
Link = tuple[str, str]


class Size(NamedTuple):
    """Of what a slice has made for a table: rows, their type and shape, bytes; by links to other tables their pairs."""

    table: str
    rows: int
    dtype: Any
    shape: tuple[int, ...]
    bytes: int
    pairs: dict[str, int]


class Sizes(NamedTuple):
    """Of a slice: where it begins, and what it has made."""

    start: int
    made: tuple[Size, ...]

    @staticmethod
    def of(handed: Handed, table: str) -> Sizes:
        """Of that, a slice of a table."""
        return Sizes(handed.start, tuple(_size(made) for made in _made(handed, table)[1]))


class Layout(NamedTuple):
    """What a file has room for.

    Attributes:
        first, rows: by tables the first row that the slices have made, and all rows.
        pairs: by links the path of the pairs, the first one that the slices have made, and their columns.
    """

    first: dict[str, int]
    rows: dict[str, int]
    pairs: dict[Link, tuple[str, int, list[int]]]


class Place(NamedTuple):
    """Where what a slice has made lies: by tables its first row, by links its first pair."""

    rows: dict[str, int]
    pairs: dict[Link, int]


def communicator(rank: Rank) -> Any:
    """MPI's communicator of these ranks; None: they are not an MPI job's, or this h5py knows no MPI."""
    if rank.count == 1 or not h5py.get_config().mpi:
        return None
    from mpi4py import MPI  # type: ignore[import-not-found,unused-ignore]

    if not MPI.Is_initialized() or MPI.Is_finalized():
        return None
    world = MPI.COMM_WORLD
    return world if (world.Get_rank(), world.Get_size()) == (rank.index, rank.count) else None


@final
class Collective:
    """One rank among those that write.

    Args:
        comm: of all ranks.
        table: whose slices they have.
        drop: tables that are not wanted in the end, and are not written.
    """

    def __init__(self, comm: Any, table: str, drop: Sequence[str]) -> None:
        self._comm, self._table, self._drop = comm, table, [normal(name) or name for name in drop]

    def write(
        self, path: str, own: Sequence[Sizes], slices: Iterable[Handed], declared: Mapping[str, Any], compression: Any
    ) -> tuple[int, dict[str, int]]:
        """Write what the slices of all ranks have made -> how many there are, and how many rows of which tables.

        Args:
            path: of the output.
            own: the sizes of this rank's slices.
            slices: what these have given.
            declared: types of tables that are there also if no rows came.
            compression: of new tables.
        Raises:
            ResourceError: another rank has failed.
        """
        index, count = self._comm.Get_rank(), self._comm.Get_size()
        all_sizes = [*alternate(self._comm.allgather([*own]))]
        sizes = [self._wanted(each) for each in all_sizes]
        batches = [_batches(sizes[rank::count]) for rank in range(count)]

        def room() -> Layout:
            with Tables(path, "r+", compression=compression) as file:
                return self._room(file, sizes, declared)

        layout = self._comm.bcast(self._agreed(room if index == 0 else None), root=0)
        places = islice(_places(layout, sizes, self._table), index, None, count)
        self._agreed(lambda: self._fill(path, layout, batches[index], max(map(len, batches)), zip(slices, places, strict=False)))
        if index == 0:
            with Tables(path, "r+") as file:
                for (other, name), (_, start, _) in layout.pairs.items():
                    file.note(other, name, start)
        rows = Counter[str]()
        for made in (made for slice in all_sizes for made in slice.made):
            rows[made.table] += made.rows
        return len(all_sizes), dict(rows)

    def _wanted(self, sizes: Sizes) -> Sizes:
        """Without what is dropped."""
        if not self._drop:
            return sizes
        made = [each._replace(pairs=self._kept(each.pairs)) for each in sizes.made if not self._dropped(each.table)]
        return Sizes(sizes.start, tuple(made))

    def _kept(self, of: Mapping[str, A]) -> dict[str, A]:
        return {name: each for name, each in of.items() if not self._dropped(name)}

    def _dropped(self, name: str) -> bool:
        return within(name, self._drop)

    def _agreed(self, do: Callable[[], A] | None) -> A | None:
        """Do something -> its outcome, when no rank has failed."""
        found, failed = None, None
        try:
            found = None if do is None else do()
        except BaseException as error:
            failed = error
        texts = self._comm.allgather(None if failed is None else f"{type(failed).__name__}: {failed}")
        if failed is not None:
            raise failed
        for rank, text in enumerate(texts):
            if text is not None:
                raise ResourceError(f"Rank {rank} of {len(texts)} has failed: {text}")
        return found

    # ---- in rank 0

    def _room(self, file: Tables, sizes: Sequence[Sizes], declared: Mapping[str, Any]) -> Layout:
        """Make room for all that was made."""
        kinds = {name: Size(name, 0, np.dtype(dtype), (), 0, {}) for name, dtype in self._kept(declared).items()}
        rows, links = Counter(dict.fromkeys(kinds, 0)), Counter[Link]()
        for each in (made for slice in sizes for made in slice.made):
            rows[each.table] += each.rows
            links.update({(other, each.table): pairs for other, pairs in each.pairs.items()})
            if not kinds.setdefault(each.table, each).rows and each.rows:  # whatever empty slices say
                kinds[each.table] = each
        before = [file[name].name for name in file] + [file.ref(*link)[0].name for link in file.links()]
        first, pairs, starts = {}, {}, dict[str, int]()
        for name, count in rows.items():
            if name not in file:
                file.create(name, canonical(kinds[name].dtype), kinds[name].shape)
            first[name] = starts[file[name].name] = int(file.reserve(name, count).start)
        for (other, name), count in links.items():
            ref, columns = file.reserve_pairs(other, name, count, max(len(file[other]), len(file[name])) - 1)
            start = len(ref) - count
            starts.setdefault(ref.name, start)
            pairs[other, name] = ref.name, start, columns
        for where, start in starts.items():
            _check_type(file.file[where])
            if where in before:
                _touch(file.file[where], start)
        lengths = {name: len(file[name]) for name in {*rows, *(other for other, _ in pairs)}}
        return Layout(first, lengths, pairs)

    # ---- in all ranks

    def _fill(self, path: str, layout: Layout, batches: list[int], most: int, slices: Iterator[tuple[Handed, Place]]) -> None:
        """Write what this rank has. Whatever fails here, it takes part in all calls that need all ranks.

        Args:
            batches: how many slices are written at once; ``most``: how often the rank writes that has the most.
        """
        failed: BaseException | None = None
        with h5py.File(path, "r+", driver="mpio", comm=self._comm) as file:
            data = {name: file[f"{name}/data"] for name in layout.first}
            refs = {link: file[where] for link, (where, _, _) in layout.pairs.items()}
            for number in range(most):
                pieces: dict[Any, list[tuple[int, Any]]] = {}
                try:
                    if failed is None and number < len(batches):
                        self._collect(pieces, layout, data, islice(slices, batches[number]))
                except BaseException as error:
                    failed, pieces = error, {}
                for key, dataset in (*data.items(), *refs.items()):
                    try:
                        ready = _prepared(dataset, pieces.get(key, []))
                    except BaseException as error:
                        failed, pieces = failed or error, {}
                        ready = _prepared(dataset, [])
                    try:
                        dataset.id.write(*ready)
                    except BaseException as error:
                        failed, pieces = failed or error, {}
        if failed is not None:
            raise failed

    def _collect(
        self,
        pieces: dict[Any, list[tuple[int, Any]]],
        layout: Layout,
        data: dict[str, Any],
        slices: Iterable[tuple[Handed, Place]],
    ) -> None:
        """What slices have made, by tables and links, with where it begins there."""
        for handed, place in slices:
            slice, made = _made(handed, self._table)
            made = tuple(each._replace(links=self._kept(each.links)) for each in made if not self._dropped(each.table))
            for each in made:
                if not len(each.rows):
                    continue
                rows = fitted(each.rows, data[each.table].dtype, f"The rows of {each.table!r}")
                if rows.shape[1:] != data[each.table].shape[1:]:
                    shapes = f"of shape {data[each.table].shape[1:]}, but a slice has made some of shape {rows.shape[1:]}"
                    raise GraphError(f"The rows of {each.table!r} are {shapes}.")
                pieces.setdefault(each.table, []).append((place.rows[each.table], rows))
            for link, pairs in pairs_of(slice, made, place.rows):
                found = checked_pairs(pairs, *link, layout.rows)[:, layout.pairs[link][2]]
                pieces.setdefault(link, []).append((place.pairs[link], found))


def _made(handed: Handed, table: str) -> tuple[Slice, tuple[Made, ...]]:
    slice = Slice(None, table, handed.start, handed.stop, handed.rows)
    return slice, made_by(slice, handed.made)


def _size(made: Made) -> Size:
    """There are as many of these as slices, in each rank, so what they have in common is there once."""
    pairs = {intern(other): len(made.rows if isinstance(found, str) else found) for other, found in made.links.items()}
    kind = made.rows.dtype, made.rows.shape[1:]
    kind = _kinds.setdefault(pickle.dumps(kind), kind)  # as bytes, for types of other metadata are equal
    return Size(intern(made.table), len(made.rows), *kind, made.rows.nbytes, pairs)


def _places(layout: Layout, sizes: Iterable[Sizes], table: str) -> Iterator[Place]:
    """Of each slice, in order."""
    row, pair = Counter(layout.first), Counter({link: start for link, (_, start, _) in layout.pairs.items()})
    for slice in sizes:
        rows, pairs = {}, {}
        for made in slice.made:
            rows[made.table] = row[made.table]
            if made.table == table and rows[table] != slice.start:
                raise InternalError(f"The rows of {table!r} that begin at {slice.start} would lie at {rows[table]}.")
            row[made.table] += made.rows
            for other, count in made.pairs.items():
                pairs[other, made.table] = pair[other, made.table]
                pair[other, made.table] += count
        yield Place(rows, pairs)


def _batches(sizes: Iterable[Sizes]) -> list[int]:
    """How many slices are written at once."""
    found, held = list[int](), 0
    for slice in sizes:
        size = sum(made.bytes + PAIR * sum(made.pairs.values()) for made in slice.made)
        if not found or held + size > BYTES or found[-1] >= MOST:
            found.append(0)
            held = 0
        found[-1] += 1
        held += size
    return found


def _check_type(dataset: Any) -> None:
    """A GraphError for a table whose rows are not in memory what they are in the file: no parallel HDF5 writes those."""
    if dataset.dtype.hasobject or not h5t.py_create(dataset.dtype, logical=True).equal(dataset.id.get_type()):
        raise GraphError(
            f"The rows of {dataset.name!r} are of a type that the file has and NumPy has not, and that ranks can't write "
            'together. Write `driver="sec2"`, and rank 0 writes.'
        )


def _touch(dataset: Any, start: int) -> None:
    """Have all chunks from a row on in the file."""
    if dataset.chunks is not None:
        step = dataset.chunks[0]
        nothing = np.zeros((1, *dataset.shape[1:]), dataset.dtype)
        for chunk in range(start // step, -(-len(dataset) // step) if start < len(dataset) else 0):
            row = max(start, chunk * step)
            dataset[row : row + 1] = nothing


def _prepared(dataset: Any, pieces: Sequence[tuple[int, Any]]) -> tuple[Any, ...]:
    """With what rows are written to some places, in order, together with all other ranks; none where a rank has none."""
    space = dataset.id.get_space()
    space.select_none()
    none = np.empty((0, *dataset.shape[1:]), dataset.dtype)
    rows = np.concatenate([none, *(rows for _, rows in pieces)], dtype=dataset.dtype, casting="unsafe")  # checked before
    for start, each in pieces:
        if each.size:
            space.select_hyperslab((start, *(0 for _ in each.shape[1:])), each.shape, op=h5s.SELECT_OR)
    memory = h5s.create_simple(rows.shape)
    if not rows.size:
        memory.select_none()
    way = h5p.create(h5p.DATASET_XFER)
    way.set_dxpl_mpio(h5fd.MPIO_COLLECTIVE)
    return memory, space, rows, dataset.id.get_type(), way
