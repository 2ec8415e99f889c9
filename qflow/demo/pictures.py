"""Pictures: the real digits and photographs that scikit-learn and scikit-image bring along, by side.

Nothing is downloaded. Each digit and each picture belongs to one side for good: the first four fifths
of the digits, in the file's order, and twelve pictures to train on; the other digits and five other
pictures are held out.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import skimage.data  # type: ignore[import-untyped]
from sklearn.datasets import load_digits, load_sample_image  # type: ignore[import-untyped]

Side = Literal["train", "heldout"]
Array = np.ndarray[Any, np.dtype[Any]]

NAMES: dict[Side, tuple[str, ...]] = {
    "train": (
        "astronaut", "brick", "camera", "coins", "flower", "grass", "hubble_deep_field", "immunohistochemistry", "moon", "retina",
        "rocket", "stereo_motorcycle",
    ),
    "heldout": ("cell", "chelsea", "china", "coffee", "gravel"),
}  # fmt: skip
CREDITS = (
    "Digits: UCI optical recognition of handwritten digits (E. Alpaydin, C. Kaynak), as in scikit-learn. "
    "china.jpg by danielbuechele and flower.jpg by vultilion (Flickr), CC BY 2.0, as in scikit-learn. All others: skimage.data."
)


@dataclasses.dataclass(frozen=True)
class Material:
    """What the events of one side are made of.

    Attributes:
        side: which one.
        numbers: ``int64[digits]``, the digits' positions in scikit-learn's file.
        digits: ``float32[digits, 8, 8]``, ink from 0 to 1.
        labels: ``int64[digits]``, 0 to 9.
        names: of the pictures.
        pictures: ``uint8[height, width, 3]`` each.
    """

    side: Side
    numbers: Array
    digits: Array
    labels: Array
    names: tuple[str, ...]
    pictures: tuple[Array, ...]


def material(side: Side) -> Material:
    """The digits and pictures of one side: 1437 and 12 to train on, 360 and 5 held out."""
    data = load_digits()
    cut = len(data.target) * 4 // 5
    numbers = np.arange(cut) if side == "train" else np.arange(cut, len(data.target))
    digits = (data.images[numbers] / 16).astype(np.float32)
    pictures = tuple(map(_picture, NAMES[side]))
    return Material(side, numbers, digits, data.target[numbers].astype(np.int64), NAMES[side], pictures)


def _picture(name: str) -> Array:
    """A picture in colours; a grey one has three equal ones."""
    if name in ("china", "flower"):
        return np.asarray(load_sample_image(f"{name}.jpg"))
    found = getattr(skimage.data, name)()
    array = np.asarray(found[0] if isinstance(found, tuple) else found)  # of a stereo pair, the left one
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
