"""Files: a folder of files into another, each read, worked on and written in one worker; only names and metadata cross.

    from qflow import files

    chain = files.read(np.load) | reject | (lambda data: data * 10) | median | files.write(np.save, outdir="reduced")
    with qf.run(qf.process(n=files.workers(process_size="3GB"))(chain), names) as records:
        for record in records:
            print(record.input, record.output, record.meta, record.error)

The data is whatever the reading function gives.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qflow.files.command import add_arguments, main, run_with
from qflow.files.file import Meta
from qflow.files.fitting import workers
from qflow.files.listed import records
from qflow.files.planned import Output, outputs
from qflow.files.reading import defaults, read
from qflow.files.record import Record, prune, table
from qflow.files.writing import write

if TYPE_CHECKING:
    from qflow.files.bar import progress

__all__ = [
    "Meta",
    "Output",
    "Record",
    "add_arguments",
    "defaults",
    "main",
    "outputs",
    "progress",
    "prune",
    "read",
    "records",
    "run_with",
    "table",
    "workers",
    "write",
]


def __getattr__(name: str) -> Any:
    """What needs another package loads on first use."""
    if name != "progress":
        raise AttributeError(f"module 'qflow.files' has no attribute {name!r}")
    return importlib.import_module("qflow.files.bar").progress
