"""Events: digits written over tiles of pictures.

An event is a tile of 96 x 96 pixels at a third of its contrast, with one digit over it, 72 pixels wide, at any
place, in light ink on dark tiles and in dark ink on light ones. The same seed gives the same events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from qflow.demo.pictures import Material

TILE = 96
ZOOM = 9
BLOCK = 128  # events made at once: 3.5 MB

# At full contrast the same network names 4 of 5 held-out digits, at a third 14 of 15, and without
# any picture 19 of 20. [12 000 events, 3 epochs]
_PALE = (128 + (np.arange(256) - 128) / 3).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Block:
    """Some events, as the columns of a file.

    Attributes:
        image: ``uint8[events, 96, 96, 3]``.
        label: ``int64[events]``, the digit's value.
        digit: ``int64[events]``, its position in scikit-learn's file.
        picture: ``int64[events]``, the picture's place among the names of its side.
    """

    image: NDArray[Any]
    label: NDArray[Any]
    digit: NDArray[Any]
    picture: NDArray[Any]


EVENT_BYTES = TILE * TILE * 3 + 3 * 8


def blocks(material: Material, start: int, stop: int, seed: int) -> Iterator[Block]:
    """Events number ``start`` to ``stop`` in random order, in blocks; every digit occurs equally often, up to one."""
    draw = np.random.default_rng([seed, start, int(material.numbers[0])])
    digits = draw.permutation(np.arange(start, stop) % len(material.digits))
    for first in range(0, len(digits), BLOCK):
        yield _block(material, digits[first : first + BLOCK], draw)


def _block(material: Material, digits: NDArray[Any], draw: np.random.Generator) -> Block:
    pictures = draw.integers(len(material.pictures), size=len(digits))
    images = np.empty((len(digits), TILE, TILE, 3), np.uint8)
    places = draw.random((len(digits), 4))
    tints = draw.integers(-40, 41, size=(len(digits), 3))
    for image, digit, picture, place, tint in zip(images, digits, pictures, places, tints, strict=True):
        image[:] = _PALE[_window(material.pictures[picture], TILE, place[:2])]
        _write(_window(image, 8 * ZOOM, place[2:]), material.digits[digit], tint)
    return Block(images, material.labels[digits], material.numbers[digits], pictures)


def _window(image: NDArray[Any], size: int, place: NDArray[Any]) -> NDArray[Any]:
    """A square view of an image; `place` in [0, 1) chooses from all there are."""
    top, left = (int(share * (length - size + 1)) for share, length in zip(place, image.shape, strict=False))
    return image[top : top + size, left : left + size]


def _write(window: NDArray[Any], digit: NDArray[Any], tint: NDArray[Any]) -> None:
    """Put the ink of a digit over pixels: light on dark, dark on light, 9 parts in 10."""
    ink = np.clip((30 if window[::4, ::4].mean() > 127 else 225) + tint, 0, 255).astype(np.float32)
    window[:] = window + (0.9 * (_ENLARGE @ digit @ _ENLARGE.T))[..., None] * (ink - window)


def _enlarging() -> NDArray[Any]:
    """``float32[72, 8]``: the weights of 8 pixels in 72 places between them, linear."""
    rows = np.arange(8 * ZOOM)
    place = ((rows + 0.5) / ZOOM - 0.5).clip(0, 7)
    low = np.minimum(place.astype(int), 6)
    weights = np.zeros((8 * ZOOM, 8), np.float32)
    weights[rows, low], weights[rows, low + 1] = 1 - (place - low), place - low
    return weights


_ENLARGE = _enlarging()
