"""Split: which digits and which pictures are to train on, and which are held out.

Each digit and each picture belongs to one side for good: the first four fifths of the digits, in the
order of scikit-learn's file, and twelve pictures to train on; the other digits and five other
pictures are held out.
"""

from __future__ import annotations

from typing import Literal

Side = Literal["train", "heldout"]

DIGITS: dict[Side, range] = {"train": range(1437), "heldout": range(1437, 1797)}
PICTURES: dict[Side, tuple[str, ...]] = {
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
