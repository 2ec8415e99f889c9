"""Byte sizes: numbers of bytes as people write them, MB = 10**6 and MiB = 2**20."""

from __future__ import annotations

import re

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b\s*", re.IGNORECASE)


def parse(text: str) -> int:
    """The number of bytes that a text stands for.

    >>> parse("4GB"), parse("1.5 MiB")
    (4000000000, 1572864)

    Raises:
        ValueError: it is no size above 0; the text says how to write one.
    """
    found = _TEXT.fullmatch(text)
    size = 0 if found is None else int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].lower()])
    if size < 1:
        raise ValueError(f"got {text!r}; write a number and a unit, as 500MB, 4GB or 1GiB (MB is 10**6 bytes, MiB 2**20)")
    return size


def show(size: float) -> str:
    """A number of bytes in three digits.

    >>> show(150_000_000), show(1_230_000_000), show(999)
    ('150MB', '1.23GB', '999B')
    """
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g}{unit}" if size < 999.5 * factor else f"{size / factor:.0f}{unit}"
    return f"{size:.0f}B"
