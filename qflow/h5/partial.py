"""Partial: an output while it is made, under a name of its own, until it is complete and on the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from typing import Any, final

from qflow.disk import sync
from qflow.errors import GraphError
from qflow.h5.tables import Tables


@final
class Partial:
    """``<output>.partial``, which is gone behind a ``with``; the output is there if it was `complete`.

    Args:
        output: its name at last.
        replaces: whether a file of that name may be there.
    """

    def __init__(self, output: str, *, replaces: bool) -> None:
        self.output, self.replaces, self.path = output, replaces, f"{output}.partial"

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    @contextlib.contextmanager
    def open(self, input: str | None, *, compression: Any, drop: Iterable[str]) -> Iterator[Tables]:
        """Begin it, as a copy of the input, and close it; words as in `Tables`."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        if input is not None:
            shutil.copyfile(input, self.path)
        with Tables(self.path, "a", compression=compression, drop=drop) as file:
            try:
                yield file
                file.flush()
            except BaseException:
                os.truncate(self.path, 0)  # it goes anyway; where HDF5 2.0 has no room to close a file, the process crashes later
                raise

    def complete(self) -> None:
        """Bring it to the disk, and give it the output's name: the journals, from which it could be made again, may go."""
        sync(self.path)
        if self.replaces or not self._linked():
            os.replace(self.path, self.output)
        with contextlib.suppress(OSError):  # of folders that can't be read, or have no such way
            sync(os.path.dirname(self.output))

    def _linked(self) -> bool:
        """Give the name if it is nobody's -> whether that is possible."""
        try:
            os.link(self.path, self.output)
        except FileExistsError:
            raise GraphError(
                f"{self.output!r} has come into being since this run began. Rename it, and go on with `resume=True`."
            ) from None
        except OSError:  # a file system without links
            return False
        return True
