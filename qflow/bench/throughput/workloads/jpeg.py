"""JPEG: photographs are decoded, resized to 256 x 256 and stacked in batches of 64, as for a training on pictures.

The files are tiles cut from the photographs that scikit-image brings along. Everybody decodes with the same function, and
what it gives for each tile is noted when the files are made. SPDL can also decode by FFmpeg, if that is installed: other
code, whose pixels need not be these, so it isn't measured here.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qflow.bench.throughput.workload import Bare, Lazy, Stages, Workload
from qflow.bench.throughput.workloads.hdf5 import FOLDER
from qflow.bench.throughput.workloads.python import two_processes

if TYPE_CHECKING:
    import numpy as np

    import qflow as qf

    Picture = np.ndarray[Any, np.dtype[np.uint8]]

TILES = 300  # files; no multiple of the batch, so that 75 batches differ
SIDE, SIZE = 256, 64  # pixels of a decoded picture, pictures of a batch
PICTURE = SIDE * SIDE * 3  # bytes
_WIDTH, _HEIGHT, _QUALITY = 500, 375, 95  # of a tile; about 80 KB
_PHOTOGRAPHS = ("astronaut", "coffee", "rocket", "stereo_motorcycle", "immunohistochemistry", "hubble_deep_field", "retina")
_NOTES = "right.json"


def tile(number: int) -> str:
    """The path of a tile."""
    return f"{os.environ[FOLDER]}/jpeg/{number % TILES}.jpg"


def decode(path: str) -> Picture:
    """The work: ``uint8[256, 256, 3]``."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as file:
        return np.asarray(file.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def collate(pictures: Sequence[Picture]) -> Any:
    """A tensor ``uint8[batch, 256, 256, 3]``."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack(pictures))


def filled(found: Picture, paths: Iterable[str]) -> Any:
    """The same from files, in memory that is there."""
    import torch

    for place, path in zip(found, paths, strict=True):
        place[:] = decode(path)
    return torch.from_numpy(found)


def batch(number: int) -> Any:
    """The batch of a number: all stages in one step."""
    import numpy as np

    return filled(np.empty((SIZE, SIDE, SIDE, 3), np.uint8), map(tile, range(number * SIZE, (number + 1) * SIZE)))


def batch_of(paths: Sequence[str]) -> Any:
    """The batch of some files, in the memory in which qflow sends it."""
    import qflow as qf

    return filled(qf.empty((len(paths), SIDE, SIDE, 3), "uint8"), paths)


def in_processes() -> qf.Flow[Any, Any]:
    """Each process makes whole batches."""
    import qflow as qf

    return qf.Flow(qf.pack(SIZE) | qf.process(n=2)(batch_of))


def in_threads() -> qf.Flow[Any, Any]:
    """Each thread does, which works as far as the decoder releases the GIL."""
    import qflow as qf

    return qf.Flow(qf.pack(SIZE) | qf.thread(n=2)(batch_of))


def picture_by_picture() -> qf.Flow[Any, Any]:
    """The threads decode one picture each."""
    import qflow as qf

    return qf.Flow(qf.thread(n=2)(decode) | qf.pack(SIZE) | qf.map(collate))


def write(folder: Path) -> None:
    """Make the tiles that are not there, and note what is right."""
    from PIL import Image

    (folder / "jpeg").mkdir(exist_ok=True)
    paths = [folder / "jpeg" / f"{number}.jpg" for number in range(TILES)]
    if not all(path.exists() for path in paths):
        for path, pixels in zip(paths, _cuts(), strict=True):
            Image.fromarray(pixels).save(path, quality=_QUALITY)
    (folder / "jpeg" / _NOTES).write_text(json.dumps([_note(decode(str(path))) for path in paths]))


def _cuts() -> Iterator[Picture]:
    """``TILES`` cuts of ``uint8[375, 500, 3]``, from the photographs in turn, which overlap."""
    photographs = [_photograph(name) for name in _PHOTOGRAPHS]
    for number in range(TILES):
        photograph = photographs[number % len(photographs)]
        down, right = (free - size + 1 for free, size in zip(photograph.shape, (_HEIGHT, _WIDTH), strict=False))
        top, left = 7919 * number % down, 104729 * number % right
        yield photograph[top : top + _HEIGHT, left : left + _WIDTH]


def _photograph(name: str) -> Picture:
    import skimage.data

    found = getattr(skimage.data, name)()
    return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]  # of a stereo pair, the left one


def _note(picture: Any) -> tuple[int, int]:
    """What tells a picture: at a glance, and as a whole."""
    return _glance(picture[None])[0], zlib.crc32(picture.tobytes())


@cache
def _notes(folder: str) -> list[tuple[int, int]]:
    return [(seen, whole) for seen, whole in json.loads(Path(folder, "jpeg", _NOTES).read_text())]


def keys(start: int, stop: int) -> list[tuple[int, ...]]:
    """The keys of batches."""
    return [tuple(seen for seen, _ in _right(number)) for number in range(start, stop)]


def _right(number: int) -> list[tuple[int, int]]:
    """The notes of a batch."""
    notes = _notes(os.environ[FOLDER])
    return [notes[place % TILES] for place in range(SIZE * number, SIZE * (number + 1))]


def _glance(pictures: Any) -> list[int]:
    """One number of each picture, from its middle."""
    return pictures[:, SIDE // 2, SIDE // 2, 0].tolist()  # type: ignore[no-any-return]


def key(found: Any) -> tuple[int, ...]:
    return tuple(_glance(found))


def whole(found: Any) -> tuple[int, ...] | None:
    import torch

    if not isinstance(found, torch.Tensor) or found.shape != (SIZE, SIDE, SIDE, 3) or found.dtype != torch.uint8:
        return None
    notes = list(map(_note, found.numpy()))
    return key(found) if any(notes == _right(number) for number in range(TILES)) else None


def tiles(batches: int) -> Sequence[str]:
    """The files of so many batches."""
    return Lazy(tile, batches * SIZE)


JPEG = Workload(
    "JPEG files of 500 x 375 -> RGB, 256 x 256 -> batches of 64",
    (batch,),
    keys,
    key,
    whole,
    least=16,
    most=200,  # more than the least: an epoch before the one that counts, for torch arrives where tensors do
    multiple=2,
    checked=4,
    block=1,
    chunks=(1, 2),
    unit="batches",
    size=SIZE * PICTURE,
    bare=Bare("2 bare processes", partial(two_processes, batch)),
    stages=Stages(
        tiles,
        None,
        decode,
        SIZE,
        collate,
        tile,
        {"processes": in_processes, "threads": in_threads, "threads, picture by picture": picture_by_picture},
    ),
    packages=("PIL", "skimage", "torch"),
    prepare=write,
    workers=(4, 1),
    also=("spdl_threads", "spdl_pool"),
)
