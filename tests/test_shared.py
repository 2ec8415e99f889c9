"""Shared: what lies in memory once reads as what it was made of, in every process, and goes with the last one."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import resource
import signal
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scenario import limited, script

import qflow as qf
from qflow.engines.session import FEW
from qflow.runtime import shared as module
from qflow.runtime.codec import Body, decode, encode
from qflow.runtime.heavy import LARGE, MANY
from qflow.runtime.log import copied
from qflow.runtime.store import HEAD, Reference, opened, store_of

pytestmark = pytest.mark.usefixtures("one_nursery")

STARTS = ["forkserver", "spawn", "fork"]

# ---- as a list

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
kinds = [
    st.text(),
    st.binary(),
    st.text(st.characters(exclude_characters="\0")).map(PurePosixPath),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    plain,
    st.tuples(st.text(), st.lists(plain, max_size=3)) | st.dictionaries(st.text(), plain, max_size=3),
]
lists = st.one_of([st.lists(kind, max_size=20) for kind in kinds])
slices = st.builds(slice, *[st.none() | st.integers(-25, 25)] * 2, st.none() | st.sampled_from([-3, -2, -1, 1, 2, 7]))


def assert_like(made: Any, values: list[Any]) -> None:
    assert len(made) == len(values)
    assert list(made) == values
    assert [*map(type, made)] == [*map(type, values)]
    assert list(reversed(made)) == values[::-1]
    assert made == values
    assert values == made
    for index in range(-len(values), len(values)):
        assert made[index] == values[index]
        assert made[np.int64(index)] == values[index]
        assert values[index] in made
    for index in (len(values), -len(values) - 1, 1 << 70):
        with pytest.raises(IndexError, match="out of range"):
            made[index]


@given(lists, slices)
@example(["\ud800", "", "é", "a"], slice(1, 3))
@example([Path("a/b"), Path(), Path("/")], slice(None))
@example([1 << 63, 1], slice(None, None, -1))
def test_it_reads_as_the_list_and_so_do_its_views_and_copies(values: list[Any], part: slice) -> None:
    made = qf.shared(values)
    assert_like(made, values)
    assert_like(made[part], values[part])
    assert_like(made[part][::-1], values[part][::-1])
    sent = decode(Body(copied(encode(made[part])).region(0)), 0, read_only=True, views=False)[0]
    assert_like(sent, values[part])
    assert store_of_sequence(sent) is None
    again = pickle.loads(pickle.dumps(made[part]))
    assert again == values[part]
    assert store_of_sequence(again) is store_of_sequence(made)


def store_of_sequence(made: Any) -> Any:
    return made._column.store


@given(st.lists(st.text(), min_size=1), st.data())
def test_an_array_of_ints_or_bools_picks_a_list(values: list[str], data: st.DataObject) -> None:
    made, own = qf.shared(values), np.array(values, object)
    chosen = np.array(data.draw(st.lists(st.integers(-len(values), len(values) - 1))), np.int32)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    assert made[chosen] == own[chosen].tolist() == made[chosen.tolist()]
    assert made[mask] == own[mask].tolist()


def test_what_is_no_index_says_so() -> None:
    made = qf.shared(["a", "b"])
    for index in ("a", 1.0, (0, 1), np.array([0.5]), np.zeros((1, 1), int), None):
        with pytest.raises(TypeError, match="an index is an int, a slice, or an array of ints or bools, but got"):
            made[index]
    with pytest.raises(IndexError, match="a mask of 1 bools does not fit 2 elements"):
        made[np.array([True])]
    with pytest.raises(TypeError):
        made[0] = "c"  # type: ignore[index]
    with pytest.raises(TypeError, match="unhashable"):
        hash(made)


def test_it_is_printed_in_short() -> None:
    made = qf.shared([f"event-{number}" for number in range(1_000_000)])
    assert repr(made) == "qf.shared(['event-0', 'event-1', 'event-2', ...])  # 1000000 elements"
    assert repr(made[-2:]) == "qf.shared(['event-999998', 'event-999999'])"
    assert len(repr(qf.shared(["x" * 10_000]))) < 250


def test_it_equals_lists_and_its_like_only() -> None:
    made = qf.shared([1, 2])
    assert made == qf.shared((1, 2)) == qf.shared([1.0, 2.0])
    assert made != [1]
    assert made != [1, 3]
    assert made != (1, 2)
    nan = qf.shared([float("nan")])
    assert nan == nan[:]  # as a list of it is equal to itself
    assert nan != qf.shared([float("nan")])


def test_copies_of_it_are_itself() -> None:
    made = qf.shared(["a"])
    assert copy.copy(made) is copy.deepcopy(made) is qf.shared(made) is made


class Local:
    """Of a module that no worker has."""

    def __init__(self, value: Any) -> None:
        self.value = value


def test_elements_may_be_anything_that_can_be_sent() -> None:
    inner = qf.shared(["a", "b"])
    made = qf.shared([Local(np.arange(3)), deque([1]), inner, lambda x: x + 1])
    assert made[0].value.tolist() == [0, 1, 2]
    assert made[2] == inner
    assert store_of_sequence(made[2]) is None  # nobody would hold what it refers to
    assert made[3](1) == 2


def test_elements_that_are_shared_themselves_outlive_the_run_that_brought_them() -> None:
    with qf.process(lambda x: x) | qf.queue(1) as pipe:
        kept = list(pipe(qf.shared([qf.shared([number])]) for number in (1.5, 2.5)))
    assert [outer[0][0] for outer in kept] == [1.5, 2.5]


def test_an_element_that_can_not_be_sent_is_named() -> None:
    with pytest.raises(qf.TransportError, match=r"Element 1 can't be shared: it is <generator .*TypeError"):
        qf.shared([1, (x for x in "")])


def test_long_lists_are_written_in_several_parts() -> None:
    values = [f"{'é' * (number % 3)}{number}" for number in range(3 * module.CHUNK + 5)]
    made = qf.shared(values)
    assert made == values
    assert made[module.CHUNK : module.CHUNK + 2] == values[module.CHUNK : module.CHUNK + 2]


def test_offsets_beyond_4_GiB_are_wide() -> None:
    parts = [np.array([1 << 31, 1 << 31], np.uint32), np.array([1 << 33], np.uint64), np.array([5], np.uint32)]
    ends = np.concatenate([*module._joined(parts)])
    assert ends.dtype == np.uint64
    assert ends.tolist() == [0, 1 << 31, 1 << 32, 3 << 32, (3 << 32) + 5]


# ---- as an array, as a tensor

ARRAYS = [
    np.arange(12.0).reshape(3, 4),
    np.asfortranarray(np.arange(12).reshape(3, 4)),
    np.arange(24)[::-2],
    np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    np.array(7.5),
    np.zeros((0, 3), np.float16),
    np.array(["a", "bcd"]),
    np.array(["2020-01-01"], "M8[D]"),
    np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
    np.array([True, False]),
]


@pytest.mark.parametrize("values", ARRAYS, ids=lambda values: f"{values.dtype}{values.shape}")
def test_an_array_stays_an_array_that_nobody_writes(values: np.ndarray[Any, Any]) -> None:
    made = qf.shared(values)
    assert type(made) is np.ndarray
    assert (made.dtype, made.shape) == (values.dtype, values.shape)
    assert np.array_equal(made, values)
    assert made.flags.f_contiguous == values.flags.f_contiguous or not values.flags.forc
    assert not made.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        made[...] = values
    assert qf.shared(made) is made
    assert np.array_equal(qf.shared(made[:1]) if made.ndim else made, values[:1] if made.ndim else values)


def test_large_arrays_that_are_not_contiguous_are_written_in_parts() -> None:
    values = np.arange(3_000_000).reshape(1000, 3000)[:, ::2]
    assert np.array_equal(qf.shared(values), values)


def test_a_tensor_stays_a_tensor_whose_changes_stay_here() -> None:
    torch = pytest.importorskip("torch")
    for values in (torch.arange(6.0).reshape(2, 3), torch.arange(4, dtype=torch.bfloat16), torch.tensor(3), torch.ones(2, 3).T):
        made = qf.shared(values)
        assert type(made) is torch.Tensor
        assert made.dtype == values.dtype
        assert torch.equal(made, values)
        assert qf.shared(made) is made
    assert torch.equal(qf.shared(torch.tensor([1 + 2j]).conj()), torch.tensor([1 - 2j]))
    assert qf.shared(torch.zeros(0, 3)).shape == (0, 3)
    made = qf.shared(torch.zeros(1000))
    with qf.process(n=1)(lambda x: float(made.sum())) | qf.queue(1) as pipe:
        made[:] = 1
        assert list(pipe([0])) == [0.0]
    views = [qf.shared(torch.tensor([1 + 2j])).conj(), qf.shared(torch.zeros(2)).requires_grad_()]
    with qf.process(lambda x: views[x]) | qf.queue(1) as pipe:
        found = [*pipe([0, 1])]
        assert found[0].tolist() == [1 - 2j]
        assert found[1].requires_grad
    array = qf.shared(np.zeros(1000))
    with warnings.catch_warnings(action="ignore"):  # that it can not be written
        torch.from_numpy(array)[0] = 1  # no crash


# ---- in workers


def mappings() -> int:
    """Of what is shared, in this process."""
    return sum("qflow-shared" in line for line in Path("/proc/self/maps").read_text().splitlines())


def pages(made: Any) -> tuple[int, int]:
    """By which two processes can tell that they read the same memory."""
    store = store_of(made) if isinstance(made, np.ndarray) else store_of_sequence(made)
    return store.reference.device, store.reference.inode


class Reading:
    """Reads what it has been given, in all the ways that a step can have it."""

    def __init__(self, names: Any, *, array: Any) -> None:
        self.names, self.array = names, array

    def __call__(self, number: int) -> Any:
        where = None if qf.worker() is None else (pages(self.names), pages(self.array))
        return self.names[number], float(self.array[number]), where


NAMES = [f"name-{number}" for number in range(1000)]


@pytest.mark.parametrize("start", STARTS)
def test_workers_read_the_same_pages_however_they_start(start: str) -> None:
    names, array = qf.shared(NAMES), qf.shared(np.arange(1000.0))
    same = pages(names), pages(array)
    torch = pytest.importorskip("torch")
    tensor = qf.shared(torch.arange(1000.0))

    def look(number: int, default: Any = names, *, bound: Any = None) -> Any:
        with open("/proc/self/maps") as maps:
            mapped = sum("qflow-shared" in line for line in maps)
        return names[number], default[number], bound[number], float(tensor[number]), mapped, names[1:3], array[2:4], tensor[1:3]

    wanted = [(NAMES[i], float(i), same) for i in range(20)]
    with qf.process(n=2)(Reading)(names, array=array) | qf.queue(2) as pipe:
        assert list(pipe(range(20), engine=qf.engines.Processes(start=start))) == wanted
    with qf.process(look).bind(bound=names) | qf.queue(2) as pipe:
        for name, default, bound, number, mapped, part, view, piece in pipe(range(5), engine=qf.engines.Processes(start=start)):
            assert name == default == bound == f"name-{int(number)}"
            assert mapped == 3
            assert store_of_sequence(part) is store_of_sequence(names)
            assert (part, store_of(view) is store_of(array)) == (NAMES[1:3], True)
            assert piece.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("engine", ["serial", "processes", qf.engines.Simulated(3)], ids=str)
def test_engines_agree(engine: Any) -> None:
    names, array = qf.shared(NAMES), qf.shared(np.arange(1000))
    step = qf.process(n=2)(lambda pair: (pair[0][pair[1]], names[-pair[1]], int(array[pair[1]]), pair[0][:2], names[5:7]))
    wanted = [(NAMES[i], NAMES[-i], i, NAMES[:2], NAMES[5:7]) for i in range(20)]
    with step | qf.queue(2) as pipe:
        assert list(pipe([(names, i) for i in range(20)], engine=engine)) == wanted
        assert list(pipe(((qf.shared(NAMES), i) for i in range(20)), engine=engine)) == wanted


def test_it_is_a_source() -> None:
    with qf.process(n=2)(str.upper) | qf.pack(3) as pipe:
        assert list(pipe(qf.shared(["a", "b", "c", "d"])[1:])) == [["B", "C", "D"]]
        assert list(qf.source(qf.shared(["a"])) | pipe) == [["A"]]
        assert list(qf.run(qf.unpack(), [qf.shared(["a", "b"])], engine="serial")) == ["a", "b"]


def shipped(x: Any) -> tuple[int, int, bool]:
    """What a worker has mapped and open, and whether an item came by reference."""
    links = (os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    return mappings(), sum("qflow-shared" in link for link in links), x is not None and store_of_sequence(x) is not None


class Keeping:
    """Tells whether an item has the mapping that the one before had, of which only qflow may keep hold."""

    def __init__(self) -> None:
        self.before: Any = None

    def __call__(self, item: Any) -> bool:
        store = store_of_sequence(item)
        same, self.before = self.before is not None and self.before() is store, weakref.ref(store)
        return same


def test_a_worker_maps_what_comes_often_once_and_lets_it_go() -> None:
    names = qf.shared(NAMES)
    with qf.process(Keeping) | qf.queue(1) as pipe:
        assert [*pipe([names] * 20)] == [False] + [True] * 19
    with qf.process(shipped) | qf.queue(1) as pipe:
        assert [*pipe([names] * 20)] == [(1, 1, True)] * 20  # a mapping has a descriptor of its own
        assert [*pipe([names[k:] for k in range(20)])] == [(1, 1, True)] * 20
        assert [*pipe([None])] == [(0, 0, False)]


def test_many_that_come_once_are_not_kept() -> None:
    dying: list[Any] = []

    def fresh() -> Iterator[Any]:
        for number in range(50):
            made = qf.shared([f"{number}"])
            dying.append(weakref.ref(store_of_sequence(made)))
            yield made

    with qf.process(lambda x: (x[0], shipped(x))) | qf.queue(1) as pipe:
        with pipe(fresh()) as run:
            for number, (text, (mapped, fds, by_reference)) in enumerate(run):
                assert text == str(number)
                assert by_reference == (number < FEW)
                assert mapped == fds <= FEW
                assert sum(ref() is not None for ref in dying) <= FEW + 4
        gc.collect()
        assert not any(ref() for ref in dying)


def test_what_comes_again_goes_by_reference_then() -> None:
    several = [qf.shared([f"{number}"]) for number in range(FEW + 3)]
    with qf.process(shipped) | qf.queue(1) as pipe:
        found = [by_reference for _, _, by_reference in pipe(several * 3)]
    assert found == [True] * FEW + [False] * 3 + [True] * (2 * len(several))


@pytest.mark.parametrize("start", STARTS)
def test_a_worker_that_comes_later_finds_what_the_parent_has_dropped(start: str) -> None:
    box: list[Any] = [qf.shared(NAMES), qf.shared(np.arange(1000))]
    dying = weakref.ref(store_of_sequence(box[0]))

    def look(item: Any) -> Any:
        part, number = item
        if number % 10 == 5 and qf.worker().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return box[0][number], int(box[1][number]), part[0]

    with qf.process(n=2)(look) | qf.queue(2) as pipe:
        items = ((qf.shared([str(number)]), number) for number in range(30))
        with pipe(items, engine=qf.engines.Processes(start=start)) as run:
            first = next(run)
            box.clear()
            assert [first, *run] == [(NAMES[i], i, str(i)) for i in range(30)]
        assert sum(each.died for each in run.stats()) == 3
        assert dying() is not None  # the workers are warm, and may die again
    gc.collect()
    assert dying() is None


def test_a_warm_worker_gets_another_one_with_the_next_run_and_lets_the_first_go() -> None:
    box = [qf.shared(NAMES)]
    with qf.process(lambda i: (box[0][i], mappings())) | qf.queue(1) as pipe:
        assert list(pipe([1, 2])) == [("name-1", 1), ("name-2", 1)]
        dying = weakref.ref(store_of_sequence(box[0]))
        box[0] = qf.shared(["a", "b", "c"])
        assert list(pipe([1, 2])) == [("b", 1), ("c", 1)]
        assert dying() is None
        assert list(pipe([1, 2])) == [("b", 1), ("c", 1)]


def test_what_a_worker_makes_is_sent_as_a_copy() -> None:
    def make(number: int) -> Any:
        made = qf.shared([str(number)] * 100), qf.shared(np.full(20_000, number))
        return *made, mappings()

    with qf.process(n=2)(make) | qf.process(n=2)(lambda made: made) | qf.queue(2) as pipe:
        for number, (names, array, mapped) in enumerate(pipe(range(20))):
            assert names == [str(number)] * 100
            assert store_of_sequence(names) is store_of(array) is None
            assert np.array_equal(array, np.full(20_000, number))
            assert not array.flags.writeable
            assert mapped == 2


class Remembering:
    """Gives the first item that it has ever had."""

    def __init__(self) -> None:
        self.kept: Any = None

    def __call__(self, item: Any) -> Any:
        self.kept = self.kept or item
        return self.kept


def test_what_a_warm_worker_has_from_an_earlier_run_is_sent_as_a_copy() -> None:
    names = qf.shared(NAMES)
    with qf.process(Remembering) | qf.queue(1) as pipe:
        assert store_of_sequence(next(pipe([names]))) is store_of_sequence(names)
        del names
        (again,) = pipe([None])
        assert again == NAMES
        assert store_of_sequence(again) is None


def test_streams_and_their_replacements_keep_it() -> None:
    names = qf.shared(NAMES)

    def pairs(part: Any) -> Any:
        if part[0][0] == "name-6" and qf.worker().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return [each[0] for each in part]

    with qf.pack(2) | qf.process(pairs) | qf.repack(3) | qf.queue(2) as pipe:
        assert [*pipe(names[k:] for k in range(10))] == [NAMES[0:3], NAMES[3:6], NAMES[6:9], NAMES[9:10]]


def test_a_failed_item_brings_it() -> None:
    names = qf.shared(NAMES)
    with qf.process(lambda x: 1 / 0) | qf.queue(1) as pipe, pipe([names], on_error="collect") as run:
        assert list(run) == []
        assert run.failures[0].value == NAMES


# ---- in other processes


POOLS = """
    import multiprocessing
    import qflow as qf
    import plain_steps
    names = qf.shared(["a", "b", "c"])
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(pool.map(plain_steps.second_and_mappings, [names, names[1:], names]))
"""


def test_multiprocessing_passes_a_reference() -> None:
    done = script(POOLS, PYTHONPATH=os.pathsep.join(filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")])))
    assert done.stdout == "[('b', 1), ('c', 1), ('b', 1)]\n" * 3


def test_a_forked_copy_shares_it_and_keeps_it() -> None:
    names = qf.shared(NAMES)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        again = pickle.loads(pickle.dumps(names))
        same = names == NAMES and again == names and mappings() == 1
        reference = store_of_sequence(names).refer()
        os.write(write, b"1" if same and reference.pid == os.getpid() else b"0")
        os._exit(0)
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0
    with os.fdopen(read, "rb") as said:
        assert said.read() == b"1"
    assert names == NAMES


def test_what_is_gone_says_so_and_nothing_else_is_opened() -> None:
    made = qf.shared(NAMES)
    pickled, reference = pickle.dumps(made), store_of_sequence(made).refer()
    assert reference is not None
    del made
    gone = rf"{reference.size - HEAD} bytes, is gone or out of reach: process {os.getpid()}"
    with pytest.raises(qf.TransportError, match=gone):
        pickle.loads(pickled)
    read, write = os.pipe()  # the descriptor's number may be a pipe's by then, that would be waited for
    other = qf.shared(NAMES)
    place = store_of_sequence(other).reference
    assert opened(place._replace(pid=1 << 22)) is store_of_sequence(other)  # mapped already
    try:
        for wrong in (reference._replace(fd=read), reference._replace(fd=place.fd), place._replace(key=reference.key)):
            with pytest.raises(qf.TransportError, match="gone"):
                opened(wrong)
        with pytest.raises(qf.TransportError, match="gone"):
            opened(Reference(b"k" * 16, 1 << 22, 3, 0, 0, 64, False))
    finally:
        os.close(read)
        os.close(write)


def test_nobody_can_change_it() -> None:
    made = qf.shared(NAMES)
    place = store_of_sequence(made).reference
    with open(f"/proc/self/fd/{place.fd}", "rb") as file:
        assert file.read(HEAD).startswith(b"qflow-shared")
    assert os.fstat(place.fd).st_mode & 0o777 == 0o600
    for change in (
        lambda: os.pwrite(place.fd, b"x", 64),
        lambda: os.ftruncate(place.fd, 0),
        lambda: os.ftruncate(place.fd, 1 << 20),
    ):
        with pytest.raises(PermissionError):
            change()


UNREACHABLE = """
    import ctypes, logging
    import qflow as qf
    logging.basicConfig(format="%(message)s")
    names = qf.shared(["a", "b", "c"])
    ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE
    for start in ("forkserver", "spawn", "fork"):
        with qf.process(n=2)(lambda x: (names[x[0]], x[1][x[0]])) | qf.queue(2) as pipe:
            print(list(pipe([(0, names), (1, names)], engine=qf.engines.Processes(start=start))))
"""


def test_who_can_not_be_reached_sends_copies_and_says_so() -> None:
    done = script(UNREACHABLE)
    assert done.stdout == "[('a', 'a'), ('b', 'b')]\n" * 3
    assert done.stderr.count("each worker gets a copy of its own") == 1


WITHOUT = """
    import gc, os, pickle
    import numpy as np
    import qflow as qf
    names, array = qf.shared(["a", "b", "c"]), qf.shared(np.arange(3.0))
    with qf.process(n=2)(lambda x: (names[x], array[x], x)) | qf.queue(2) as pipe:
        print([tuple(map(str, each)) for each in pipe([0, 1])])
    del names, array, pipe
    gc.collect()
    links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    print([link for link in links if "deleted" in link])
"""


def test_without_memfd_it_lies_in_a_file_without_a_name() -> None:
    done = script(WITHOUT, QFLOW_WITHOUT="memfd")
    assert done.stdout == "[('a', '0.0', '0'), ('b', '1.0', '1')]\n[]\n"


def test_too_little_room_is_a_resource_error() -> None:
    with limited(resource.RLIMIT_FSIZE, 1 << 16), pytest.raises(qf.ResourceError, match="bytes of shared memory for"):
        qf.shared(np.zeros(1 << 16))
    with limited(resource.RLIMIT_FSIZE, 1 << 16), pytest.raises(qf.ResourceError, match="bytes of shared memory for"):
        qf.shared(NAMES * 100)


# ---- what it does not take


def bad() -> Iterator[tuple[Any, str]]:
    torch = pytest.importorskip("torch")
    yield iter([1]), r"qf\.shared\(list\(x\)\)"
    yield (x for x in "a"), r"qf\.shared\(list\(x\)\)"
    yield {1: 2}, r"qf\.shared\(list\(x\.values\(\)\)\)"
    yield {1}, r"qf\.shared\(sorted\(x\)\)"
    yield "text", r"qf\.shared\(\[x\]\)"
    yield b"text", r"np\.frombuffer"
    yield 5, r"qf\.shared\(\[x\]\)"
    yield np.array([object()]), r"qf\.shared\(x\.tolist\(\)\)"
    yield np.ma.masked_array([1]), r"np\.asarray\(x\)"
    yield torch.ones(2, requires_grad=True), r"x\.detach\(\)"
    yield torch.ones(2, device="meta"), r"x\.cpu\(\)"
    yield torch.ones(2).to_sparse(), r"x\.to_dense\(\)"
    yield torch.nn.Parameter(torch.ones(2), requires_grad=False), "as_subclass"
    pandas = pytest.importorskip("pandas")
    yield pandas.Series([1]), r"x\.to_numpy\(\)"


def test_what_can_not_be_shared_says_what_to_write() -> None:
    for value, advice in bad():
        with pytest.raises(qf.GraphError, match=f"but got .*{advice}"):
            qf.shared(value)


# ---- the warning

many = [str(number) for number in range(MANY)]


class Holding:
    def __init__(self, names: Any) -> None:
        self.names = names

    def __call__(self, x: int) -> int:
        return x

    def method(self, x: int) -> int:
        return x


def steps() -> Iterator[tuple[Any, str, str]]:
    local, words, values, text = list(many), dict.fromkeys(many), np.zeros(LARGE // 8), bytes(LARGE)
    yield qf.process(lambda x: local and x), "local", f"a list of {MANY} elements.*Write `local = qf.shared\\(local\\)`"
    yield qf.process(lambda x: words and x), "words", "a dict of .*bisect"
    yield qf.process(lambda x: len(values) and x), "values", "a ndarray of 8MB.*Write `values = qf.shared"
    yield qf.process(lambda x: len(text) and x), "text", "a bytes of 8MB.*np.frombuffer"
    yield qf.process(lambda x, y=local: x), "a default", "a list of .*Write `x = qf.shared"
    yield qf.process(lambda x, y=0: x).bind(y=local), "y", "a list"
    yield qf.process(Holding)(local), "argument 0", "a list"
    yield qf.process(Holding(local)), "names", "a list"
    yield qf.process(Holding(local).method), "self.names", "a list"
    yield qf.process(qf.map(lambda x: local and x) | qf.map(abs)), "local", "a list"
    yield qf.pool(lambda x: (lambda: local) and x), "local", "a list"
    nested = {"cuts": [list(range(60_000)) for _ in range(60)]}
    yield qf.process(lambda x: nested and x), "nested", "of .*MB"
    deep = {"cuts": tuple(many)}
    yield qf.process(lambda x: deep and x), "deep['cuts']", "a tuple of"


def test_a_large_container_that_a_step_carries_is_named_once_for_each_shipping() -> None:
    for step, place, words in steps():
        with step | qf.queue(1) as pipe:
            with pytest.warns(RuntimeWarning, match=rf"carries `.*{words}") as told:
                list(pipe([[1]] if step.word == "pool" else [1]))
            assert [str(each.message) for each in told if f"`{place}`" not in str(each.message)] == []
            assert len(told) == 1
            assert told[0].filename == __file__
            with warnings.catch_warnings(action="error"):  # warm
                list(pipe([]))


def test_what_is_shared_small_or_imported_is_no_reason_to_warn() -> None:
    names, array, small = qf.shared(many), qf.shared(np.zeros(LARGE // 8)), many[: MANY // 2]
    step = qf.process(lambda x: (names[x], array[x], small[x], first_of_many(x)))
    with step | qf.process(first_of_many) | qf.queue(1) as pipe, warnings.catch_warnings(action="error"):
        list(pipe([1]))


def first_of_many(x: Any) -> Any:
    return many[0]
