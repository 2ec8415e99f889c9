"""Dataset: a loader for those who must keep PyTorch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, final

from torch.utils.data import IterableDataset, get_worker_info

from qflow.errors import GraphError, got
from qflow.train.loader import Loader

T = TypeVar("T")


@final
class Results(IterableDataset[T]):
    """The results of a loader; see `dataset`."""

    def __init__(self, loader: Loader[T]) -> None:
        super().__init__()
        self.loader = loader

    def __iter__(self) -> Iterator[T]:
        info = get_worker_info()
        if info is not None:
            raise GraphError(
                f"Each worker of DataLoader (num_workers={info.num_workers}) would run the whole pipe, in the same epoch each "
                "time: batches would come again. Write `DataLoader(dataset, batch_size=None)`: the pipe has workers of its own."
            )
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """As `Loader.set_epoch`."""
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """As `Loader.state_dict`."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Loader.load_state_dict`."""
        self.loader.load_state_dict(state)


def dataset(loader: Loader[T]) -> Results[T]:
    """A loader as an `IterableDataset`, for code that must have a DataLoader.

    >>> import qflow as qf
    >>> from torch.utils.data import DataLoader
    >>> loader = qf.train.Loader(range(4) | qf.pack(2), engine="serial")
    >>> list(DataLoader(qf.train.dataset(loader), batch_size=None))
    [[0, 1], [2, 3]]

    Order, epochs and states are the loader's. With ``batch_size=None`` DataLoader makes no batches of its own, but arrays become
    tensors and tuples lists, unless it has a ``collate_fn``.

    Raises:
        GraphError: when iterated with ``num_workers`` above 0, for each of them would give all of the data, of the same epoch.
    """
    if not isinstance(loader, Loader):
        raise GraphError(f"`qf.train.dataset` takes a loader, but got {got(loader)}. Write `qf.train.Loader(source | pipe)`.")
    return Results(loader)
