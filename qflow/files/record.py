"""Record: what became of one input; and what is done with many records."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Record(NamedTuple):
    """One input, and what became of it.

    Attributes:
        input: the name as it was given, or the list of names of a group.
        output: the path that was written; None: nothing was, because a step gave None, the file failed, or none is to be.
        meta: what the steps have put there, but for what is `Meta.local`.
        error: what was raised, which says the step, the file and the worker's traceback; None: nothing was.
    """

    input: Any
    output: str | None = None
    meta: Mapping[str, Any] = {}
    error: BaseException | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is left of the file: no output, no metadata, no error."""
        return self.output is None and not self.meta and self.error is None


def prune(records: Iterable[Record]) -> list[Record]:
    """The records without those of rejected files, of which nothing is left.

    >>> from qflow.files import Record, prune
    >>> prune([Record("x"), Record("y", "a"), Record("z", None, {"median": 1.0})])
    [Record(input='y', output='a', meta={}, error=None), Record(input='z', output=None, meta={'median': 1.0}, error=None)]
    """
    return [record for record in records if not record.empty]


def table(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Records as rows, for ``pandas.DataFrame(rows)`` and its kin: input, output, error, and a column for each key of metadata.

    >>> from qflow.files import Record, table
    >>> for row in table([Record("a.npy", "b.npy", {"median": 1.0}), Record("c.npy", error=OSError("gone"))]):
    ...     print(row)
    {'input': 'a.npy', 'output': 'b.npy', 'error': None, 'median': 1.0}
    {'input': 'c.npy', 'output': None, 'error': 'OSError: gone'}

    A key of metadata that is named like one of the three is called ``meta.input`` and so on.
    """
    return [_row(record) for record in records]


def _row(record: Record) -> dict[str, Any]:
    error = None if record.error is None else f"{type(record.error).__name__}: {record.error}"
    row = {"input": shown(record.input), "output": record.output, "error": error}
    return row | {f"meta.{name}" if name in row else name: value for name, value in record.meta.items()}


def shown(name: Any) -> Any:
    """The name of an input, or of those of a group, as text."""
    if isinstance(name, list | tuple):
        return [shown(each) for each in name]
    return os.fspath(name) if isinstance(name, str | os.PathLike) else repr(name)
