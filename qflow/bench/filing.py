"""Filing: one run from file to file by one system, for `files`; its figures are printed as JSON.

python -m qflow.bench.filing SYSTEM FOLDER WORKERS
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from qflow.demo.memory import Peak

OPENED = "QFLOW_BENCH_OPENED"  # the path of a file to which the time is written at which an input is opened


def load(name: str) -> Any:
    """Read an array, and note when."""
    if log := os.environ.get(OPENED):
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{time.monotonic()}\n".encode())
        os.close(file)
    return np.load(name)


def scaled(data: Any) -> Any:
    """The step: as much memory as the data again, and little to compute."""
    return data * 2


def average(data: Any, meta: Any = None, bmp_meta: Any = None, **_: Any) -> Any:
    """A number of each."""
    found = meta if bmp_meta is None else bmp_meta
    if found is not None:
        found["average"] = float(data.mean())
    return data


def output(name: str) -> str:
    """Where a file goes."""
    return str(Path(name).parent.parent / "out" / Path(name).name)


def whole(name: str) -> tuple[str, dict[str, float]]:
    """All of it as one function, as for a pool."""
    meta: dict[str, float] = {}
    np.save(output(name), average(scaled(load(name)), meta=meta))
    return output(name), meta


Results = Iterator[tuple[Any, Any]]


def in_a_loop(names: list[str], n: int) -> Results:
    """One after another."""
    return map(whole, names)


def by_pool(names: list[str], n: int) -> Results:
    """``Pool.map``."""
    with get_context("fork").Pool(n) as pool:
        yield from pool.map(whole, names)


def by_qflow(names: list[str], n: int) -> Results:
    """`qflow.files`."""
    import qflow as qf

    out = os.path.dirname(output(names[0]))
    chain = qf.files.read(load) | qf.map(scaled) | _averaged | qf.files.write(np.save, outdir=out, append="")
    with qf.Flow(qf.process(n=n)(chain)) as pipe:
        for record in pipe(names):
            if record.error is not None:
                raise record.error
            yield record.output, record.meta


def _averaged(data: Any, meta: Any) -> Any:
    return average(data, meta=meta)


def by_bigmultipipe(names: list[str], n: int) -> Results:
    """BigMultiPipe, with methods as its document has them."""
    from bigmultipipe import BigMultiPipe

    from qflow.bench import filing  # here it is `__main__`, whose functions its workers would not find

    out = os.path.dirname(output(names[0]))
    pipe = BigMultiPipe(num_processes=n, outdir=out, outname_append="", post_process_list=[filing.average])
    pipe.file_read, pipe.data_process, pipe.file_write = filing.loaded, filing.worked, filing.saved
    yield from pipe.pipeline(names)


def loaded(name: str, **_: Any) -> Any:
    """`load`, with the keywords that BigMultiPipe gives."""
    return load(name)


def worked(data: Any, **_: Any) -> Any:
    """`scaled`, as well."""
    return scaled(data)


def saved(data: Any, path: str, **_: Any) -> str:
    """Write."""
    np.save(path, data)
    return path


SYSTEMS: dict[str, Callable[[list[str], int], Results]] = {
    "qflow": by_qflow,
    "BigMultiPipe": by_bigmultipipe,
    "Pool.map": by_pool,
    "loop": in_a_loop,
}


def main(system: str, folder: str, n: str) -> None:
    """Run once, check every record, and print what it took."""
    names = sorted(str(path) for path in Path(folder, "in").iterdir())
    opened = Path(folder, "opened")
    opened.unlink(missing_ok=True)
    if len(names) <= 1000:
        os.environ[OPENED] = str(opened)
    with Peak(os.getpid()) as peak:
        begun, first = time.monotonic(), 0.0
        found = []
        for each in SYSTEMS[system](names, int(n)):
            first = first or time.monotonic()
            found.append(each)
        end = time.monotonic()
    assert [path for path, _ in found] == [output(name) for name in names]
    assert all(set(meta) == {"average"} for _, meta in found)
    before = sum(float(line) < first for line in opened.read_text().split()) if opened.exists() else 0
    sizes = {"peak": peak.bytes, "largest": peak.largest}
    print(json.dumps({"seconds": end - begun, "first": first - begun, "opened": before, **sizes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
