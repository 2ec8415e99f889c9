"""Files: which images there are, and the label of each.

A label is the number of an image's folder among all folders, sorted. It is taken from the whole list, never from a rank's part
of it, so that all ranks have the same labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, final

from qflow.errors import GraphError

ENDINGS = {".jpg", ".jpeg"}


class Entry(NamedTuple):
    """One image: its number in the list, its path and its label."""

    number: int
    path: str
    label: int


@final
class Files(Sequence[Entry]):
    """A list of images, as a source.

    >>> files = Files(["train/dog/7.jpg", "train/cat/1.jpg", "train/dog/2.jpg"])
    >>> files.labels, files[0]
    ({'cat': 0, 'dog': 1}, Entry(number=0, path='train/dog/7.jpg', label=1))

    Memory: the paths, about 100 bytes each; entries are made when they are read.

    Attributes:
        paths: of the images, in the order of the list.
        labels: the number of each folder; its name is the second-to-last part of a path.
    Raises:
        GraphError: there are no paths, or one has no folder.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = list(paths)
        if not self.paths:
            raise GraphError(
                "There are no images. Give a list with one path on each line, or a folder with one folder of a label each."
            )
        self.labels = {name: number for number, name in enumerate(sorted(set(map(_folder, self.paths))))}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Entry:  # type: ignore[override]
        path = self.paths[number]
        return Entry(range(len(self.paths))[number], path, self.labels[_folder(path)])


def _folder(path: str) -> str:
    name = path.rpartition("/")[0].rpartition("/")[2]
    if not name:
        raise GraphError(f"The label of an image is the name of its folder, but {path!r} has none. Write `label/{path}`.")
    return name


def listed(path: str | Path, base: str | Path = "") -> Files:
    """The images of a text file with one path on each line; empty lines don't count.

    Args:
        path: the text file.
        base: where relative paths begin.
    Raises:
        OSError: it can't be read.
        GraphError: it has no paths, or one has no folder.
    """
    lines = (line.strip() for line in Path(path).read_text().splitlines())
    return Files(str(Path(base, line)) for line in lines if line)


def found(folder: str | Path) -> Files:
    """All JPEGs below a folder, sorted by path.

    Raises:
        GraphError: there are none.
    """
    return Files(sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS))
