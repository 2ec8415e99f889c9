"""queueflow's users feel at home: its documents, its acceptance checks (Q) and its faults (B), none of which is left."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st

import qflow as qf
from qflow import PackStep, PoolStep, ProcessStep, RepackStep, Sequence, UnpackStep

ENGINES = ["serial", "processes"]
STAND_IN = Path(__file__).parent / "fgsim_stand_in"


@pytest.fixture(scope="module", autouse=True)
def kept_by_multiprocessing():
    """What the standard library keeps for good once a queue or a value was made: start method, tracker, arena in /dev/shm."""
    multiprocessing.get_start_method()
    for method in multiprocessing.get_all_start_methods():
        multiprocessing.get_context(method).Value("i")


@pytest.fixture(params=ENGINES)
def sequence(request):
    """`Sequence` on each engine; all are stopped at the end."""
    made = []

    def make(*parts):
        made.append(Sequence(*parts, engine=request.param))
        return made[-1]

    yield make
    while made:
        made.pop().stop()


def results(sequence, iterable):
    return list(sequence.queue_iterable(iterable))


def identity(value):
    return value


def times_two(value):
    return 2 * value


def minus_one(value):
    return value - 1


def boom_at_five(value):
    if value == 5:
        raise ValueError("boom")
    return value


# ---- a sequence is a flow ------------------------------------------------------------------------


def test_a_sequence_is_the_flow_of_its_steps():
    steps = ProcessStep(abs, 2), torch.multiprocessing.Queue(4), PoolStep(abs, 3), PackStep(5), UnpackStep(), RepackStep(6)
    flow = qf.process(n=2)(abs) | qf.queue(4) | qf.pool(n=3)(abs) | qf.pack(5) | qf.unpack() | qf.repack(6)
    assert Sequence(*steps).flow == flow
    assert repr(Sequence(*steps)) == f"Sequence({flow!r})"


@given(xs=st.lists(st.integers()), m=st.integers(1, 5), n=st.integers(1, 5))
def test_pack_unpack_and_repack_keep_every_element_in_order(xs, m, n):
    groups = results(Sequence(PackStep(m), UnpackStep(), PackStep(m), RepackStep(n), engine="serial"), xs)
    assert groups == [xs[at : at + n] for at in range(0, len(xs), n)]


@pytest.mark.parametrize("make", [multiprocessing.Queue, torch.multiprocessing.Queue, queue.Queue, multiprocessing.JoinableQueue])
def test_a_queue_stands_for_its_size_and_an_unbounded_one_for_none(make):
    step = ProcessStep(abs)
    assert Sequence(make(4), step, make(30_000)).flow == qf.queue(4) | step | qf.queue(30_000)
    assert Sequence(make(), step, make(0), step, make(-1)).flow == step | step


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_queue_of_any_start_method_is_taken(method):
    assert Sequence(multiprocessing.get_context(method).Queue(3)).flow == qf.Flow(qf.queue(3))


def test_flows_and_operators_are_parts_too(sequence):
    made = sequence(qf.map(times_two) | qf.pack(2), qf.thread(n=2)(sum), qf.filter(bool), ProcessStep(minus_one))
    assert results(made, range(6)) == [1, 9, 17]


def test_an_empty_sequence_hands_on(sequence):
    assert results(sequence(), range(3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (identity, r"part 2 is <function identity.*Write `ProcessStep\(identity\)`"),
        (UnpackStep, r"part 2 is <function UnpackStep.*Call it: `UnpackStep\(\.\.\.\)`"),
        (3, r"part 2 is 3 of type int.*Write for example `Sequence\(ProcessStep"),
        (None, "part 2 is None"),
        ((ProcessStep(abs), UnpackStep()), r"part 2 is .*Write `Sequence\(\*steps\)`"),
        (range(3) | qf.pack(2), "part 2 is .*give it to `queue_iterable`"),
        (Sequence(UnpackStep()), r"part 2 is .*Write `sequence\.flow`"),
    ],
)
def test_another_part_is_an_error_that_says_which_and_what_to_write(part, message):
    with pytest.raises(qf.GraphError, match=message):
        Sequence(ProcessStep(abs), part)


@pytest.mark.parametrize("make", [ProcessStep, PoolStep])
@pytest.mark.parametrize("nworkers", [0, -1, 2.5, "2", True])
def test_a_wrong_number_of_workers_is_an_error(make, nworkers):
    with pytest.raises(qf.GraphError, match=rf"nworkers must be a whole number.*`{make.__name__}\(function, nworkers=2\)`"):
        make(abs, nworkers)


@pytest.mark.parametrize("make", [PackStep, RepackStep])
@pytest.mark.parametrize("size", [0, -1, 2.5, "2", None])
def test_a_wrong_size_is_an_error(make, size):
    with pytest.raises(qf.GraphError, match="size must be a whole number"):
        make(size)


# ---- the calendar: start, queue, iterate, stop ---------------------------------------------------


def test_the_idiom_of_queueflow(sequence):
    made = sequence(ProcessStep(times_two, 2), multiprocessing.Queue(2))
    made.start()
    made.start()
    assert made.queue_iterable(range(3)) is made
    assert iter(made) is made
    assert [next(made), next(made), next(made)] == [0, 2, 4]
    with pytest.raises(StopIteration):
        next(made)
    assert list(made(range(2))) == [0, 2]
    made.stop()
    made.stop()
    assert results(made, [7]) == [14]


def test_next_without_an_iterable_says_what_to_write(sequence):
    made = sequence(ProcessStep(abs))
    for _ in range(2):
        with pytest.raises(BufferError, match=r"No iterable queued.*sequence\.queue_iterable\(iterable\)"):
            next(made)
        assert results(made, [1]) == [1]


@pytest.mark.parametrize("wrong", [3, "files.h5", Path("files.h5"), {"a": 1}, None])
def test_what_is_no_source_is_an_error_on_the_line_and_the_sequence_goes_on(sequence, wrong):
    made = sequence(ProcessStep(abs))
    with pytest.raises(qf.GraphError, match="A source is an iterable"):
        made.queue_iterable(wrong)
    assert results(made, [-1]) == [1]


def test_a_generator_is_queued_once(sequence):
    made, once = sequence(ProcessStep(abs)), (x for x in range(3))
    assert results(made, once) == [0, 1, 2]
    with pytest.raises(qf.GraphError, match="an earlier run has used"):
        made(once)


def test_workers_persist_from_one_iterable_to_the_next():
    made = Sequence(ProcessStep(pid))
    made.start()
    (first,) = set(results(made, range(50)))
    assert first != os.getpid()
    assert set(results(made, range(50))) == {first}
    made.stop()
    assert first not in results(made, range(50))
    made.stop()


def pid(_):
    return os.getpid()


def test_several_streams_go_through_one_sequence_one_after_another(sequence):
    made = sequence(PackStep(2), ProcessStep(sum, 2))
    assert [results(made, stream) for stream in (range(4), [5], [], range(3))] == [[1, 5], [5], [], [1, 2]]


# ---- acceptance checks ---------------------------------------------------------------------------


def test_q1_the_worked_example(sequence):
    def note_lengths(xs):
        return xs, len(xs)

    def drop_lengths(pair):
        return pair[0]

    xs = list(range(100, 119))
    steps = PackStep(8), ProcessStep(note_lengths), ProcessStep(drop_lengths), PoolStep(times_two, 5)
    assert results(sequence(*steps, UnpackStep(), ProcessStep(minus_one, 5)), xs) == [2 * x - 1 for x in xs]
    assert [length for _, length in results(sequence(*steps[:2]), xs)] == [8, 8, 3]


def test_q2_b1_pack_keeps_nothing_for_the_next_iterable(sequence):
    made = sequence(PackStep(4))
    assert results(made, range(6)) == [[0, 1, 2, 3], [4, 5]]
    assert results(made, range(100, 106)) == [[100, 101, 102, 103], [104, 105]]


def test_q3_b1_repack_keeps_nothing_for_the_next_iterable(sequence):
    made = sequence(RepackStep(4))
    assert results(made, [range(3), range(3, 6)]) == [[0, 1, 2, 3], [4, 5]]
    assert results(made, [range(100, 106)]) == [[100, 101, 102, 103], [104, 105]]


def test_q4_unpack(sequence):
    assert results(sequence(UnpackStep()), [[1], [], [2, 3]]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("step", "name"),
    [(UnpackStep(), "unpack"), (RepackStep(2), "repack"), (PoolStep(abs, 2), "pool")],
    ids=["unpack", "repack", "pool"],
)
def test_q4_b6_b7_an_element_that_is_no_list_raises_and_never_hangs(sequence, step, name):
    made = sequence(ProcessStep(identity), step)
    made.start()
    start = time.monotonic()
    with pytest.raises(qf.GraphError, match="takes lists of elements, but got 77 of type int") as caught:
        results(made, [[1], 77, [2]])
    assert time.monotonic() - start < 1
    assert f"in step '{name}', item 1 (77)" in notes(caught.value)
    assert results(sequence(ProcessStep(abs)), [-1]) == [1]


def notes(error):
    return "\n".join(getattr(error, "__notes__", ()))


@pytest.mark.parametrize("share", [multiprocessing.Value, torch.multiprocessing.Value])
def test_q5_a_shared_size_is_read_whenever_an_iterable_is_queued(sequence, share):
    size = share("i", 4)
    packed, repacked = sequence(PackStep(size)), sequence(RepackStep(size))
    assert results(packed, range(8)) == results(repacked, [range(8)]) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    size.value = 2
    assert results(packed, range(8)) == results(repacked, [range(8)]) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_q5_a_plain_variable_switches_a_step_between_iterables(sequence):
    validating = True

    def postprocess(value):
        return value if validating else -value

    made = sequence(ProcessStep(postprocess, 2))
    assert results(made, range(3)) == [0, 1, 2]
    validating = False
    assert results(made, range(3)) == [0, -1, -2]


@pytest.mark.parametrize("nworkers", [1, 4])
def test_q9_b2_b3_an_error_reaches_the_consumer_and_stays_in_its_sequence(sequence, nworkers):
    made, other = sequence(ProcessStep(boom_at_five, nworkers, name="bad")), sequence(ProcessStep(abs))
    other.queue_iterable(range(3))
    with pytest.raises(ValueError, match="boom") as caught:
        results(made, range(20))
    assert str(caught.value) == "boom"
    assert "in step 'bad', item 5 (5)" in notes(caught.value)
    assert "in boom_at_five" in "".join(traceback.format_exception(caught.value))
    assert list(other) == [0, 1, 2]
    assert results(made, range(5)) == results(sequence(ProcessStep(abs)), range(5)) == list(range(5))


def test_q9_the_results_before_the_error_arrive(sequence):
    made, before = sequence(ProcessStep(boom_at_five, 3)), []
    with pytest.raises(ValueError, match="boom"):
        before.extend(made(range(20)))
    assert before == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("end", [lambda: os._exit(9), lambda: os.kill(os.getpid(), signal.SIGKILL)], ids=["exit", "kill"])
@pytest.mark.parametrize("pooled", [False, True], ids=["process", "pool"])
def test_q10_b4_a_killed_worker_is_an_error_within_two_seconds(pooled, end):
    def die_at_five(value):
        if value == 5:
            end()
        return value

    made = Sequence(PackStep(2), PoolStep(die_at_five, 2)) if pooled else Sequence(ProcessStep(die_at_five, 2))
    made.start()
    start = time.monotonic()
    with pytest.raises(qf.WorkerDied, match="die_at_five"):
        results(made, range(20))
    assert time.monotonic() - start < 2
    assert {alive for alive, _ in made.process_status()} == {0}
    assert len(results(made, range(4))) == (2 if pooled else 4)
    made.stop()


def test_q13_flowstatus_shows_queues_and_workers(sequence):
    double, size = ProcessStep(times_two, 2, name="double"), PoolStep(abs, nworkers=20)
    made = sequence(double, multiprocessing.Queue(3), size, torch.multiprocessing.Queue(4))
    title, head, _, *rows = made.flowstatus().splitlines()
    assert title == "Current Status of Processes and Queues"
    assert [cell.strip() for cell in head.split("|")][:4] == ["Type", "Saturation", "Name", "Process names"]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    assert {cell[0] for cell in cells[::2]} == {"Queue"}
    assert {cell[0] for cell in cells[1::2]} == {"Process"}
    assert cells[1][:4] == ["Process", "0/2", "double", "double-0 - double-1"]
    assert [cells[at][1].partition("/")[2] for at in (0, 2, -1)] == ["1+", "3", "4"]
    assert ["Process", "0/20", "abs", "abs-0 - abs-19"] in [cell[:4] for cell in cells]


def test_q13_flowstatus_follows_the_run(sequence):
    made = sequence(ProcessStep(times_two, 2, name="double"), multiprocessing.Queue(3))
    made.queue_iterable(range(100))
    assert [next(made), next(made)] == [0, 2]
    ((_, unwritten), (waiting, most)) = made.queue_status()
    assert (unwritten, most) == (None, 3)
    assert waiting is None or 0 <= waiting <= 3
    assert made.process_status() == [(2, 2)]
    assert "2/2" in made.flowstatus()
    made.stop()
    assert made.process_status() == [(0, 2)]
    assert made.process_names() == [["double-0", "double-1"]]


def test_q13_flowstatus_counts():
    made = Sequence(ProcessStep(times_two, 2, name="double"), multiprocessing.Queue(3))
    assert len(results(made, range(100))) == 100
    row = next(line for line in made.flowstatus().splitlines() if "double" in line)
    assert [cell.strip() for cell in row.split("|")][4:6] == ["100", "100"]
    made.stop()


def test_q14_unwritten_queues_have_the_documented_bound():
    step, default = ProcessStep(abs), None  # one item, or several of 4 MiB together
    assert Sequence(step, step).flow.plan().bounds == (default, default, default)
    assert Sequence(step, queue.Queue(7), step, queue.Queue(9)).flow.plan().bounds == (default, 7, 9)
    assert Sequence(queue.Queue(5), step).flow.plan().bounds == (5, default)


# ---- faults --------------------------------------------------------------------------------------


def test_b5_many_short_iterables_with_many_workers(sequence):
    made = sequence(ProcessStep(identity, 4), ProcessStep(identity, 4))
    for epoch in range(200):
        assert results(made, range(epoch % 3)) == list(range(epoch % 3))


def test_b8_order_is_kept_with_many_workers(sequence):
    def uneven(value):
        sum(range(value * 7919 % 20_000))
        return value

    assert results(sequence(ProcessStep(uneven, 4), ProcessStep(identity, 3)), range(300)) == list(range(300))


class Counting:
    """A source that knows how much was taken."""

    def __init__(self, values):
        self.values, self.taken = values, 0

    def __iter__(self):
        for value in self.values:
            self.taken += 1
            yield value


def test_b9_an_endless_source_is_read_no_faster_than_the_queues_allow(sequence):
    made = sequence(queue.Queue(1), ProcessStep(identity, 2), queue.Queue(2), ProcessStep(identity), queue.Queue(3))
    endless = Counting(itertools.count())
    for given_, value in enumerate(made.queue_iterable(endless), 1):
        assert value == given_ - 1
        assert endless.taken <= given_ + made.flow.plan().most_alive() + 1
        if given_ == 200:
            break
    assert results(made, range(3)) == [0, 1, 2]


def test_b10_a_leading_bounded_queue_does_not_block(sequence):
    assert results(sequence(multiprocessing.Queue(1), ProcessStep(identity)), range(100)) == list(range(100))


def test_b11_leaving_early_leaves_nothing_behind(sequence):
    made = sequence(ProcessStep(identity, 2), PackStep(2), queue.Queue(4))
    for _ in range(3):
        for first in made.queue_iterable(range(1000)):
            assert first == [0, 1]
            break
        assert results(made, [7, 8, 9]) == [[7, 8], [9]]


def test_b11_queueing_again_drops_what_was_queued(sequence):
    made = sequence(ProcessStep(identity))
    made.queue_iterable(range(10))
    assert list(made([5])) == [5]


def test_b12_the_api_of_the_document(sequence):
    made = sequence(ProcessStep(identity, 2), PoolStep(times_two, 2), RepackStep(3))
    assert list(made([[1, 2], [3, 4]])) == [[2, 4, 6], [8]]
    assert PoolStep(abs, 2) == PoolStep(abs, nworkers=2) == PoolStep(workerfn=abs, nworkers=2)
    assert ProcessStep(abs, 2, True, "size") == ProcessStep(workerfn=abs, nworkers=2, deamonize=False, name="size")


def test_b13_any_start_method_and_no_main_guard(tmp_path):
    for method in multiprocessing.get_all_start_methods():
        script = tmp_path / f"{method}.py"
        script.write_text(
            textwrap.dedent(f"""
            import multiprocessing, os
            import qflow as qf
            multiprocessing.set_start_method({method!r})
            me = os.getpid()
            class Scale:
                def __init__(self, k): self.k = k
                def times(self, x): return self.k * x, os.getpid() != me
            sequence = qf.Sequence(multiprocessing.Queue(2), qf.ProcessStep(Scale(3).times, 2), multiprocessing.Queue(2))
            print(*sequence(range(3)))
            """)
        )
        assert run_script(script) == "(0, True) (3, True) (6, True)\n"


def test_b13_a_sequence_runs_in_a_thread(sequence):
    found = []
    worker = threading.Thread(target=lambda: found.extend(results(sequence(ProcessStep(times_two, 2)), range(5))))
    worker.start()
    worker.join(20)
    assert found == [0, 2, 4, 6, 8]


def test_b14_a_pool_works_on_the_next_list_while_one_is_unfinished(tmp_path):
    flag = tmp_path / "second list was begun"

    def wait_for_the_second_list(word):
        if word == "second":
            flag.touch()
        deadline = time.monotonic() + 10
        while word == "first" and not flag.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        return flag.exists()

    made = Sequence(queue.Queue(4), PoolStep(wait_for_the_second_list, 2))
    assert results(made, [["first"], ["second"]]) == [[True], [True]]
    made.stop()


def test_b16_start_and_stop_are_quick_silent_and_leave_signals_alone(sequence, capfd):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    made = sequence(ProcessStep(identity, 2))
    starter = threading.Thread(target=made.start)
    starter.start()
    starter.join(20)
    assert results(made, range(3)) == [0, 1, 2]
    made.queue_iterable(itertools.count())
    start = time.monotonic()
    made.stop()
    assert time.monotonic() - start < 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert capfd.readouterr() == ("", "")


def test_b17_nothing_is_imported_that_is_not_installed():
    code = "import qflow as qf, sys; qf.Sequence(); print({'torch', 'torch_geometric', 'prettytable'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_b18_kept_tensors_use_up_no_descriptors(tmp_path):
    script = tmp_path / "descriptors.py"
    script.write_text(
        textwrap.dedent("""
        import resource, torch
        import qflow as qf
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        make = lambda k: {"x": torch.full((1000,), k), "y": [torch.ones(3)]}
        kept = list(qf.Sequence(qf.ProcessStep(make, 2))(range(1000)))
        print(len(kept), all(int(each["x"].sum()) == 1000 * k for k, each in enumerate(kept)))
        """)
    )
    assert run_script(script) == "1000 True\n"


def run_script(script, *folders):
    """What a script prints, with these folders to import from; it must print no warnings."""
    path = os.pathsep.join(map(str, [Path(qf.__file__).parents[1], *folders]))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---- the two examples of the document ------------------------------------------------------------


def document_examples():
    """The code blocks of queueflow's document, with the parenthesis closed and qflow imported."""
    text = (STAND_IN / "queueflow.md").read_text()
    blocks = [block.partition("```")[0] for block in text.split("```python\n")[1:]]
    closed = blocks[0].replace("Queue(prefetch_batches)\n", "Queue(prefetch_batches))\n")
    return closed, blocks[1].replace("import queueflow as qf", "import qflow as qf")


IDEA, REAL = document_examples()
LENGTHS = [7, 16, 0, 17]  # rows of the files; chunks of 10 span them


@pytest.fixture
def fgsim(tmp_path, monkeypatch):
    """Four HDF5 files, and the stand-in for fgsim that reads them; gives the folder."""
    random = np.random.default_rng(0)
    for index, length in enumerate(LENGTHS):
        with h5py.File(tmp_path / f"{index}.h5", "w") as file:
            file["ECAL"] = random.random((length, 4, 4, 3), dtype=np.float32)
            file["energy"] = random.random((length, 1), dtype=np.float32)
    monkeypatch.setenv("FGSIM_FOLDER", str(tmp_path))
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("fgsim", "process_seq")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def chunks_of(lengths, size):
    """Chunks of exactly ``size`` rows, each a tuple of (file, start, end); an uneven last one is dropped."""
    rows = [(file, row) for file, length in lengths.items() for row in range(length)]
    for at in range(0, len(rows) - size + 1, size):
        parts = itertools.groupby(rows[at : at + size], key=lambda row: row[0])
        yield tuple((file, part[0][1], part[-1][1] + 1) for file, part in ((file, list(part)) for file, part in parts))


def expected_batches(folder, size, rows):
    """The same batches, made one by one without any flow."""
    from fgsim.geo.batch_stack import split_layer_subgraphs
    from fgsim.geo.transform import transform
    from torch_geometric.data import Batch

    columns = {key: [] for key in ("ECAL", "energy")}
    for name in sorted(folder.glob("*.h5")):
        with h5py.File(name) as file:
            for key, column in columns.items():
                column.extend(file[key][:])
    graphs = [transform({key: column[row] for key, column in columns.items()}) for row in range(rows)]
    return [split_layer_subgraphs(Batch.from_data_list(graphs[at : at + size])) for at in range(0, rows, size)]


def assert_same_batches(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one.keys()) == set(other.keys())
        assert all(torch.equal(one[key], other[key]) for key in other.keys())  # noqa: SIM118
        assert one.num_graphs == other.num_graphs


@pytest.mark.parametrize("renamed", [False, True], ids=["first copy", "second copy"])
@pytest.mark.parametrize("engine", ENGINES)
def test_q17_the_example_irl_runs_as_it_is_written(fgsim, engine, renamed):
    names = {"chunksize": "chunk_size", "num_workers_transform": "n_workers_transform", "num_workers_stack": "n_workers_stack"}
    text = REAL
    for old, new in names.items() if renamed else ():
        text = text.replace(f"conf.loader.{old}", f"conf.loader.{new}")
    (fgsim / "process_seq.py").write_text(text)
    module = importlib.import_module("process_seq")
    chunks = list(chunks_of(module.len_dict, 10))
    assert [len(chunk) for chunk in chunks] == [2, 1, 2, 1]

    made = Sequence(*module.process_seq(), engine=engine)
    made.start()
    expected = expected_batches(fgsim, size=4, rows=40)
    assert_same_batches(list(made.queue_iterable(chunks)), expected)
    assert_same_batches(list(itertools.islice(made(chunks), 3)), expected[:3])
    assert_same_batches(list(made.queue_iterable(chunks)), expected)
    assert (fgsim / "filelengths.yaml").is_file()
    made.stop()


@pytest.mark.slow
def test_q17_the_example_irl_runs_as_a_script(fgsim):
    (fgsim / "train.py").write_text(
        REAL
        + textwrap.dedent("""
        chunks = [[(file, 0, 10)] for file, length in len_dict.items() if length >= 10]
        for batch in qf.Sequence(*process_seq()).queue_iterable(chunks):
            print(batch.num_graphs)
        """)
    )
    assert run_script(fgsim / "train.py", STAND_IN) == "4\n" * 5


@pytest.mark.parametrize("engine", ENGINES)
def test_the_general_idea_runs_as_it_is_written(fgsim, engine):
    import torch_geometric
    from fgsim.geo.transform import transform

    (fgsim / "process_seq.py").write_text(REAL)
    module = importlib.import_module("process_seq")
    batches = []
    names = {
        "Sequence": lambda *parts: Sequence(*parts, engine=engine),
        "ProcessStep": ProcessStep,
        "PoolStep": PoolStep,
        "RepackStep": RepackStep,
        "Queue": torch.multiprocessing.Queue,
        "torch_geometric": torch_geometric,
        "read_chunk": module.read_chunk,
        "process_chunk": transform,
        "batch_size": 4,
        "prefetch_batches": 2,
        "model": batches.append,
        "epoch_chunks": list(chunks_of(module.len_dict, 10)),
        "filelist": list(chunks_of(module.len_dict, 10))[:2],
    }
    exec(IDEA, names)
    names["pseq"].stop()
    plain = expected_batches(fgsim, size=4, rows=20)
    assert [batch.num_graphs for batch in batches] == [4] * 5
    assert all(torch.equal(one.x, other.x) and torch.equal(one.y, other.y) for one, other in zip(batches, plain, strict=True))
    assert all(isinstance(batch, torch_geometric.data.Batch) for batch in batches)
    assert [len(batch.to_data_list()) for batch in batches] == [4] * 5
