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

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar, final

import h5py  # type: ignore[import-untyped]
import numpy as np
from h5py import h5fd, h5p, h5s

from qflow.errors import GraphError, InternalError, ResourceError
from qflow.graph.ranks import Rank
from qflow.h5.block import Made, Slice
from qflow.h5.journal import Handed
from qflow.h5.meeting import alternate
from qflow.h5.tables import Tables, checked_pairs, fitted, within
from qflow.h5.writer import made_by, pairs_of

BYTES = 1 << 25  # that a rank writes in one call

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
        self._comm, self._table, self._drop = comm, table, [name.strip("/") for name in drop]

    def write(
        self, path: str, own: Sequence[Sizes], slices: Iterable[Handed], opened: Callable[[], Tables]
    ) -> tuple[int, dict[str, int]]:
        """Write what the slices of all ranks have made -> how many there are, and how many rows of which tables.

        Args:
            path: of the output.
            own: the sizes of this rank's slices.
            slices: what these have given.
            opened: makes the output, in rank 0 only.
        Raises:
            ResourceError: another rank has failed.
        """
        index, count = self._comm.Get_rank(), self._comm.Get_size()
        all_sizes = [*alternate(self._comm.allgather([*own]))]
        sizes = [self._wanted(each) for each in all_sizes]
        layout = self._comm.bcast(self._agreed((lambda: self._room(opened(), sizes)) if index == 0 else None), root=0)
        places = [*_places(layout, sizes, self._table)][index::count]
        self._agreed(lambda: self._fill(path, layout, sizes[index::count], zip(slices, places, strict=True)))
        if index == 0:
            self._note(path, layout)
        rows = Counter[str]()
        for made in (made for slice in all_sizes for made in slice.made):
            rows[made.table] += made.rows
        return len(all_sizes), dict(rows)

    def _wanted(self, sizes: Sizes) -> Sizes:
        """Without what is dropped."""
        return Sizes(sizes.start, tuple(self._kept(each, "pairs") for each in sizes.made if not self._dropped(each.table)))

    def _kept(self, each: Any, word: str) -> Any:
        return each._replace(**{word: {other: pairs for other, pairs in getattr(each, word).items() if not self._dropped(other)}})

    def _dropped(self, name: str) -> bool:
        return within(name, self._drop)

    def _agreed(self, do: Callable[[], A] | None) -> A | None:
        """Do something -> its outcome, when no rank has failed."""
        found, failed = None, None
        try:
            found = None if do is None else do()
        except Exception as error:
            failed = error
        texts = self._comm.allgather(None if failed is None else f"{type(failed).__name__}: {failed}")
        if failed is not None:
            raise failed
        for rank, text in enumerate(texts):
            if text is not None:
                raise ResourceError(f"Rank {rank} of {len(texts)} has failed: {text}")
        return found

    # ---- in rank 0

    def _room(self, file: Tables, sizes: Sequence[Sizes]) -> Layout:
        """Make room for all that was made."""
        kinds, rows, links = dict[str, Size](), Counter[str](), Counter[Link]()
        for each in (made for slice in sizes for made in slice.made):
            rows[each.table] += each.rows
            links.update({(other, each.table): pairs for other, pairs in each.pairs.items()})
            if not kinds.setdefault(each.table, each).rows and each.rows:  # whatever empty slices say
                kinds[each.table] = each
        with file:
            first = {name: _more_rows(file, kinds[name], count) for name, count in rows.items()}
            pairs = {}
            for (other, name), count in links.items():
                if other in file:
                    largest = max(len(file[other]), len(file[name])) - 1
                    ref, columns = file.reserve_pairs(other, name, count, largest)
                    start = len(ref) - count
                    _touch(ref, start)
                    pairs[other, name] = ref.name, start, columns
            lengths = {name: len(file[name]) for name in {*rows, *(other for other, _ in pairs)}}
        return Layout(first, lengths, pairs)

    def _note(self, path: str, layout: Layout) -> None:
        """Note where the pairs of each row lie."""
        with Tables(path, "r+") as file:
            for (other, name), (_, start, _) in layout.pairs.items():
                file.note(other, name, start)

    # ---- in all ranks

    def _fill(self, path: str, layout: Layout, sizes: Sequence[Sizes], slices: Iterator[tuple[Handed, Place]]) -> None:
        """Write what this rank has. Whatever fails here, it takes part in all calls that need all ranks."""
        batches = _batches(sizes)
        failed: Exception | None = None
        with h5py.File(path, "r+", driver="mpio", comm=self._comm) as file:
            data = {name: file[f"{name}/data"] for name in layout.first}
            refs = {link: file[where] for link, (where, _, _) in layout.pairs.items()}
            for number in range(max(self._comm.allgather(len(batches)))):
                pieces: dict[Any, list[tuple[int, Any]]] = {}
                try:
                    if failed is None and number < len(batches):
                        self._collect(pieces, layout, data, islice(slices, batches[number]))
                except Exception as error:
                    failed, pieces = error, {}
                for key, dataset in (*data.items(), *refs.items()):
                    try:
                        _write(dataset, pieces.get(key, []))
                    except Exception as error:
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
            made = tuple(self._kept(each, "links") for each in made if not self._dropped(each.table))
            for each in made:
                rows = fitted(each.rows, data[each.table].dtype, f"The rows of {each.table!r}")
                if rows.shape[1:] != data[each.table].shape[1:]:
                    shapes = f"of shape {data[each.table].shape[1:]}, but a slice has made some of shape {rows.shape[1:]}"
                    raise GraphError(f"The rows of {each.table!r} are {shapes}.")
                pieces.setdefault(each.table, []).append((place.rows[each.table], rows))
            for link, pairs in pairs_of(slice, made, place.rows):
                if link in layout.pairs:
                    found = checked_pairs(pairs, *link, layout.rows)[:, layout.pairs[link][2]]
                    pieces.setdefault(link, []).append((place.pairs[link], found))


def _made(handed: Handed, table: str) -> tuple[Slice, tuple[Made, ...]]:
    slice = Slice(None, table, handed.start, handed.stop, handed.rows)
    return slice, made_by(slice, handed.made)


def _size(made: Made) -> Size:
    pairs = {other: len(made.rows if isinstance(found, str) else found) for other, found in made.links.items()}
    return Size(made.table, len(made.rows), made.rows.dtype, made.rows.shape[1:], made.rows.nbytes, pairs)


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
    found, held = list[int](), BYTES
    for slice in sizes:
        size = sum(made.bytes + 16 * sum(made.pairs.values()) for made in slice.made)
        if held + size > BYTES:
            found.append(0)
            held = 0
        found[-1] += 1
        held += size
    return found


def _more_rows(file: Tables, kind: Size, rows: int) -> int:
    """A table with so many more rows -> the first of them."""
    if kind.table not in file:
        file.create(kind.table, kind.dtype, kind.shape)
    start = file.reserve(kind.table, rows).start
    _touch(file[kind.table], start)
    return int(start)


def _touch(dataset: Any, start: int) -> None:
    """Have all chunks from a row on in the file, if some before it are."""
    if dataset.chunks is not None and start and start < len(dataset):
        step = dataset.chunks[0]
        nothing = np.zeros((1, *dataset.shape[1:]), dataset.dtype)
        for chunk in range(start // step, -(-len(dataset) // step)):
            row = max(start, chunk * step)
            dataset[row : row + 1] = nothing


def _write(dataset: Any, pieces: Sequence[tuple[int, Any]]) -> None:
    """Write rows to some places, in order, together with all other ranks; none where a rank has none."""
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
    dataset.id.write(memory, space, rows, dataset.id.get_type(), way)
