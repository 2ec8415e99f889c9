"""Flows in YAML: they mean what the same means in Python, and what is wrong in them is told with file and line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from qflow import h5
from qflow.__main__ import main
from qflow.config.entries import configuration
from qflow.errors import GraphError

STEPS = """
import numpy as np
from qflow import h5

def generate(chunk_size=1024, stop=10):
    for number in range(stop):
        yield np.arange(number * chunk_size, (number + 1) * chunk_size)

def copy(index, numbers):
    children = np.minimum(np.arange(len(index))[:, None] + np.arange(10), len(index) - 1)
    pairs = np.stack(np.broadcast_arrays(numbers[:, None], children), axis=-1).reshape(-1, 2)
    return h5.linked(index, np.unique(pairs, axis=0))

def look(example, example_idcs, index_once_referred):
    assert (example.shape, example_idcs.shape, index_once_referred.shape) == ((1024, 10), (1024, 10), (1024, 10, 10))

def calibrate(hits, tracks, offset, gain=1.0):
    return hits * gain + tracks[:, 0].filled(0) + offset["value"]

class Scaled:
    def __init__(self, factor):
        self.factor = factor
    def __call__(self, value):
        return value * self.factor

class Total:
    def __init__(self, name="total"):
        self.name = name
    def begin(self, file):
        self.total = 0.0
    def __call__(self, scaled):
        self.total += scaled.sum()
    def end(self, file):
        file.attrs("hits")[self.name] = self.total

def offset(value):
    return {"value": value}

number = 3

import qflow as qf

@qf.process(n=2)
class Marked:
    def __init__(self, gain):
        self.gain = gain
    def __call__(self, hits):
        return hits * self.gain
"""

EXAMPLE = """
# Generates numbers, then copies and links them over more tables: h5flow's example.
flow:
  source: input
  stages: [example_stage0, example_stage1, example_stage2, print]
  drop: ['example_stage2/example']

attrs:
  meta:
    val0: 0
    val1: 1
    val2: 2

input:
  function: detector:generate
  table: 'input/index'
  params:
    chunk_size: 1024

example_stage0:
  function: detector:copy
  requires:
    numbers: [input/index, index]
  append: {table: 'stage0/example', refs: pairs, attrs: {test_attr: test_value}}

example_stage1:
  function: detector:copy
  append: {table: 'stage1/example', refs: pairs, name: stage1}

example_stage2:
  function: detector:copy
  append: {table: 'example_stage2/example', refs: pairs, name: stage2}

print:
  function: detector:look
  requires:
    example: input/index -> stage0/example
    example_idcs: [input/index -> stage0/example, index]
    index_once_referred: [input/index -> stage0/example -> input/index]
"""

HITS = """\
flow:
  source: hits
  stages: [calibrate, scale, sum]
calibrate:
  function: detector:calibrate
  params: {gain: 2.0}
  requires:
    tracks: hits -> tracks
  append: {table: calib, refs: "1:1", dtype: f4}
scale:
  function: detector:Scaled
  params: {factor: 10}
  append: scaled
sum:
  stage: detector:Total
  params: {name: sum}
resources:
  offset: {function: detector:offset, params: {value: 5}}
  other: {function: detector:offset, params: {value: 6}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An input, the functions, and a module that nobody names."""
    (tmp_path / "detector.py").write_text(STEPS)
    (tmp_path / "unnamed.py").write_text("raise SystemExit('imported')")
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there")
    with h5.Tables(tmp_path / "in.h5", "w") as file:
        file.append("hits", np.arange(500.0))
        file.append("tracks", np.arange(50.0))
        file.link("tracks", "hits", np.stack([np.arange(500) // 10, np.arange(500)], axis=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("detector", "unnamed", "broken"):
        sys.modules.pop(name, None)


def written(folder, text, name="flow.yaml"):
    (folder / name).write_text(text)
    return name


def test_a_configuration_does_what_the_flow_does(folder, capfd):
    assert (
        main(["h5", "run", "-c", written(folder, HITS), "-i", "in.h5", "-o", "out.h5", "-n", "2", "-s", "100", "-e", "400"]) == 0
    )
    assert "flow.yaml: 1 slices, 300 rows in calib, 300 rows in scaled" in capfd.readouterr().out
    calib = (2 * np.arange(500.0) + np.arange(500) // 10 + 5)[100:400]
    with h5.Tables("out.h5") as file:
        np.testing.assert_array_equal(file["calib", :], calib)
        assert file["calib"].dtype == "f4"
        np.testing.assert_array_equal(file["hits", "calib", 100:400].ravel(), calib)
        np.testing.assert_array_equal(file["scaled", :], 10 * calib)
        assert file.attrs("hits")["sum"] == 10 * calib.sum()
    assert "unnamed" not in sys.modules


def test_the_example_of_h5flow_runs_once_and_three_times(folder):
    written(folder, EXAMPLE)
    command = [sys.executable, "-m", "qflow", "h5", "run", "-v", "-c"]
    subprocess.run([*command, "flow.yaml", "-o", "once.h5", "-n", "2"], check=True)
    with h5.Tables("once.h5") as file:
        assert [*file] == ["input/index", "stage0/example", "stage1/example"]
        assert dict(file.attrs("meta")) == {"val0": 0, "val1": 1, "val2": 2}
        assert file.attrs("stage0/example")["test_attr"] == "test_value"
        assert file.ref("input/index", "stage0/example")[0].shape == (101950, 2)
    subprocess.run([*command, *["flow.yaml"] * 3, "-o", "thrice.h5"], check=True)
    with h5.Tables("thrice.h5") as file:
        assert len(file["stage1/example"]) == 30720
        assert file.ref("input/index", "stage1/example")[0].shape == (305850, 2)
    left = {"broken.py", "detector.py", "flow.yaml", "in.h5", "once.h5", "thrice.h5", "unnamed.py"}
    assert {*os.listdir()} - {"__pycache__"} == left  # that is where Python writes bytecode


def test_several_configurations_go_on_with_the_one_that_was_interrupted(folder, capfd):
    one = "flow: {source: hits, stages: [a]}\na: {function: detector:Scaled, params: {factor: 2}, append: %s}\n"
    written(folder, one % "a", "a.yaml")
    text = (folder / "detector.py").read_text()
    (folder / "detector.py").write_text(text + "\ndef fails(hits):\n    raise OSError('no disk')\n")
    written(folder, "flow: {source: hits, stages: [b]}\nb: {function: detector:fails, append: b}\n", "b.yaml")
    arguments = ["h5", "run", "-c", "a.yaml", "b.yaml", "-i", "in.h5", "-o", "out.h5"]
    assert main(arguments) == 1
    assert "no disk" in capfd.readouterr().err
    assert {"out.h5.1-of-2", "out.h5.1-of-2.made-of"} == {name for name in os.listdir() if name.startswith("out")}
    written(
        folder, "flow: {source: hits, stages: [b]}\nb: {function: 'detector:offset', append: {table: b, dtype: f8}}\n", "b.yaml"
    )
    written(folder, (folder / "b.yaml").read_text().replace("detector:offset", "numpy:sqrt"), "b.yaml")
    assert main(arguments) == 1
    assert "was interrupted" in capfd.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    out = capfd.readouterr().out
    assert "b.yaml: 1 slices, 500 rows in b" in out
    assert "a.yaml:" not in out
    with h5.Tables("out.h5") as file:
        assert [*file] == ["a", "b", "hits", "tracks"]
    assert {"out.h5"} == {name for name in os.listdir() if name.startswith("out")}
    assert main(arguments) == 1
    assert "already" in capfd.readouterr().err
    assert main([*arguments[:5], "-o", "out.h5", "--exists", "append", "-i", "in.h5"]) == 1
    assert main([*arguments[:4], *arguments[3:5], "-o", "out.h5", "--exists", "append"]) == 0
    with h5.Tables("out.h5") as file:
        assert len(file["a"]) == 1500


def test_a_chain_does_not_go_on_behind_what_was_made_otherwise(folder, capfd):
    text = "flow: {source: hits, stages: [a]}\na: {function: detector:Scaled, params: {factor: 1e+0}, append: a}\n"
    arguments = ["h5", "run", "-c", written(folder, text, "a.yaml"), "b.yaml", "-i", "in.h5", "-o", "out.h5"]
    written(folder, "flow: {source: hits, stages: [b]}\nb: {function: 'operator:not_', append: b}\n", "b.yaml")
    with pytest.raises(ValueError, match="ambiguous"):
        main(arguments)
    written(folder, text.replace("1e+0", "1e+1"), "a.yaml")
    written(folder, "flow: {source: a, stages: [b]}\nb: {function: numpy:negative, append: b}\n", "b.yaml")
    assert main([*arguments, "--resume"]) == 0
    with h5.Tables("out.h5") as file:
        np.testing.assert_array_equal(file["b", :], -10 * np.arange(500.0))


def test_parts_are_included_and_merged(folder):
    os.mkdir("parts")
    written(folder, "function: detector:Scaled\nparams: {factor: 3}\n", "parts/scale.yaml")
    written(folder, "tripled: !include scale.yaml\n", "parts/all.yaml")
    text = "flow: {source: hits, stages: [calib, again]}\n<<: !include parts/all.yaml\n"
    text += "calib: {<<: !include parts/scale.yaml, append: {table: calib, name: x}}\n"
    text += "again: {function: numpy:negative, append: minus}\n"
    written(folder, text)
    assert main(["h5", "run", "-c", "flow.yaml", "-i", "in.h5", "-o", "out.h5"]) == 0
    with h5.Tables("out.h5") as file:
        np.testing.assert_array_equal(file["minus", :], -3 * np.arange(500.0))


def changed(*pairs):
    text = HITS
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", r"flow\.yaml: the file is empty"),
        ("a: [", r"flow\.yaml:1: no YAML"),
        ("- 1", r"flow\.yaml:1: A configuration has keys with values, but got a list"),
        (changed(("flow:", "flwo:")), r"flow\.yaml:1: .* 'flow' \(did you mean 'flwo'\?\)"),
        (
            changed(("source:", "sauce:")),
            r"flow\.yaml:2: `flow` has no key 'sauce' \(did you mean 'source'\?\); there are 'source', 's",
        ),
        (
            changed(("scale,", "scael,")),
            r"flow\.yaml:3: There is no entry 'scael' \(did you mean 'scale'\?\); there are 'calibrate'",
        ),
        (
            changed(("  requires:", "  require:")),
            r"flow\.yaml:7: The stage 'calibrate' has no key 'require' \(did you mean 'requires'",
        ),
        (
            changed(("hits -> tracks", "hits -> trucks")),
            r"flow\.yaml:8: There is no table 'trucks' in in\.h5 \(did you mean 'tracks'",
        ),
        (changed(("tracks: hits", "trucks: hits")), r"flow\.yaml:5: Step 'calibrate' names `tracks` \(did you mean 'trucks'\?\)"),
        (changed(("hits -> tracks", "3 -> ")), r"flow\.yaml:8: The path of 'tracks' is"),
        (changed(("source: hits", "source: hit")), r"flow\.yaml:2: There is no table 'hit' in in\.h5 \(did you mean 'hits'"),
        (changed(('refs: "1:1"', "refs: 1:1")), r"flow\.yaml:9: `refs` is one of '1:1', .*61"),
        (changed(("dtype: f4", "dtype: f99")), r"flow\.yaml:9: `dtype` is a type of numpy"),
        (changed(("dtype: f4", "kind: f4")), r"flow\.yaml:9: `append` has no key 'kind'"),
        (
            changed(("{gain: 2.0}", "{gian: 2.0}")),
            r"flow\.yaml:6: detector:calibrate has no parameter 'gian' \(did you mean 'gain'",
        ),
        (changed(("detector:Scaled", "detector:Scald")), r"flow\.yaml:11: 'detector' has no 'Scald' \(did you mean 'Scaled'"),
        (changed(("detector:Scaled", "detectr:Scaled")), r"flow\.yaml:11: the module 'detectr' can't be imported.*current one"),
        (changed(("detector:Scaled", "broken:Scaled")), r"flow\.yaml:11: .*'broken' can't be .*a_package.*it imports is missing"),
        (changed(("detector:Scaled", "Scaled")), r"flow\.yaml:11: A function is written as module:name"),
        (changed(("detector:Scaled", "detector:number")), r"flow\.yaml:11: 'detector:number' is int, no function"),
        (
            changed(("  stage: detector:Total", "  stage: detector:Total\n  function: detector:offset")),
            r"flow\.yaml:15: .* either",
        ),
        (changed(("  params: {factor: 10}\n", "")), r"flow\.yaml:1\d: .*factor"),
        (HITS + "attrs: {meta: {made: }}\n", r"flow\.yaml:20: The attribute 'made' of 'meta'"),
        (changed(("sum:\n  stage", "scale:\n  stage")), r"flow\.yaml:14: 'scale' stands there twice, before in flow\.yaml:11"),
        (changed(("{value: 6}", "!!python/object/apply:os.system ['touch x']")), r"flow\.yaml:19: "),
        (changed(("{value: 6}", "!include none.yaml")), r"flow\.yaml:19: there is no file 'none\.yaml' to include"),
        (changed(("{value: 6}", "!include flow.yaml")), r"flow\.yaml:19: 'flow\.yaml' includes itself"),
        (
            changed(("other: {function: detector:offset, params: {value: 6}}", "other: {}")),
            r"flow\.yaml:19: A resource has either",
        ),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(folder, text, error):
    written(folder, text)
    with pytest.raises(GraphError) as found:
        read = configuration("flow.yaml")
        h5.run(read.flow, "in.h5", "out.h5", params=read.params())
    assert re.match(error, str(found.value).replace(str(folder) + "/", "")), found.value
    assert sorted(os.listdir()) == sorted({*os.listdir(), "in.h5"} - {"x", "out.h5"})


def test_the_command_says_what_is_wrong_in_a_line(folder, capfd):
    written(folder, changed(("hits -> tracks", "hits -> trucks")))
    assert main(["h5", "run", "-c", "flow.yaml", "-i", "in.h5", "-o", "out.h5"]) == 1
    assert capfd.readouterr().err.startswith(f"qflow h5 run: flow.yaml:8: There is no table 'trucks' in {folder}/in.h5")
    assert main(["h5", "run", "-c", "nothing.yaml", "-i", "in.h5", "-o", "out.h5"]) == 1
    assert capfd.readouterr().err == "qflow h5 run: nothing.yaml: can't be read: No such file or directory.\n"
    for wrong in (["-s", "-1"], ["-n", "0"], ["--exits", "append"], ["-z", "zip"]):
        with pytest.raises(SystemExit) as ended:
            main(["h5", "run", "-c", "flow.yaml", "-i", "in.h5", "-o", "out.h5", *wrong])
        assert ended.value.code == 2


def test_the_configuration_of_the_readme_does_what_it_says(folder):
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (shown,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    functions = (
        "def calibrate(hits, tracks, numbers, geometry, gain):\n    return gain * hits + tracks[:, 0].filled(0) + geometry\n"
    )
    (folder / "detector.py").write_text(functions + "def geometry(path):\n    return len(path)\n")
    assert (
        main(
            [
                "h5",
                "run",
                "-c",
                written(folder, shown.replace("drop: [scratch]", "drop: [tracks]")),
                "-i",
                "in.h5",
                "-o",
                "out.h5",
            ]
        )
        == 0
    )
    with h5.Tables("out.h5") as file:
        np.testing.assert_array_equal(file["hits", "calib", :].ravel(), 2 * np.arange(500.0) + np.arange(500) // 10 + 11)
        assert "tracks" not in file


def test_marked_functions_keep_their_marks(folder):
    text = "flow: {source: hits, stages: [a, b]}\na: {function: detector:Marked, params: {gain: 3}, append: a}\n"
    text += "b: &b {<<: {function: detector:Scaled, params: {factor: 1}}, params: {factor: 2}, append: b}\nc: *b\n"
    assert main(["h5", "run", "-c", written(folder, text), "-i", "in.h5", "-o", "out.h5"]) == 0
    with h5.Tables("out.h5") as file:
        np.testing.assert_array_equal(file["b", :], 6 * np.arange(500.0))
    written(folder, "flow: {source: hits, stages: [a]}\na: {stage: detector:Marked, params: {gain: 3}}\n")
    with pytest.raises(GraphError, match="has a mark"):
        configuration("flow.yaml")


def test_compression_is_that_of_new_tables(folder):
    assert main(["h5", "run", "-c", written(folder, HITS), "-i", "in.h5", "-o", "out.h5", "-z", "gzip", "-d", "scaled"]) == 0
    with h5py.File("out.h5") as file:
        assert file["calib/data"].compression == "gzip"
        assert file["hits/data"].compression is None
        assert "scaled" not in file
