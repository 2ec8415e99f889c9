"""The ImageNet loader: each image once, the same batches from all engines, and what its command prints is so."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qflow as qf
from qflow.graph.ranks import Rank
from qflow.train.imagenet.command import main
from qflow.train.imagenet.files import Files, found, listed
from qflow.train.imagenet.flow import Workers, decode, flow
from qflow.train.imagenet.model import learner
from qflow.train.imagenet.rates import WARM, average
from qflow.train.imagenet.tiles import PICTURES, cut
from qflow.train.imagenet.trace import ACTIVE, NEXT, Trace
from qflow.train.imagenet.training import Training
from qflow.train.imagenet.world import World

EACH = 4  # tiles of a picture
COUNT = EACH * len(PICTURES)
SIDE = 16
SECONDS = 100  # for a command; they take a few
COMMAND = ("-m", "qflow.train.imagenet")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *COMMAND)

ALONE = World(Rank(0, 1), torch.device("cpu"))


@pytest.fixture(scope="module")
def file_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut(tmp_path_factory.mktemp("tiles"), EACH, smallest=20, largest=40)


@pytest.fixture
def files(file_list: Path) -> Files:
    return listed(file_list)


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """The command sets how many threads torch has, and its seed."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def loader(files: Files, batch: int = 10, workers: Workers = "serial", n: int = 1, **options: Any) -> qf.train.Loader[Any]:
    engine = "serial" if workers == "serial" else "processes"
    return qf.train.Loader(flow(files, batch, workers=workers, n=n, side=SIDE), seed=0, engine=engine, **options)


def epochs(batches: qf.train.Loader[Any], count: int = 2) -> list[list[tuple[list[int], list[int], torch.Tensor]]]:
    with batches:
        return [[(each.numbers.tolist(), each.labels.tolist(), each.images.clone()) for each in batches] for _ in range(count)]


def numbers(epoch: list[tuple[list[int], list[int], torch.Tensor]]) -> list[list[int]]:
    return [each for each, _, _ in epoch]


# ---- the data


def test_tiles_are_jpegs_of_many_sizes_in_a_folder_for_each_picture(files: Files, tmp_path: Path) -> None:
    from PIL import Image

    sizes = set()
    for entry in files:
        with Image.open(entry.path) as picture:
            assert picture.format == "JPEG"
            assert all(20 <= side <= 40 for side in picture.size)
            sizes.add(picture.size)
    assert len(sizes) > COUNT / 2
    assert files.labels == {name: number for number, name in enumerate(sorted(PICTURES))}
    again = listed(cut(tmp_path, EACH, smallest=20, largest=40))
    assert [Path(path).read_bytes() for path in again.paths] == [Path(path).read_bytes() for path in files.paths]


def test_labels_are_those_of_the_whole_list_on_all_ranks(files: Files) -> None:
    by_number = {}
    for index in range(3):
        source = qf.source(files, shuffle=True) | qf.shard(index, 3) | qf.map(decode)
        by_number |= {image.number: image.label for image in source(seed=0, engine="serial")}
    assert by_number == {entry.number: sorted(PICTURES).index(Path(entry.path).parent.name) for entry in files}


def test_relative_paths_begin_in_the_base_and_folders_are_searched(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "a/1.jpeg", "a/notes.txt"):
        Path(tmp_path, name).parent.mkdir(exist_ok=True)
        Path(tmp_path, name).touch()
    Path(tmp_path, "list").write_text("b/2.JPG\n\n a/1.jpeg \n")
    assert listed(tmp_path / "list", tmp_path).paths == [f"{tmp_path}/b/2.JPG", f"{tmp_path}/a/1.jpeg"]
    assert found(tmp_path).paths == [f"{tmp_path}/a/1.jpeg", f"{tmp_path}/b/2.JPG"]
    for wrong, words in (([], "There are no images"), (["1.jpg"], "folder, but '1.jpg' has none")):
        with pytest.raises(qf.GraphError, match=words):
            Files(wrong)


# ---- the flow


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_each_image_once_an_epoch_in_the_batches_of_the_serial_engine(files: Files, workers: Workers, n: int) -> None:
    expected, found = epochs(loader(files)), epochs(loader(files, workers=workers, n=n))
    for epoch in found:
        assert sorted(chain(*numbers(epoch))) == [*range(COUNT)]
        assert [len(each) for each in numbers(epoch)] == [10, 10, 4]
    assert numbers(found[0]) != numbers(found[1])
    for ours, serial in zip(chain(*found), chain(*expected), strict=True):
        assert ours[:2] == serial[:2]
        assert torch.equal(ours[2], serial[2])


def test_a_batch_has_the_pixels_of_its_images(files: Files) -> None:
    for batch in loader(files):
        assert (batch.images.shape, batch.images.dtype) == ((len(batch), 3, SIDE, SIDE), torch.uint8)
        for number, label, image in zip(batch.numbers.tolist(), batch.labels.tolist(), batch.images, strict=True):
            single = decode(files[number], SIDE)
            assert label == single.label
            assert torch.equal(image.permute(1, 2, 0), torch.tensor(single.pixels))


def test_an_epoch_goes_on_in_its_midst_with_other_workers(files: Files) -> None:
    whole = numbers(epochs(loader(files), 1)[0])
    first = loader(files, workers="threads", n=2)
    with first:
        assert next(iter(first)).numbers.tolist() == whole[0]
        state = first.state_dict()
    second = loader(files, workers="processes", n=3)
    second.load_state_dict(json.loads(json.dumps(state)))
    assert numbers(epochs(second, 1)[0]) == whole[1:]


@pytest.fixture(params=["not an image", "cut off"])
def one_bad(request: pytest.FixtureRequest, files: Files, tmp_path: Path) -> Files:
    """The images, of which number 7 is a bad one."""
    content = Path(files.paths[7]).read_bytes()
    bad = tmp_path / "chelsea" / ("long" * 50 + ".jpg")  # longer than what is shown of an item
    bad.parent.mkdir()
    bad.write_bytes(b"no image" if request.param == "not an image" else content[: len(content) // 2])
    return Files([*files.paths[:7], str(bad), *files.paths[8:]])


@pytest.mark.parametrize("workers", ["threads", "processes", "serial"])
def test_a_bad_image_is_named_and_skipped_ones_leave_batches_full(one_bad: Files, workers: Workers) -> None:
    with pytest.raises(OSError, match=re.escape(f"{one_bad.paths[7]}: not an image that can be decoded: ")):
        epochs(loader(one_bad, workers=workers, n=2))
    skipping = loader(one_bad, workers=workers, n=2, on_error="skip")
    with skipping:
        batches = iter(skipping)
        run = skipping.run
        found = [each.numbers.tolist() for each in batches]
    assert [len(each) for each in found] == [10, 10, 3]
    assert sorted(chain(*found)) == [number for number in range(COUNT) if number != 7]
    assert run is not None
    assert [(failure.step, one_bad.paths[7] in str(failure.error)) for failure in run.failures] == [("decode", True)]


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_it_is_closed_within_a_second(files: Files, workers: Workers) -> None:
    """That no process or thread is left is looked at after every test."""
    many = loader(Files(files.paths * 500), workers=workers, n=4)
    next(iter(many))
    start = time.perf_counter()
    many.close()
    assert time.perf_counter() - start < 1


# ---- the training


def training(
    files: Files, steps: int | None, epochs: int | None = None, trace: Trace | None = None
) -> tuple[Training, list[int]]:
    """A training, and the sizes of the batches that its network is given."""
    student, sizes = learner(len(files.labels), ALONE), []
    student.network.register_forward_hook(lambda _, images, __: sizes.append(len(images[0])))
    return Training(loader(files), student, ALONE, COUNT, steps, epochs, 5, trace), sizes


@pytest.mark.usefixtures("torch_as_it_was")
@pytest.mark.parametrize(
    ("steps", "most", "sizes"),
    [
        (1, None, [10]),
        (3, None, [10, 10, 4]),
        (4, None, [10, 10, 4, 10]),
        (4, 1, [10, 10, 4]),
        (None, 2, [10, 10, 4, 10, 10, 4]),
    ],
)
def test_it_takes_exactly_so_many_steps_over_the_ends_of_epochs(
    files: Files, steps: int | None, most: int | None, sizes: list[int], capsys: Any
) -> None:
    taken, found = training(files, steps, most)
    taken.run()
    assert found == sizes
    seen = re.findall(r"epoch (\d): (\d+) images, (\d+) different, of 24", capsys.readouterr().out)
    assert [int(epoch) for epoch, _, _ in seen] == [*range(math.ceil(len(sizes) / 3))]
    assert sum(int(images) for _, images, _ in seen) == sum(sizes)
    assert all(images == different for _, images, different in seen)


@given(st.lists(st.floats(1e-9, 1e9)))
def test_a_deviation_is_a_number(rates: list[float]) -> None:
    text = average(rates)
    assert text == f"Average image rate: none, no step counts after the first {WARM}" or all(
        float(number) >= 0
        for number in re.fullmatch(r"Average image rate: mean: (\S+), stddev: (\S+)", text).groups()  # type: ignore[union-attr]
    )
    assert average(rates[:1] * 3).endswith(", stddev: 0.00") or not rates


@pytest.mark.usefixtures("torch_as_it_was")
def test_without_a_profile_every_step_after_the_first_has_a_rate(files: Files) -> None:
    assert len(training(files, WARM + 4)[0].run().steps) == 4


@pytest.mark.usefixtures("torch_as_it_was")
def test_a_trace_has_the_steps_of_the_flow_and_rates_have_none_of_its_steps(files: Files, tmp_path: Path) -> None:
    steps = 14
    source = loader(files, workers="threads", n=2)
    with source, Trace(tmp_path / "trace.json", steps) as trace:
        student = learner(len(files.labels), ALONE)
        rates = Training(source, student, ALONE, COUNT, steps, None, 5, trace).run()
    assert trace.written
    assert len(rates.steps) == steps - WARM - 1 - ACTIVE
    events = json.loads(trace.path.read_text())["traceEvents"]
    marks = [event for event in events if event["name"].startswith("ProfilerStep#")]
    assert len(marks) == ACTIVE  # 6 to 10, in which two epochs end
    assert len([event for event in events if event["name"] == NEXT]) == ACTIVE + 2
    assert any(event["name"] == "aten::convolution" for event in events)
    for name in ("decode", "collate"):
        counted = [event for event in events if event["name"] == f"qflow: {name}"]
        assert [event["ts"] for event in counted[:-1]] == sorted(mark["ts"] for mark in marks)
        assert all(event["ph"] == "C" and event["args"]["busy workers"] >= 0 for event in counted)
        assert sum(sample[name] for sample in trace.busy) > 0


# ---- the command


@pytest.mark.usefixtures("torch_as_it_was")
def test_the_command_trains_and_says_its_rate(file_list: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["--file-list-path", str(file_list), "-b", "10", "--status-print-interval", "4"]
    assert main([*base, "-s", "9", "-w", "2", "--cache-size", "3", "--profile"]) == 0
    out = capsys.readouterr().out
    assert "24 images, 6 labels; 1 rank on cpu; decode: threads, n=2" in out
    assert len(re.findall(r"^step [48]: ", out, re.MULTILINE)) == 2
    assert "trace: imagenet-threads-nw2.json" in out
    assert [path.name for path in tmp_path.iterdir()] == ["imagenet-threads-nw2.json"]
    assert main([*base, "-s", "6", "--workers", "serial"]) == 0
    assert re.search(r"^Average image rate: mean: [\d.]+, stddev: 0.00$", capsys.readouterr().out, re.MULTILINE)


def test_what_is_wrong_is_told(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["-w", "0"])
    assert "got '0'; write a whole number of at least 1" in capsys.readouterr().err
    assert main(["--base-dir", str(tmp_path)]) == 1
    assert "imagenet: There are no images. Give a list" in capsys.readouterr().err
    Path(tmp_path, "label").mkdir()
    Path(tmp_path, "label", "bad.jpg").touch()
    base = ["--base-dir", str(tmp_path), "--workers", "serial"]
    assert main([*base, "-s", "2", "--profile"]) == 1
    assert "A profile takes at least 3 steps, but there are 2" in capsys.readouterr().err
    assert main([*base, "-s", "9", "--profile", str(tmp_path / "no" / "trace.json")]) == 1
    assert "there is no folder for" in capsys.readouterr().err
    assert main(base) == 1
    assert f"imagenet: {tmp_path}/label/bad.jpg: not an image that can be decoded" in capsys.readouterr().err
    assert main([*base, "--on-error", "skip"]) == 1
    assert "Epoch 0 had no batch: all images failed" in capsys.readouterr().err


@pytest.mark.usefixtures("torch_as_it_was")
def test_a_bad_image_behind_the_last_batch_is_counted(files: Files, tmp_path: Path, capsys: Any) -> None:
    bad = tmp_path / "label" / "bad.jpg"
    bad.parent.mkdir()
    bad.touch()
    three = tmp_path / "three.txt"
    three.write_text("\n".join([*files.paths[:2], str(bad)]))
    base = ["--file-list-path", str(three), "--workers", "serial", "--on-error", "skip"]
    assert main([*base, "-b", "2", "--epochs", "6"]) == 0
    assert capsys.readouterr().out.count("2 images, 2 different, of 3; 2 by rank, 1 skipped") == 6


def run(*command: str) -> str:
    """What a command prints that goes well; torchrun ends its ranks when it is told to end."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.terminate()
    assert process.returncode == 0, err
    return out


def test_two_ranks_see_each_image_once_together(file_list: Path) -> None:
    out = run(*TORCHRUN, "--file-list-path", str(file_list), "-b", "5", "-s", "8", "-w", "2", "--remainder", "pad")
    assert "rank 0 of 2, torchrun on cpu" in out
    assert re.findall(r"epoch (\d): (.*) skipped", out) == [
        ("0", "24 images, 24 different, of 24; 12 + 12 by rank, 0"),
        ("1", "24 images, 24 different, of 24; 12 + 12 by rank, 0"),
        ("2", "20 images, 20 different, of 24; 10 + 10 by rank, 0"),
    ]
    assert re.search(r"^Average image rate: mean: [\d.]+, stddev: [\d.]+$", out, re.MULTILINE)


@pytest.mark.slow
def test_ranks_that_skip_other_numbers_of_images_end_together(files: Files, tmp_path: Path) -> None:
    """One has 11 images, a batch; the other 12, two batches."""
    bad = tmp_path / "chelsea" / "bad.jpg"
    bad.parent.mkdir()
    bad.touch()
    Path(tmp_path, "list").write_text("\n".join([str(bad), *files.paths[1:]]))
    out = run(*TORCHRUN, "--file-list-path", f"{tmp_path}/list", "-b", "11", "--epochs", "2", "--on-error", "skip")
    found = re.findall(r"epoch \d: 23 images, 23 different, of 24; (\d+) \+ (\d+) by rank, 1 skipped", out)
    assert [sorted(each) for each in found] == [["11", "12"]] * 2


def test_ctrl_c_ends_it_and_nothing_is_left(tmp_path: Path) -> None:
    command = [
        sys.executable,
        *COMMAND,
        "-w",
        "2",
        "-b",
        "16",
        "--workers",
        "processes",
        "--epochs",
        "100000",
        "--status-print-interval",
        "1",
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as training:
        assert training.stdout is not None
        next(line for line in training.stdout if line.startswith("step 1: "))
        assert list(tmp_path.glob("qflow-imagenet-*"))
        training.send_signal(signal.SIGINT)
        _, err = training.communicate(timeout=SECONDS)
    assert (training.returncode, err) == (130, "imagenet: interrupted\n")
    assert not list(tmp_path.glob("qflow-*"))
