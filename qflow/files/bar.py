"""Bar: files and bytes a second; needs tqdm, ``pip install 'qflow[files]'``."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from qflow.files.names import names_of
from qflow.files.record import Record
from qflow.graph import bytesizes
from qflow.graph.source import source_length

try:
    from tqdm import tqdm  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError("A progress bar needs tqdm. Install it: pip install 'qflow[files]'") from error


class _Bar(tqdm):  # type: ignore[misc]
    monitor_interval = 0  # seconds; tqdm would leave a thread that looks after slow bars


_Bar.set_lock(threading.RLock())  # its own would be a semaphore that processes share


def progress(records: Iterable[Record], *, names: Iterable[Any] | None = None, **words: Any) -> Iterator[Record]:
    """The records, with a bar on stderr: files and input bytes a second, and how many failed.

    Args:
        records: a run.
        names: its source, to know how many there are, if the run has no length.
        words: for ``tqdm.tqdm``.
    """
    total = next((length for length in map(source_length, (names, records)) if length is not None), None)
    begun, size, failed, before = time.monotonic(), 0, 0, None
    with _Bar(total=total, unit=" files", **words) as bar:
        for record in records:
            yield record
            failed += record.error is not None
            if record.input == before:  # another output of the same
                continue
            before = record.input
            with contextlib.suppress(OSError, TypeError, ValueError):
                size += sum(os.stat(name).st_size for name in names_of(record.input))
            rate = size / max(time.monotonic() - begun, 1e-9)
            bar.set_postfix_str(f"{bytesizes.show(rate)}/s{f', {failed} failed' if failed else ''}", refresh=False)
            bar.update()
