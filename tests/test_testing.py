"""The kit for tests of one's own steps: faults happen as told, in every engine; the package loads what it needs."""

from __future__ import annotations

import functools
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import plain_steps as steps
import pytest

import qflow as qf
from qflow.testing import dying, failing, slow

SIMULATED = qf.engines.Simulated(3, deaths=0)
ENGINES = ["serial", "processes", SIMULATED]
MARKS = [qf.process, qf.thread, qf.pool]


def run(step, items, **options):
    """The results of a step or of a pool's elements, and the failures' items."""
    pools = isinstance(step, type(qf.pool(abs)))
    flow = qf.map(steps.pair) | step | qf.unpack() if pools else qf.Flow(step)
    with flow, flow(items, on_error="skip", **options) as run:
        found = [*dict.fromkeys(run)] if pools else list(run)
        return found, [(type(failure.error), failure.item) for failure in run.failures]


# ---- failing


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("mark", MARKS)
def test_failing_raises_for_the_items_that_are_meant(mark, engine):
    step = mark(n=2)(failing(steps.add, on=3, error=LookupError))
    values, failures = run(step, range(6), engine=engine)
    assert values == [1, 2, 3, 5, 6]
    assert {*failures} == {(LookupError, "3")}


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        (2, [2]),
        ([1, 2], [1, 2]),
        ((1, 2), [1, 2]),
        ({0, 5}, [0, 5]),
        (frozenset({4}), [4]),
        (range(2), [0, 1]),
        (steps.even, [0, 2, 4]),
        (lambda x: x > 3, [4, 5]),
        (None, []),
    ],
)
def test_items_are_meant_by_a_value_some_values_or_a_predicate(on, expected):
    _, failures = run(qf.map(failing(steps.add, on=on)), range(6), engine="serial")
    assert failures == [(ValueError, str(item)) for item in expected]
    _, failures = run(qf.map(failing(steps.add)), range(2), engine="serial")
    assert len(failures) == 2


def test_arrays_are_meant_when_all_their_elements_are():
    step = qf.map(failing(np.sum, on=[np.zeros(3)]))
    _, failures = run(step, [np.zeros(3), np.array([0, 0, 1])], engine="serial")
    assert len(failures) == 1


@pytest.mark.parametrize("engine", ENGINES, ids=str)
@pytest.mark.parametrize("times", [1, 2])
def test_failing_a_few_times_is_repaired_by_as_many_retries(engine, times):
    flaky = qf.process(n=2)(failing(steps.add, on=steps.even, error=OSError, times=times))
    assert run(flaky.using(retry=(OSError, times)), range(6), engine=engine) == ([1, 2, 3, 4, 5, 6], [])
    assert run(qf.map(steps.flip) | flaky.using(retry=(OSError, times)), range(3), engine=engine) == ([1, 0, -1], [])
    short = flaky if times == 1 else flaky.using(retry=(OSError, times - 1))
    assert run(short, range(4), engine=engine) == ([2, 4], [(OSError, "0"), (OSError, "2")])


def test_tries_are_those_of_this_run_and_this_item():
    flaky = failing(steps.add, error=OSError, times=1)
    pipe = qf.process(flaky, retry=OSError) | qf.pack(2) | qf.process(failing(steps.total, error=OSError, times=1), retry=OSError)
    for _ in range(2):
        assert list(pipe([1, 1, 1, 1], engine="serial")) == [4, 4]
    run = qf.run(qf.process(failing(steps.add), retry=3), [1], engine="serial")
    with pytest.raises(ValueError, match="failing on 1"):
        next(run)
    with pytest.raises(OSError, match="failing on 1"):
        flaky(1)


def test_what_is_raised_is_the_error_that_was_given():
    own = KeyError("gone")
    step = failing(steps.add, error=own)
    for _ in range(2):
        with pytest.raises(KeyError, match="gone") as caught:
            step(1)
        assert caught.value is not own
    assert not own.__traceback__
    with pytest.raises(KeyError, match="gone"):
        list(qf.run(qf.process(step), [1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: failing(3), "takes a function, a class or a marked step, but got 3 of type int"),
        (lambda: failing(qf.pack(2)), "Wrap the function of one step"),
        (lambda: dying(qf.map(abs) | qf.map(abs)), r"qf\.process\(qf\.testing\.dying\(function\)\)"),
        (lambda: failing(abs, error="gone"), "`error` is an exception or a type of exception, but got 'gone'"),
        (lambda: failing(abs, times=0), "times must be a whole number of at least 1"),
        (lambda: slow(abs, seconds=-1), "`seconds` is a number of at least 0, but got -1"),
        (lambda: dying(abs, how="poison"), "`how` is one of 'kill', 'exit', 'segfault', 'abort'"),
        (lambda: dying(abs)(1), r"there is none here.*\n?.*engine=qf\.engines\.Simulated"),
    ],
)
def test_what_is_wrong_is_said_where_it_is_written(make, message):
    with pytest.raises(qf.GraphError) as caught:
        make()
    assert re.search(message, str(caught.value))


# ---- all wrappers


class Scale:
    """A step with an instance."""

    def __init__(self, factor=2):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


@qf.process(n=2)
@functools.partial(failing, on=3)
def decorated(x):
    return x


def plain(x, *, by=1):
    """A step's function."""
    return x + by


WRAPPERS = [failing, functools.partial(slow, seconds=0), dying]


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=["failing", "slow", "dying"])
def test_a_wrapped_function_is_still_the_function(wrapper):
    wrapped = wrapper(plain, on=-1)
    assert (wrapped.__name__, wrapped.__doc__, wrapped.__wrapped__) == ("plain", "A step's function.", plain)
    assert wrapped(1) == 2
    assert qf.process(wrapped).bind(by=5)(1) == 6
    assert qf.process(wrapped).name == "plain"
    assert qf.process(wrapper(functools.partial(plain, by=2))).name == "plain"
    assert qf.process(wrapper(lambda x: x)).name == "lambda"
    with pytest.raises(TypeError):  # a generator's results can't be counted before they came
        len(qf.run(qf.process(wrapper(lambda x: (yield x), on=-1)), [1], engine="serial"))


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=["failing", "slow", "dying"])
def test_a_class_is_wrapped_as_a_class(wrapper):
    step = qf.process(n=2)(wrapper(Scale, on=-1))
    assert step.name == "Scale"
    assert list(qf.run(step(3), [1, 2])) == [3, 6]
    assert isinstance(wrapper(Scale)(), Scale)


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=["failing", "slow", "dying"])
def test_a_marked_step_is_wrapped_below_its_mark(wrapper):
    step = wrapper(qf.pool(n=2, name="scaled")(Scale)(3), on=-1)
    assert (type(step), step.options) == (type(qf.pool(abs)), qf.pool(n=2, name="scaled")(abs).options)
    assert list(qf.run(step, [[1, 2]])) == [[3, 6]]


def test_a_wrapped_step_travels_by_name_or_by_value():
    assert len(pickle.dumps(decorated)) < 100
    for step in decorated, qf.process(failing(lambda x: x, on=lambda x: x == 3)), failing(qf.process(plain), on=3):
        assert [item for _, item in run(step, range(5))[1]] == ["3"]


def test_wrappers_can_be_put_around_each_other():
    step = qf.process(n=2)(dying(failing(slow(steps.add, seconds=0), on=3), on=4))
    assert run(step, range(6)) == ([1, 2, 3, 5, 6], [(ValueError, "3")])


# ---- slow


def test_slow_sleeps_for_the_items_that_are_meant(monkeypatch):
    slept = []
    monkeypatch.setattr("qflow.testing.faults.time.sleep", slept.append)
    assert list(qf.run(qf.map(slow(steps.add, seconds=0.2, on=[1, 2])), range(4), engine="serial")) == [1, 2, 3, 4]
    assert slept == [0.2, 0.2]


def test_a_timeout_can_be_tried_out():
    with qf.run(qf.process(slow(steps.add, seconds=60), timeout=0.2), [1], on_error="skip") as stuck:
        assert list(stuck) == []
        assert type(stuck.failures[0].error) is qf.StepTimeout


# ---- dying


@pytest.mark.parametrize("how", ["kill", "exit", "segfault", "abort"])
@pytest.mark.parametrize("engine", ENGINES[1:], ids=str)
def test_a_dying_worker_is_replaced(how, engine):
    with qf.process(n=2)(dying(steps.add, on=[1, 4], how=how)) | qf.queue(2) as pipe, pipe(range(6), engine=engine) as run:
        assert list(run) == [1, 2, 3, 4, 5, 6]
        assert run.stats()[0].died == 2


@pytest.mark.parametrize("engine", ENGINES[1:], ids=str)
@pytest.mark.parametrize("mark", MARKS)
def test_an_item_that_always_kills_is_a_dead_worker(mark, engine):
    values, failures = run(mark(n=2)(dying(steps.add, on=3, times=None)), range(6), engine=engine)
    assert values == [1, 2, 3, 5, 6]
    assert {error for error, _ in failures} == {qf.WorkerDied}


def test_dying_spares_the_process_of_the_test():
    with pytest.raises(qf.GraphError, match='Run the flow with engine="processes"'):
        list(qf.run(dying(qf.process(steps.add), on=3), range(5), engine="serial"))
    list(qf.run(dying(qf.process(steps.add), on=3), range(5), engine=SIMULATED))
    with pytest.raises(qf.GraphError, match="there is none here"):
        dying(steps.add)(3)


def test_a_simulation_in_a_worker_does_not_kill_the_worker():
    def simulates(x):
        inner = list(qf.run(qf.process(dying(steps.add)), [x], engine=SIMULATED))
        return inner, qf.worker().step

    step = qf.process(simulates)
    with step | qf.queue(1) as pipe, pipe([1]) as run:
        assert list(run) == [([2], "simulates")]
        assert run.stats()[0].died == 0


# ---- the package


def test_engines_and_kit_load_on_first_use():
    code = "import sys, qflow as qf; print(*(m for m in ('numpy', 'pytest', 'hypothesis') if m in sys.modules)); "
    code += "qf.testing.failing; print(*(m for m in ('pytest', 'hypothesis', 'torch') if m in sys.modules)); "
    code += "qf.engines.Processes(attempts=3), qf.engines.Serial(), qf.engines.Simulated(1); print('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n\ndone\n"


def test_engines_are_the_classes_of_their_modules():
    from qflow.engines.serial import Serial
    from qflow.engines.simulated import Simulated

    assert (qf.engines.Simulated, qf.engines.Serial) == (Simulated, Serial)
    assert list(qf.run(qf.process(abs), [-1], engine=qf.engines.Serial())) == [1]
    with pytest.raises(AttributeError, match=r"'qflow\.engines' has no attribute 'Ray'"):
        qf.engines.Ray  # noqa: B018
    with pytest.raises(AttributeError, match=r"'qflow\.testing' has no attribute 'nothing'"):
        qf.testing.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("pytest", "from qflow.testing import no_leaks"),
        ("hypothesis", "import qflow.testing.drawing"),
    ],
)
def test_a_missing_package_says_what_to_install(missing, code):
    code = f"import sys; sys.modules[{missing!r}] = None\nimport qflow as qf; qf.testing.assert_step(abs, [1])\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Install it: pip install 'qflow[testing]'" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_fixture_is_imported_from_the_package(tmp_path):
    (tmp_path / "conftest.py").write_text("from qflow.testing import no_leaks\n")
    (tmp_path / "test_it.py").write_text(
        "import os\n"
        "def test_leaks(no_leaks): os.open(os.devnull, os.O_RDONLY)\n"
        "def test_unwatched(): os.open(os.devnull, os.O_RDONLY)\n"
        "def test_clean(no_leaks): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "left behind:\n  descriptor" in done.stdout
    assert "3 passed, 1 error" in done.stdout
