"""Ctrl-C, or another thread that closes the run, at any instruction of the consumer: what was given out and the state agree."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import pytest

import qflow as qf
from qflow.graph.run import Run
from qflow.runtime import consumer

pytestmark = pytest.mark.usefixtures("one_nursery")

ITEMS = 5
HOME = os.getpid()


def number(value: int) -> int:
    """Results that lie in a table."""
    return value


def record(value: int) -> Any:
    """And such as lie beside each other, pickled."""
    return {"number": value} if value % 2 else (value, "text")


def at_home(value: int) -> None:
    """Build a result where it was made only."""
    if os.getpid() == HOME:
        raise ValueError(value)


class Shy(NamedTuple):
    """A result that the consumer can't build."""

    value: int

    def __reduce__(self) -> Any:
        return at_home, (self.value,)


def shy(value: int) -> Any:
    """And some that can't be built."""
    return Shy(value) if value in (0, 3) else {"number": value}


every_kind = pytest.mark.parametrize("step", [number, record, shy])
stride = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])


@contextmanager
def at(point: int, act: Callable[[], Any]) -> Iterator[list[int]]:
    """Act before an instruction of the consumer, counted from here; gives a list that is empty when it has come to that."""
    left, seen = [point], 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename != consumer.__file__ and frame.f_code is not Run._each.__code__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            seen += 1
            if left and seen > point:
                left.clear()
                act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield left
    finally:
        sys.settrace(before)


def interrupt() -> None:
    raise KeyboardInterrupt


@stride
@every_kind
@pytest.mark.parametrize("taken", [0, 2])
def test_a_run_that_is_interrupted_at_any_instruction_can_be_gone_on_from(step: Any, taken: int, stride: int) -> None:
    with qf.Flow(qf.process(step)) as flow:
        pipe = partial(flow, range(ITEMS), on_error="skip")
        whole = list(pipe())
        for point in range(0, 10_000, stride):
            run = pipe()
            got = [next(run) for _ in range(taken)]
            with at(point, interrupt) as left, suppress(KeyboardInterrupt):
                got.extend(iter(run.__iter__().__next__, ()))
            run.close()
            if left:
                break
            rest = list(pipe(resume=run.state_dict()))
            assert got == whole[: len(got)]
            assert rest in (whole[len(got) :], whole[len(got) + 1 :])  # one may be lost on its way to the loop
    assert point > 100


@stride
@every_kind
def test_a_close_that_is_interrupted_at_any_instruction_forgets_nothing(step: Any, stride: int) -> None:
    with qf.Flow(qf.process(step)) as flow:
        pipe = partial(flow, range(ITEMS), on_error="skip")
        whole = list(pipe())
        for point in range(0, 10_000, stride):
            run = pipe()
            got = [next(run), next(run)]
            with at(point, interrupt) as left, suppress(KeyboardInterrupt):
                run.close()
            run.close()
            if left:
                break
            assert got + list(pipe(resume=run.state_dict())) == whole
    assert point > 10


@stride
@every_kind
@pytest.mark.parametrize("calls", [lambda run: iter(run.__next__, ()), iter], ids=["next", "loop"])
def test_another_thread_may_close_at_any_instruction(step: Any, calls: Callable[[Run[Any]], Iterator[Any]], stride: int) -> None:
    with qf.Flow(qf.process(step)) as flow:
        pipe = partial(flow, range(ITEMS), on_error="skip")
        whole = list(pipe())
        for point in range(0, 10_000, stride):
            run: Any = pipe()
            got = []

            def close(run: Any = run) -> None:  # as far as it comes while this thread is where it is
                run._over = True
                run._session._abort()

            with at(point, close) as left, suppress(qf.GraphError):  # "The run was closed"
                got.extend(calls(run))
            run.close()
            if left:
                break
            assert got + list(pipe(resume=run.state_dict())) == whole
    assert point > 100
