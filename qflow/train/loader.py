"""Loader: a flow with its source as training frameworks expect a loader: epochs, a length, a state.

Flows are values, and a run is one pass over the source. All that changes from pass to pass is here: which epoch is next, and from
where it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, final

from qflow.errors import GraphError, got
from qflow.graph.context import Drawn, drawn_seed
from qflow.graph.flow import Flow, Sourced
from qflow.graph.run import Run
from qflow.graph.sizes import whole

T = TypeVar("T")
KEYS = {"epoch", "seed", "seeded", "run"}


@final
class Loader(Generic[T]):
    """Iterates a flow with its source, epoch after epoch, and goes on in the midst of one.

    >>> import qflow as qf
    >>> loader = qf.train.Loader(qf.source(range(6), shuffle=True) | qf.pack(4), seed=0, engine="serial")
    >>> len(loader), [batch for epoch in range(2) for batch in loader]
    (2, [[3, 5, 0, 2], [4, 1], [5, 2, 3, 0], [4, 1]])

    Each ``iter(loader)`` is a run of the next epoch, with the same warm workers; a run that is not yet over is closed by it. It
    is taken as it is by Lightning's Trainer, by Accelerate, and by the Trainer of transformers: it has ``set_epoch``, also as
    ``loader.sampler.set_epoch``, and the state of torchdata's StatefulDataLoader.

    Args:
        flow: ``source | pipe``.
        length: results of an epoch, where the flow can't know it (a generator, `filter` or `repack` in it). Who fetches a batch
            ahead to find the end of an epoch of unknown length saves a state that is one batch too far.
        params: as those of a run; they may be changed between two epochs: ``loader.params["training"] = False``.
        options: of each run, as ``pipe(...)`` has them, but for ``epoch`` and ``resume``, which are the loader's.
    Attributes:
        epoch: of the next iteration, or of the one at work.
        seed: of all epochs; drawn when not given.
        run: the run at work, if any, with its ``stats()`` and ``failures``.
    Raises:
        GraphError: ``flow`` has no source, or an option is wrong.
    """

    def __init__(
        self,
        flow: Sourced[T],
        *,
        length: int | None = None,
        seed: int | None = None,
        params: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(flow, Sourced):
            hint = f"`qf.train.Loader(source | {flow!r})`" if isinstance(flow, Flow) else "`qf.train.Loader(source | pipe)`"
            raise GraphError(f"A loader takes a flow with its source, but got {got(flow)}. Write {hint}.")
        for word in ("epoch", "resume"):
            if word in options:
                hint = "`loader.set_epoch(3)`, or `loader.load_state_dict(state)`"
                raise GraphError(f"A loader has no option `{word}`: it has its own, {hint}.")
        self.flow, self.params = flow, dict(params or {})
        self.seed = drawn_seed() if seed is None else whole(seed, "seed", "qf.train.Loader(flow, seed=0)")
        self._options = options
        self._length = None if length is None else whole(length, "length", "qf.train.Loader(flow, length=100)")
        self.epoch = 0
        self.run: Run[T] | None = None
        self._state: dict[str, Any] | None = None  # from which the next iteration goes on

    def __iter__(self) -> Iterator[T]:
        self._stop()
        state, self._state = self._state, None
        options = dict(self._options)
        if state is None:
            run = self.flow(seed=self.seed, epoch=self.epoch, params=self.params, **options)
        else:
            run = self.flow(resume=state, params=self.params, **options)
        self.run = run
        return self._results(run)

    def _results(self, run: Run[T]) -> Iterator[T]:
        try:
            yield from run
            if self.run is not run:
                raise GraphError("This iteration was ended by another one, or by `close`, `set_epoch` or `load_state_dict`.")
            self.run = None
            self.epoch += 1
        finally:
            run.close()

    def __len__(self) -> int:
        return len(self.flow) if self._length is None else self._length

    def __bool__(self) -> bool:
        return True

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of this epoch; from a state of it that was loaded it goes on all the same."""
        epoch = whole(epoch, "epoch", "loader.set_epoch(3)")
        if self._state is not None and self._state["epoch"] != epoch:
            self._state = None
        if self.run is None or epoch != self.epoch:
            self._stop()
            self.epoch = epoch

    @property
    def sampler(self) -> Loader[T]:
        """Itself, for frameworks that look there for ``set_epoch``."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Where it is: behind the last batch that was given out, or at the beginning of an epoch; for JSON, too."""
        state = self._state if self.run is None else self.run.state_dict()
        return {"epoch": self.epoch, "seed": int(self.seed), "seeded": not isinstance(self.seed, Drawn), "run": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state with the next iteration.

        Raises:
            GraphError: it is not one that `state_dict` has given; or, with the next iteration, it is of another flow.
        """
        if not isinstance(state, Mapping) or not state.keys() >= KEYS:
            raise GraphError(f"`load_state_dict` takes what `loader.state_dict()` has given, but got {got(state)}.")
        self._stop()
        self.epoch, self._state = state["epoch"], state["run"]
        self.seed = state["seed"] if state["seeded"] else Drawn(state["seed"])

    def close(self) -> None:
        """End the run at work, and the warm workers. The loader can be iterated again."""
        self._stop()
        self.flow.close()

    def __enter__(self) -> Loader[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"qf.train.Loader({self.flow!r}, seed={self.seed})"

    def _stop(self) -> None:
        run, self.run = self.run, None
        if run is not None:
            run.close()
