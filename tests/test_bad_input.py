"""Bad input: each mistake is a clear error on the line that makes it, and the pipe works afterwards.

HDF5 files and what can't be pickled have their lines beside their own tests.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qflow as qf


@qf.process
def read(value: Any) -> Any:
    return value


@qf.pool
def transform(value: Any) -> Any:
    return value


def plain(value: Any) -> Any:
    return value


pipe = read | qf.queue(2)
generator = (number for number in range(3))

# The line that is wrong -> what we got, and what to write instead.
AT_ONCE: dict[str, tuple[Callable[[], Any], str, str]] = {
    "an int joined": (lambda: read | 3, "got 3 of type int", "@qf.process(n=2)"),
    "a function's result joined": (lambda: pipe | read([1]), "[1] of type list", "`xs | step | ...`"),
    "a str as source": (lambda: "a.h5" | read, "got 'a.h5' of type str", "`[x]`"),
    "a str as source of a run": (lambda: pipe("a.h5", engine="serial"), "got 'a.h5' of type str", "`[x]`"),
    "bytes as source": (lambda: b"a" | read, "got b'a' of type bytes", "`[x]`"),
    "a path as source": (lambda: Path("a") | read, "of type PosixPath", "`[x]`"),
    "a dict as source": (lambda: {1: 2} | read, "got {1: 2} of type dict", "`x.items()`"),
    "a scalar as source": (lambda: 3 | read, "got 3 of type int", "`[x]`"),
    "a scalar as source of a run": (lambda: pipe(3, engine="serial"), "got 3 of type int", "`[x]`"),
    "None as source": (lambda: None | read, "got None", "`[x]`"),
    "no source": (lambda: pipe(engine="serial"), "got 0 arguments", "`pipe(xs)`"),
    "two sources": (lambda: pipe([1], [2], engine="serial"), "got 2 arguments", "`pipe(xs)`"),
    "n=0": (lambda: qf.process(n=0), "got 0 of type int", "`qf.process(n=2)`"),
    "n=-1": (lambda: qf.thread(n=-1), "got -1 of type int", "`qf.thread(n=2)`"),
    "n=2.5": (lambda: qf.pool(n=2.5), "got 2.5 of type float", "`qf.pool(n=2)`"),  # type: ignore[call-overload]
    "n=True": (lambda: qf.pool(n=True), "got True of type bool", "`qf.pool(n=2)`"),
    "n='2'": (lambda: qf.process(n="2"), "got '2' of type str", "`qf.process(n=2)`"),  # type: ignore[call-overload]
    "using n=0": (lambda: read.using(n=0), "got 0 of type int", "`read.using(n=2)`"),
    "a run's n=0": (lambda: pipe([1], engine="serial", n=0), "got 0 of type int", "`pipe(xs, n=2)`"),
    "workers=2": (lambda: qf.process(workers=2), "no option `workers`", "`qf.process(n=2)`"),  # type: ignore[call-overload]
    "an unknown option": (lambda: qf.pool(colour=2), "no option `colour`", "`n=`, `name=`, `retry=`"),  # type: ignore[call-overload]
    "an unknown option of a run": (lambda: pipe([1], engine="serial", colour=2), "no option `colour`", "`engine=`"),
    "ordered=3": (lambda: pipe([1], engine="serial", ordered=3), "got 3 of type int", "True or False"),
    "an unknown engine": (lambda: pipe([1], engine="serail"), "got 'serail'", "'processes', 'serial'"),
    "process(2)": (lambda: qf.process(2), "got 2 of type int", "`qf.process(n=2)`"),  # type: ignore[call-overload]
    "process('f')": (lambda: qf.process("f"), "got 'f' of type str", "`qf.process(function)`"),  # type: ignore[call-overload]
    "name=3": (lambda: qf.process(name=3), "got 3 of type int", "`name` is a text"),  # type: ignore[call-overload]
    "two functions in a mark": (lambda: qf.process(n=2)(plain, plain), "got also <function plain", "one argument, the function"),  # type: ignore[call-arg, call-overload]
    "repack(0)": (lambda: qf.repack(0), "got 0 of type int", "`qf.repack(64)`"),
    "pack(2.5)": (lambda: qf.pack(2.5), "got 2.5 of type float", "`qf.pack(64)`"),
    "queue(0)": (lambda: qf.queue(0), "got 0 of type int", "`qf.queue(4)`"),
    "queue(None)": (lambda: qf.queue(None), "got None", "`qf.queue(4)`"),  # type: ignore[arg-type]
    "map(3)": (lambda: qf.map(3), "got 3 of type int", "`qf.map(str.upper)`"),  # type: ignore[call-overload]
    "filter(3)": (lambda: qf.filter(3), "got 3 of type int", "`qf.filter(str.upper)`"),  # type: ignore[arg-type]
    "a step in map": (lambda: qf.map(read), "got read", "`read | ...`"),
    "a source in the middle": (lambda: read | ([1] | read), "can only stand first", "leftmost"),
    "a list in the middle": (lambda: read | [1], "[1] of type list", "`xs | step | ...`"),
    "two sources joined": (lambda: [1] | ([2] | read), "[1] of type list", "can only stand first"),
    "a mark inside a mark": (lambda: qf.process(read), "got read", "`step.using(n=...)`"),
    "a mark around a mark": (lambda: qf.pool(qf.process(plain)), "got qf.process(plain)", "`step.using(n=...)`"),
    "a mark inside a chain": (lambda: qf.process(qf.map(plain) | read), "got qf.map(plain) | read", "mark the plain function"),
    "a repack inside a mark": (
        lambda: qf.process(qf.map(plain) | qf.repack(2)),
        "got qf.map(plain) | qf.repack(2)",
        "`qf.map` and `qf.filter`",
    ),
    "a queue inside a mark": (lambda: qf.process(qf.queue(2)), "got qf.queue(2)", "`qf.map` and `qf.filter`"),
    "an empty flow marked": (lambda: qf.process(qf.Flow()), "got qf.Flow()", "`qf.map` and `qf.filter`"),
    "an unsourced flow iterated": (lambda: iter(pipe), "has no source", "`for x in pipe(source): ...`"),  # type: ignore[call-overload]
    "an unsourced flow listed": (lambda: list(pipe), "has no source", "`for x in pipe(source): ...`"),  # type: ignore[call-overload]
    "an unsourced flow as source": (
        lambda: pipe(read, engine="serial"),
        "got read, a flow without a source",
        "`xs | first | second`",
    ),
    "a built-in operator called": (lambda: qf.repack(4)([1]), "qf.repack(4) is an operator", "`xs | qf.repack(4)`"),  # type: ignore[operator]
    "a source for what has one": (lambda: ([1] | read)([2]), "got [2] of type list", "without one"),
    "mix with a weight too many": (lambda: qf.mix([1], weights=[1, 2]), "got [1, 2]", "one number above 0 for each"),
    "mix of a scalar": (lambda: qf.mix(3), "got 3 of type int", "`[x]`"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("mistake", AT_ONCE)
def test_a_mistake_is_a_clear_error_on_its_line(mistake: str) -> None:
    make, got, instead = AT_ONCE[mistake]
    with pytest.raises(qf.GraphError) as caught:
        make()
    assert got in str(caught.value)
    assert instead in str(caught.value)
    assert len(str(caught.value)) < 300
    mine = [frame for frame in traceback.extract_tb(caught.value.__traceback__) if frame.filename == __file__]
    assert mine[-1].lineno == make.__code__.co_firstlineno


def test_two_plain_functions_joined_are_pythons_own_error() -> None:
    """Nothing of qflow is on that line; `qf.map` before the first one is."""
    with pytest.raises(TypeError, match="unsupported operand"):
        plain | plain  # type: ignore[operator]
    assert qf.map(plain) | plain == qf.Flow(plain, plain)


def test_every_mistake_leaves_the_pipe_usable(engine: str) -> None:
    with read | transform | qf.queue(2) as flow:
        for make, _, _ in AT_ONCE.values():
            with pytest.raises(qf.GraphError):
                make()
        for source in "abc", 3, {1: 2}, flow:
            with pytest.raises(qf.GraphError):
                flow(source, engine=engine)
        assert list(flow([[1], [2]], engine=engine)) == [[1], [2]]


def test_a_one_shot_generator_run_twice_is_an_error_on_that_line(engine: str) -> None:
    source = (number for number in range(3))
    with qf.Flow(read) as flow:
        assert list(flow(source, engine=engine)) == [0, 1, 2]
        with pytest.raises(qf.GraphError, match=r"an iterator \(generator\) that an earlier run has used. Give a list, a range"):
            flow(source, engine=engine)
        assert list(flow([1], engine=engine)) == [1]


@pytest.mark.parametrize("step", [qf.unpack(), qf.repack(2), transform], ids=repr)
def test_what_can_not_be_taken_apart_is_an_error_at_that_item(step: Any, engine: str) -> None:
    with read | step as flow:
        results = flow([[1, 2], 3, [4]], engine=engine)
        with pytest.raises(qf.GraphError, match="takes lists of elements, but got 3 of type int") as caught:
            for _ in results:
                pass
        assert "item 1" in "\n".join(caught.value.__notes__)
        assert "(3)" in "\n".join(caught.value.__notes__)
        assert list(flow([[1, 2]], engine=engine)) in ([1, 2], [[1, 2]])


def test_a_source_that_fails_at_its_first_item_leaves_the_pipe_usable(engine: str) -> None:
    def source() -> Iterator[int]:
        raise OSError("no such disk")
        yield

    with qf.Flow(read) as flow:
        with pytest.raises(OSError, match="no such disk"):
            list(flow(source(), engine=engine))
        assert list(flow([1], engine=engine)) == [1]
