"""Rows that are linked with others: against the plainest way to say it, with arrays and with datasets of every layout."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.ma as ma
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

import qflow as qf
from qflow import h5
from qflow.h5 import blocks
from qflow.h5.references import region_dtype

h5py = pytest.importorskip("h5py")
TYPES = [np.dtype("f4"), np.dtype("i8"), np.dtype("S3"), np.dtype([("id", "i8"), ("xy", "f4", (2,))])]


@pytest.fixture(scope="module")
def file() -> Iterator[Any]:
    with h5py.File("nowhere", "w", driver="core", backing_store=False) as found:
        yield found


def plain(rows: Any, hidden: Any, ref: Any, direction: tuple[int, int]) -> list[list[int]]:
    """For each selected row the rows that it is linked with, in the order of the references."""
    here, there = direction
    return [
        [] if hide else [int(pair[there]) for pair in ref if pair[here] == row] for row, hide in zip(rows, hidden, strict=True)
    ]


def regions(ref: Any, column: int, length: int, wider: Any = lambda: 0) -> Any:
    """The regions of a table, which may be wider than its links are."""
    found = np.zeros(length, region_dtype)
    for row in range(length):
        (places,) = np.nonzero(ref[:, column] == row)
        if len(places):
            found[row] = max(0, places[0] - wider()), min(len(ref), places[-1] + 1 + wider())
    return found


@st.composite
def tables(draw: Any) -> Any:
    """Two tables, pairs, their regions, and a selection with what it stands for."""
    lengths = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    pair = st.tuples(*(st.integers(0, length - 1) for length in lengths))
    kind = draw(st.sampled_from(["u4", "i8"]))
    ref = np.array(draw(st.lists(pair, max_size=30)), kind).reshape(-1, 2)
    direction = draw(st.sampled_from([(0, 1), (1, 0)]))
    here, there = direction
    data = draw(of_numpy.arrays(draw(st.sampled_from(TYPES)), (lengths[there], *draw(st.sampled_from([(), (2,)])))))
    region = regions(ref, here, lengths[here], lambda: draw(st.integers(0, 3)))
    rows = st.integers(-lengths[here], lengths[here] - 1)
    ends = st.none() | st.integers(-15, 15)
    sel = draw(
        rows
        | st.lists(rows, max_size=8)
        | st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, -1]))
        | of_numpy.arrays(bool, lengths[here])
    )
    wanted = np.atleast_1d(np.arange(lengths[here])[np.array(sel, int) if isinstance(sel, list) else sel])
    mask = draw(st.none() | of_numpy.arrays(bool, len(wanted)))
    return ref, data, region, direction, sel, wanted, mask


def stored(file: Any, array: Any, chunks: Any, compression: Any) -> Any:
    if "x" in file:
        del file["x"]
    group = file.create_group("x")
    return [
        group.create_dataset(str(number), data=each, chunks=chunks if each.size else None, maxshape=None, compression=compression)
        if each.size
        else group.create_dataset(str(number), data=each)
        for number, each in enumerate(array)
    ]


@given(tables(), st.booleans(), st.sampled_from([None, "contiguous", True, "gzip"]))
def test_links_are_those_of_the_plainest_way(file: Any, table: Any, use_region: bool, layout: Any) -> None:
    ref, data, region, direction, sel, wanted, mask = table
    length = len(region)
    hidden = np.zeros(len(wanted), bool) if mask is None else mask
    links = plain(wanted, hidden, ref, direction)
    given_ref, given_data, given_region = ref, data, region
    if layout is not None:
        chunks, compression = (None, None) if layout == "contiguous" else (True, "gzip" if layout == "gzip" else None)
        given_ref, given_data, given_region = stored(file, [ref, data, region], chunks, compression)
        if "table" in file:
            del file["table"]
        file["table"] = np.zeros(length)
        given_ref.attrs[f"dset{direction[0]}"] = "/table"
    known = use_region or layout is not None
    try:
        found = h5.dereference(sel, given_ref, given_data, given_region if use_region else None, mask, direction)
    except qf.GraphError:
        assert not known
        return
    if not known and isinstance(sel, slice):  # it may go beyond the end, of which nobody knows
        assert missing(found)[len(wanted) :].all()
        found = found[: len(wanted)]
    assert found.dtype == data.dtype
    assert found.shape == (len(wanted), max([1, *map(len, links)]), *data.shape[1:])
    for row, gone, linked in zip(found, missing(found), links, strict=True):
        assert gone.tolist() == [number >= len(linked) for number in range(found.shape[1])]
        assert row.data[: len(linked)].tobytes() == data[sorted(linked)].tobytes()
    if known:
        region_or_none = given_region if use_region else None
        indices = h5.dereference(sel, given_ref, None, region_or_none, mask, direction, indices_only=True)
        assert indices.dtype == ref.dtype
        assert [row.compressed().tolist() for row in indices] == [*map(sorted, links)]
        listed = h5.dereference(sel, given_ref, given_data, region_or_none, mask, direction, as_masked=False)
        for rows, linked in zip(listed, links, strict=True):
            assert (rows.shape[1:], rows.tobytes()) == (data.shape[1:], data[linked].tobytes() if linked else b"")


def missing(found: Any) -> Any:
    """Which links are masked, of which all fields and numbers are or none."""
    mask = np.ascontiguousarray(ma.getmaskarray(found))
    if not mask.size:
        return np.empty(mask.shape[:2], bool)
    each = mask.view(bool).reshape(*mask.shape[:2], -1)
    assert (each == each[..., :1]).all()
    return each[..., 0]


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 3000)), max_size=20), st.sampled_from([1, 8, 1000]))
def test_reads_cover_what_is_wanted_once_and_little_else(parts: list[tuple[int, int]], itemsize: int) -> None:
    data = np.lib.stride_tricks.as_strided(np.zeros(1, f"S{itemsize}"), (10**8,), (0,))
    starts = np.array([start for start, _ in parts], np.int64)
    stops = starts + np.array([length for _, length in parts], np.int64)
    reads = [*blocks.runs(data, starts, stops)]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(reads))
    assert all(0 < stop - start <= max(1, blocks.MOST // itemsize) for start, stop in reads)
    wanted = {row for start, stop in zip(starts.tolist(), stops.tolist(), strict=True) for row in range(start, stop)}
    covered = {row for start, stop in reads for row in range(start, stop)}
    assert wanted <= covered
    assert (len(covered) - len(wanted)) * itemsize <= blocks.GAP * max(0, len(parts) - 1)


def test_the_readme_of_h5flow() -> None:
    ref = [[0, 1], [1, 2]]
    assert h5.dereference([0, 1, 2], ref, np.arange(4)).tolist() == [[1], [2], [None]]
    assert h5.dereference([0, 1, 2, 3], ref, np.arange(3), ref_direction=(1, 0)).tolist() == [[None], [0], [1], [None]]
    words = h5.dereference([0, 1, 2], [[1, 0], [2, 1]], ["A", "B", "C", "D"], ref_direction=(0, 1), as_masked=False)
    assert [each.tolist() for each in words] == [[], ["A"], ["B"]]
    words = h5.dereference([0, 1, 2], [[1, 0], [2, 1]], ["A", "B", "C", "D"], ref_direction=(1, 0), as_masked=False)
    assert [each.tolist() for each in words] == [["B"], ["C"], []]


A_TO_B = np.array([[a, 10 * a + k] for a in range(10) for k in range(10)], "u4")
C_TO_B = np.array([[c, c // 10] for c in range(1000)], "u4")


@pytest.mark.parametrize("with_regions", [False, True])
def test_chains_lead_over_tables_between(with_regions: bool) -> None:
    around = [regions(A_TO_B, 0, 10), regions(C_TO_B, 1, 100)] if with_regions else None
    one, two, three = np.ogrid[:10, :10, :10]
    whole = 100 * one + 10 * two + three
    chain = h5.dereference_chain(slice(0, 10), [A_TO_B, C_TO_B], np.arange(1000), around, ref_directions=[(0, 1), (1, 0)])
    assert not chain.mask.any()
    np.testing.assert_array_equal(chain, whole)
    indices = h5.dereference_chain([3], [A_TO_B, C_TO_B], None, around, None, [(0, 1), (1, 0)], indices_only=True)
    assert indices[0, 4].tolist() == [*range(340, 350)]
    assert indices.dtype == "u4"
    mask = np.arange(10) % 2 == 0
    chain = h5.dereference_chain(slice(0, 10), [A_TO_B, C_TO_B], np.arange(1000), around, mask, [(0, 1), (1, 0)])
    assert (missing(chain) == mask[:, None]).all()
    np.testing.assert_array_equal(chain[1::2], whole[1::2])
    back = h5.dereference_chain([123, 999], [C_TO_B, A_TO_B], np.arange(10), ref_directions=[(0, 1), (1, 0)])
    assert back.tolist() == [[[1]], [[9]]]


def test_a_step_of_which_nothing_comes_leads_nowhere() -> None:
    chain = h5.dereference_chain([0, 1], [[[0, 1]], [[1, 2], [1, 3]]], np.arange(5.0))
    assert chain.tolist() == [[[2.0, 3.0]], [[None, None]]]
    table = np.array([(1, 2.0)], [("a", "i4"), ("b", "f4")])
    chain = h5.dereference_chain([0, 1], [[[0, 1]], [[1, 0]]], table)
    assert chain["a"].tolist() == [[[1]], [[None]]]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        (([5], [[0, 1]], [1, 2], np.zeros(3, region_dtype)), {}, IndexError, "Row 5 is selected of a table with 3 rows"),
        (([-4], [[0, 1]], [1, 2], np.zeros(3, region_dtype)), {}, IndexError, "Row -4 is selected"),
        (([0], [[0, 7]], [1, 2]), {}, IndexError, "A reference leads to row 7 of a table with 2 rows"),
        (([-1], [[0, 1]], [1, 2]), {}, qf.GraphError, "negative rows, but how long the table is"),
        ((slice(1, None), [[0, 1]], [1, 2]), {}, qf.GraphError, "Give its ends, or `region`"),
        (([0.5], [[0, 1]], [1, 2]), {}, qf.GraphError, "`sel` is a number, a slice, or a list"),
        (([0], [0, 1], [1, 2]), {}, qf.GraphError, "integers \\[pairs, 2\\], but got int64\\[2\\]"),
        (([0], [[0, 1]], [1, 2], [1, 2, 3]), {}, qf.GraphError, "`region` is an array of `start` and `stop`"),
        (([0], [[0, 1]], [1, 2]), {"mask": [True, False]}, qf.GraphError, "`mask` is a boolean for each of the 1 selected"),
        (([0], [[0, 1]], [1, 2]), {"ref_direction": (0, 0)}, qf.GraphError, "`ref_direction` is"),
        (([0], [[0, 1]]), {}, qf.GraphError, "write `indices_only=True`"),
        (([True, False], [[0, 1]], [1, 2], np.zeros(3, region_dtype)), {}, IndexError, "2 booleans select of a table with 3"),
    ],
)
def test_what_is_wrong_is_told(arguments: Any, options: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        h5.dereference(*arguments, **options)


def test_a_row_that_is_selected_twice_may_be_masked_once() -> None:
    found = h5.dereference([1, 1, 0], [[0, 3], [1, 2], [1, 0]], np.arange(4), mask=[True, False, False])
    assert found.tolist() == [[None, None], [0, 2], [3, None]]
    found = h5.dereference(ma.array([1, 1], mask=[False, True]), [[1, 2]], np.arange(4), as_masked=False)
    assert [each.tolist() for each in found] == [[2], []]


def test_what_is_not_selected_is_not_looked_at() -> None:
    assert h5.dereference([0, 2], [[0, 1], [1, 99], [2, 0]], np.arange(2)).tolist() == [[1], [0]]
