"""The picture of a flow: well-formed, without anything a sanitizer strips, complete, and the same every time."""

from __future__ import annotations

import multiprocessing
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qflow as qf
from qflow.graph.draw import WIDTH, svg

SVG = "{http://www.w3.org/2000/svg}"
SHAPES = {"svg", "g", "title", "rect", "circle", "path", "text"}


def refused() -> int:
    """A size that can't be read."""
    raise OSError("no such file")


names = st.text(min_size=1, max_size=60)
counts = st.integers(1, 40)
marked = st.builds(
    lambda mark, n, name: mark(n=n, name=name)(abs), st.sampled_from([qf.process, qf.pool, qf.thread]), counts, names
)
plain = st.sampled_from(
    [str.upper, lambda x: x, qf.filter(bool), qf.unpack(), qf.repack(64), qf.pack(lambda: 3), qf.repack(refused)]
)
flows = st.lists(marked | plain | st.builds(qf.queue, st.integers(1, 10**9)), max_size=12).map(lambda parts: qf.Flow(*parts))
literal = st.booleans()


def elements(text: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(text).iter())


def words(text: str) -> str:
    """Everything written in the picture or in a tooltip."""
    return "\n".join(element.text or "" for element in elements(text))


def groups(flow: qf.Flow[Any, Any]) -> list[str]:
    try:
        return [group.name for group in flow.plan().groups]
    except OSError:
        return [operator.name for operator in flow.operators if "queue" not in operator.name]


@given(flows, literal)
def test_a_picture_is_well_formed_and_names_every_group(flow: qf.Flow[Any, Any], literal: bool) -> None:
    written = words(svg(flow, literal=literal))
    for name in groups(flow):
        assert "".join(letter if letter.isprintable() else " " for letter in name) in written


@given(flows, literal)
def test_a_picture_has_shapes_and_presentation_attributes_only(flow: qf.Flow[Any, Any], literal: bool) -> None:
    for element in elements(svg(flow, literal=literal)):
        assert element.tag.removeprefix(SVG) in SHAPES
        assert not {key for key in element.attrib if key in ("class", "id", "href") or key.startswith("on")}
        assert "url(" not in str(element.attrib)


@given(flows, literal)
def test_the_same_flow_gives_the_same_picture(flow: qf.Flow[Any, Any], literal: bool) -> None:
    assert svg(flow, literal=literal) == svg(qf.Flow(*flow.operators), literal=literal)


def boxes(root: ElementTree.Element) -> list[tuple[float, ...]]:
    """Left edge, upper edge, width and height of each box."""
    corners = [rect for rect in root.iter(f"{SVG}rect") if rect.get("rx") == "7"]
    return [tuple(float(rect.attrib[key]) for key in ("x", "y", "width", "height")) for rect in corners]


@given(flows)
def test_boxes_lie_side_by_side_inside_the_picture(flow: qf.Flow[Any, Any]) -> None:
    root = elements(svg(flow))[0]
    wide, high = float(root.attrib["width"]), float(root.attrib["height"])
    assert len(boxes(root)) == len(groups(flow)) + 2
    assert wide <= WIDTH + 20
    for x, y, width, height in boxes(root):
        assert x >= 0
        assert x + width <= wide
        assert y + height <= high
    for (x, y, width, height), (x2, y2, _, _) in pairwise(boxes(root)):
        assert x2 > x + width if y2 == y else y2 > y + height


@qf.process(n=2)
def read(chunk: list[int]) -> list[int]:
    return chunk


@qf.pool(n=20)
def transform(event: int) -> int:
    return event


@qf.process
def collate(events: list[int]) -> int:
    return sum(events)


@qf.thread(n=4)
def fetch(url: str) -> list[int]:
    return [len(url)]


PIPE = read | transform | qf.repack(64) | collate | qf.queue(4)


def test_the_picture_shows_workers_fused_operators_and_written_bounds() -> None:
    texts = [element.text for element in elements(svg(PIPE)) if element.tag == f"{SVG}text"]
    assert texts == [
        *("≤ 4", "source", "any iterable", "read", "2 processes", "read | scatter", "transform", "20 processes"),
        *("collate", "1 process", "gather | repack(64) | collate", "consumer", "your loop"),
    ]


def test_processes_are_squares_and_threads_are_dots_in_one_process() -> None:
    kinds = [
        element.tag.removeprefix(SVG) for element in elements(svg(fetch | read)) if element.get("fill") in ("#3b82f6", "#d97706")
    ]
    assert kinds == ["circle"] * 4 + ["rect"] * 2
    assert "4 threads in 1 process" in svg(fetch | read)


def test_the_ends_show_which_part_is_read_and_where_results_go() -> None:
    flow = range(3) | qf.shard(1, 4, even="drop") | qf.take(2) | qf.process(abs) | qf.to_device("cpu")
    for picture in (svg(flow), svg(flow, literal=True)):
        assert "shard(1 of 4, drop) | take(2)" in picture
        assert "to_device(cpu)" in picture


def test_a_source_shows_its_type() -> None:
    assert "any iterable" in words(svg(PIPE))
    assert "ndarray" in words(svg(np.zeros((3, 2)) | PIPE))


def test_names_are_escaped_and_long_ones_cut_with_the_whole_name_as_tooltip() -> None:
    name = "<b>&\"' " + 30 * "long "
    texts = {
        element.tag.removeprefix(SVG): element.text or ""
        for element in elements(svg(qf.Flow(qf.process(name=name)(abs))))
        if "long" in (element.text or "")
    }
    assert texts["text"].endswith("…")
    assert len(texts["text"]) < 30
    assert texts["title"].startswith(name)


@pytest.mark.parametrize(
    "size", [lambda: 3, refused, multiprocessing.get_context("spawn").Value("i", 5)], ids=["function", "raising", "value"]
)
def test_any_size_is_drawn(size: Any) -> None:
    assert "repack(" in words(svg(read | qf.repack(size)))


def test_only_the_version_for_pages_leaves_the_ink_to_the_page() -> None:
    page, picture = elements(svg(PIPE))[0], elements(svg(PIPE, literal=True))[0]
    assert "color" not in page.attrib
    assert picture.attrib["color"].startswith("#")
    assert picture[0].get("fill") == "#ffffff"


def test_a_picture_says_in_one_line_what_it_shows() -> None:
    root = elements(svg([[1]] | PIPE))[0]
    assert root.get("role") == "img"
    assert root.get("aria-label") == (
        "flow: source (list), then read (2 processes), then transform (20 processes), then collate (1 process), "
        "at most 4 waiting, then consumer (your loop)"
    )


def test_a_notebook_gets_text_a_page_and_a_picture() -> None:
    assert PIPE._repr_mimebundle_() == {
        "text/plain": repr(PIPE),
        "text/html": svg(PIPE),
        "image/svg+xml": svg(PIPE, literal=True),
    }


def test_a_plan_prints_as_a_table() -> None:
    assert str((fetch | PIPE).plan()).splitlines() == [
        "source     1 thread of this process",
        "  |  1 item waits, or several up to 4 MiB together",
        "fetch      4 threads in 1 process",
        "  |  1 item waits, or several up to 4 MiB together",
        "read       2 processes               read | scatter",
        "  |  1 item waits, or several up to 4 MiB together",
        "transform  20 processes",
        "  |  1 item waits, or several up to 4 MiB together",
        "collate    1 process                 gather | repack(64) | collate",
        "  |  at most 4 items wait",
        "consumer",
    ]
