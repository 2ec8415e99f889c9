"""Systems: qflow and its peers, each as one function that maps a step over items in worker processes.

An adapter is written as the system's own documentation would: ``consume`` takes the results, and what
leaving costs belongs to the system. A peer is imported in its adapter, in the process that measures it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

WORKERS = 2

Step = Callable[[int], Any]
Consume = Callable[[Iterable[Any]], None]


class Adapter(Protocol):
    """What a system has to be here: a function that gives ``consume`` the results of ``step`` on ``items``."""

    def __call__(self, step: Step, items: Sequence[int], consume: Consume, /) -> None: ...


def qflow(step: Step, items: Sequence[int], consume: Consume) -> None:
    import qflow as qf

    with qf.run(qf.process(n=WORKERS)(step), items) as run:
        consume(run)


@dataclass(frozen=True)
class Mapped:
    """The results of a step as a data set, and as an iterable."""

    step: Step
    items: Sequence[int]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.step(self.items[index])

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            yield self.step(item)


def torch(step: Step, items: Sequence[int], consume: Consume) -> None:
    from torch.utils.data import DataLoader

    data: Any = Mapped(step, items)
    consume(DataLoader(data, batch_size=None, num_workers=WORKERS))


def torch_as_is(step: Step, items: Sequence[int], consume: Consume) -> None:
    """Without its conversion of arrays to tensors, so that what its transport does is seen."""
    from torch.utils.data import DataLoader

    data: Any = Mapped(step, items)
    consume(DataLoader(data, batch_size=None, num_workers=WORKERS, collate_fn=_as_is))


def _as_is(result: Any) -> Any:
    return result


def nodes(step: Step, items: Sequence[int], consume: Consume) -> None:
    from torchdata import nodes

    mapper = nodes.ParallelMapper(nodes.IterableWrapper(items), step, num_workers=WORKERS, method="process")
    consume(nodes.Loader(mapper))


def executor(step: Step, items: Sequence[int], consume: Consume) -> None:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS) as pool:
        consume(pool.map(step, items))


def pool(step: Step, items: Sequence[int], consume: Consume) -> None:
    from multiprocessing import Pool

    with Pool(WORKERS) as workers:
        consume(workers.imap(step, items))


def loky(step: Step, items: Sequence[int], consume: Consume) -> None:
    from loky import get_reusable_executor

    consume(get_reusable_executor(max_workers=WORKERS).map(step, items))


def joblib(step: Step, items: Sequence[int], consume: Consume) -> None:
    from joblib import Parallel, delayed

    consume(Parallel(n_jobs=WORKERS, return_as="generator")(delayed(step)(item) for item in items))


def mpire(step: Step, items: Sequence[int], consume: Consume) -> None:
    from mpire import WorkerPool

    with WorkerPool(WORKERS) as workers:
        consume(workers.imap(step, items))


def spdl_subprocess(step: Step, items: Sequence[int], consume: Consume) -> None:
    """One worker process: that is what it offers."""
    from spdl.pipeline import iterate_in_subprocess

    consume(iterate_in_subprocess(partial(Mapped, step, items)))


def spdl_arena(step: Step, items: Sequence[int], consume: Consume) -> None:
    """As above, with its shared memory."""
    from spdl.pipeline import SharedMemorySegmentPool, iterate_in_subprocess

    arena = SharedMemorySegmentPool(segment_size=64 << 20, count=4)
    consume(iterate_in_subprocess(partial(Mapped, step, items), arena=arena))


def spdl_pool(step: Step, items: Sequence[int], consume: Consume) -> None:
    from concurrent.futures import ProcessPoolExecutor

    from spdl.pipeline import PipelineBuilder

    with ProcessPoolExecutor(WORKERS) as pool:
        builder = PipelineBuilder().add_source(items)
        builder.pipe(step, executor=pool, concurrency=WORKERS, output_order="input").add_sink(WORKERS)
        pipeline = builder.build(num_threads=1)
        with pipeline.auto_stop():
            consume(pipeline)


def grain(step: Step, items: Sequence[int], consume: Consume) -> None:
    import grain

    options = grain.MultiprocessingOptions(num_workers=WORKERS)
    consume(grain.MapDataset.source(items).map(step).to_iter_dataset().mp_prefetch(options))


def pypeln(step: Step, items: Sequence[int], consume: Consume) -> None:
    """It keeps no order."""
    import pypeln

    consume(pypeln.process.map(step, items, workers=WORKERS))


def pypeln_bounded(step: Step, items: Sequence[int], consume: Consume) -> None:
    """With a bounded queue, which an endless source needs."""
    import pypeln

    consume(pypeln.process.map(step, items, workers=WORKERS, maxsize=2 * WORKERS))


@dataclass(frozen=True)
class System:
    """A system under test.

    Attributes:
        title: the head of its column.
        adapter: how it runs a step, as ``module:function``.
        package: what has to be installed for it, or "" for the standard library.
    """

    title: str
    adapter: str
    package: str = ""

    @property
    def version(self) -> str:
        """Of the package; "" where there is none."""
        import importlib.metadata  # it takes long to load

        return importlib.metadata.version(self.package) if self.package else ""

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return not self.package or importlib.util.find_spec(self.package) is not None

    def load(self) -> Adapter:
        """The adapter itself."""
        module, _, function = self.adapter.partition(":")
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


SYSTEMS: dict[str, System] = {
    name: System(title, f"{__name__}:{name}", package)
    for name, title, package in [
        ("qflow", "qflow", "qflow"),
        ("torch", "torch", "torch"),
        ("torch_as_is", "torch, identity collate", "torch"),
        ("nodes", "torchdata.nodes", "torchdata"),
        ("executor", "PPE", ""),
        ("pool", "mp.Pool", ""),
        ("loky", "loky", "loky"),
        ("joblib", "joblib", "joblib"),
        ("mpire", "mpire", "mpire"),
        ("spdl_subprocess", "SPDL sub", "spdl"),
        ("spdl_arena", "SPDL arena", "spdl"),
        ("spdl_pool", "SPDL pool", "spdl"),
        ("grain", "Grain", "grain"),
        ("pypeln", "pypeln", "pypeln"),
        ("pypeln_bounded", "pypeln, maxsize=4", "pypeln"),
    ]
}


def named(name: str) -> System:
    """A system by its name here, or any function by ``module:function``.

    >>> named("torch").title
    'torch'
    >>> named("my_package.bench:run").title
    'my_package.bench:run'

    Raises:
        KeyError: there is no system of that name.
    """
    return System(name, name) if ":" in name else SYSTEMS[name]
