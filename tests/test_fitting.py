"""Rows of one type as those of another: each value stays what it is, or an error says which one can't."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from qflow.errors import GraphError
from qflow.h5.fitting import fitted

h5py = pytest.importorskip("h5py")

NUMBERS = [f"{order}{kind}" for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8") for order in "<>"]
TYPES = st.sampled_from([np.dtype(each) for each in ("?", "S1", "S20", "c8", "c16", *NUMBERS)])


def exact(value: Any) -> Any:
    """Numbers without the type that they have: real and imaginary part; or a text."""
    if isinstance(value, bytes):
        return value
    return [Fraction(part) if math.isfinite(part) else str(part) for part in (value.real, value.imag)]


def digits_may_go(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """From floats to floats."""
    return one.kind in "fc" and other.kind in "fc"


@given(data=st.data(), one=TYPES, other=TYPES)
@example(data=None, one=np.dtype("i8"), other=np.dtype("f8"))
@example(data=None, one=np.dtype("u8"), other=np.dtype("f8"))
@example(data=None, one=np.dtype("f8"), other=np.dtype("f4"))
@example(data=None, one=np.dtype("i4"), other=np.dtype("f2"))
def test_a_value_stays_what_it_is_or_an_error_names_it(data: Any, one: np.dtype[Any], other: np.dtype[Any]) -> None:
    if data is None:
        extreme = np.finfo(one) if one.kind == "f" else np.iinfo(one)
        rows = np.array([extreme.max, extreme.max, extreme.min], one)
    else:
        rows = data.draw(nps.arrays(one, st.integers(0, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = fitted(rows, other, "These")
        except GraphError:
            found = None
    if found is None:
        assert one != other
        return
    assert found.dtype == other
    assert found.shape == rows.shape
    for before, after in zip(rows.tolist(), found.tolist(), strict=True):
        if digits_may_go(one, other):
            assert np.isfinite(before) == np.isfinite(after)
        else:
            assert exact(before) == exact(after)


def test_rows_that_fit_are_taken() -> None:
    """What the law above would allow to be refused."""
    for rows, other in (
        (np.array([1, 255]), "u1"),
        (np.array([2**53, -(2**53)]), "f8"),
        (np.array([2**62, -(2**63)]), "f8"),
        (np.array([2**63, 2**64 - 2**11], "u8"), "f8"),
        (np.array([65504]), "f2"),
        (np.array([2**24]), "c8"),
        (np.array([0.1, np.inf, np.nan, 1e-60]), "f4"),
        (np.array([b"abc"]), "S2000"),
        (np.array([b"a"], "S9"), "S1"),
        (np.array([True]), "i1"),
        (np.array([b"a", b"bc"]), h5py.string_dtype()),
        (np.array([[1, 2]]), ">i2"),
        (np.array([(1, (2.0, 3.0))], [("a", "i8"), ("b", "f8", 2)]), [("a", "f4"), ("b", "f4", 2)]),
    ):
        with np.errstate(all="ignore"):
            assert repr(fitted(rows, np.dtype(other), "These").tolist()) == repr(rows.astype(other).tolist())


@pytest.mark.parametrize(
    ("rows", "other", "said"),
    [
        (
            np.array([1760000000123456789]),
            "f8",
            r"These are float64, in which 1760000000123456789 does not fit. If it may be .* `rows.astype\('float64'\)`",
        ),
        (np.array([2**64 - 1], "u8"), "f8", "in which 18446744073709551615 does not fit"),
        (np.array([2**63 - 1]), "f8", "in which 9223372036854775807 does not fit"),
        (np.array([70000]), "f2", "in which 70000 does not fit"),
        (np.array([2**24 + 1]), "c8", "in which 16777217 does not fit"),
        (np.array([1.0, 1e39]), "f4", r"in which 1e\+39 does not fit"),
        (np.array([1e39j]), "c8", "does not fit"),
        (np.array([(1, 1e39)], [("a", "i8"), ("b", "f8")]), [("a", "i8"), ("b", "f4")], r"in which 1e\+39 does not fit"),
        (np.array([1, 2]), "S1", "These are |S1, but got int64"),
        (np.array([1, 2]), "S21", "but got int64"),
        (np.array([True]), "S5", "but got bool"),
        (np.array([0.5]), "i8", "but got float64"),
        (np.array([b"abc"]), "S2", "does not fit"),
        (np.array(["2026-11-23"], "M8[s]"), "M8[D]", "but got datetime64"),
        (np.zeros(1, "V8"), "V4", "but got |V8"),
        (np.array([1]), "m8[s]", "but got int64"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(rows: Any, other: Any, said: str) -> None:
    with pytest.raises(GraphError, match=said.replace("|", r"\|")):
        fitted(rows, np.dtype(other), "These")
