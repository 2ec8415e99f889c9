"""Pictures: the real digits and photographs that scikit-learn and scikit-image bring along.

Nothing is downloaded. Only the processes that write events load this module: its libraries take 60 MB.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import skimage.data
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_image  # type: ignore[import-untyped,unused-ignore]

from qflow.demo.split import DIGITS, PICTURES, Side


@dataclasses.dataclass(frozen=True)
class Material:
    """What the events of one side are made of.

    Attributes:
        numbers: ``int64[digits]``, the digits' positions in scikit-learn's file.
        digits: ``float32[digits, 8, 8]``, ink from 0 to 1.
        labels: ``int64[digits]``, 0 to 9.
        pictures: ``uint8[height, width, 3]`` each.
    """

    numbers: NDArray[Any]
    digits: NDArray[Any]
    labels: NDArray[Any]
    pictures: tuple[NDArray[Any], ...]


@functools.lru_cache(1)
def material(side: Side) -> Material:
    """The digits and pictures of one side; kept until the other side is asked for."""
    data, numbers = load_digits(), np.array(DIGITS[side])
    digits = (data.images[numbers] / 16).astype(np.float32)
    return Material(numbers, digits, data.target[numbers].astype(np.int64), tuple(map(_picture, PICTURES[side])))


def _picture(name: str) -> NDArray[Any]:
    """A picture in colours; a grey one has three equal ones."""
    if name in ("china", "flower"):
        return np.asarray(load_sample_image(f"{name}.jpg"))
    found = getattr(skimage.data, name)()
    array = np.asarray(found[0] if isinstance(found, tuple) else found)  # of a stereo pair, the left one
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
